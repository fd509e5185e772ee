package watch

import "errors"

var (
	// ErrClosed occurs when the hub is closed.
	ErrClosed = errors.New("watch has ended")

	// ErrNotReady occurs when the edge's log has not been opened yet. Mend: ask again.
	ErrNotReady = errors.New("the edge's log is not open yet")

	// ErrEpochAhead occurs when the place that is asked for is of a newer epoch than
	// the edge serves. Mend: ask again, or another edge.
	ErrEpochAhead = errors.New("the edge serves an older epoch")

	// ErrNoTable occurs when there is no table of a name.
	ErrNoTable = errors.New("no such table")

	// ErrPrefix occurs when a prefix is not one of the table's keys, from the start or
	// because the table was made again with another key.
	ErrPrefix = errors.New("prefix does not fit the table's key")

	// ErrNotHeld occurs where the edge holds a part of the stream, and not all of what is
	// to be watched. Mend: watch what it holds, or another edge.
	ErrNotHeld = errors.New("not held here")

	// ErrTooMany occurs when there are as many watchers as may be.
	ErrTooMany = errors.New("too many watchers")

	// errRecord occurs at a record that cannot be told of.
	errRecord = errors.New("record of the log cannot be told to watchers")
)
