package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge/event"
)

// Config of a Client. Stream and one of Unix and Peers must be set.
type Config struct {
	// Stream is the stream's name at the edges.
	Stream string
	// Unix is the path of the socket of this host's edge, which is asked first; empty
	// for none.
	Unix string
	// Peers are edges to ask when the ones before cannot be reached, in their order:
	// http://127.0.0.1:7480 or https://edge-2.example:7480.
	Peers []string
	// Token is sent as a bearer token, empty for none. Only https and the socket get it.
	Token string
	// TLS is for peers with https; nil for the system's roots.
	TLS *tls.Config
	// Patience is how long a request is tried again while no edge answers. It covers
	// a restart. Default 5 s; negative for none.
	Patience time.Duration
	// Dial bounds the making of a connection. Default 1 s.
	Dial time.Duration
}

// Client reads one stream. Its methods may be called by anyone at any time.
type Client struct {
	stream   string
	patience time.Duration
	token    string
	edges    []*peer
	closed   *atomic.Bool
	fresh    fresh
}

// fresh is what answers have to hold.
type fresh struct {
	min   millrace.Index
	epoch millrace.Epoch
	token string
	wait  time.Duration
}

// peer is one edge.
type peer struct {
	base, name string
	local      bool
	secret     bool // may be given the token
	http       *http.Client
	// down is until when, in Unix nanoseconds, others are asked before it.
	down atomic.Int64
}

// Place is where an edge stood when it answered.
type Place struct {
	event.ID
	// Lag is the age of the newest unit there, by the clocks of source and edge;
	// negative before the first.
	Lag time.Duration
	// Edge is who has answered, for people.
	Edge string
}

const (
	// downFor is how long an edge that could not be reached is asked last.
	downFor = time.Second
	// retryMin and retryMax bound the pauses between two rounds of asking.
	retryMin = 2 * time.Millisecond
	retryMax = 200 * time.Millisecond
	// answerHead is how long an edge may take to begin an answer, beside what it was
	// asked to wait.
	answerHead = 30 * time.Second
)

// New returns a client. It asks nobody yet.
func New(c Config) (*Client, error) {
	if c.Stream == "" {
		return nil, errors.New("make client: the stream must be named")
	}
	if c.Unix == "" && len(c.Peers) == 0 {
		return nil, errors.New("make client: neither a unix socket nor peers are given")
	}
	if c.Patience == 0 {
		c.Patience = 5 * time.Second
	}
	if c.Dial == 0 {
		c.Dial = time.Second
	}
	client := &Client{stream: c.Stream, patience: c.Patience, token: c.Token, closed: new(atomic.Bool)}
	if c.Unix != "" {
		client.edges = append(client.edges, newPeer(&c, "http://edge", "the edge at "+c.Unix, c.Unix))
	}
	for _, base := range c.Peers {
		u, err := url.Parse(base)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
			return nil, fmt.Errorf("make client: peer %q: want a URL as http://127.0.0.1:7480", base)
		}
		client.edges = append(client.edges, newPeer(&c, u.Scheme+"://"+u.Host, u.Host, ""))
	}
	return client, nil
}

func newPeer(c *Config, base, name, unix string) *peer {
	dialer := &net.Dialer{Timeout: c.Dial}
	transport := &http.Transport{
		TLSClientConfig: c.TLS, TLSHandshakeTimeout: c.Dial,
		MaxIdleConnsPerHost: 64, IdleConnTimeout: time.Minute, DisableCompression: true,
	}
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if unix != "" {
			network, address = "unix", unix
		}
		return dialer.DialContext(ctx, network, address)
	}
	return &peer{
		base: base, name: name, local: unix != "", secret: unix != "" || strings.HasPrefix(base, "https:"),
		http: &http.Client{
			Transport: transport,
			// An edge sends nobody elsewhere, and whoever does is none.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// Close gives idle connections up. Watches end, and so do clients made with Min and After.
func (c *Client) Close() {
	c.closed.Store(true)
	for _, p := range c.edges {
		p.http.CloseIdleConnections()
	}
}

// Min returns a client whose answers are of place or behind it: of its index at the least,
// or of a later epoch. Without an epoch in place, its index is of whichever an edge serves.
// An edge that has not come there waits for it, or answers ErrBehind.
func (c *Client) Min(place event.ID, wait time.Duration) *Client {
	d := *c
	d.fresh = fresh{min: place.Index, epoch: place.Epoch, wait: wait}
	return &d
}

// After returns a client whose answers hold all that was committed at the source before a
// token was taken there (SELECT millrace.token()). An edge that has not come there waits
// for it, or answers ErrBehind.
func (c *Client) After(token string, wait time.Duration) *Client {
	d := *c
	d.fresh = fresh{token: token, wait: wait}
	return &d
}

// query is what answers have to hold, as the edge is asked for it.
func (f *fresh) query(q url.Values) {
	switch {
	case f.epoch != 0:
		q.Set("min_index", event.ID{Epoch: f.epoch, Index: f.min}.String())
	case f.min != 0:
		q.Set("min_index", f.min.String())
	}
	if f.token != "" {
		q.Set("after_token", f.token)
	}
	if f.wait > 0 && (f.min != 0 || f.epoch != 0 || f.token != "") {
		q.Set("wait", f.wait.String())
	}
}

// order is in which order edges are asked: as they were given, those that could not be
// reached a moment ago behind the others.
func (c *Client) order() []*peer {
	now := time.Now().UnixNano()
	list := make([]*peer, 0, len(c.edges))
	for _, p := range c.edges {
		if p.down.Load() <= now {
			list = append(list, p)
		}
	}
	for _, p := range c.edges {
		if p.down.Load() > now {
			list = append(list, p)
		}
	}
	return list
}

// pause is what there is between two rounds of asking.
type pause struct{ next time.Duration }

func (p *pause) wait(ctx context.Context) error {
	p.next = min(max(2*p.next, retryMin), retryMax)
	t := time.NewTimer(p.next)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// place reads where an edge stood.
func (p *peer) place(h http.Header) Place {
	place := Place{Lag: -1, Edge: p.name}
	if n, err := strconv.ParseUint(h.Get("X-Millrace-Epoch"), 10, 64); err == nil {
		place.Epoch = millrace.Epoch(n)
	}
	if n, err := strconv.ParseUint(h.Get("X-Millrace-Index"), 10, 64); err == nil {
		place.Index = millrace.Index(n)
	}
	if lag, err := strconv.ParseFloat(h.Get("X-Millrace-Lag"), 64); err == nil {
		place.Lag = time.Duration(lag * float64(time.Second))
	}
	return place
}

func (c *Client) path(rest string) string { return "/v1/streams/" + url.PathEscape(c.stream) + rest }
