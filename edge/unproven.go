package edge

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/bmatsuo/lmdb-go/lmdb"

	"github.com/millrace-db/millrace"
)

// The rows of an image are those that its manifest was written for, and a signed
// header proves the history that they should be the outcome of; that they are is seen
// when they are compared with the source. Until then the store says so. A table is
// proven when all of its keys were found equal within one pass of verification, or
// when none of the image's rows are left: after a load that began later, a TRUNCATE,
// or a drop. Keys that a pass leaves out have changed since, so their rows came with
// the stream.

// Unproven says which rows came with an image and have not been compared with the
// source since.
type Unproven struct {
	// Image is the index of the image; 0 if all rows are proven, or came with the
	// stream.
	Image millrace.Index
	// Tables are those that such rows are in.
	Tables []millrace.TableID
}

// unproven is what a store keeps of it. The verifier's lock guards it.
type unproven struct {
	image  millrace.Index
	tables []unprovenTable
	// stored is how many tables are in the record.
	stored int
}

type unprovenTable struct {
	id millrace.TableID
	// load is that under way in the image, whose end proves nothing; 0 if none was.
	load millrace.LoadID
	// How far the pass with the ID has come: all keys before next were equal, or so
	// many buckets were.
	pass    uint64
	begun   bool
	next    []byte
	buckets map[uint32]bool
}

// unprovenRecord is the record of meta in JSON.
type unprovenRecord struct {
	Format int             `json:"v"`
	Image  millrace.Index  `json:"image"`
	Tables []unprovenEntry `json:"tables"`
}

type unprovenEntry struct {
	ID   millrace.TableID `json:"id"`
	Load millrace.LoadID  `json:"load,omitempty"`
}

const unprovenFormat = 1

// unprovenOf is what has to be proven of contents that a store is made from.
func unprovenOf(c *Contents) *unproven {
	u := &unproven{image: c.Checkpoint.Index}
	for i, set := range c.Sets {
		if c.places[i] == nil {
			continue
		}
		if n := len(u.tables); n == 0 || u.tables[n-1].id != set.Table {
			u.tables = append(u.tables, unprovenTable{id: set.Table})
		}
		if set.Load != 0 {
			u.tables[len(u.tables)-1].load = set.Load
		}
	}
	return u
}

func (s *Store) writeUnproven(txn *lmdb.Txn, u *unproven) error {
	if len(u.tables) == 0 {
		if err := txn.Del(s.meta, keyUnproven, nil); err != nil && !lmdb.IsNotFound(err) {
			return s.fail("remove record of rows that are not proven", err)
		}
		return nil
	}
	r := unprovenRecord{Format: unprovenFormat, Image: u.image}
	for i := range u.tables {
		r.Tables = append(r.Tables, unprovenEntry{u.tables[i].id, u.tables[i].load})
	}
	b, err := json.Marshal(&r)
	if err != nil {
		return fmt.Errorf("write record of rows that are not proven: %w", err)
	}
	return s.fail("write record of rows that are not proven", txn.Put(s.meta, keyUnproven, seal(keyUnproven, b), 0))
}

// readUnproven reads the record as txn sees it, nil if there is none.
func (s *Store) readUnproven(txn *lmdb.Txn) (*unproven, error) {
	sealed, err := txn.Get(s.meta, keyUnproven)
	if lmdb.IsNotFound(err) {
		return nil, nil //nolint:nilnil // all rows are proven
	}
	if err != nil {
		return nil, s.fail("read record of rows that are not proven", err)
	}
	b, err := unseal(keyUnproven, sealed)
	if err != nil {
		return nil, s.corrupt("%v", err)
	}
	var r unprovenRecord
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, s.corrupt("record of rows that are not proven: %v", err)
	}
	if r.Format != unprovenFormat {
		return nil, s.corrupt("record of rows that are not proven has format %d, this process reads %d", r.Format, unprovenFormat)
	}
	u := &unproven{image: r.Image, stored: len(r.Tables)}
	for _, t := range r.Tables {
		u.tables = append(u.tables, unprovenTable{id: t.ID, load: t.Load})
	}
	return u, nil
}

func (u *unproven) dirty() bool { return u != nil && len(u.tables) != u.stored }

// storedAs notes that a record of so many tables was committed; -1 for none.
func (u *unproven) storedAs(tables int) {
	if tables >= 0 {
		u.stored = tables
	}
}

// Unproven returns what came with an image and is not proven yet. A store that was
// opened with ReadOnly knows what was stored when it was opened.
func (s *Store) Unproven() (u Unproven) {
	v := s.verifier
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.unproven == nil || len(v.unproven.tables) == 0 {
		return u
	}
	u.Image = v.unproven.image
	for i := range v.unproven.tables {
		u.Tables = append(u.Tables, v.unproven.tables[i].id)
	}
	return u
}

// Unproven is that of the store that readers use.
func (h *Home) Unproven() Unproven { return h.Store().Unproven() }

// brought reports whether a load was under way in the image that the store was made
// from.
func (v *verifier) brought(id millrace.TableID, load millrace.LoadID) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.unproven != nil && slices.ContainsFunc(v.unproven.tables, func(t unprovenTable) bool { return t.id == id && t.load == load })
}

// renew tells that no row of the image is left in some tables.
func (v *verifier) renew(ids []millrace.TableID) {
	if len(ids) == 0 {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, id := range ids {
		v.proven(id)
	}
}

// proven takes a table off the list.
func (v *verifier) proven(id millrace.TableID) {
	u := v.unproven
	if u == nil {
		return
	}
	left := len(u.tables)
	u.tables = slices.DeleteFunc(u.tables, func(t unprovenTable) bool { return t.id == id })
	if len(u.tables) == left {
		return
	}
	v.news.Add(1)
	if len(u.tables) == 0 {
		v.s.log.Info("all rows that came with the image are proven or gone", "image", u.image)
	}
}

// prove takes notice of a range that was found equal. Within a pass ranges come in
// the order of their keys, each beginning where the one before ended.
func (v *verifier) prove(id millrace.TableID, r *millrace.VerifyRange) {
	if v.unproven == nil {
		return
	}
	i := slices.IndexFunc(v.unproven.tables, func(t unprovenTable) bool { return t.id == id })
	if i >= 0 && v.unproven.tables[i].take(r) {
		v.proven(id)
	}
}

// take notes an equal range, and reports whether that was the last one that its pass
// needed.
func (t *unprovenTable) take(r *millrace.VerifyRange) (whole bool) {
	if !t.begun || t.pass != r.ID {
		t.pass, t.begun, t.next, t.buckets = r.ID, true, nil, nil
		if r.Buckets == 0 && len(r.Low) > 0 {
			t.begun = false // the beginning of the pass was not compared here
			return false
		}
	}
	switch {
	case r.Buckets == 0 && bytes.Equal(r.Low, t.next):
		t.next = bytes.Clone(r.High)
		return len(r.High) == 0
	case r.Buckets == 0:
		t.begun = false // one before it is missing
	case len(r.Low) == 0 && len(r.High) == 0 && r.Buckets <= maxBucketsNoted:
		if t.buckets == nil {
			t.buckets = make(map[uint32]bool)
		}
		t.buckets[r.Bucket] = true
		return len(t.buckets) == int(r.Buckets)
	}
	return false
}
