package chunk

import (
	"slices"

	"github.com/millrace-db/millrace"
)

const (
	modelKeys   = 6
	modelBlocks = 4
)

// change is a decoded change in the WAL.
type change struct {
	kind      millrace.Kind
	key, from int
	a, c      int
	unchanged bool // of c
	moved     bool // the Delete of a key update
}

// transaction is one of the source. It is done when its commit is in the WAL, and
// ended when snapshots see that; what it locked is free only then.
type transaction struct {
	xid     XID
	changes []change
	keys    map[int]bool // locked
	done    bool
	old     []*tuple // the heap before it truncated
	oldFile int
}

// tuple is a version of a row in the heap.
type tuple struct {
	block, key, a, c int
	from             XID // 0: frozen
	until            XID // 0: nobody ended it
}

// source is a Postgres with one table.
type source struct {
	draw    func(int) int
	next    XID
	highest XID            // that ended
	running []*transaction // ascending by xid
	aborted map[XID]bool
	wal     []*transaction
	heap    []*tuple
	file    int
	// readers hold ACCESS SHARE; exclusive holds ACCESS EXCLUSIVE.
	readers   int
	exclusive *transaction
	values    int
}

func newSource(draw func(int) int) *source {
	// Close to where the 32 bits of a number begin anew.
	s := &source{draw: draw, next: 5<<32 - XID(draw(30)), aborted: make(map[XID]bool), file: 1}
	s.highest = s.next - 1
	for k := range modelKeys {
		if draw(2) == 0 {
			s.heap = append(s.heap, &tuple{block: draw(modelBlocks), key: k, a: s.value(), c: s.value()})
		}
	}
	return s
}

func (s *source) value() int { s.values++; return s.values }

func (s *source) begin() *transaction {
	t := &transaction{xid: s.next, keys: make(map[int]bool)}
	s.next++
	s.running = append(s.running, t)
	return t
}

func (s *source) end(t *transaction) {
	s.running = slices.DeleteFunc(s.running, func(o *transaction) bool { return o == t })
	s.highest = max(s.highest, t.xid)
	if s.exclusive == t {
		s.exclusive = nil
	}
}

// bump lets a transaction that changes nothing begin and end.
func (s *source) bump() { s.end(s.begin()) }

func (s *source) snapshot() Snapshot {
	p := Snapshot{Xmin: s.highest + 1, Xmax: s.highest + 1}
	for _, t := range s.running {
		if t.xid < p.Xmax {
			p.Xmin = min(p.Xmin, t.xid)
			p.Running = append(p.Running, t.xid)
		}
	}
	// What the server prints is what counts.
	parsed, err := ParseSnapshot(p.String())
	if err != nil {
		panic(err)
	}
	return parsed
}

// visible says what a snapshot shows of the heap.
func (s *source) visible(p Snapshot, t *tuple) bool {
	did := func(x XID) bool { return p.Sees(x) && !s.aborted[x] }
	return (t.from == 0 || did(t.from)) && (t.until == 0 || !did(t.until))
}

// blocks is the heap's length.
func (s *source) blocks() int {
	n := 0
	for _, t := range s.heap {
		n = max(n, t.block+1)
	}
	return n
}

func (s *source) read(p Snapshot, c Chunk, limit int) map[int]row {
	rows := make(map[int]row)
	for _, t := range s.heap {
		if !s.visible(p, t) {
			continue
		}
		if len(c.Keys) > 0 {
			if slices.ContainsFunc(c.Keys, func(k []byte) bool { return int(k[0]) == t.key }) {
				rows[t.key] = row{t.a, t.c}
			}
			continue
		}
		if t.block >= int(c.From) && (c.To == 0 || t.block < int(c.To)) && t.block < limit {
			rows[t.key] = row{t.a, t.c}
		}
	}
	return rows
}

// rows is what the table has when nothing runs.
func (s *source) rows() map[int]row { return s.read(s.snapshot(), Chunk{}, 1<<30) }

// current finds the version of a key that t sees, if its lock is to be had.
func (s *source) current(t *transaction, k int) (v *tuple, free bool) {
	for _, o := range s.running {
		if o != t && o.keys[k] {
			return nil, false
		}
	}
	t.keys[k] = true
	for _, v := range s.heap {
		if v.key == k && v.until != 0 && !s.aborted[v.until] {
			continue
		}
		if v.key == k && !s.aborted[v.from] {
			return v, true
		}
	}
	return nil, true
}

func (s *source) insert(t *transaction, k, a, c int) {
	s.heap = append(s.heap, &tuple{block: s.draw(modelBlocks), key: k, a: a, c: c, from: t.xid})
}

