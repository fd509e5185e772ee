package chunk

import (
	"math"
	"slices"

	"github.com/millrace-db/millrace"
)

// Leaf is one heap of a table: the table itself, or a partition without
// partitions of its own.
type Leaf struct {
	ID millrace.TableID
	// File is its relfilenode. Another one means that rows have moved without
	// having been changed: VACUUM FULL, CLUSTER, a rewriting ALTER, TRUNCATE.
	File uint32
}

// Chunk is what to read next.
type Chunk struct {
	// Leaf is the heap to read. 0 with no Keys is a table without heaps: there
	// is nothing to read, and the chunk is carried through like any other.
	Leaf millrace.TableID
	// From is the first block. To is the one after the last; 0 means all that
	// follow.
	From, To uint32
	// Keys, where set, are the keys to read instead of a range of blocks.
	Keys [][]byte

	pass uint64
}

// Bound opens the chunk's range at its end if it reaches the end of the heap.
// blocks is the heap's length, read after the chunk's snapshot was taken, so that
// what the snapshot sees does not lie behind it.
func (c *Chunk) Bound(blocks uint32) {
	if len(c.Keys) == 0 && c.To >= blocks {
		c.To = 0
	}
}

// Limits of a load; the zero value means the defaults.
type Limits struct {
	// Blocks is how many 8 KiB blocks a chunk has. Default 128.
	Blocks uint32
	// Keys is how many keys a chunk by key has at most. Default 1,000.
	Keys int
	// Window bounds the bytes held for keys that change during one chunk. Beyond
	// it the chunk is read again. Default 32 MiB.
	Window int
	// Missing bounds the bytes held for keys whose rows lack columns. Beyond
	// it the load reads the table from the start. Default 32 MiB.
	Missing int
	// Progress bounds the bytes that Progress returns. Beyond it a successor
	// reads the table from the start. Default 1 MiB.
	Progress int
}

func (l Limits) withDefaults() Limits {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	if l.Blocks == 0 {
		l.Blocks = 128
	}
	def(&l.Keys, 1000)
	def(&l.Window, 32<<20)
	def(&l.Missing, 32<<20)
	def(&l.Progress, 1<<20)
	return l
}

// Load is a load of a table from its LoadBegin to its LoadEnd. One pass over the
// heaps, in chunks, brings every row into the shadow generation, or finds that
// the stream has brought it.
//
// A row that the stream brings may lack columns there: the source does not send a
// stored out-of-line value that did not change, and the row that has it may not
// have been loaded yet, or may have been moved by that very change to a block
// that was read before. Such keys are collected and read by key before the load
// ends. While the pass is under way every change that leaves columns out counts;
// after it only those whose base is itself such a key, or that have none, so the
// collection empties however busy the table is.
//
// A Load changes only with what is emitted, and with Match: a successor that
// decodes the Progress of a place in the stream, and what Added gave since, comes
// to the same; but that it may read a few keys more.
type Load struct {
	limits   Limits
	leaves   []Leaf
	leaf     int    // being read
	block    uint32 // of leaf, to be read next
	complete bool   // every heap was read to its end
	pass     uint64 // counts restarts; chunks of an earlier pass do not count
	rows     uint64 // emitted in this pass

	// missing holds the keys whose rows may lack columns, with the number of
	// their place in the queue. Places that no key names are void.
	missing map[string]uint64
	queue   []place
	next    uint64
	size    int

	// added holds, in the form of Progress, the keys that came into missing
	// since the newest Progress was asked for and were not given out by Added;
	// told counts those since that Progress, in bytes. Beyond the limit void is
	// set; untold, once Added has said so, until the next Progress.
	added        []byte
	told         int
	void, untold bool
}

type place struct {
	key string
	n   uint64
}

// NewLoad makes the Load of a table whose LoadBegin is being emitted.
func NewLoad(limits Limits) *Load {
	return &Load{limits: limits.withDefaults(), missing: make(map[string]uint64), untold: true}
}

// Rows returns how many rows the load has emitted since it last began anew.
func (l *Load) Rows() uint64 { return l.rows }

// Place returns how far the pass has come, for people: the heap that is being
// read, as its ordinal, how many there are, and the block.
func (l *Load) Place() (leaf, leaves int, block uint32) { return l.leaf, len(l.leaves), l.block }

// Finished reports whether the shadow generation is whole: the LoadEnd may be
// emitted here and now.
func (l *Load) Finished() bool { return l.complete && len(l.missing) == 0 }

// Restart begins the pass anew. The shadow generation stays: what it holds is
// kept up by the stream, and the new pass reads everything.
func (l *Load) Restart() {
	l.leaf, l.block, l.complete, l.rows = 0, 0, false, 0
	l.pass++
}

// Open opens the window of the load's next chunk at the place where the stream
// stands.
func (l *Load) Open(p *Pending) *Window {
	w := p.Open(l.limits.Window)
	w.pass = l.pass
	return w
}

