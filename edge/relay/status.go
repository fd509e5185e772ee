package relay

import (
	"sync"
	"time"

	"github.com/millrace-db/millrace"
)

// Status says whom a client follows.
type Status struct {
	// URL is the upstream that is followed, empty if none is, and Node its name.
	URL, Node string
	// Path are the nodes above this one, the nearest first.
	Path []string
	// Index is where the upstream stands, and Behind how many entries of that are not
	// applied here; BehindTime is by how much they are younger, by the source's clock.
	Index      millrace.Index
	Behind     millrace.Index
	BehindTime time.Duration
	// Upstreams are all of them, in the order in which they are tried.
	Upstreams []UpstreamStatus
}

// UpstreamStatus says what is known of one upstream.
type UpstreamStatus struct {
	URL       string
	Secondary bool
	// Epoch, Oldest and Newest are what it has, as it last said, which was at Heard.
	Epoch          millrace.Epoch
	Oldest, Newest millrace.Index
	Heard          time.Time
	// Problem is why it does not serve, this client or one beside it; empty if it does, or
	// was not asked.
	Problem string
	// Untrue is what it gave that is not of the history. It is left alone for it.
	Untrue string
}

// Status returns whom the client follows.
func (c *Client) Status() Status {
	at := c.config.Applied()
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Status{Path: c.pathLocked()}
	if c.source != nil {
		state := c.states[c.source.i]
		s.URL, s.Node, s.Index = c.ups[c.source.i].text, state.Node, state.Newest
		if state.Epoch == at.Place.Epoch && state.Newest > at.Place.Index {
			s.Behind = state.Newest - at.Place.Index
			if !at.Time.IsZero() && !state.Time.IsZero() {
				s.BehindTime = max(0, state.Time.Sub(at.Time))
			}
		}
	}
	for i, one := range c.choice.all {
		u := UpstreamStatus{
			URL: c.ups[i].text, Secondary: one.secondary, Heard: one.heard,
			Epoch: one.said.epoch, Oldest: one.said.oldest, Newest: one.said.newest,
		}
		why := one.why
		if why == nil && c.source == nil {
			why = c.beside.at(i)
		}
		if why != nil {
			u.Problem = why.Error()
		}
		if one.bad() {
			u.Untrue = one.untrue.Error()
		}
		s.Upstreams = append(s.Upstreams, u)
	}
	return s
}

// Fault says what is wrong with upstreams that keeps nobody from going on: those that
// gave something untrue. nil if there is none.
func (c *Client) Fault() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, one := range c.choice.all {
		if one.bad() {
			return &UntrueError{URL: one.url, Why: one.untrue}
		}
	}
	return nil
}

// UntrueError is of an upstream that gave something untrue.
type UntrueError struct {
	URL string
	Why error
}

func (e *UntrueError) Error() string {
	return "upstream " + e.URL + " is left alone: what it gives is not of the history: " + e.Why.Error() +
		"; mend: find out which of the two edges was altered, and load that one anew"
}

// problems are what clients beside another one have met with each upstream last, nil for
// nothing. All of them have the same.
type problems struct {
	mu sync.Mutex
	of []error
}

func (p *problems) note(i int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.of[i] = err
}

func (p *problems) at(i int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.of[i]
}
