package relay

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/millrace-db/millrace"
)

// watchEvery is how often it is looked whether somebody is to be probed.
const watchEvery = 250 * time.Millisecond

// Run asks the upstreams that are not followed where they stand, and leaves the one that
// is for one of them where that is better, until ctx ends.
func (c *Client) Run(ctx context.Context) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		at := c.config.Applied()
		c.followOrigin(at)
		c.mu.Lock()
		c.rememberLocked(at)
		due := c.choice.probes(time.Now())
		c.mu.Unlock()
		for _, i := range due {
			if c.ups[i].origin {
				c.probeOrigin(ctx, i)
				continue
			}
			c.probe(ctx, i)
		}
	}
}

// probe asks one upstream where it stands, whether it has our history, and whether it is
// to be gone over to.
func (c *Client) probe(ctx context.Context, i int) {
	at := c.known(i)
	h := &hello{node: c.config.Node, stream: at.Stream, epoch: at.Place.Epoch, index: at.Place.Index, probe: true}
	if h.index > 0 {
		h.chain = at.Chain
	}
	l, err := c.connect(ctx, c.ups[i], h)
	if ctx.Err() != nil {
		return
	}
	var refusal *RefusedError
	if errors.As(err, &refusal) && refusal.Code == CodePruned && refusal.State != nil && refusal.State.Oldest <= c.config.Applied().Place.Index+1 {
		l, err = &link{welcome: refusal.State}, nil // it has what is needed, if not what was asked
	}
	if err != nil {
		c.failed(i, at.Place, err)
		return
	}
	if l.conn != nil {
		_ = l.conn.Close() // it has said what was asked
	}
	c.probed(i, l.welcome)
}

// probed takes in where an upstream stands that is not followed, and goes over to it where
// that is better.
func (c *Client) probed(i int, state *State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.choice.hear(now, i, state.stand())
	c.heardLocked(i, state)
	c.choice.all[i].why = nil
	reason, leave := c.choice.better(now, i, c.config.Applied().Place)
	if leave && c.source != nil {
		c.config.Logger.Info("the edge leaves its upstream for another one", "upstream", c.ups[c.source.i].text, "for", c.ups[i].text, "reason", reason)
		c.choice.current = -1
		c.source.leave(errLeft)
	}
}

// remembered is how many places are remembered, and rememberEvery how many entries apart
// they are at least.
const (
	remembered    = 64
	rememberEvery = 16
)

// rememberLocked remembers a place, so that an upstream which is behind can be asked for
// the history at one that it has.
func (c *Client) rememberLocked(at Applied) {
	if at.Place.Index == 0 {
		return
	}
	if n := len(c.history); n > 0 {
		switch last := c.history[n-1].Place; {
		case last.Epoch != at.Place.Epoch:
			c.history = nil
		case at.Place.Index < last.Index+rememberEvery:
			return
		}
	}
	if len(c.history) == remembered {
		// Every second one goes: the rest reaches back as far.
		for i := range remembered / 2 {
			c.history[i] = c.history[2*i]
		}
		c.history = c.history[:remembered/2]
	}
	c.history = append(c.history, at)
}

// known is the newest place applied here that an upstream has come to, as far as is
// known; the newest one of all if none is.
func (c *Client) known(i int) Applied {
	at := c.config.Applied()
	c.mu.Lock()
	defer c.mu.Unlock()
	said := c.choice.all[i].said
	if said.epoch != at.Place.Epoch || said.newest >= at.Place.Index {
		return at
	}
	for _, h := range slices.Backward(c.history) {
		if h.Place.Epoch == said.epoch && h.Place.Index <= said.newest {
			return h
		}
	}
	return at
}

// Ask asks each upstream for an epoch, and tells whether one of them serves it from its
// beginning on, or has come to a later one. It is how an edge learns that an epoch has
// begun, where it knows of no topics.
func (c *Client) Ask(ctx context.Context, stream millrace.StreamID, epoch millrace.Epoch) (bool, error) {
	var errs []error
	asked := 0
	for i := range c.ups {
		if c.ups[i].origin {
			continue // whoever knows of topics asks for them
		}
		asked++
		l, err := c.connect(ctx, c.ups[i], &hello{node: c.config.Node, stream: stream, epoch: epoch, probe: true})
		if err == nil {
			begun := l.welcome.Newest > 0
			_ = l.conn.Close() // it has said what was asked
			if begun {
				return true, nil
			}
			continue
		}
		var refusal *RefusedError
		switch {
		case !errors.As(err, &refusal):
			errs = append(errs, err)
		case refusal.Code == CodePruned:
			return true, nil // what it has of it begins later
		}
	}
	if len(errs) < asked || asked == 0 {
		return false, nil
	}
	return false, errors.Join(errs...)
}
