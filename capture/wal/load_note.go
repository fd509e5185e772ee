package wal

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture/chunk"
)

// A load's progress in the stream is a note of ours, and then that of package
// chunk, which grows at its end: flags, length of the reason, reason.

const noteInitial = 1 // flag: the load is one of those that end together

// note returns the load's progress as of now.
func (ld *load) note() []byte { return append(ld.head(), ld.work.Progress()...) }

// head is the note without any progress.
func (ld *load) head() []byte {
	b := []byte{0}
	if ld.initial {
		b[0] |= noteInitial
	}
	b = binary.AppendUvarint(b, uint64(len(ld.reason)))
	return append(b, ld.reason...)
}

// resumeLoad takes up a load that the stream has under way.
func resumeLoad(l *millrace.Load, schema *millrace.Schema, limits chunk.Limits) (*load, error) {
	bad := func() (*load, error) {
		return nil, fmt.Errorf("resume load %v of table %v: %w: progress", l.ID, l.Table, millrace.ErrMalformed)
	}
	if schema == nil {
		return bad()
	}
	ld := &load{id: l.ID, table: l.Table, name: schema.QualifiedName(), schema: schema, started: time.Now()}
	b := l.Progress
	if len(b) < 2 || b[0] > noteInitial {
		return bad()
	}
	ld.initial = b[0]&noteInitial != 0
	n, head := binary.Uvarint(b[1:])
	b = b[1:]
	if head <= 0 || n > uint64(len(b)-head) {
		return bad()
	}
	ld.reason = string(b[head : head+int(n)])
	var err error
	if ld.work, err = chunk.Resume(b[head+int(n):], limits); err != nil {
		return nil, fmt.Errorf("load %v of %s: %w", l.ID, schema.QualifiedName(), err)
	}
	return ld, nil
}
