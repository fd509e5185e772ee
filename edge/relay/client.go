package relay

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
)

// ClientConfig says whom to follow. Node, Stream, Applied and at least one of Upstreams
// and Secondaries must be set.
type ClientConfig struct {
	// Node is this edge's name, Stream that of the stream in the upstreams'
	// configuration.
	Node, Stream string
	// Upstreams are followed; Secondaries where none of those serves what is needed.
	// Edges with the same list try it in orders of their own, so that they spread over
	// it.
	Upstreams, Secondaries []Upstream
	// Origin is what stands in these lists as OriginName; nil where nothing does.
	Origin Origin
	// Applied returns what has been applied here of the epoch that readers use.
	Applied func() Applied
	// TLS returns what a connection over https is made with; nil is the system's.
	TLS func() *tls.Config
	// Authorize adds to a request over https what shows who asks; nil adds nothing.
	Authorize func(*http.Request)
	// Silence is how long an upstream may send nothing. Default 5 s.
	Silence time.Duration
	// Stale is how long it may bring nothing new before others are asked whether they
	// have more. Default 10 s.
	Stale time.Duration
	// Margin is by how much, by the source's clock, another must be fresher to be gone
	// over to. Default 5 s.
	Margin time.Duration
	// Probe is how often others are asked while there is a reason, Check how often they
	// are anyway, for their history too. Default 10 s and 1 min.
	Probe, Check time.Duration
	// RetryMin and RetryMax bound the pause after a failure of one upstream. Default
	// 200 ms and 15 s.
	RetryMin, RetryMax time.Duration
	// Ban is how long an upstream that gave something untrue twice is not asked.
	// Default 10 min.
	Ban time.Duration
	// Filter says what of each record is wanted, in the words of the upstream's Filter;
	// empty for all of it. Upstreams that do not know it are not followed.
	Filter []byte
	// Seed makes the jitter of pauses one that can be repeated; 0 takes any.
	Seed uint64
	// Logger takes transitions; nil drops them.
	Logger *slog.Logger
	// Registerer takes metrics; nil drops them.
	Registerer prometheus.Registerer
}

// Applied is what has been applied.
type Applied struct {
	Stream millrace.StreamID
	Place  millrace.Place
	Chain  millrace.Chain
	Time   time.Time
}

// From is the place behind which records are wanted.
type From struct {
	// Stream is zero for any, Epoch 0 for the one that readers of the upstream use.
	Stream millrace.StreamID
	Epoch  millrace.Epoch
	Index  millrace.Index
	Chain  millrace.Chain
	// After is the checkpoint there, for an Origin; nil for the beginning.
	After *millrace.Checkpoint
}

// Client follows a stream from one of several upstreams. Its methods may be called by
// anyone at any time; Run is called by one at a time.
type Client struct {
	config  ClientConfig
	metrics *clientMetrics
	// ups are the upstreams in the order of choice.all.
	ups []Upstream
	// aside tells that it follows beside another client of the stream, and beside has
	// what the clients beside that one have met.
	aside   bool
	beside  *problems
	reports chan []byte

	mu     sync.Mutex
	choice *choice
	// source is the newest one that is open, nil if none is; states are where the
	// upstreams stand, by their place in ups.
	source *Source
	states []*State
	// changes counts how often another upstream was gone over to.
	changes int
	last    int
	// history are places that were applied here, oldest first.
	history []Applied
}

// NewClient returns a client. The caller calls Run, and Close when that has ended.
func NewClient(c ClientConfig) (*Client, error) {
	if err := checkNode(c.Node); err != nil {
		return nil, fmt.Errorf("follow relays: %w", err)
	}
	if len(c.Filter) > maxFilter {
		return nil, fmt.Errorf("follow relays: a filter of %d bytes, at most %d are possible", len(c.Filter), maxFilter)
	}
	if c.Stream == "" || c.Applied == nil || len(c.Upstreams)+len(c.Secondaries) == 0 {
		return nil, errors.New("follow relays: stream, upstreams and what is applied must be given")
	}
	setDefault(&c.Silence, 5*time.Second)
	setDefault(&c.Stale, 10*time.Second)
	setDefault(&c.Margin, 5*time.Second)
	setDefault(&c.Probe, 10*time.Second)
	setDefault(&c.Check, time.Minute)
	setDefault(&c.RetryMin, 200*time.Millisecond)
	setDefault(&c.RetryMax, 15*time.Second)
	setDefault(&c.Ban, 10*time.Minute)
	for _, u := range slices.Concat(c.Upstreams, c.Secondaries) {
		if u.origin && c.Origin == nil {
			return nil, fmt.Errorf("follow relays: %s stands among the upstreams and is not given", u)
		}
	}
	for _, d := range []time.Duration{c.Silence, c.Stale, c.Margin, c.Probe, c.Check, c.RetryMin, c.RetryMax - c.RetryMin, c.Ban} {
		if d < 0 {
			return nil, errors.New("follow relays: times must not be negative, nor the longest retry shorter than the shortest")
		}
	}
	setDefault(&c.Seed, rand.Uint64()) //nolint:gosec // it spreads pauses
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return newClient(c, nil), nil
}

