package serve

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/zeebo/xxh3"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
)

// cursorBinding is what a cursor is good for.
type cursorBinding struct {
	stream millrace.StreamID
	table  millrace.TableID
	prefix []byte
	// rows is a hash that names the rows as a whole: another epoch's, those that a
	// load or a truncation put in place, and those under another key have another.
	rows uint64
}

// setRows sets rows to what names those of a table.
func (b *cursorBinding) setRows(epoch millrace.Epoch, t *edge.Table) {
	h := xxh3.New()
	// Writes to a hash do not fail.
	_, _ = h.Write(binary.BigEndian.AppendUint64(nil, uint64(epoch)))
	_, _ = h.WriteString(t.Generation())
	schema := t.Schema()
	for _, i := range schema.KeyColumns() {
		_, _ = h.Write(binary.BigEndian.AppendUint32([]byte{0}, schema.Columns[i].Type))
		_, _ = h.WriteString(schema.Columns[i].Name)
	}
	b.rows = h.Sum64()
}

// A cursor is a version byte, eight bytes of a hash over what it is bound to, what
// names the rows, and the key behind which to go on; then these two; in base64 for
// URLs. Nothing of it is kept here, so it is good for every process that has the rows.
const (
	cursorVersion = 2
	cursorHead    = 1 + 8 + 8
)

// errOtherRows occurs when a cursor was good for rows that are gone as a whole.
var errOtherRows = errors.New("the rows that the cursor went through were replaced: by a load, a truncation, another key or a new epoch")

func (b cursorBinding) hash(rows uint64, key []byte) uint64 {
	h := xxh3.New()
	// Writes to a hash do not fail.
	_, _ = h.Write(b.stream[:])
	_, _ = h.Write(binary.BigEndian.AppendUint32(nil, uint32(b.table)))
	_, _ = h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b.prefix))))
	_, _ = h.Write(b.prefix)
	_, _ = h.Write(binary.BigEndian.AppendUint64(nil, rows))
	_, _ = h.Write(key)
	return h.Sum64()
}

func (b cursorBinding) append(dst, key []byte) []byte {
	raw := binary.BigEndian.AppendUint64([]byte{cursorVersion}, b.hash(b.rows, key))
	raw = binary.BigEndian.AppendUint64(raw, b.rows)
	return base64.RawURLEncoding.AppendEncode(dst, append(raw, key...))
}

func (b cursorBinding) parse(cursor string) ([]byte, error) {
	raw, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil || len(raw) <= cursorHead || raw[0] != cursorVersion {
		return nil, fmt.Errorf("%.40q is not a cursor", cursor)
	}
	key, rows := raw[cursorHead:], binary.BigEndian.Uint64(raw[9:])
	if binary.BigEndian.Uint64(raw[1:]) != b.hash(rows, key) {
		return nil, errors.New("the cursor is of another table or prefix")
	}
	if rows != b.rows {
		return nil, errOtherRows
	}
	return key, nil
}
