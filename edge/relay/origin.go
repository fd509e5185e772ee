package relay

import (
	"context"
	"fmt"
	"time"

	"github.com/millrace-db/millrace"
)

// OriginName stands in a list of upstreams for where the stream comes from first.
const OriginName = "kafka"

// Origin is where the stream comes from first: its topic. It may stand among the
// upstreams, and is the arbiter of the history: what it gives is not held against it.
type Origin interface {
	// Open opens the topic behind a place.
	Open(ctx context.Context, from From) (OriginSource, error)
	// Stand tells where the topic of an epoch ends: the index of its newest record, and
	// the time of that at the source.
	Stand(ctx context.Context, epoch millrace.Epoch) (millrace.Index, time.Time, error)
	// Gone tells that an error means that what comes next is no longer there.
	Gone(err error) bool
}

// OriginSource gives the records of the topic.
type OriginSource interface {
	TopicID() string
	Epoch() millrace.Epoch
	Next(ctx context.Context) (millrace.Offset, []byte, error)
	Close() error
}

// openOrigin opens the topic as an upstream.
func (c *Client) openOrigin(ctx context.Context, i int, from From) (*Source, error) {
	src, err := c.config.Origin.Open(ctx, from)
	if err != nil {
		return nil, err
	}
	from.Epoch = src.Epoch()
	s := &Source{
		c: c, i: i, from: from, topic: src.TopicID(), origin: src, ended: make(chan struct{}),
		welcome: &State{Node: OriginName, Stream: from.Stream, Epoch: from.Epoch, Oldest: 1, Newest: from.Index, TopicID: src.TopicID()},
	}
	// A read that waits ends when the source is left.
	s.life, s.end = context.WithCancel(context.WithoutCancel(ctx))
	c.begin(s)
	return s, nil
}

// nextOfOrigin is Next of a topic.
func (s *Source) nextOfOrigin(ctx context.Context) (millrace.Offset, []byte, error) {
	if s.stop == nil {
		s.stop = context.AfterFunc(ctx, s.end)
	}
	offset, value, err := s.origin.Next(s.life)
	switch {
	case err == nil:
		return offset, value, nil
	case ctx.Err() != nil:
		return 0, nil, ctx.Err()
	}
	s.mu.Lock()
	cause := s.cause
	s.mu.Unlock()
	if cause != nil {
		return 0, nil, fmt.Errorf("upstream %s: %w", s.URL(), cause)
	}
	s.c.failed(s.i, s.place(), err)
	return 0, nil, fmt.Errorf("upstream %s: %s", s.URL(), err.Error()) // others may be asked
}

// followOrigin notes where the edge stands while it follows the topic, which tells by
// itself what it has.
func (c *Client) followOrigin(at Applied) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.source; s != nil && s.origin != nil && at.Place.Epoch == s.from.Epoch {
		state := *s.welcome
		state.Newest, state.Chain, state.Time = at.Place.Index, at.Chain, at.Time
		c.choice.hear(time.Now(), s.i, state.stand())
		c.states[s.i] = &state
	}
}

// probeOrigin asks the topic where it ends.
func (c *Client) probeOrigin(ctx context.Context, i int) {
	at := c.config.Applied()
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	newest, when, err := c.config.Origin.Stand(ctx, at.Place.Epoch)
	if err != nil {
		c.failed(i, at.Place, err)
		return
	}
	c.probed(i, &State{Node: OriginName, Stream: at.Stream, Epoch: at.Place.Epoch, Oldest: 1, Newest: newest, Time: when})
}
