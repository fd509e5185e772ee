package trigger

import (
	"errors"

	"github.com/millrace-db/millrace/capture"
)

// The errors that stop a stream until an operator acts, beside those of capture.
// Each wraps millrace.ErrStop; the message that they come in names the thing and
// the mend.
var (
	// ErrInexact occurs when a window had other rows than its counts say. It has to
	// be reported.
	ErrInexact = capture.Stop("rows of a window do not agree with its counts")

	// ErrSpool occurs when rows of a load that are too large for memory cannot be
	// written to a file. Mend: free space there.
	ErrSpool = capture.Stop("rows of a load cannot be written to a file")
)

var (
	// errBusy occurs when a lock was not to be had in time.
	errBusy = errors.New("a table is locked")
	// errNames occurs when tables are not called what they were.
	errNames = errors.New("a table was renamed or is gone")
	// errUnread occurs when a unit's body was not read to its end, or not in time:
	// the unit is void.
	errUnread = errors.New("a unit was not read to its end")
)
