package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/millrace-db/millrace/edge/event"
)

// WatchOptions say what is watched.
type WatchOptions struct {
	// Tables are the qualified names of tables; none for all of the stream.
	Tables []string
	// Prefix are leading columns of the key, as millrace.ParseKeyPrefix takes them;
	// empty for all rows. It needs exactly one table.
	Prefix string
	// From is the place behind which to begin; nil for now. Whoever reads rows and then
	// what changes begins at the place of the answer.
	From *event.ID
	// Progress makes Next return Progress events too. ID tells the place without them.
	Progress bool
	// Heartbeat is how often an edge is to say that it is there when it has nothing
	// else to say, 100 ms to 1 min. An edge that is silent for three times as long is
	// left. Default 15 s.
	Heartbeat time.Duration
}

// Watch gives what changes, in order, each change once. It is used by one goroutine.
type Watch struct {
	c    *Client
	o    WatchOptions
	path string
	at   event.ID
	conn *connection
	err  error
}

// Watch begins a watch, which the caller closes. It asks an edge at the first Next.
func (c *Client) Watch(o WatchOptions) *Watch {
	if o.Heartbeat == 0 {
		o.Heartbeat = 15 * time.Second
	}
	query := url.Values{"heartbeat": {o.Heartbeat.String()}}
	for _, t := range o.Tables {
		query.Add("table", t)
	}
	if o.Prefix != "" {
		query.Set("prefix", o.Prefix)
	}
	w := &Watch{c: c, o: o, path: c.path("/watch" + encode(query))}
	if o.From != nil {
		w.at = *o.From
	}
	return w
}

// ID is the place up to which everything was given, for another watch to go on from. It
// is zero before the first Next of a watch from now on.
func (w *Watch) ID() event.ID { return w.at }

// Next waits for what changes next. It goes over to another edge, or the same one after a
// restart, by itself, however often and for however long none answers; ctx bounds that.
// After an Epoch event everything that was read before is to be read again.
//
// Errors end the watch: ErrPruned, ErrEnded, ErrClosed, an *Error of a request that no
// edge takes, and that of ctx, after which Next may be called again.
func (w *Watch) Next(ctx context.Context) (*event.Event, error) {
	for w.err == nil {
		if w.conn == nil {
			if err := w.connect(ctx); err != nil {
				return nil, err
			}
		}
		e, err := w.conn.next(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			w.drop()
			continue
		}
		if take, err := w.take(e); err != nil {
			w.drop()
			if !errors.Is(err, errAgain) {
				w.err = err
			}
		} else if take {
			return e, nil
		}
	}
	return nil, w.err
}

// errAgain ends a connection and not the watch.
var errAgain = errors.New("ask again")

// take decides what to do with what an edge sent.
func (w *Watch) take(e *event.Event) (bool, error) {
	switch e.Op {
	case event.Gone:
		return false, errAgain // another edge may have it; if not, the answer says so
	case event.End:
		return false, fmt.Errorf("%w: %s", ErrEnded, e.Reason)
	}
	if e.Epoch == 0 {
		return false, fmt.Errorf("%w: %s sends an event without a place", ErrEnded, w.conn.edge.name)
	}
	id := e.ID()
	if id.Epoch < w.at.Epoch && w.at.Epoch != 0 {
		return false, nil // of an edge that is yet to go over
	}
	ahead := id.Epoch > w.at.Epoch || id.Index > w.at.Index
	if w.at.Epoch == 0 { // the place was given without one, or none was
		ahead = e.Op != event.Progress && id.Index > w.at.Index
		if e.Op == event.Progress || ahead {
			w.at = event.ID{Epoch: id.Epoch, Index: max(id.Index, w.at.Index)}
		}
		return ahead || e.Op == event.Progress && w.o.Progress, nil
	}
	if ahead {
		w.at = id
	}
	if e.Op == event.Progress {
		return w.o.Progress, nil
	}
	return ahead, nil
}

// connect asks edges until one tells what changes. Where those that can be reached have
// no log that goes back to the place, the others are waited for, but not for ever.
func (w *Watch) connect(ctx context.Context) error {
	began := time.Now()
	var between pause
	for {
		var lacking error
		others := false
		for _, p := range w.c.order() {
			if w.c.closed.Load() {
				w.err = ErrClosed
				return w.err
			}
			conn, err := w.dial(ctx, p)
			switch {
			case err == nil:
				w.conn = conn
				return nil
			case ctx.Err() != nil:
				return ctx.Err()
			case lacks(err):
				lacking = further(lacking, err)
			case !passes(err):
				w.err = fmt.Errorf("watch: %w", err)
				return w.err
			default:
				others = true
			}
		}
		if lacking != nil && (!others || time.Since(began) >= w.c.patience) {
			w.err = lacking
			return w.err
		}
		if err := between.wait(ctx); err != nil {
			return err
		}
	}
}