// step does one thing at the source.
func (s *source) step() {
	n := s.draw(20)
	if len(s.running) == 0 || n == 0 && len(s.running) < 4 {
		t := s.begin()
		if s.draw(12) == 0 {
			s.truncate(t)
		}
		return
	}
	t := s.running[s.draw(len(s.running))]
	switch {
	case n == 1:
		s.rewrite()
	case t.done:
		if n < 8 {
			s.end(t)
		}
	case n < 7:
		s.commit(t)
	case n == 7:
		s.abort(t)
	case s.exclusive == nil || s.exclusive == t:
		s.change(t)
	}
}

func (s *source) commit(t *transaction) {
	if len(t.changes) == 0 {
		s.end(t)
		return
	}
	t.done = true
	s.wal = append(s.wal, t)
	if s.draw(3) > 0 {
		s.end(t)
	}
}

func (s *source) abort(t *transaction) {
	s.aborted[t.xid] = true
	if t.old != nil {
		s.heap, s.file = t.old, t.oldFile
	}
	s.end(t)
}

func (s *source) change(t *transaction) {
	k := s.draw(modelKeys)
	v, free := s.current(t, k)
	if !free {
		return
	}
	put := change{kind: millrace.KindPut, key: k, from: k, a: s.value()}
	switch n := s.draw(8); {
	case v == nil:
		put.c = s.value()
	case n == 0:
		v.until = t.xid
		t.changes = append(t.changes, change{kind: millrace.KindDelete, key: k})
		return
	case n <= 2: // key update
		to := s.draw(modelKeys)
		w, free := s.current(t, to)
		if !free || w != nil {
			return
		}
		put.key = to
		s.keep(&put, v)
		t.changes = append(t.changes, put, change{kind: millrace.KindDelete, key: k, moved: true})
		s.replace(t, v, put)
		return
	default:
		s.keep(&put, v)
	}
	t.changes = append(t.changes, put)
	s.replace(t, v, put)
}

// keep leaves the toasted column as it is, mostly.
func (s *source) keep(put *change, v *tuple) {
	if s.draw(3) > 0 {
		put.c, put.unchanged = v.c, true
	} else {
		put.c = s.value()
	}
}

func (s *source) replace(t *transaction, v *tuple, put change) {
	if v != nil {
		v.until = t.xid
	}
	s.insert(t, put.key, put.a, put.c)
}

// idle reports whether a lock against everybody is to be had: nobody but t holds
// one.
func (s *source) idle(t *transaction) bool {
	return s.readers == 0 && s.exclusive == nil &&
		!slices.ContainsFunc(s.running, func(o *transaction) bool { return o != t && (len(o.keys) > 0 || len(o.changes) > 0) })
}

// truncate gives the table a new, empty file, and perhaps some frozen rows, as
// COPY FREEZE does.
func (s *source) truncate(t *transaction) {
	if !s.idle(t) {
		return
	}
	s.exclusive = t
	t.old, t.oldFile = append([]*tuple{}, s.heap...), s.file
	s.heap = nil
	s.file = s.files()
	t.changes = append(t.changes, change{kind: millrace.KindTruncate})
	for k := range modelKeys {
		if s.draw(4) == 0 {
			v := &tuple{block: s.draw(modelBlocks), key: k, a: s.value(), c: s.value()}
			s.heap = append(s.heap, v)
			t.changes = append(t.changes, change{kind: millrace.KindPut, key: k, from: k, a: v.a, c: v.c})
		}
	}
}

// files gives out a number that no file had.
func (s *source) files() int { return s.value() + 1<<20 }

// rewrite is a rewriting ALTER, or VACUUM FULL: the same rows elsewhere in a new
// file, to some of them with the rewriting transaction as their only origin.
func (s *source) rewrite() {
	if !s.idle(nil) {
		return
	}
	t := s.begin()
	p := s.snapshot()
	full := s.draw(2) == 0
	var heap []*tuple
	for _, v := range s.heap {
		if !s.visible(p, v) {
			continue
		}
		w := *v
		w.block = s.draw(modelBlocks)
		w.until = 0
		if !full {
			w.from = t.xid
		}
		heap = append(heap, &w)
	}
	s.heap, s.file = heap, s.files()
	s.end(t)
}

// settle ends all that runs.
func (s *source) settle() {
	for len(s.running) > 0 {
		t := s.running[0]
		switch {
		case t.done:
			s.end(t)
		case len(t.changes) > 0:
			s.commit(t)
		default:
			s.abort(t)
		}
	}
}
