package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/millrace-db/millrace"
	edgelog "github.com/millrace-db/millrace/edge/log"
)

// placeEvery is how often an upstream is told where its child stands.
const placeEvery = 2 * time.Second

// withheld is how many times Silence an upstream may send nothing of what it has.
const withheld = 3

// Source gives the records of an upstream from a place on. Next and Reject are called
// by one goroutine, and Close when that has ended.
type Source struct {
	c       *Client
	i       int
	link    *link
	welcome *State
	from    From
	topic   string
	decoder *edgelog.Decoder
	// piece is what is left of the piece of the log that is being read.
	piece int
	// got is the index up to which records have come, and lacking since when the upstream
	// has said that it has more, with nothing coming; zero while something comes.
	got     millrace.Index
	lacking time.Time
	stop    func() bool
	work    sync.WaitGroup
	ended   chan struct{}
	once    sync.Once
	// origin is set in place of link where the topic is followed, for as long as life.
	origin OriginSource
	life   context.Context //nolint:containedctx // of the source
	end    context.CancelFunc

	mu sync.Mutex
	// cause is why the connection was closed from here.
	cause error
}

func newSource(c *Client, i int, l *link, from From) *Source {
	s := &Source{c: c, i: i, link: l, welcome: l.welcome, from: from, topic: l.welcome.TopicID, got: from.Index, ended: make(chan struct{})}
	if from.Epoch == 0 {
		s.from.Epoch = l.welcome.Epoch
	}
	s.decoder = edgelog.NewDecoder((*stream)(s))
	s.work.Go(s.tell)
	return s
}

// Stream and Epoch are those of the records.
func (s *Source) Stream() millrace.StreamID { return s.welcome.Stream }

// Epoch is that of the records.
func (s *Source) Epoch() millrace.Epoch { return s.welcome.Epoch }

// URL is that of the upstream.
func (s *Source) URL() string { return s.c.ups[s.i].text }

// TopicID returns Kafka's identity of the topic that the records came from first, as
// the upstream says.
func (s *Source) TopicID() string { return s.topic }

// Agrees reports whether the upstream has shown that at the place which was asked for it
// has the same chain. Where it begins to send further back, the records show it.
func (s *Source) Agrees() bool { return s.from.Index > 0 && s.welcome.From == s.from.Index }

// awaitTopic waits until the upstream knows the topic: one that is new has nothing yet.
func (s *Source) awaitTopic(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.leave(ctx.Err()) })
	defer stop()
	for s.topic == "" {
		if err := (*stream)(s).next(); err != nil {
			return s.fault(err)
		}
		if s.piece > 0 && s.topic == "" {
			return fmt.Errorf("%w: records of no topic", errFrame)
		}
	}
	return nil
}

// Next waits for the next record. The value belongs to the caller. After an error, that
// of ctx too, the Source is of no more use.
func (s *Source) Next(ctx context.Context) (millrace.Offset, []byte, error) {
	if s.origin != nil {
		return s.nextOfOrigin(ctx)
	}
	if s.stop == nil {
		s.stop = context.AfterFunc(ctx, func() { s.leave(ctx.Err()) })
	}
	r, err := s.decoder.Next()
	if err != nil {
		if cerr := ctx.Err(); cerr != nil {
			return 0, nil, cerr
		}
		return 0, nil, s.fault(err)
	}
	if r.Header.Kind == millrace.RecordBatch {
		s.got = r.Header.Last()
	}
	return r.Offset, slices.Clone(r.Value), nil
}

// fault notes an error of the upstream, and returns it with its name.
func (s *Source) fault(err error) error {
	s.mu.Lock()
	cause := s.cause
	s.mu.Unlock()
	if cause != nil {
		return fmt.Errorf("upstream %s: %w", s.URL(), cause)
	}
	switch {
	case isTimeout(err):
		err = fmt.Errorf("%w: nothing has come for %v", errSilent, s.c.config.Silence)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		err = errors.New("it has closed the connection")
	}
	if errors.Is(err, edgelog.ErrDamaged) {
		s.c.mu.Lock()
		s.c.rejectLocked(s.i, s.place(), err, false)
		s.c.mu.Unlock()
	} else {
		s.c.failed(s.i, s.place(), err)
	}
	return fmt.Errorf("upstream %s: %s", s.URL(), err.Error()) // it is temporary, whatever the upstream says
}

// place is the one that records were wanted behind.
func (s *Source) place() millrace.Place {
	return millrace.Place{Epoch: s.from.Epoch, Index: s.from.Index}
}