// lacks tells that an edge does not have what is wanted, and another one may.
func lacks(err error) bool {
	var answer *Error
	return errors.Is(err, ErrPruned) || errors.As(err, &answer) && (answer.Code == "no_log" || answer.Code == "not_held")
}

// further returns which of two edges that lack what is wanted is to be told of: the one
// that reaches back furthest.
func further(a, b error) error {
	var old, now *PrunedError
	if errors.As(a, &old) && (!errors.As(b, &now) || now.Oldest.Epoch < old.Oldest.Epoch || now.Oldest.Index >= old.Oldest.Index) {
		return a
	}
	return b
}

// dial asks one edge.
func (w *Watch) dial(ctx context.Context, p *peer) (*connection, error) {
	header := make(http.Header)
	if !w.at.IsZero() || w.o.From != nil {
		id := w.at.String()
		if w.at.Epoch == 0 {
			id = w.at.Index.String()
		}
		header["Last-Event-Id"] = []string{id}
	}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	head := time.AfterFunc(answerHead, cancel)
	resp, err := w.c.send(life, p, http.MethodGet, w.path, nil, header)
	if err != nil {
		cancel()
		return nil, err
	}
	head.Stop()
	if resp.StatusCode != http.StatusOK {
		defer cancel()
		defer func() { _ = resp.Body.Close() }() // read as far as it is wanted
		text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		if err != nil {
			return nil, err
		}
		if resp.StatusCode == http.StatusGone {
			oldest, err := event.ParseID(resp.Header.Get("X-Millrace-Oldest"))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", p.name, err)
			}
			return nil, &PrunedError{After: w.at, Oldest: oldest}
		}
		return nil, p.complaint(resp, text)
	}
	if !stop() {
		cancel()
		return nil, errors.Join(ctx.Err(), resp.Body.Close())
	}
	return newConnection(p, resp.Body, cancel, 3*w.o.Heartbeat), nil
}

func (w *Watch) drop() {
	if w.conn != nil {
		w.conn.close()
		w.conn = nil
	}
}

// Close ends the watch.
func (w *Watch) Close() {
	w.drop()
	if w.err == nil {
		w.err = ErrClosed
	}
}

// connection is an answer that goes on. A goroutine reads it, a few events ahead.
type connection struct {
	edge   *peer
	events chan *event.Event
	// err is why there are no more, once events is closed.
	err    error
	cancel context.CancelFunc
	quit   chan struct{}
	ended  chan struct{}
}

// readAhead is how many events are read before they are asked for.
const readAhead = 8

func newConnection(p *peer, body io.ReadCloser, cancel context.CancelFunc, silence time.Duration) *connection {
	c := &connection{edge: p, events: make(chan *event.Event, readAhead), cancel: cancel, quit: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(c.ended)
		c.err = c.read(body, silence)
		close(c.events)
		cancel()
		_ = body.Close() // it is done with
	}()
	return c
}

// read reads events until the connection ends or is silent for too long. A consumer that
// takes its time is not the edge's silence.
func (c *connection) read(body io.Reader, silence time.Duration) error {
	quiet := time.AfterFunc(silence, c.cancel)
	defer quiet.Stop()
	s := newScanner(body)
	for {
		data, err := s.next()
		if err != nil {
			return err
		}
		if data == nil {
			quiet.Reset(silence)
			continue
		}
		e := new(event.Event)
		if err := json.Unmarshal(data, e); err != nil {
			return fmt.Errorf("read what %s sends: %w", c.edge.name, err)
		}
		quiet.Stop()
		select {
		case c.events <- e:
		case <-c.quit:
			return ErrClosed
		}
		quiet.Reset(silence)
	}
}

// next waits for an event.
func (c *connection) next(ctx context.Context) (*event.Event, error) {
	select {
	case e, more := <-c.events:
		if !more {
			return nil, c.err
		}
		return e, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (c *connection) close() {
	close(c.quit)
	c.cancel()
	<-c.ended
}
