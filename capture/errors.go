package capture

import (
	"errors"
	"fmt"

	"github.com/millrace-db/millrace"
)

// The errors that stop a stream until an operator acts. Each wraps
// millrace.ErrStop; the message that they come in names the thing and the mend.
var (
	// ErrConnect occurs when the source refuses the connection for good: wrong
	// password, role or database, a missing right, a pooler that is in the way.
	ErrConnect = Stop("the connection is refused")

	// ErrVersion occurs when the server is older than Postgres 14.
	ErrVersion = Stop("server version is not supported")

	// ErrStandby occurs when the source is a standby. Mend: use the primary.
	ErrStandby = Stop("source is a standby")

	// ErrMode occurs when the stream was captured in another mode before.
	ErrMode = Stop("stream was captured in another mode")

	// ErrOtherSystem occurs when the source is another cluster than the one
	// that the stream came from. Mend: correct the URL, or begin a new epoch.
	ErrOtherSystem = Stop("source is another cluster")

	// ErrTimeline occurs when the source was promoted from before our position,
	// or went back to an older timeline: it lacks changes that were published.
	// Mend: a new epoch.
	ErrTimeline = Stop("timeline of the source does not contain our position")

	// ErrRewound occurs when the source ends before our position: it was
	// restored to an older state. Mend: a new epoch.
	ErrRewound = Stop("source is older than what was published")

	// ErrTables occurs when the configured tables are not those that the stream
	// has. Mend: put the configuration back, or begin a new epoch.
	ErrTables = Stop("tables do not fit the stream")

	// ErrTable occurs when a table cannot be captured: no usable key, a kind or
	// type of table or column that is not carried.
	ErrTable = Stop("table cannot be captured")

	// ErrTableChanged occurs when a table was altered in a way that cannot be
	// followed: its changes cannot be described any more. Mend: copy the table
	// again, or a new epoch.
	ErrTableChanged = Stop("table was altered")

	// ErrKeyChanged occurs when changes of a table come under another key than
	// its rows have at the edges. Mend: copy the table again, or a new epoch.
	ErrKeyChanged = Stop("key of a table was changed")
)

var (
	// ErrLoading occurs when a load is asked for of a table that is being loaded.
	ErrLoading = errors.New("table is being loaded already")

	// ErrNoTable occurs when a table is named that the stream does not have.
	ErrNoTable = errors.New("the stream does not have the table")

	// ErrClosed occurs when a source is used after Close.
	ErrClosed = errors.New("capture is closed")
)

// Stop makes an error that stops a stream until an operator acts.
func Stop(text string) error { return fmt.Errorf("%w: %s", millrace.ErrStop, text) }

// NewEpoch is the mend for all that only a fresh copy can cure. STREAM stands for
// the stream's name, which whoever prints the error puts in.
//
// CopyAgain is the mend where one table is at fault: while it is out of the
// stream its changes are left out, however they look.
const (
	NewEpoch  = "millrace epoch new STREAM, which copies its tables anew"
	CopyAgain = "take the table out of source.tables, run millrace init and start transfer again, then put it back in the same way, which copies it again"
)
