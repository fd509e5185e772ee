package millrace

import "errors"

// The errors of continuity. Each one stops the stream where it occurs: nothing
// is skipped to keep going.
var (
	// ErrMalformed occurs when bytes do not follow the format of this version:
	// a damaged record, or one that a newer version wrote. Mend: read the
	// record again from an upstream that has it whole, or upgrade.
	ErrMalformed = errors.New("malformed data")

	// ErrGap occurs when a batch does not begin at the next index. Mend: read
	// again from the checkpoint; if the topic no longer has the entries, take
	// an image or begin a new epoch.
	ErrGap = errors.New("gap in the stream")

	// ErrDiverged occurs when a batch has the next index but another history
	// or other content than its chain says. Mend: find out which side was
	// altered (millrace tail shows the record) before reloading either.
	ErrDiverged = errors.New("history diverged")

	// ErrForeign occurs when a record belongs to another stream or epoch. Mend:
	// point the reader at the topic of its own stream.
	ErrForeign = errors.New("record of another stream")

	// ErrUnknownTerm occurs when a batch or state names a term whose Term
	// record was never seen. Mend: read again from the checkpoint or the
	// topic's start.
	ErrUnknownTerm = errors.New("unknown term")

	// ErrSignature occurs when a record is not signed, or wrongly, although a
	// key is pinned. Mend: find out who writes to the topic.
	ErrSignature = errors.New("bad signature")

	// ErrFilter occurs when a partial edge and what it is sent do not fit together:
	// hashes stand in the place of entries that it holds, or an edge that holds
	// everything gets them.
	// Mend: follow an upstream that holds as much.
	ErrFilter = errors.New("filter does not fit")

	// ErrPrefix occurs when a filter names what a table's key does not have. Mend:
	// correct the filter.
	ErrPrefix = errors.New("prefix is none of the key")

	// ErrTooLarge occurs when an entry or record is larger than the format
	// allows.
	ErrTooLarge = errors.New("too large")
)

// ErrStop marks an error that no retry mends: an operator has to act. Stages
// wrap it into errors of their own (fmt.Errorf("%w: …: %w", …)).
var ErrStop = errors.New("stream stopped")

// NeedsOperator reports whether err is of a kind that stops a stream until
// somebody acts on it. All other errors are worth a retry from the last known
// good place.
func NeedsOperator(err error) bool {
	for _, e := range []error{ErrStop, ErrMalformed, ErrGap, ErrDiverged, ErrForeign, ErrUnknownTerm, ErrSignature, ErrFilter, ErrPrefix, ErrTooLarge} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
