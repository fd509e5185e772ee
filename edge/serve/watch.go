package serve

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/access"
	"github.com/millrace-db/millrace/edge/event"
	edgelog "github.com/millrace-db/millrace/edge/log"
	"github.com/millrace-db/millrace/edge/watch"
)

// watching is what the watches of a server have in common.
type watching struct {
	// large bounds the events of more than largeEvent bytes that are being sent at
	// once.
	large chan struct{}
}

func (w *watching) init() {
	w.large = make(chan struct{}, largeEvents)
}

const (
	// headerOldest is the oldest place that a watch could begin behind.
	headerOldest = "X-Millrace-Oldest"
	// headerLastEvent is what clients of server-sent events resume with.
	headerLastEvent = "Last-Event-Id"

	// sendPiece is what a watcher has Config.WatchTimeout for.
	sendPiece = 64 << 10
	// largeEvent is from which size on an event is sent as one of a bounded number.
	largeEvent  = 256 << 10
	largeEvents = 16

	beatLeast, beatMost = 100 * time.Millisecond, time.Minute
)

// watches answers requests for a stream's changes, for as long as somebody reads them.
// It reports whether the path is such a request's.
func (s *Server) watches(w http.ResponseWriter, r *http.Request, path string) bool {
	rest, ok := strings.CutPrefix(path, streamsPath+"/")
	if !ok {
		return false
	}
	name, ok := strings.CutSuffix(rest, "/watch")
	if !ok || strings.Contains(name, "/") {
		return false
	}
	name, err := unescape(name)
	if err != nil || s.streams[name] == nil {
		return false // dispatch says so
	}
	q := s.begin(w, r)
	q.route, q.stream = routeWatch, s.streams[name]
	status := http.StatusOK
	if err := q.watch(); err != nil {
		status = q.fail(err)
	}
	s.end(q, status)
	return true
}

// watch sends changes. An error is one of the time before anything was sent.
func (q *request) watch() error {
	if err := q.wantGet(); err != nil {
		return err
	}
	options, err := q.watchOptions()
	if err != nil {
		return err
	}
	if err := q.mayWatch(q.who, options.Tables); err != nil {
		return err
	}
	if err := q.holds(options); err != nil {
		return err
	}
	var hub *watch.Hub
	if q.s.config.Watch != nil {
		hub = q.s.config.Watch(q.stream.name)
	}
	if hub == nil {
		return notFound("no_log", "set edge.log.dir, or watch another edge", "this edge keeps no log of stream %s, which changes are told from", q.stream.name)
	}
	ctx, cancel := context.WithCancel(q.r.Context())
	defer cancel()
	defer context.AfterFunc(q.s.watchLife, cancel)()
	w, err := hub.Watch(ctx, *options)
	if err != nil {
		if q.s.watchLife.Err() != nil {
			err = watch.ErrClosed
		}
		return q.watchFault(err)
	}
	defer w.Close()
	sender := &eventSender{q: q, w: w, tables: options.Tables, checked: time.Now(), to: http.NewResponseController(q.w)}
	// The limits on a whole request are not for this one.
	if err := errors.Join(sender.to.SetReadDeadline(time.Time{}), sender.to.SetWriteDeadline(time.Time{})); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	q.watchHeader()
	if q.r.Method != http.MethodHead {
		sender.run(ctx)
	}
	return nil
}

// mayWatch says why tables may not be watched, all of the stream's if there are none.
func (q *request) mayWatch(who *access.Identity, tables []string) error {
	if len(tables) == 0 && !who.AllTables(q.stream.name) {
		return forbidden(who, "all changes of stream "+q.stream.name)
	}
	for _, name := range tables {
		if !who.Table(q.stream.name, name) {
			return forbidden(who, "table "+name+" of stream "+q.stream.name)
		}
	}
	return nil
}

// holds says why a partial edge cannot tell of all changes that are asked for.
func (q *request) holds(o *watch.Options) error {
	values, partial, err := millrace.ParseKeyPrefix(o.Prefix)
	if err != nil {
		return nil //nolint:nilerr // the watch says so
	}
	if partial {
		values = values[:len(values)-1]
	}
	return q.stream.store.View(q.r.Context(), func(v *edge.View) error { return v.Holds(o.Tables, values) })
}

