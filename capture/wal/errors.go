package wal

import (
	"fmt"

	"github.com/millrace-db/millrace"
)

// The errors that stop a stream until an operator acts. Each wraps
// millrace.ErrStop; the message that they come in names the thing and the mend.
var (
	// ErrConnect occurs when the source refuses the connection for good: wrong
	// password, role or database, missing REPLICATION, a pooler in between.
	ErrConnect = stop("source refuses the connection")

	// ErrVersion occurs when the server is older than Postgres 14.
	ErrVersion = stop("server version is not supported")

	// ErrStandby occurs when the source is a standby. Mend: use the primary.
	ErrStandby = stop("source is a standby")

	// ErrWALLevel occurs when wal_level is not logical.
	ErrWALLevel = stop("wal_level is not logical")

	// ErrMode occurs when the stream was captured in another mode before.
	ErrMode = stop("stream was captured in another mode")

	// ErrOtherSystem occurs when the source is another cluster than the one
	// that the stream came from. Mend: correct the URL, or begin a new epoch.
	ErrOtherSystem = stop("source is another cluster")

	// ErrTimeline occurs when the source was promoted from before our position,
	// or went back to an older timeline: it lacks changes that were published.
	// Mend: a new epoch.
	ErrTimeline = stop("timeline of the source does not contain our position")

	// ErrRewound occurs when the source's WAL ends before our position: it was
	// restored to an older state. Mend: a new epoch.
	ErrRewound = stop("source is older than what was published")

	// ErrSlotMissing occurs when the slot is gone. Mend: a new epoch.
	ErrSlotMissing = stop("replication slot is missing")

	// ErrSlotAhead occurs when the slot is ahead of what was published: it was
	// made again, advanced by hand or used by somebody else. Mend: a new epoch.
	ErrSlotAhead = stop("replication slot is ahead of what was published")

	// ErrSlotLost occurs when the server has given up the WAL that the slot
	// needs. Mend: a new epoch.
	ErrSlotLost = stop("replication slot is lost")

	// ErrSlotGivenUp occurs when the slot held more WAL than Config.RetainLimit
	// and was dropped, so that the source's disk does not fill. Mend: a new
	// epoch.
	ErrSlotGivenUp = stop("replication slot was given up")

	// ErrSlotForeign occurs when the slot of our name is of another database,
	// plugin or kind. Mend: another slot name, or drop that slot.
	ErrSlotForeign = stop("replication slot is not ours")

	// ErrPublication occurs when the publication is missing or would send other
	// than what the stream needs. Mend: millrace init.
	ErrPublication = stop("publication does not fit")

	// ErrTables occurs when the configured tables are not those that the stream
	// has. Mend: put the configuration back, or begin a new epoch.
	ErrTables = stop("tables do not fit the stream")

	// ErrTable occurs when a table cannot be captured: no usable key, a kind or
	// type of table or column that is not carried.
	ErrTable = stop("table cannot be captured")

	// ErrTableChanged occurs when a table was altered in a way that cannot be
	// followed: its changes cannot be described any more. Mend: copy the table
	// again, or a new epoch.
	ErrTableChanged = stop("table was altered")

	// ErrKeyChanged occurs when changes of a table come under another key than
	// its rows have at the edges. Mend: copy the table again, or a new epoch.
	ErrKeyChanged = stop("key of a table was changed")

	// ErrProtocol occurs when the source sends what this version cannot decode.
	ErrProtocol = stop("replication message cannot be decoded")

	// ErrSpool occurs when a transaction above the memory budget cannot be
	// written to the spool directory. Mend: free space there.
	ErrSpool = stop("spool file cannot be written")
)

// ErrSilent occurs when the source has sent nothing for Config.Silence, not even
// an answer. A new connection may mend it.
var ErrSilent = fmt.Errorf("source has fallen silent")

// ErrShutdown occurs when the source is being shut down while changes are
// streamed from it: it waits for us to leave. A new connection mends it once the
// source is back.
var ErrShutdown = fmt.Errorf("source is being shut down")

// ErrClosed occurs when a Source is used after Close.
var ErrClosed = fmt.Errorf("capture is closed")

func stop(text string) error { return fmt.Errorf("%w: %s", millrace.ErrStop, text) }