// newClient makes a client, or with the problems of another one a client beside that.
func newClient(config ClientConfig, beside *problems) *Client {
	c := &Client{config: config, aside: beside != nil, beside: beside, last: -1, reports: make(chan []byte, 64)}
	primaries, secondaries := spread(config.Node, config.Upstreams), spread(config.Node, config.Secondaries)
	c.ups = append(slices.Clone(primaries), secondaries...)
	c.states = make([]*State, len(c.ups))
	if c.beside == nil {
		c.beside = &problems{of: make([]error, len(c.ups))}
	}
	c.choice = newChoice(rules{
		stale: config.Stale, margin: config.Margin, probe: config.Probe, check: config.Check, silence: config.Silence,
		retryMin: config.RetryMin, retryMax: config.RetryMax, ban: config.Ban,
	}, rand.New(rand.NewPCG(config.Seed, 1)), texts(primaries), texts(secondaries)) //nolint:gosec // it spreads pauses
	c.metrics = newClientMetrics(c)
	return c
}

// spread orders upstreams as this node tries them.
func spread(node string, all []Upstream) []Upstream {
	weight := func(u Upstream) uint64 {
		h := fnv.New64a()
		_, _ = h.Write([]byte(node + "\x00" + u.text))
		return mix(h.Sum64())
	}
	return slices.SortedFunc(slices.Values(all), func(a, b Upstream) int {
		return cmp.Or(cmp.Compare(weight(a), weight(b)), strings.Compare(a.text, b.text))
	})
}

