package transfer

import (
	"time"

	"github.com/millrace-db/millrace"
)

// The phases of a transfer.
const (
	// PhaseStarting: Run has not begun.
	PhaseStarting = "starting"
	// PhaseWaiting: another process has the hold of the source, or the source
	// does not answer.
	PhaseWaiting = "waiting"
	// PhaseRecovering: the topic is folded.
	PhaseRecovering = "recovering"
	// PhaseOpening: the reign has begun, capture is being opened.
	PhaseOpening = "opening"
	// PhasePublishing: all is well.
	PhasePublishing = "publishing"
	// PhaseRetrying: the last reign ended with an error that a new attempt may
	// mend.
	PhaseRetrying = "retrying"
	// PhaseFenced and PhaseStopped: Run has ended.
	PhaseFenced  = "fenced"
	PhaseStopped = "stopped"
)

type phase struct {
	name    string
	problem string
	since   time.Time
}

// Status is where a transfer stands, as people and peers are shown it. Index and
// what belongs to it are those of the newest complete unit that the publisher's
// own fold has accepted; before the first reign they are empty.
type Status struct {
	Stream    string         `json:"stream"`
	StreamID  string         `json:"stream_id"`
	Epoch     millrace.Epoch `json:"epoch"`
	Index     millrace.Index `json:"index"`
	Chain     string         `json:"chain"`
	Term      millrace.Term  `json:"term"`
	Publisher string         `json:"publisher"`
	// LagSeconds is now minus SourceTime.
	LagSeconds *float64 `json:"lag_seconds"`
	// SourceTime is when that unit was committed at the source.
	SourceTime *time.Time `json:"source_time"`
	Position   string     `json:"position"`
	// Token is the comparable part of the position.
	Token uint64 `json:"token"`
	// UnreadBytes are published and not yet read back.
	UnreadBytes int64     `json:"unread_bytes"`
	Phase       string    `json:"phase"`
	PhaseSince  time.Time `json:"phase_since"`
	// Problem is the newest error in the phases retrying, fenced and stopped.
	Problem string `json:"problem,omitempty"`
	// Warning says what is amiss at the source while the stream goes on.
	Warning string `json:"warning,omitempty"`
	// Trim is the newest look at what may go of the topic, TrimProblem why it failed;
	// both are missing where all records are kept.
	Trim        *Trim  `json:"trim,omitempty"`
	TrimProblem string `json:"trim_problem,omitempty"`
}

// Status returns the current one. It may be called at any time.
func (t *Transfer) Status() Status {
	stream := &t.config.Stream
	p := t.phase.Load()
	s := Status{
		Stream: stream.Name, StreamID: stream.ID.String(), Epoch: stream.Epoch,
		Phase: p.name, PhaseSince: p.since, Problem: p.problem,
	}
	if t.config.Warning != nil {
		s.Warning = t.config.Warning()
	}
	trim, err := t.newestTrim()
	if s.Trim = trim; err != nil {
		s.TrimProblem = err.Error()
	}
	a := t.current.Load()
	if a == nil {
		return s
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	f := a.history.fold
	s.Index, s.Chain = f.Index(), f.Chain().String()
	s.Term, s.Publisher = a.term, a.me.String()
	s.Position, s.Token = f.Position().String(), f.Position().Token()
	s.UnreadBytes = a.bytes
	if at := f.Time(); !at.IsZero() {
		lag := max(time.Since(at).Seconds(), 0)
		s.SourceTime, s.LagSeconds = &at, &lag
	}
	return s
}

// Ready reports whether the transfer is publishing.
func (t *Transfer) Ready() bool { return t.phase.Load().name == PhasePublishing }

func (t *Transfer) setPhase(name string) {
	t.phase.Store(&phase{name: name, since: time.Now().UTC()})
}

func (t *Transfer) fail(name string, err error) {
	p := &phase{name: name, since: time.Now().UTC()}
	if err != nil {
		p.problem = err.Error()
	}
	t.phase.Store(p)
}
