package transfer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/control"
	"github.com/millrace-db/millrace/internal/failpoint"
)

const (
	trimLimit  = time.Minute      // for one look at the topic, with the deletion
	proofLimit = 15 * time.Second // for the fold to come to the topic's end
	saidEvery  = time.Hour        // how often the log repeats that edges hold records back
)

// ErrNotReigning occurs when Trim is called while this process does not publish.
var ErrNotReigning = errors.New("the stream is not being published here")

// TrimRequest asks for a look at the topic now.
type TrimRequest struct {
	// DryRun deletes nothing.
	DryRun bool `json:"dry_run"`
	// Force passes over all edges. What a restarted transfer needs stays.
	Force bool `json:"force"`
}

type trimAsk struct {
	request TrimRequest
	answer  chan<- trimAnswer
}

type trimAnswer struct {
	trim *Trim
	err  error
}

// trimState is what trimming has come to, for Status and metrics.
type trimState struct {
	mu     sync.Mutex
	newest *Trim // the newest look that was no dry run
	err    error // of that look
	marks  error // why no marks are kept
	said   string
	saidAt time.Time
}

// Trim looks at the topic, and deletes what may go unless that is not asked for. It
// returns what it has found, also where nothing goes. Errors: ErrNotReigning.
func (t *Transfer) Trim(ctx context.Context, request TrimRequest) (*Trim, error) {
	ctx, cancel := context.WithTimeout(ctx, trimLimit)
	defer cancel()
	answer := make(chan trimAnswer, 1)
	select {
	case t.trims <- trimAsk{request, answer}:
	case <-ctx.Done():
		return nil, fmt.Errorf("trim the topic of stream %s: %w", t.config.Stream.Name, ErrNotReigning)
	}
	select {
	case a := <-answer:
		return a.trim, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("trim the topic of stream %s: %w", t.config.Stream.Name, context.Cause(ctx))
	}
}

// keepTrimmed trims the topic from time to time, and when it is asked to. Nothing that
// goes wrong with it holds up the stream.
func (r *reign) keepTrimmed(ctx context.Context) {
	var due <-chan time.Time
	if r.t.config.Retain.on() {
		tick := time.NewTicker(r.t.config.Retain.Every)
		defer tick.Stop()
		due = tick.C
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-due:
			r.trimLogged(ctx, TrimRequest{}) //nolint:errcheck // it is kept for Status
		case ask := <-r.t.trims:
			trim, err := r.trimLogged(ctx, ask.request)
			ask.answer <- trimAnswer{trim, err}
		}
	}
}

func (r *reign) trimLogged(ctx context.Context, request TrimRequest) (*Trim, error) {
	limited, cancel := context.WithTimeout(ctx, trimLimit)
	defer cancel()
	trim, err := r.trimOnce(limited, request)
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%w: the reign has ended: %w", ErrNotReigning, context.Cause(ctx))
	}
	if !request.DryRun {
		r.t.trimmed(trim, err)
	}
	return trim, err
}

// trimOnce looks at the topic and deletes what may go: decided in the database, which
// refuses a publisher that has a successor there; then proven at the topic, whose
// records up to now the own fold must have taken in without meeting a successor; then
// done. A publisher that is stopped in between for long, and wakes up, deletes what
// nobody needed when it decided: what is kept for the ledger and the edges that were
// known only grows from there.
func (r *reign) trimOnce(ctx context.Context, request TrimRequest) (*Trim, error) {
	trim, err := r.planTrim(ctx, request)
	if err != nil || request.DryRun || !trim.goes() {
		return trim, err
	}
	ledger, err := r.t.config.OpenLedger(ctx)
	if err != nil {
		return trim, err
	}
	defer r.closeLedger(ctx, ledger)
	s := &r.t.config.Stream
	err = ledger.DecideTrim(ctx, control.Trim{
		Stream: s.Name, Epoch: s.Epoch, Term: r.term, Publisher: r.me, Offset: trim.To, Index: trim.ToIndex, Forced: trim.Forced,
	})
	if err != nil {
		return trim, err
	}
	failpoint.Hit("trim-decided")
	if err := r.proveReign(ctx); err != nil {
		return trim, err
	}
	if _, err := r.log.DeleteBefore(ctx, trim.To); err != nil {
		return trim, fmt.Errorf("%w; mend: see that the brokers can be reached, and that transfer's user may delete records of the topic (operation Delete)", err)
	}
	failpoint.Hit("trimmed")
	at := r.now()
	trim.Done, trim.At = true, &at
	return trim, ledger.DropMarks(ctx, trim.To)
}

func (r *reign) closeLedger(ctx context.Context, ledger Ledger) {
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
	defer cancel()
	if err := ledger.Close(limited); err != nil {
		r.t.log.Debug("close", "what", "ledger", "error", err)
	}
}

