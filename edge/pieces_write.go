package edge

import (
	"encoding/binary"
	"fmt"

	"github.com/bmatsuo/lmdb-go/lmdb"
)

// held is what the transaction has under a row's key before it is written.
type held struct {
	// id and pieces are those of a value in pieces; pieces is 0 for any other.
	id     uint64
	pieces int
}

// held looks for a value in pieces under a key. A generation that never had one
// is not looked into.
func (w *Writer) held(c *changes, stored []byte) (h held, err error) {
	if !c.g.split {
		return h, nil
	}
	value, err := w.txn.Get(c.g.dbi, stored)
	if lmdb.IsNotFound(err) {
		return h, nil
	}
	if err != nil {
		return h, w.s.fail("read row of "+c.t.name(), err)
	}
	return heldBy(value)
}

// heldBy reads which pieces a value has, whatever its CRC says.
func heldBy(value []byte) (h held, err error) {
	if len(value) <= crcSize || !isStub(value[crcSize:]) {
		return h, nil
	}
	var p stub
	if err := p.decode(value[crcSize:]); err != nil {
		return h, err
	}
	return held{id: p.id, pieces: p.pieces}, nil
}

// putRow writes a row in the place of what is held there.
func (w *Writer) putRow(c *changes, cur *lmdb.Cursor, ch *change, row []byte, old held) error {
	fail := func(err error) error { return w.s.fail("write row of "+c.t.name(), err) }
	size := valueSize(ch.stored, ch.key, row)
	if len(ch.stored)+size > w.s.sizes.item {
		return w.putPieces(c, cur, ch, row, size-crcSize, old)
	}
	if err := w.deletePieces(old, 0); err != nil {
		return err
	}
	dst, err := cur.PutReserve(ch.stored, size, 0)
	if err != nil {
		return fail(err)
	}
	fillValue(dst, c.t.seed, ch.stored, ch.key, row)
	return nil
}

// putPieces writes a row whose content has the given size in pieces.
func (w *Writer) putPieces(c *changes, cur *lmdb.Cursor, ch *change, row []byte, size int, old held) error {
	fail := func(err error) error { return w.s.fail("write row of "+c.t.name(), err) }
	if err := w.noteSplit(c.g); err != nil {
		return err
	}
	content := append(w.content[:0], make([]byte, size)...)
	w.content = content
	fillContent(content, ch.stored, ch.key, row)
	pieces, rest := w.s.sizes.cut(ch.stored, size)
	id := old.id
	if old.pieces == 0 {
		var err error
		if id, err = w.newValueID(); err != nil {
			return err
		}
	}
	p := stub{id: id, pieces: pieces, size: size, crc: contentCRC(id, content), rest: content[size-rest:]}
	left := content[:size-rest]
	var key [pieceKeySize]byte
	for n := range pieces {
		m := min(len(left), w.s.sizes.piece)
		if err := w.txn.Put(w.cat.pieces, appendPieceKey(key[:0], id, n), left[:m], 0); err != nil {
			return fail(err)
		}
		left = left[m:]
	}
	if err := w.deletePieces(old, pieces); err != nil {
		return err
	}
	value := p.append(append(w.buf[:0], 0, 0, 0, 0))
	w.buf = value
	sealValue(value, c.t.seed, ch.stored)
	return fail(cur.Put(ch.stored, value, 0))
}

// deletePieces removes the pieces of a value from the given one on.
func (w *Writer) deletePieces(old held, from int) error {
	var key [pieceKeySize]byte
	for n := from; n < old.pieces; n++ {
		if err := w.txn.Del(w.cat.pieces, appendPieceKey(key[:0], old.id, n), nil); err != nil && !lmdb.IsNotFound(err) {
			return w.s.fail(fmt.Sprintf("delete piece %d of value %d", n+1, old.id), err)
		}
	}
	return nil
}

// noteSplit notes that a generation has values in pieces.
func (w *Writer) noteSplit(g *generation) error {
	if w.cat.generations[g.name].split {
		return nil
	}
	g = w.catalog().generations[g.name]
	g.split = true
	return w.writeGeneration(g)
}

// newValueID returns an ID that no value in pieces has.
func (w *Writer) newValueID() (uint64, error) {
	if w.lastValue == 0 {
		cur, err := w.txn.OpenCursor(w.cat.pieces)
		if err != nil {
			return 0, w.s.fail("find last piece", err)
		}
		defer cur.Close()
		key, _, err := cur.Get(nil, nil, lmdb.Last)
		switch {
		case lmdb.IsNotFound(err):
		case err != nil:
			return 0, w.s.fail("find last piece", err)
		case len(key) != pieceKeySize:
			return 0, w.s.corrupt("database %s holds key %x", piecesName, key)
		default:
			w.lastValue = binary.BigEndian.Uint64(key)
		}
	}
	w.lastValue++
	return w.lastValue, nil
}