// Reject tells that a record of this source is not of the history. It returns what the
// attempt ends with: a temporary error while another upstream, or this one once more,
// may be asked; otherwise ErrUntrue, or the error itself where the Origin gave the record.
func (s *Source) Reject(err error) error {
	if s.origin != nil {
		return err // nothing stands above it
	}
	c := s.c
	at := s.place()
	if applied := c.config.Applied(); !c.aside && applied.Place.Epoch == at.Epoch {
		at.Index = max(at.Index, applied.Place.Index)
	}
	c.mu.Lock()
	c.rejectLocked(s.i, at, err, true)
	_, _, verdict := c.choice.pick(time.Now(), at)
	c.mu.Unlock()
	if verdict == pickUntrue {
		return fmt.Errorf("%w: %w", c.untrue(), err)
	}
	return fmt.Errorf("upstream %s gave what is not of the history: %s", s.URL(), err.Error())
}

// Close ends the connection.
func (s *Source) Close() error {
	s.leave(net.ErrClosed)
	if s.stop != nil {
		s.stop()
	}
	s.work.Wait()
	s.c.mu.Lock()
	if s.c.source == s {
		s.c.source = nil
	}
	s.c.mu.Unlock()
	if s.origin != nil {
		return s.origin.Close()
	}
	return nil
}

// leave closes the connection, for a reason.
func (s *Source) leave(why error) {
	s.mu.Lock()
	if s.cause == nil {
		s.cause = why
	}
	s.mu.Unlock()
	s.once.Do(func() { close(s.ended) })
	if s.origin != nil {
		s.end()
		return
	}
	_ = s.link.conn.Close() // nothing more is wanted of it
}

// stream is a Source as the bytes of the log that it brings.
type stream Source

func (t *stream) Read(b []byte) (int, error) {
	for t.piece == 0 {
		if err := t.next(); err != nil {
			return 0, err
		}
	}
	n, err := t.link.r.Read(b[:min(len(b), t.piece)])
	t.piece -= n
	if n == 0 && errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// next takes the next frame.
func (t *stream) next() error {
	kind, content, size, err := t.link.frames.next()
	if err != nil {
		return err
	}
	switch kind {
	case frameRecords:
		t.piece, t.lacking = size, time.Time{}
		return nil
	case frameState:
		state, err := decodeNodeState(content)
		if err != nil {
			return err
		}
		return t.hear(state)
	case frameClose:
		return refused(t.c.ups[t.i], content)
	}
	return fmt.Errorf("%w: an upstream sends kind %d", errFrame, kind)
}

// hear takes in where the upstream stands.
func (t *stream) hear(state *State) error {
	c := t.c
	if err := c.circle(c.ups[t.i], state); err != nil {
		return err
	}
	if t.topic == "" {
		t.topic = state.TopicID
	}
	// A state stands behind the records that were sent before it.
	switch now := time.Now(); {
	case state.Newest <= t.got:
		t.lacking = time.Time{}
	case t.lacking.IsZero():
		t.lacking = now
	case now.Sub(t.lacking) > withheld*c.config.Silence:
		return fmt.Errorf("%w: it has come to index %v, and nothing has come behind %v for %v", errWithheld, state.Newest, t.got, now.Sub(t.lacking).Round(time.Millisecond))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.choice.hear(time.Now(), t.i, state.stand())
	c.heardLocked(t.i, state)
	return nil
}

// tell tells the upstream where this child stands, and what it has to report.
func (s *Source) tell() {
	tick := time.NewTicker(placeEvery)
	defer tick.Stop()
	reports := s.c.reports
	if s.c.aside {
		reports = nil
	}
	var buf, content []byte
	for {
		select {
		case <-s.ended:
			return
		case report := <-reports:
			buf = appendFrame(buf[:0], frameReport, report)
		case <-tick.C:
			p := place{s.from.Epoch, s.from.Index}
			if at := s.c.config.Applied(); at.Place.Epoch == p.epoch && !s.c.aside {
				p.index = at.Place.Index
				s.exonerate(at.Place)
			}
			content = appendPlace(content[:0], p)
			buf = appendFrame(buf[:0], framePlace, content)
		}
		err := s.link.conn.SetWriteDeadline(time.Now().Add(answerTime))
		if err == nil {
			_, err = s.link.conn.Write(buf)
		}
		if err != nil {
			s.leave(fmt.Errorf("it takes in nothing: %s", err.Error()))
			return
		}
	}
}

// exonerate takes an upstream's strikes away when what it gave was applied, beyond the
// place where they were given.
func (s *Source) exonerate(at millrace.Place) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if at.Index <= s.from.Index {
		return
	}
	if s.c.choice.clear(s.i, at) {
		s.c.config.Logger.Info("an upstream gives the history again", "upstream", s.c.ups[s.i].text)
	}
}