// Match compares the table's heaps with those that the pass is about. It is
// called for each chunk when the tables are locked and w has accepted the
// snapshot. If they differ the pass begins anew, over the heaps given, and Match
// returns false. Either way Next then says what to read in that snapshot.
//
// Keys that may lack columns are kept: some may have changed in w, unseen by its
// snapshot.
func (l *Load) Match(w *Window, leaves []Leaf) bool {
	if l.leaves != nil && slices.Equal(l.leaves, leaves) {
		return true
	}
	l.leaves = slices.Clone(leaves)
	if l.leaves == nil {
		l.leaves = []Leaf{} // none, which is not the same as not known
	}
	current := w.pass == l.pass
	l.Restart()
	if current {
		w.pass = l.pass
	}
	return false
}

// Known returns the heaps that the pass is about, or nil before the first Match.
// It is not to be changed.
func (l *Load) Known() []Leaf { return l.leaves }

// Next returns what to read in w, after Match. It must not be called when the
// load is finished.
func (l *Load) Next(w *Window) Chunk {
	if l.Finished() || l.leaves == nil {
		panic("chunk: no chunk is to be read")
	}
	// If the pass began anew since w was opened, the chunk is read in vain.
	c := Chunk{pass: w.pass}
	// During the pass, keys are read early only if there are many.
	if l.complete || l.size > l.limits.Missing/2 {
		l.compact()
		for _, p := range l.queue[:min(l.limits.Keys, len(l.queue))] {
			c.Keys = append(c.Keys, []byte(p.key))
		}
		return c
	}
	if l.leaf < len(l.leaves) {
		c.Leaf, c.From = l.leaves[l.leaf].ID, l.block
		if c.From < math.MaxUint32-l.limits.Blocks {
			c.To = c.From + l.limits.Blocks
		}
	}
	return c
}

// Change tells of an emitted change of the table that is none of a load: of every
// one from the LoadBegin on.
type Change struct {
	// Kind is KindPut, KindDelete or KindTruncate.
	Kind millrace.Kind
	// Key and From are as in millrace.Entry.
	Key, From []byte
	// Unchanged says that a Put leaves columns out that did not change; Bare, that
	// it is of a row that the stream did not have, so that nothing completes it.
	Unchanged, Bare bool
}

// Emitted notes a change that is being emitted.
func (l *Load) Emitted(c Change) {
	switch c.Kind {
	case millrace.KindTruncate:
		l.forget()
	case millrace.KindDelete:
		l.drop(c.Key)
	case millrace.KindPut:
		if c.Unchanged && l.lacks(c) {
			l.add(c.Key)
		} else {
			l.drop(c.Key)
		}
	}
}

// lacks reports whether the row that a Put with unchanged columns is completed
// from may lack columns itself.
func (l *Load) lacks(c Change) bool {
	if !l.complete || c.Bare {
		return true
	}
	base := c.From
	if len(base) == 0 {
		base = c.Key
	}
	_, ok := l.missing[string(base)]
	return ok
}

// Row notes that a row of a chunk is being emitted: whatever it lacked, it has now.
func (l *Load) Row(key []byte) {
	l.rows++
	l.drop(key)
}

// Took notes that so many rows of a chunk are being emitted, in a stream whose Puts
// leave no column out.
func (l *Load) Took(rows uint64) { l.rows += rows }

// Done notes that all rows of a chunk that w does not leave out have been emitted.
// It returns the keys that the chunk was to bring rows of and of which the source
// has none: their rows went without being sent, as with TRUNCATE of a partition.
// What the stream has brought of them lacks columns for ever, so they are to be
// deleted in the unit of the chunk.
func (l *Load) Done(w *Window, c Chunk) (absent [][]byte) {
	switch {
	case c.pass != l.pass: // the pass began anew meanwhile
	case len(c.Keys) > 0:
		for _, key := range c.Keys {
			if _, ok := l.missing[string(key)]; !ok {
				continue
			}
			if w.LeavesOut(key) {
				l.enqueue(string(key)) // another time, behind the others
			} else {
				l.drop(key)
				absent = append(absent, key)
			}
		}
	case c.To != 0:
		l.block = c.To
	default:
		l.leaf, l.block = l.leaf+1, 0
		l.complete = l.leaf >= len(l.leaves)
	}
	return absent
}

func (l *Load) add(key []byte) {
	if _, ok := l.missing[string(key)]; ok {
		return
	}
	if l.size += len(key) + entryCost; l.size > l.limits.Missing {
		// A pass whose windows all open after this needs no list of what it
		// must read: its snapshots see what was emitted until now.
		l.Restart()
		l.forget()
		l.added, l.void = nil, !l.untold
		if l.size = len(key) + entryCost; l.size > l.limits.Missing {
			l.size = 0
			return // changed before the new pass began, which will read it
		}
	}
	l.enqueue(string(key))
	l.tell(string(key))
}

func (l *Load) drop(key []byte) {
	if _, ok := l.missing[string(key)]; ok {
		delete(l.missing, string(key))
		l.size -= len(key) + entryCost
	}
}

func (l *Load) forget() {
	clear(l.missing)
	l.queue, l.size = nil, 0
}

func (l *Load) enqueue(key string) {
	if len(l.queue) > 2*len(l.missing)+64 {
		l.compact()
	}
	l.next++
	l.missing[key] = l.next
	l.queue = append(l.queue, place{key, l.next})
}

func (l *Load) compact() {
	l.queue = slices.DeleteFunc(l.queue, func(p place) bool { return l.missing[p.key] != p.n })
}
