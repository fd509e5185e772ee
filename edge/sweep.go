package edge

import (
	"bytes"
	"cmp"

	"github.com/bmatsuo/lmdb-go/lmdb"
)

// sweepRows is how many rows, and pieces of rows, a sweep removes: a few
// milliseconds of work.
const sweepRows = 4096

// sweep removes a slice of a generation that is gone.
func (w *Writer) sweep(g *generation) error {
	if err := w.Begin(); err != nil {
		return err
	}
	h := *w.s.place.Load()
	if err := w.sweepSlice(g, &h); err != nil {
		w.Abort()
		return err
	}
	return nil
}

func (w *Writer) sweepSlice(g *generation, h *head) error {
	room, err := w.sweepNotes(g, cmp.Or(w.s.opts.slice, sweepRows))
	if err != nil {
		return err
	}
	if room, err = w.sweepGeneration(g, room); err != nil {
		return err
	}
	if room > 0 { // nothing is left
		g = w.catalog().generations[g.name]
		g.usage, g.missing = free, 0
		if err := w.writeGeneration(g); err != nil {
			return err
		}
		h.catalog = w.cat.number
		if err := w.s.writeHead(w.txn, h); err != nil {
			return err
		}
	}
	return w.finish(h)
}

// sweepGeneration removes rows with their pieces, and returns what is left of
// room: nothing if there may be more of them.
func (w *Writer) sweepGeneration(g *generation, room int) (int, error) {
	cur, err := w.txn.OpenCursor(g.dbi)
	if err != nil {
		return 0, w.s.fail("sweep database "+g.name, err)
	}
	defer cur.Close()
	rows := 0
	defer func() { w.s.metrics.swept.Add(float64(rows)) }()
	for room > 0 {
		_, value, err := cur.Get(nil, nil, lmdb.Next)
		if lmdb.IsNotFound(err) {
			return room, nil
		}
		var old held
		if err == nil && g.split {
			old, err = heldBy(value)
		}
		if err == nil {
			err = cur.Del(0)
		}
		if err == nil {
			err = w.deletePieces(old, 0)
		}
		if err != nil {
			return 0, w.s.fail("sweep database "+g.name, err)
		}
		rows++
		room -= 1 + old.pieces
	}
	return 0, nil
}

// sweepNotes removes notes of the rows of a shadow that lacked columns, and
// returns what is left of room. Where none is left, missing is written: it counts
// those that are still to go.
func (w *Writer) sweepNotes(g *generation, room int) (int, error) {
	if g.missing == 0 {
		return room, nil
	}
	prefix := missingPrefix(g.name)
	cur, err := w.txn.OpenCursor(w.s.meta)
	if err != nil {
		return 0, w.s.fail("forget rows that lack columns", err)
	}
	defer cur.Close()
	left := g.missing
	for k, _, err := cur.Get(prefix, nil, lmdb.SetRange); room > 0; k, _, err = cur.Get(nil, nil, lmdb.Next) {
		if lmdb.IsNotFound(err) || err == nil && !bytes.HasPrefix(k, prefix) {
			left = 0
			break
		}
		if err == nil {
			err = cur.Del(0)
		}
		if err != nil {
			return 0, w.s.fail("forget rows that lack columns", err)
		}
		left--
		room--
	}
	g = w.catalog().generations[g.name]
	g.missing = left
	return room, w.writeGeneration(g)
}
