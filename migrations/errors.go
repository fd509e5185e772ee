package migrations

import (
	"errors"
	"fmt"

	"github.com/millrace-db/millrace"
)

func stop(text string) error { return fmt.Errorf("%w: %s", millrace.ErrStop, text) }

// The errors that need somebody to act. Each wraps millrace.ErrStop; the message
// that they come in names the thing and the mend.
var (
	// ErrBlocked occurs when the plan finds something that has to be mended first.
	ErrBlocked = stop("migration is blocked")
	// ErrStep occurs when a step is asked for whose turn it is not.
	ErrStep = stop("step cannot be taken")
	// ErrOther occurs when the databases are not those that the migration was
	// prepared with, or hold another migration of its name.
	ErrOther = stop("migration is another one")
	// ErrChanged occurs when a table was altered at either side, or its rows came or
	// went without being sent. Mend: abort and begin again.
	ErrChanged = stop("table was altered during the migration")
	// ErrConflict occurs when a batch cannot be applied to what the target has:
	// somebody else has written there.
	ErrConflict = stop("target is not as it was left")
	// ErrChecksum occurs when the target has stored other rows than it was sent.
	ErrChecksum = stop("chunk differs")
	// ErrDiffers occurs when verification finds rows that differ.
	ErrDiffers = stop("source and target differ")
)

// ErrRunning occurs when another process works on the migration.
var ErrRunning = errors.New("another process works on the migration")
