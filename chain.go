package millrace

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"sync"

	"github.com/zeebo/blake3"
)

// Chain names the whole history of a stream up to the end of a unit. Two
// readers with the same Chain at the same Index have read the same units.
//
// It advances at the end of each unit: h = BLAKE3(h before ‖ U), where U =
// BLAKE3 over the unit's tables in the order in which the unit first touches
// them, each as its table ID (four bytes, big-endian) and the BLAKE3 of its
// entries as they stand in the payload. Because tables are hashed apart, a
// relay that leaves a table out can send that table's hash in its place.
type Chain [32]byte

const chainSeed = "millrace/1"

// NewChain returns the chain value before the first unit of an epoch.
func NewChain(id StreamID, epoch Epoch) Chain {
	b := make([]byte, 0, len(chainSeed)+len(id)+8)
	b = append(b, chainSeed...)
	b = append(b, id[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(epoch))
	return blake3.Sum256(b)
}

// ParseChain reads 64 hexadecimal digits.
func ParseChain(s string) (Chain, error) {
	var c Chain
	if err := parseID(s, c[:]); err != nil {
		return Chain{}, fmt.Errorf("parse chain: %w", err)
	}
	return c, nil
}

// String returns 64 hexadecimal digits.
func (c Chain) String() string { return hex.EncodeToString(c[:]) }

// Short returns the first 12 hexadecimal digits, for people.
func (c Chain) Short() string { return hex.EncodeToString(c[:6]) }

// IsZero reports whether c is the zero value, which is no chain of any stream.
func (c Chain) IsZero() bool { return c == Chain{} }

// UnitHash computes the U of one unit. The zero value is ready for a new unit.
// It is not safe for concurrent use.
type UnitHash struct {
	tables []tableHash
	// places are those of tables, by ID; nil while they are few.
	places map[TableID]int
	buf    []byte
}

// fewTables is up to how many tables of a unit are looked for one by one.
const fewTables = 16

type tableHash struct {
	id TableID
	// run is the only run of the table so far, aliasing the caller's bytes. It
	// moves into hasher when a second run comes or at Absorb.
	run    []byte
	hasher *blake3.Hasher
	// mid takes the hasher's place where the hash goes on from one that was made
	// elsewhere, given that of entries that are not here: nothing can be added.
	mid   *midstate
	given *[32]byte
}

var hashers = sync.Pool{New: func() any { return blake3.New() }}

// Add hashes run, one or more consecutive entries of table in payload form
// (tag, length and message of each). The bytes must stay unchanged until
// Absorb, Chain or Reset has been called.
func (u *UnitHash) Add(table TableID, run []byte) {
	t := u.table(table)
	if t.hasher == nil && t.mid == nil && t.run == nil {
		t.run = run
		return
	}
	t.absorb()
	if t.mid != nil {
		t.mid.write(run)
		return
	}
	_, _ = t.hasher.Write(run)
}

// Absorb takes in everything that was added, so that the caller may reuse the
// bytes it gave to Add. It is called at the end of a batch whose unit goes on.
func (u *UnitHash) Absorb() {
	for i := range u.tables {
		if u.tables[i].run != nil {
			u.tables[i].absorb()
		}
	}
}

// Chain returns the chain value after a unit that consists of what was added so
// far and follows prev. It may be called while the unit still grows.
func (u *UnitHash) Chain(prev Chain) Chain {
	u.buf = u.buf[:0]
	for i := range u.tables {
		u.buf = u.tables[i].id.appendTo(u.buf)
		u.buf = u.tables[i].appendSum(u.buf)
	}
	unit := blake3.Sum256(u.buf)
	var b [64]byte
	copy(b[:32], prev[:])
	copy(b[32:], unit[:])
	return blake3.Sum256(b[:])
}

// Reset forgets the unit and makes u ready for a new one.
func (u *UnitHash) Reset() {
	for i := range u.tables {
		if h := u.tables[i].hasher; h != nil {
			h.Reset()
			hashers.Put(h)
		}
		u.tables[i] = tableHash{}
	}
	u.tables, u.places = u.tables[:0], nil
}

// table returns the state of one table, in the order of first touch. Units
// touch few tables; the last one touched is by far the most likely.
func (u *UnitHash) table(id TableID) *tableHash {
	if i := u.find(id); i >= 0 {
		return &u.tables[i]
	}
	u.tables = append(u.tables, tableHash{id: id})
	last := len(u.tables) - 1
	if u.places != nil {
		u.places[id] = last
	}
	return &u.tables[last]
}

// find returns the place of a table, or −1.
func (u *UnitHash) find(id TableID) int {
	for i := len(u.tables) - 1; i >= max(0, len(u.tables)-fewTables); i-- {
		if u.tables[i].id == id {
			return i
		}
	}
	if len(u.tables) <= fewTables {
		return -1
	}
	if u.places == nil {
		u.places = make(map[TableID]int, 2*len(u.tables))
		for i := range u.tables {
			u.places[u.tables[i].id] = i
		}
	}
	if i, ok := u.places[id]; ok {
		return i
	}
	return -1
}

// give sets the hash of all entries of a table so far, which are not here.
func (u *UnitHash) give(table TableID, hash [32]byte) {
	t := u.table(table)
	t.release()
	t.given = &hash
}

// resume goes on with the hash of a table whose entries so far are not here. It
// reports whether their hash is the one that was given.
func (u *UnitHash) resume(table TableID, from *midstate) bool {
	t := u.table(table)
	if t.given == nil || *t.given != from.sum() {
		return false
	}
	t.given, t.mid = nil, from
	return true
}

// given reports whether further entries of a table need resume first.
func (u *UnitHash) given(table TableID) bool {
	i := u.find(table)
	return i >= 0 && u.tables[i].given != nil
}

// lacks reports whether further entries of any table do.
func (u *UnitHash) lacks() bool {
	for i := range u.tables {
		if u.tables[i].given != nil {
			return true
		}
	}
	return false
}

func (t *tableHash) appendSum(dst []byte) []byte {
	switch {
	case t.hasher != nil:
		return t.hasher.Sum(dst)
	case t.mid != nil:
		t.absorb()
		sum := t.mid.sum()
		return append(dst, sum[:]...)
	case t.given != nil:
		return append(dst, t.given[:]...)
	}
	sum := blake3.Sum256(t.run)
	return append(dst, sum[:]...)
}

// release gives the table's hasher back and forgets what was added.
func (t *tableHash) release() {
	if t.hasher != nil {
		t.hasher.Reset()
		hashers.Put(t.hasher)
	}
	t.hasher, t.mid, t.run = nil, nil, nil
}

func (t *tableHash) absorb() {
	if t.mid != nil {
		t.mid.write(t.run)
		t.run = nil
		return
	}
	if t.hasher == nil {
		t.hasher = hashers.Get().(*blake3.Hasher)
	}
	if t.run != nil {
		_, _ = t.hasher.Write(t.run)
		t.run = nil
	}
}