// planTrim gathers what a plan goes by.
func (r *reign) planTrim(ctx context.Context, request TrimRequest) (*Trim, error) {
	c := &r.t.config
	trim := &Trim{Stream: c.Stream.Name, Epoch: c.Stream.Epoch, Topic: c.Stream.Topic}
	g := &grounds{retain: &c.Retain, epoch: c.Stream.Epoch, forced: request.Force, planted: r.planted}
	info, err := r.log.Info(ctx)
	if err != nil {
		return nil, err
	}
	if info.ID != c.Stream.TopicID {
		return nil, fmt.Errorf("topic %s has the ID %s, and stream %s is in %s: nothing is deleted there", c.Stream.Topic, info.ID, c.Stream.Name, c.Stream.TopicID)
	}
	trim.Start, trim.End = info.Start, info.End
	ledger, err := c.OpenLedger(ctx)
	if err != nil {
		return nil, err
	}
	defer r.closeLedger(ctx, ledger)
	row, err := ledger.Newest(ctx)
	if err != nil {
		return nil, err
	}
	if g.marks, err = ledger.Marks(ctx); err != nil {
		return nil, err
	}
	if trim.StartIndex, err = r.startIndex(ctx, info.Start, g.marks); err != nil {
		return nil, err
	}
	base, err := r.countedBefore(ctx, ledger)
	if err != nil {
		return nil, err
	}
	_, g.total = r.accepted.mark()
	g.total += base
	if c.Retain.Readers != nil && !request.Force {
		if g.readers, err = c.Retain.Readers(ctx); err != nil {
			return nil, fmt.Errorf("what edges need is not known, so nothing is deleted: %w", err)
		}
	}
	for _, reader := range g.readers {
		if reader.Epoch > g.epoch {
			return nil, fmt.Errorf("%w: edge %s has epoch %v, this is %v", ErrNotReigning, reader.Name, reader.Epoch, g.epoch)
		}
	}
	g.newest = millrace.NoOffset
	if row != nil && row.Term == r.term && row.Publisher == r.me {
		g.newest = row.StateOffset
	}
	trim.plan(g)
	if g.newest == millrace.NoOffset && trim.Why == "" {
		trim.Why = "the ledger names no state record of this reign yet"
	}
	return trim, nil
}

// startIndex is the index that the topic begins behind.
func (r *reign) startIndex(ctx context.Context, start millrace.Offset, marks []control.Mark) (millrace.Index, error) {
	if start == 0 {
		return 0, nil
	}
	for _, m := range marks {
		if m.Offset == start {
			return m.Index, nil
		}
	}
	reader, err := r.log.Read(ctx, start)
	if err != nil {
		return 0, err
	}
	defer reader.Close()
	m, err := reader.Next(ctx)
	if err != nil {
		return 0, err
	}
	record, err := millrace.DecodeRecord(m.Value, nil)
	if err != nil {
		return 0, fmt.Errorf("record at offset %v: %w", m.Offset, err)
	}
	return max(record.First, 1) - 1, nil // of whatever kind: what was before it is gone
}

// proveReign returns nil when the own fold has taken in all that is in the topic now:
// had another publisher's reign begun there, this one would have ended.
func (r *reign) proveReign(ctx context.Context) error {
	info, err := r.log.Info(ctx)
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, proofLimit)
	defer cancel()
	select {
	case <-r.accepted.reaches(info.End):
		return context.Cause(ctx) // a reign that has ended reads no more
	case <-limited.Done():
		return fmt.Errorf("%w: offset %v of the topic was not read back in time, so nothing is deleted", ErrNotReigning, info.End)
	}
}

// trimmed keeps what a look has come to, and says what is news.
func (t *Transfer) trimmed(trim *Trim, err error) {
	s := &t.trim
	s.mu.Lock()
	defer s.mu.Unlock()
	if trim != nil {
		if !trim.Done && s.newest != nil {
			trim.At = s.newest.At
		}
		s.newest = trim
	}
	s.err = err
	say := ""
	switch {
	case err != nil:
		t.metrics.trimFails.Inc()
		if say = err.Error(); s.news(say) {
			t.log.Warn("the topic is not trimmed; publishing goes on", "error", err)
		}
	case trim.Done:
		t.metrics.trims.Inc()
		t.log.Info("topic trimmed", "topic", trim.Topic, "offset", trim.To, "index", trim.ToIndex, "from_offset", trim.Start, "bytes", trim.Bytes, "forced", trim.Forced)
	}
	if err == nil && trim.held() {
		first := trim.Holders[0]
		if say = "held by " + first.Edge; s.news(say) {
			t.log.Warn("edges still need records that retention would let go", "edge", first.Edge, "index", first.Index, "absent_seconds", first.AbsentSeconds,
				"edges", len(trim.Holders)+trim.More, "wanted_index", trim.WantedIndex, "mend", "millrace status shows the edge; one that is gone for good: millrace status --forget EDGE")
		}
	}
	if say == "" {
		s.said = ""
	}
}

// news reports whether a text is worth a line.
func (s *trimState) news(say string) bool {
	if say == s.said && time.Since(s.saidAt) < saidEvery {
		return false
	}
	s.said, s.saidAt = say, time.Now()
	return true
}

// marking notes how it goes with keeping marks. It is told of once, and only where
// somebody waits for trimming.
func (t *Transfer) marking(err error) {
	t.trim.mu.Lock()
	defer t.trim.mu.Unlock()
	if err != nil && t.trim.marks == nil && t.config.Retain.on() {
		t.log.Warn("no places are kept where the topic may begin, so it is not trimmed", "error", err, "mend", "where tables are missing or rights, millrace init")
	}
	t.trim.marks = err
}

// newestTrim is the newest look at the topic, and what was wrong with it.
func (t *Transfer) newestTrim() (*Trim, error) {
	t.trim.mu.Lock()
	defer t.trim.mu.Unlock()
	if t.trim.newest == nil {
		return nil, t.trim.err
	}
	trim := *t.trim.newest
	return &trim, t.trim.err
}
