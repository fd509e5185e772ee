package wal

import (
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
	note, work, err := chunk.TakeUp(l, schema, limits)
	if err != nil {
		return nil, err
	}
	return &load{
		id: l.ID, table: l.Table, name: schema.QualifiedName(), schema: schema, reason: note.Reason, initial: note.Initial, work: work, started: time.Now(),
	}, nil
}
