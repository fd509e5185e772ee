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
// relfilenode, number of keys that may lack columns, of each its length and
// bytes.
func (l *Load) Progress() []byte {
	if l.leaves == nil || l.size > l.limits.Progress {
		return nil // as if it had just begun: the successor reads everything
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
	put(uint64(len(l.missing)))
	for _, p := range l.queue {
		if l.missing[p.key] == p.n {
			put(uint64(len(p.key)))
			b = append(b, p.key...)
		}
	}
	return b
}

// Resume makes the Load that wrote progress. A load that has none has just begun.
// The changes that were emitted after the place that progress is of must then be
// told with Emitted, before anything else; who cannot tell them calls Restart.
// Rows of chunks emitted since need not be told: they are read again.
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
	// More of them than now are allowed make the pass begin anew.
	for n := r.uint(uint64(len(progress))); n > 0 && !r.bad; n-- {
		l.add(r.take(r.uint(uint64(len(r.b)))))
	}
	if r.bad || len(r.b) > 0 || l.leaf > max(1, len(l.leaves)) || l.complete != (l.leaf >= max(1, len(l.leaves))) {
		return nil, fmt.Errorf("resume load: %w: progress", millrace.ErrMalformed)
	}
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
