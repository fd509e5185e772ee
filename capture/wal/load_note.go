package wal

import (
	"fmt"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture/chunk"
)

// note returns the load's progress as of now.
func (ld *load) note() []byte { return append(ld.head(), ld.work.Progress()...) }

// head is the note without any progress.
func (ld *load) head() []byte {
	return chunk.Note{Initial: ld.initial, Reason: ld.reason}.Append(nil)
}

// resumeLoad takes up a load that the stream has under way.
func resumeLoad(l *millrace.Load, schema *millrace.Schema, limits chunk.Limits) (*load, error) {
	fail := func(err error) (*load, error) {
		return nil, fmt.Errorf("resume load %v of table %v: %w", l.ID, l.Table, err)
	}
	if schema == nil {
		return fail(fmt.Errorf("%w: there is no schema", millrace.ErrMalformed))
	}
	note, progress, err := chunk.CutNote(l.Progress)
	if err != nil {
		return fail(err)
	}
	ld := &load{
		id: l.ID, table: l.Table, name: schema.QualifiedName(), schema: schema, reason: note.Reason, initial: note.Initial, started: time.Now(),
	}
	if ld.work, err = chunk.Resume(progress, limits); err != nil {
		return fail(err)
	}
	return ld, nil
}
