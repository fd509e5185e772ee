package keylog

import "time"

// Event is DDL that the event trigger saw.
type Event struct {
	At                time.Time
	Who               string // session_user
	Tag               string // such as ALTER TABLE
	Command           string // its beginning
	Object            string // what it was done to
	TransactionNumber uint64
	// Rewritten says that rows may have other values than before.
	Rewritten bool
}