func (q *request) watchOptions() (*watch.Options, error) {
	values, err := url.ParseQuery(q.r.URL.RawQuery)
	if err != nil {
		return nil, badRequest("bad_query", "write a percent sign as %25", "the query cannot be read: %v", err)
	}
	o := new(watch.Options)
	from := ""
	for name, all := range values {
		if len(all) != 1 && name != "table" {
			return nil, badRequest("bad_query", "give it once", "%s is given %d times", name, len(all))
		}
		text := all[0]
		switch name {
		case "table":
			o.Tables = all
		case "prefix":
			o.Prefix = text
		case "from":
			from = text
		case "heartbeat":
			if o.Beat, err = time.ParseDuration(text); err != nil || o.Beat < beatLeast || o.Beat > beatMost {
				return nil, badRequest("bad_heartbeat", "give a duration as 500ms or 15s", "heartbeat is %q, want %v to %v", text, beatLeast, beatMost)
			}
		default:
			return nil, badRequest("bad_query", "use table, prefix, from and heartbeat", "there is no parameter %s", name)
		}
	}
	// Who resumes repeats its first query, and says here how far it has come since.
	if last := q.r.Header[headerLastEvent]; len(last) > 0 && last[0] != "" {
		from = last[0]
	}
	if from == "" {
		return o, nil
	}
	id, err := event.ParseID(from)
	if err != nil {
		return nil, badRequest("bad_index", "give an index, or the id of an event", "%v", err)
	}
	o.From = &id
	return o, nil
}

// watchFault gives errors of beginning a watch their status.
func (q *request) watchFault(err error) error {
	var pruned *edgelog.PrunedError
	switch {
	case errors.As(err, &pruned):
		oldest := event.ID{Epoch: q.stream.store.Place().Epoch, Index: pruned.Oldest}
		q.w.Header().Set(headerOldest, oldest.String())
		return &fault{
			http.StatusGone, "pruned", "the edge's log begins after index " + pruned.Oldest.String() + ", asked for is what comes after " + pruned.After.String(),
			"read the rows again and watch from the index of that answer; edge.log.retain says how far back the log reaches",
		}
	case errors.Is(err, watch.ErrNoTable):
		return notFound("no_table", "ask "+streamsPath+"/"+q.stream.name+"/tables for those that there are", "%v", err)
	case errors.Is(err, watch.ErrNotHeld):
		return &fault{http.StatusMisdirectedRequest, "not_held", err.Error(), "watch what this edge holds, or ask another edge"}
	case errors.Is(err, watch.ErrPrefix):
		return badRequest("bad_prefix", "name one table, and leading columns of its key with commas between them; a query is percent-encoded once more", "%v", err)
	case errors.Is(err, watch.ErrEpochAhead):
		return unavailable("behind", "ask again later, or another edge", "%v", err)
	case errors.Is(err, watch.ErrTooMany):
		return unavailable("busy", "ask again, or another edge", "%v", err)
	case errors.Is(err, watch.ErrNotReady), errors.Is(err, watch.ErrClosed):
		return unavailable("not_ready", "ask again, or another edge", "%v", err)
	}
	return err
}

func (q *request) watchHeader() {
	h := q.w.Header()
	h["Content-Type"] = []string{"text/event-stream"}
	h["Cache-Control"] = []string{"no-store"}
	h["X-Accel-Buffering"] = []string{"no"} // proxies that would wait for more
	h["Connection"] = []string{"close"}     // nothing comes after it, and a successor need not wait for that
	place := q.stream.store.Place()
	h[headerEpoch] = []string{place.Epoch.String()}
	h[headerIndex] = []string{place.Index.String()}
	h[headerLag] = []string{lagText(place.Time, q.now)}
	q.w.WriteHeader(http.StatusOK)
}

// eventSender sends what a watcher is told.
type eventSender struct {
	q  *request
	w  *watch.Watcher
	to *http.ResponseController
	// tables are those that are watched, checked when it was last looked whether they
	// may be.
	tables  []string
	checked time.Time
	// until is when the large event that is being sent has to be taken; zero for none.
	until time.Time
}

// rightsEvery is how often it is looked whether a watcher still has its rights.
const rightsEvery = 10 * time.Second

// may reports whether the watcher still has its rights: a watch outlives many a token.
func (s *eventSender) may() bool {
	if access.From(s.q.r.Context()) == nil || time.Since(s.checked) < rightsEvery {
		return true
	}
	s.checked = time.Now()
	who := s.q.s.config.Access().Find(shown(s.q.r))
	return who != nil && s.q.mayWatch(who, s.tables) == nil
}

