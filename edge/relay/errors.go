package relay

import (
	"errors"
	"fmt"
	"strings"

	"github.com/millrace-db/millrace"
)

var (
	// ErrLoop occurs when a node would come to follow itself: it is asked by itself, or
	// stands in the path above the node that it asks. Mend: correct edge.upstream, or
	// give two edges of one name names of their own (edge.id).
	ErrLoop = errors.New("relays in a circle")

	// ErrGone occurs when no upstream has what comes after a place any more. A GoneError
	// has the upstreams. Mend: take an image from one of them, or name an upstream with
	// a longer log.
	ErrGone = errors.New("no upstream reaches that far back")

	// ErrRefused occurs when an upstream says why it does not serve. A RefusedError has
	// the reason.
	ErrRefused = errors.New("upstream refuses")

	// ErrUntrue occurs when all upstreams have given records that are not of the
	// history, or say that ours is another. It stops the stream. Mend: find out which
	// of them, or which edge, was altered before any is loaded anew.
	ErrUntrue = errors.New("every upstream disagrees")

	// errFrame occurs when bytes are no frame of this version.
	errFrame = errors.New("malformed frame")
	// errLeft ends a Source whose upstream is left for another one.
	errLeft = errors.New("upstream is left for another one")
	// errSilent ends a Source whose upstream sends nothing any more, errWithheld one whose
	// upstream says that it has more, and does not send it.
	errSilent   = errors.New("upstream is silent")
	errWithheld = errors.New("upstream sends nothing of what it says it has")
)

// GoneError is ErrGone with the upstream that reaches back farthest.
type GoneError struct {
	// URL is that of the upstream, and Oldest the first index that its log holds.
	URL    string
	Oldest millrace.Index
	// Epoch and After are what was asked for.
	Epoch millrace.Epoch
	After millrace.Index
	// Over tells that the epoch is over there.
	Over bool
}

func (e *GoneError) Error() string {
	if e.Over {
		return fmt.Sprintf("%v: epoch %v is over at %s", ErrGone, e.Epoch, e.URL)
	}
	return fmt.Sprintf("%v: index %v of epoch %v is asked for; the log of %s begins at index %v; mend: take an image from it (millrace image fetch), or name an edge that keeps more in edge.secondaries",
		ErrGone, e.After+1, e.Epoch, e.URL, e.Oldest)
}

// Unwrap returns ErrGone.
func (e *GoneError) Unwrap() error { return ErrGone }

// Code says why an upstream ends a connection.
type Code uint8

// The codes.
const (
	// CodeLoop: the child stands in the path above.
	CodeLoop Code = 1
	// CodeStream: the upstream has another stream.
	CodeStream Code = 2
	// CodeEpochOver: the epoch that is asked for is over here; a newer one is served.
	CodeEpochOver Code = 3
	// CodeEpochUnknown: the epoch that is asked for has not begun here.
	CodeEpochUnknown Code = 4
	// CodePruned: the log begins behind the place that is asked for.
	CodePruned Code = 5
	// CodeDiverged: the log has another chain at the index that is asked for.
	CodeDiverged Code = 6
	// CodeFilter: the filter that is asked for is not served here.
	CodeFilter Code = 7
	// CodeNoLog: no log is kept here, or it cannot be read now.
	CodeNoLog Code = 8
	// CodeDone: the index at which the child wants to stop is reached.
	CodeDone Code = 9
	// CodeMalformed: what the child sent is no frame of this version.
	CodeMalformed Code = 10
)

var codeNames = [...]string{
	CodeLoop: "loop", CodeStream: "stream", CodeEpochOver: "epoch_over", CodeEpochUnknown: "epoch_unknown", CodePruned: "pruned",
	CodeDiverged: "diverged", CodeFilter: "filter", CodeNoLog: "no_log", CodeDone: "done", CodeMalformed: "malformed",
}

// String returns the code's name.
func (c Code) String() string {
	if int(c) < len(codeNames) && c > 0 {
		return codeNames[c]
	}
	return fmt.Sprintf("code_%d", uint8(c))
}

// RefusedError is ErrRefused with what the upstream said.
type RefusedError struct {
	URL  string
	Code Code
	Text string
	// State is where the upstream stands; nil if it did not say.
	State *State
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("%v: %s: %s (%v)", ErrRefused, e.URL, e.Text, e.Code)
}

// Unwrap returns ErrRefused, and ErrLoop or millrace.ErrDiverged where it is that.
func (e *RefusedError) Unwrap() []error {
	switch e.Code {
	case CodeLoop:
		return []error{ErrRefused, ErrLoop}
	case CodeDiverged:
		return []error{ErrRefused, millrace.ErrDiverged}
	}
	return []error{ErrRefused}
}

// oneLine makes text that came from a peer fit for a log: one line, of bounded length.
func oneLine(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return text
}
