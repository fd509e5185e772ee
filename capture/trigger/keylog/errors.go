package keylog

import (
	"fmt"

	"github.com/millrace-db/millrace"
)

// The errors that stop a stream until an operator acts. Each wraps
// millrace.ErrStop; the message that they come in names the thing and the mend.
var (
	// ErrTriggers occurs when triggers, functions or segments of a log are not
	// as they were left: changes may be missing in it. Mend: millrace init,
	// which loads the table again.
	ErrTriggers = stop("triggers of a table are not as they were left")

	// ErrUnlogged occurs when a row was written that is not in the log,
	// although nothing is amiss with the triggers: something writes below SQL.
	// Mend: find the writer, then load the table.
	ErrUnlogged = stop("a row was changed without its triggers")

	// ErrNotInstalled occurs when a table has no log. Mend: millrace init.
	ErrNotInstalled = stop("table has no log of keys")

	// ErrRefused occurs when the role may not do what installing needs, or the
	// table does not allow it. Mend: in the message.
	ErrRefused = stop("triggers cannot be installed")
)

func stop(text string) error { return fmt.Errorf("%w: %s", millrace.ErrStop, text) }