// run sends until the client or the watch ends, or the client is too slow.
func (s *eventSender) run(ctx context.Context) {
	s.q.body = append(s.q.body[:0], "retry: 500\n\n"...)
	for {
		items, err := s.w.Next(ctx)
		if ctx.Err() != nil || !s.may() {
			return // who asks again is told why
		}
		if err == nil {
			err = s.page(ctx, items)
		} else {
			s.last(err)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.w.CutOff()
			s.q.s.log.Info("a watcher that took nothing, or a large event too slowly, was cut off", "stream", s.q.stream.name, "index", s.w.ID().Index)
		}
		if err != nil {
			return
		}
	}
}

// page sends a page. While it is being sent, the records that the items are of are not
// held; only a large event is, as one of few.
func (s *eventSender) page(ctx context.Context, items []*watch.Item) error {
	if len(items) == 0 {
		s.q.body = append(s.q.body, ":\n\n"...) // nothing to tell, but still there
	}
	var large *watch.Item
	for _, item := range items {
		if item.Size() > largeEvent {
			large = item // a page ends behind it
			break
		}
		text, err := item.JSON()
		if err != nil {
			return s.failed(err)
		}
		s.q.body = append(appendEventHead(s.q.body, item), text...)
		s.q.body = append(s.q.body, "\n\n"...)
	}
	s.w.Release()
	if large != nil {
		return s.large(ctx, large)
	}
	return s.flush()
}

// large sends what was gathered, and then an event from where it is shared.
func (s *eventSender) large(ctx context.Context, item *watch.Item) error {
	select {
	case s.q.s.watching.large <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.q.s.watching.large }()
	text, err := item.JSON()
	if err != nil {
		return s.failed(err)
	}
	s.q.body = appendEventHead(s.q.body, item)
	// Who takes a little now and then would hold the place for as long as it likes.
	c := &s.q.s.config
	s.until = time.Now().Add(c.WatchTimeout + time.Duration(float64(len(text))/float64(c.WatchRate)*float64(time.Second)))
	defer func() { s.until = time.Time{} }()
	if err := s.send(s.q.body); err != nil {
		return err
	}
	if err := s.send(text); err != nil {
		return err
	}
	s.q.body = append(s.q.body[:0], "\n\n"...)
	return s.flush()
}

func appendEventHead(dst []byte, item *watch.Item) []byte {
	switch op := item.Op(); op {
	case event.Epoch, event.Progress:
		dst = append(append(append(dst, "event: "...), op...), '\n')
	}
	dst = item.ID().Append(append(dst, "id: "...))
	return append(dst, "\ndata: "...)
}

// failed ends a watch whose next event cannot be told, and tells of that.
func (s *eventSender) failed(err error) error {
	s.q.complain(err)
	s.last(err)
	return err
}

// last tells why a watch ends, where the client can do something about it. What is sent
// has no id, so who resumes does so behind what came before.
func (s *eventSender) last(err error) {
	e := event.Event{Op: event.End, Epoch: s.w.ID().Epoch, Index: s.w.ID().Index, Reason: err.Error()}
	var pruned *edgelog.PrunedError
	switch {
	case errors.Is(err, watch.ErrClosed), errors.Is(err, edgelog.ErrDamaged):
		return // asking again does
	case errors.Is(err, watch.ErrNotHeld) && !s.q.who.AllTables(s.q.stream.name):
		e.Reason = watch.ErrNotHeld.Error() // what it holds instead may be of tables that are not to be seen
	case errors.As(err, &pruned):
		e.Op, e.Index = event.Gone, pruned.Oldest
	}
	e.UnitEnd = e.Index
	text, err := json.Marshal(&e)
	if err != nil {
		panic(err) // texts and numbers
	}
	s.q.body = append(append(append(s.q.body, "event: "...), e.Op...), "\ndata: "...)
	s.q.body = append(append(s.q.body, text...), "\n\n"...)
	_ = s.flush() // it ends either way
}

// flush sends what was gathered.
func (s *eventSender) flush() error {
	err := s.send(s.q.body)
	s.q.body = s.q.body[:0]
	if err == nil {
		err = s.to.Flush()
	}
	return err
}

// send writes bytes piece by piece, each within its time.
func (s *eventSender) send(b []byte) error {
	for len(b) > 0 {
		n := min(len(b), sendPiece)
		by := time.Now().Add(s.q.s.config.WatchTimeout)
		if !s.until.IsZero() && s.until.Before(by) {
			by = s.until
		}
		if err := s.to.SetWriteDeadline(by); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return err
		}
		if _, err := s.q.w.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
