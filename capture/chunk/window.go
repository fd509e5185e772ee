package chunk

import "slices"

// Pending holds the transactions that were emitted and that no snapshot is known
// to see yet. One serves a stream for as long as its publisher reigns, whether or
// not a load is under way.
//
// It stays small: what one snapshot sees, every later one sees, so each snapshot
// that is shown to it empties it but for those that are committed and still wait
// (no more than the server has connections and prepared transactions). Show it
// one about every second, for instance that of each heartbeat.
type Pending struct {
	newest Snapshot
	xids   []XID
}

// NewPending makes the Pending of a publisher that begins to reign. What its
// predecessors emitted is not known to it, so all that runs in s is taken for
// emitted; a load then waits for those transactions to end, as the making of a
// slot does.
//
// s must not be taken before a transaction that was begun after the reign began,
// and was given a number, has ended. Otherwise what its predecessors emitted may
// still run at or after Xmax, where a snapshot does not name it.
func NewPending(s Snapshot) *Pending {
	return &Pending{newest: s, xids: slices.Clone(s.Running)}
}

// Emitted notes that a transaction is about to be emitted and returns its number
// with its epoch.
func (p *Pending) Emitted(xid uint32) XID {
	x := Widen(xid, p.newest.Xmax)
	if !p.newest.Sees(x) {
		p.xids = append(p.xids, x)
	}
	return x
}

// Show forgets what s sees. s must be of the server whose changes are emitted,
// and may be older than one that was shown before.
func (p *Pending) Show(s Snapshot) {
	if s.Xmax >= p.newest.Xmax {
		p.newest = s
	}
	p.xids = slices.DeleteFunc(p.xids, s.Sees)
}

// Len returns how many transactions are held, 8 bytes each.
func (p *Pending) Len() int { return len(p.xids) }

// Open opens a window at the place where the stream stands. limit bounds the
// bytes of the keys that it notes.
func (p *Pending) Open(limit int) *Window {
	return &Window{before: slices.Clone(p.xids), changed: make(map[string]XID), limit: limit}
}

// Window is the part of the stream from a place on, as far as one table is
// concerned, until a chunk of that table is emitted in it.
type Window struct {
	before []XID // emitted before the window opened, perhaps not visible yet
	// changed holds for each key the last transaction that changed it. Those
	// before it are seen by every snapshot that sees the last: a transaction
	// waits for the row, or the key in the index, until the one before it is
	// visible.
	changed   map[string]XID
	truncated XID // last transaction that truncated the table; 0 for none
	size      int
	limit     int
	overflown bool
	snapshot  Snapshot
	judged    bool
	pass      uint64 // of the load that it was opened for
}

// entryCost is about what a key takes in a map beside its own bytes.
const entryCost = 64

// Note notes that an emitted transaction changed a key: put it, deleted it, or
// moved a row away from it. The key is copied.
func (w *Window) Note(x XID, key []byte) {
	if w.overflown {
		return
	}
	if _, ok := w.changed[string(key)]; !ok {
		if w.size += len(key) + entryCost; w.size > w.limit {
			w.overflown, w.changed = true, nil
			return
		}
	}
	w.changed[string(key)] = x
}

// NoteAll notes that an emitted transaction changed all keys: it truncated the
// table.
func (w *Window) NoteAll(x XID) { w.truncated = x }

// Overflown reports whether more keys changed than the window can hold. The
// chunk is then read again in a new window.
func (w *Window) Overflown() bool { return w.overflown }

// Accept reports whether rows may be read in s: whether it sees all that was
// emitted before the window opened. If not, s is given back and another is taken
// a little later, in the same window: a new one would have newer commits to wait
// for, and might wait for ever.
func (w *Window) Accept(s Snapshot) bool {
	w.before = slices.DeleteFunc(w.before, s.Sees)
	if len(w.before) > 0 {
		return false
	}
	w.snapshot, w.judged = s, true
	return true
}

// Unseen calls fn with every key that an emitted transaction changed which the
// accepted snapshot does not see, in no order; it returns false if that may be
// any key: the table was truncated. It is called when LeavesOut may be.
func (w *Window) Unseen(fn func(key []byte)) bool {
	if !w.judged || w.overflown {
		panic("chunk: keys of a window that was not accepted")
	}
	if w.truncated != 0 && !w.snapshot.Sees(w.truncated) {
		return false
	}
	for key, x := range w.changed {
		if !w.snapshot.Sees(x) {
			fn([]byte(key))
		}
	}
	return true
}

// LeavesOut reports whether a row that was read in the accepted snapshot is left
// out, because an emitted transaction that the snapshot does not see changed its
// key. It is asked when the stream has passed a message that was written to the
// WAL after the snapshot was taken, and the rows are emitted there, before
// anything else is.
func (w *Window) LeavesOut(key []byte) bool {
	if !w.judged || w.overflown {
		panic("chunk: rows of a window that was not accepted")
	}
	if w.truncated != 0 && !w.snapshot.Sees(w.truncated) {
		return true
	}
	x, ok := w.changed[string(key)]
	return ok && !w.snapshot.Sees(x)
}
