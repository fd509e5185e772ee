package client

import (
	"errors"
	"fmt"

	"github.com/millrace-db/millrace/edge/event"
)

var (
	// ErrNoRow occurs where there is no row with the key. It is in an *Error.
	ErrNoRow = errors.New("no such row")

	// ErrNotHeld occurs where an edge does not hold what is asked for, and cannot say
	// what there is. It is in an *Error. Mend: ask an edge that holds it.
	ErrNotHeld = errors.New("not held at the edge")

	// ErrBehind occurs where an edge has not come to what was asked for with Min or
	// After within the time. It is in an *Error. Mend: ask again, or wait longer.
	ErrBehind = errors.New("the edge has not come that far")

	// ErrUnreachable occurs where no edge has answered within Config.Patience. It comes
	// with the error of the last one that was tried.
	ErrUnreachable = errors.New("no edge can be reached")

	// ErrPruned occurs where no edge's log reaches back to a watch's place; a PrunedError
	// has the oldest place that would do. Mend: read the rows again, and watch from the
	// place of that answer.
	ErrPruned = errors.New("log no longer reaches that far back")

	// ErrEnded occurs where an edge ends a watch for good, such as one of a prefix that
	// the table's key no longer has.
	ErrEnded = errors.New("watch has ended")

	// ErrClosed occurs when the client or the watch is closed.
	ErrClosed = errors.New("client is closed")
)

// Error is an answer of an edge other than rows.
type Error struct {
	// Status is that of HTTP, Code the edge's own word for it.
	Status int
	Code   string
	// Message says what is wrong, Mend what to do, Edge who has answered.
	Message, Mend, Edge string
	// Place is where the edge stood, if it said so.
	Place Place
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%s answers %d: %s", e.Edge, e.Status, e.Message)
	if e.Mend != "" {
		s += "; mend: " + e.Mend
	}
	return s
}

// Is tells whether the answer is one of the sentinels.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrNoRow:
		return e.Code == "no_row"
	case ErrNotHeld:
		return e.Code == "not_held"
	case ErrBehind:
		return e.Status == 504 || e.Code == "behind"
	}
	return false
}

// PrunedError is ErrPruned with the oldest place that a watch could begin behind.
type PrunedError struct {
	After, Oldest event.ID
}

func (e *PrunedError) Error() string {
	return fmt.Sprintf("watch from %v: %v; it begins after %v", e.After, ErrPruned, e.Oldest)
}

// Unwrap returns ErrPruned.
func (e *PrunedError) Unwrap() error { return ErrPruned }
