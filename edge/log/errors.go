package log

import (
	"errors"
	"fmt"

	"github.com/millrace-db/millrace"
)

var (
	// ErrPruned occurs when what is asked for is older than what the log holds: it
	// was dropped, or never here. A PrunedError has the oldest place. Mend: follow
	// another log that reaches further back, or take an image.
	ErrPruned = errors.New("log no longer reaches that far back")

	// ErrAhead occurs when what is asked for comes after all that the log holds.
	// Mend: wait until it has come (Log.Changed), or follow a log that is fresher.
	ErrAhead = errors.New("log has not come that far")

	// ErrDamaged occurs when the bytes of a segment are not those that were written.
	// The log drops what lies at and before the damage. Mend: follow another log.
	ErrDamaged = errors.New("log is damaged")

	// ErrRenewed occurs at a reader whose log was begun anew or cut back. Mend: ask
	// for a new reader.
	ErrRenewed = errors.New("log was begun anew")

	// ErrClosed occurs when the log is closed, or was not started yet.
	ErrClosed = errors.New("log is closed")

	// ErrInUse occurs when another process keeps the log. Mend: give each edge a
	// directory of its own.
	ErrInUse = errors.New("log is in use")
)

// PrunedError is ErrPruned with the place that the log reaches back to.
type PrunedError struct {
	// After is the index that was asked for, Oldest the lowest that would do.
	After, Oldest millrace.Index
}

func (e *PrunedError) Error() string {
	return fmt.Sprintf("read log after index %v: %v; it begins after index %v", e.After, ErrPruned, e.Oldest)
}

// Unwrap returns ErrPruned.
func (e *PrunedError) Unwrap() error { return ErrPruned }