// mix spreads what FNV leaves close together: the end of the text hardly reaches its
// high bits.
func mix(h uint64) uint64 {
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

func texts(all []Upstream) []string {
	var list []string
	for _, u := range all {
		list = append(list, u.text)
	}
	return list
}

// Aside returns a client that follows the same upstreams beside this one, for a copy
// that is made: of another epoch, or of the store. It probes nobody and has no metrics.
// What it meets stands in the Status of this one while that follows nobody.
func (c *Client) Aside() *Client {
	config := c.config
	config.Registerer = nil
	config.Logger = config.Logger.With("copy", true)
	a := newClient(config, c.beside)
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, one := range c.choice.all {
		to := a.choice.all[i]
		to.strikes, to.certain, to.place, to.banned, to.untrue = one.strikes, one.certain, one.place, one.banned, one.untrue
	}
	return a
}

// Close forgets the metrics. Sources are closed by who has opened them.
func (c *Client) Close() error {
	c.metrics.unregister()
	return nil
}

// Open goes to an upstream that has what comes after a place. It tries those that may
// be asked now, and then waits, or says why none serves. Errors: GoneError; ErrUntrue,
// which stops the stream; others are temporary.
func (c *Client) Open(ctx context.Context, from From) (*Source, error) {
	tried := 0
	for {
		c.mu.Lock()
		i, wait, verdict := c.choice.pick(time.Now(), millrace.Place{Epoch: from.Epoch, Index: from.Index})
		c.mu.Unlock()
		switch {
		case verdict == pickGone:
			return nil, c.gone(i, from)
		case verdict == pickUntrue:
			return nil, c.untrue()
		case verdict == pickWait && tried > 0:
			return nil, c.unserved()
		case verdict == pickWait:
			tried++
			if err := sleep(ctx, wait); err != nil {
				return nil, err
			}
			continue
		}
		tried++
		s, err := c.open(ctx, i, from)
		if err == nil {
			return s, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		c.failed(i, millrace.Place{Epoch: from.Epoch, Index: from.Index}, err)
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Client) open(ctx context.Context, i int, from From) (*Source, error) {
	if c.ups[i].origin {
		return c.openOrigin(ctx, i, from)
	}
	h := &hello{node: c.config.Node, stream: from.Stream, epoch: from.Epoch, index: from.Index, filter: c.config.Filter}
	if from.Index > 0 {
		h.chain = from.Chain
	}
	l, err := c.connect(ctx, c.ups[i], h)
	if err != nil {
		return nil, err
	}
	s := newSource(c, i, l, from)
	c.begin(s)
	if err := s.awaitTopic(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// begin notes that an upstream serves.
func (c *Client) begin(s *Source) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.choice.follow(time.Now(), s.i, s.welcome.stand())
	c.beside.note(s.i, nil)
	c.source = s
	c.heardLocked(s.i, s.welcome)
	if c.last != s.i {
		c.last = s.i
		c.changes++
		c.metrics.changes.Inc()
		c.config.Logger.Info("the edge follows an upstream", "upstream", c.ups[s.i].text, "node", s.welcome.Node, "depth", len(c.pathLocked()), "index", s.from.Index, "upstream_index", s.welcome.Newest)
	}
}

// heardLocked notes where an upstream stands.
func (c *Client) heardLocked(i int, s *State) { c.states[i] = s }

// failed notes an error of an upstream.
func (c *Client) failed(i int, want millrace.Place, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failedLocked(i, want, err)
}

func (c *Client) failedLocked(i int, want millrace.Place, err error) {
	now := time.Now()
	if c.aside {
		c.beside.note(i, err)
	}
	var said *standing
	var refusal *RefusedError
	if errors.As(err, &refusal) {
		if refusal.State != nil {
			s := refusal.State.stand()
			said = &s
			c.heardLocked(i, refusal.State)
		}
		if refusal.Code == CodeEpochOver && want.Epoch != 0 {
			c.choice.ended(i, want.Epoch)
		}
	}
	if diverged(err) && !c.ups[i].origin {
		c.rejectLocked(i, want, err, true)
		return
	}
	one := c.choice.all[i]
	news := one.why == nil || one.why.Error() != err.Error()
	c.choice.fail(now, i, err, said)
	if c.ups[i].origin && c.config.Origin.Gone(err) {
		c.choice.lose(now, i, want)
	}
	if news {
		c.config.Logger.Warn("an upstream does not serve", "upstream", c.ups[i].text, "error", err)
	}
}

// rejectLocked notes that an upstream gave something untrue at a place.
func (c *Client) rejectLocked(i int, at millrace.Place, err error, certain bool) {
	bad := c.choice.reject(time.Now(), i, at, err, certain)
	if !c.choice.all[i].bad() {
		c.config.Logger.Warn("what came of an upstream is damaged; it is asked once more", "upstream", c.ups[i].text, "place", at, "error", err)
		return
	}
	if !bad {
		return // it is known
	}
	c.metrics.untrue.Inc()
	c.config.Logger.Error("what an upstream gives is not of the history; others are followed", "upstream", c.ups[i].text, "place", at, "error", err,
		"mend", "find out which of the two edges was altered, and load that one anew")
}

// gone is the error of a place that no upstream reaches.
func (c *Client) gone(i int, from From) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ups[i].origin {
		// Why is forgotten when the topic serves again, or is probed; that it has lost the
		// place is not.
		if why := c.choice.all[i].why; why != nil {
			return fmt.Errorf("%w: %s: %w", ErrGone, c.ups[i], why)
		}
		return fmt.Errorf("%w: index %v of epoch %v is asked for, and %s no longer had it", ErrGone, from.Index+1, from.Epoch, c.ups[i])
	}
	one := c.choice.all[i]
	return &GoneError{
		URL: c.ups[i].text, Oldest: one.said.oldest, Epoch: from.Epoch, After: from.Index,
		Over: from.Epoch != 0 && one.over >= from.Epoch,
	}
}

// untrue is the error of upstreams that all disagree.
func (c *Client) untrue() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var why []string
	for _, one := range c.choice.all {
		why = append(why, fmt.Sprintf("%s: %v", one.url, one.untrue))
	}
	return fmt.Errorf("%w: %w: %s; mend: find out whether they or this edge were altered; if it is this one, move its data away and start it again", millrace.ErrStop, ErrUntrue, strings.Join(why, "; "))
}

// unserved is the error of upstreams that all do not serve now.
func (c *Client) unserved() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var why []string
	for _, one := range c.choice.all {
		switch {
		case one.strikes > 0:
			why = append(why, fmt.Sprintf("%s: %v", one.url, one.untrue))
		case one.why != nil:
			why = append(why, fmt.Sprintf("%s: %v", one.url, one.why))
		}
	}
	return fmt.Errorf("no upstream serves: %s", strings.Join(why, "; "))
}

// Named returns the epochs after one that upstreams name, the newest first. What one
// names need not be true: Ask asks all of them for it.
func (c *Client) Named(after millrace.Epoch) []millrace.Epoch {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []millrace.Epoch
	for _, s := range c.states {
		if s == nil {
			continue
		}
		for _, epoch := range []millrace.Epoch{s.Epoch, s.Next} {
			if epoch > after && !slices.Contains(all, epoch) {
				all = append(all, epoch)
			}
		}
	}
	slices.SortFunc(all, func(a, b millrace.Epoch) int { return cmp.Compare(b, a) })
	return all
}

// Path returns the nodes above this one, the nearest first; none while no upstream is
// followed.
func (c *Client) Path() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pathLocked()
}

func (c *Client) pathLocked() []string {
	if c.source == nil || c.source.origin != nil {
		return nil
	}
	s := c.states[c.source.i]
	return append([]string{s.Node}, s.Path...)
}

// Report sends a payload to the upstream that is followed, now or when there is one. It
// tells whether it was taken; one that is too large, or behind too many that wait, is
// not, nor is any while the Origin is followed. What was taken is lost where the connection fails at that moment.
func (c *Client) Report(payload []byte) bool {
	c.mu.Lock()
	origin := c.source != nil && c.source.origin != nil
	c.mu.Unlock()
	if len(payload) > MaxReport || origin {
		return false
	}
	select {
	case c.reports <- slices.Clone(payload):
		return true
	default:
		return false
	}
}
