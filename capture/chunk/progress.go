package chunk

import (
	"encoding/binary"
	"fmt"

	"github.com/millrace-db/millrace"
)

// progressVersion is the first byte of a Progress.
const progressVersion = 1

// Progress returns what a successor needs to go on from this place of the
// stream: for millrace.Load.Progress. Integers are varints: version, pass
// complete (0 or 1), rows, heap, block, number of heaps, of each its OID and
// relfilenode; then to the end, of each key that may lack columns its length and
// bytes, which is what Added appends to.
//
// It returns nil, as if the load had just begun, where the successor has to read
// everything.
func (l *Load) Progress() []byte {
	l.added, l.told, l.void, l.untold = nil, 0, false, false
	if l.leaves == nil || l.size > l.limits.Progress {
		l.untold = true // what is added to nothing says nothing
		return nil
	}
	b := []byte{progressVersion, 0}
	if l.complete {
		b[1] = 1
	}
	put := func(v uint64) { b = binary.AppendUvarint(b, v) }
	put(l.rows)
	put(uint64(l.leaf))
	put(uint64(l.block))
	put(uint64(len(l.leaves)))
	for _, f := range l.leaves {
		put(uint64(f.ID))
		put(uint64(f.File))
	}
	for _, p := range l.queue {
		if l.missing[p.key] == p.n {
			b = appendKey(b, p.key)
		}
	}
	return b
}

func appendKey(b []byte, key string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(key))), key...)
}

// Added returns what to append to the newest Progress because of the changes that
// were emitted since, or since the last call; nil for nothing. void says that the
// newest Progress does not hold any more and none takes its place yet: too much
// came together.
func (l *Load) Added() (more []byte, void bool) {
	more, l.added = l.added, nil
	if l.void {
		l.void, l.untold = false, true
		return nil, true
	}
	return more, false
}

// tell notes a key for Added.
func (l *Load) tell(key string) {
	if l.untold || l.void {
		return
	}
	if l.told += len(key) + entryCost; l.told > l.limits.Progress {
		l.added, l.void = nil, true
		return
	}
	l.added = appendKey(l.added, key)
}

// Resume makes the Load that wrote progress, with all that was added to it. A
// load that has none has just begun. Rows of chunks emitted since need not be
// told: they are read again.
func Resume(progress []byte, limits Limits) (*Load, error) {
	l := NewLoad(limits)
	if len(progress) == 0 {
		return l, nil
	}
	r := reader{b: progress}
	if v := r.uint(1 << 8); v != progressVersion {
		return nil, fmt.Errorf("resume load: its progress has version %d, this process reads %d; mend: upgrade it, or begin the load anew", v, progressVersion)
	}
	l.complete = r.uint(1) == 1
	l.rows = r.uint(1<<64 - 1)
	l.leaf = int(r.uint(1<<31 - 1))
	l.block = uint32(r.uint(1<<32 - 1))
	n := r.uint(uint64(len(progress)))
	l.leaves = make([]Leaf, 0, n)
	for range n {
		l.leaves = append(l.leaves, Leaf{ID: millrace.TableID(r.uint(1<<32 - 1)), File: uint32(r.uint(1<<32 - 1))})
	}
	whole := !r.bad && l.leaf <= max(1, len(l.leaves)) && l.complete == (l.leaf >= max(1, len(l.leaves)))
	// More of them than now are allowed make the pass begin anew.
	for len(r.b) > 0 {
		l.add(r.take(r.uint(uint64(len(r.b)))))
	}
	if r.bad || !whole {
		return nil, fmt.Errorf("resume load: %w: progress", millrace.ErrMalformed)
	}
	// What was told is the same as what was read, unless that was too much.
	l.added, l.told, l.untold, l.void = nil, l.size, false, l.pass > 0
	return l, nil
}

// reader reads integers and byte strings until one is bad.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) uint(most uint64) uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || v > most {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) take(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}
