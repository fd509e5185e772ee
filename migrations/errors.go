package migrations

import (
	"errors"

	"github.com/millrace-db/millrace/capture"
)

// The errors that need somebody to act. Each wraps millrace.ErrStop; the message
// that they come in names the thing and the mend.
var (
	// ErrBlocked occurs when the plan finds something that has to be mended first.
	ErrBlocked = capture.Stop("migration is blocked")
	// ErrStep occurs when a step is asked for whose turn it is not.
	ErrStep = capture.Stop("step cannot be taken")
	// ErrOther occurs when the databases are not those that the migration was
	// prepared with, or hold another migration of its name.
	ErrOther = capture.Stop("migration is another one")
	// ErrChanged occurs when a table was altered at either side, or its rows came or
	// went without being sent. Mend: abort and begin again.
	ErrChanged = capture.Stop("table was altered during the migration")
	// ErrConflict occurs when a batch cannot be applied to what the target has:
	// somebody else has written there.
	ErrConflict = capture.Stop("target is not as it was left")
	// ErrChecksum occurs when the target has stored other rows than it was sent.
	ErrChecksum = capture.Stop("chunk differs")
	// ErrCounts occurs when writers are to go over and what the two sides have counted
	// differs.
	ErrCounts = capture.Stop("counts of the two sides differ")
	// ErrDiffers occurs when verification finds rows that differ.
	ErrDiffers = capture.Stop("source and target differ")
)

// ErrRunning occurs when another process works on the migration.
var ErrRunning = errors.New("another process works on the migration")
