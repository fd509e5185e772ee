package relay

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace-db/millrace"
	edgelog "github.com/millrace-db/millrace/edge/log"
)

const (
	// helloTime is how long a child may take for its first frame.
	helloTime = 10 * time.Second
	// reopenTime is how long a log may be closed, while readers go over to another
	// epoch, before a child is told.
	reopenTime = 10 * time.Second
)

// feed is one child that is served.
type feed struct {
	s       *Server
	conn    net.Conn
	in      *bufio.Reader
	address string
	since   time.Time
	life    context.Context //nolint:containedctx // of the request
	asked   atomic.Pointer[hello]
	placed  atomic.Pointer[place]

	*hello
	out *wire
	// epoch is the one that is served; after and chain are what the child has, or has
	// been sent.
	epoch millrace.Epoch
	after millrace.Index
	chain millrace.Chain
	// log and reader are open while records are sent.
	log     *edgelog.Log
	reader  *edgelog.Reader
	rewrite Rewriter
	frame   []byte
	// told is when the child was last told where this node stands, closed since when
	// the log has been closed; zero while it is not.
	told, closed time.Time
	// topic tells that the child knows which topic the records came from.
	topic   bool
	beat    context.Context //nolint:containedctx // until the next beat is due
	endBeat context.CancelFunc
}

func (f *feed) peer() Peer {
	p := Peer{Address: f.address, Since: f.since}
	if h := f.asked.Load(); h != nil {
		p.Node, p.Epoch, p.Index = h.node, h.epoch, h.index
	}
	if at := f.placed.Load(); at != nil {
		p.Epoch, p.Index = at.epoch, at.index
	}
	return p
}

// byeError ends a feed with a last word to the child.
type byeError struct {
	code Code
	text string
}

func (e *byeError) Error() string { return fmt.Sprintf("%s (%v)", e.text, e.code) }

func bye(code Code, format string, args ...any) error {
	return &byeError{code, fmt.Sprintf(format, args...)}
}

// serve serves the child until one of both ends it.
func (f *feed) serve() {
	ctx, cancel := context.WithCancel(f.s.ctx)
	defer cancel()
	// A write or read that waits ends with the connection.
	stop := context.AfterFunc(ctx, func() { _ = f.conn.Close() })
	defer stop()
	defer context.AfterFunc(f.life, cancel)()
	f.out = &wire{ctx: ctx, conn: f.conn, stall: f.s.config.Stall, pace: pace{rate: f.s.config.MaxRate}, between: f.tellWhenDue}
	in := &frameReader{r: f.in}
	err := f.greet(in)
	if err == nil {
		err = f.welcome()
	}
	defer f.closeReader()
	if err != nil || f.probe {
		f.goodbye(err)
		return
	}
	log := f.s.config.Logger.With("node", f.node, "address", f.address)
	log.Info("an edge follows this one", "epoch", uint64(f.epoch), "index", f.after)
	var listening sync.WaitGroup
	var heard error
	listening.Go(func() {
		heard = f.listen(in)
		cancel()
	})
	err = f.run(ctx)
	f.goodbye(err)
	ended := ctx.Err() != nil
	cancel()
	listening.Wait()
	switch {
	case ended && f.s.ctx.Err() == nil && errors.Is(heard, net.ErrClosed):
		err = errors.New("it may no longer follow") // the connection was closed from here
	case ended && f.s.ctx.Err() == nil:
		err = heard // the child went first
	case isTimeout(err):
		f.s.metrics.cut.Inc()
		err = fmt.Errorf("it takes nothing in: %w", err)
	}
	log.Info("an edge no longer follows this one", "epoch", uint64(f.epoch), "index", f.after, "reason", err)
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// goodbye tells the child why it is no longer served, where that is for it to know.
func (f *feed) goodbye(err error) {
	var last *byeError
	if !errors.As(err, &last) {
		return
	}
	f.s.metrics.refused.WithLabelValues(last.code.String()).Inc()
	state := f.state()
	_ = f.out.frame(frameClose, appendGoodbye(nil, &goodbye{last.code, last.text, &state})) // it may be gone
}

// greet reads what the child asks for.
func (f *feed) greet(in *frameReader) error {
	if err := f.conn.SetReadDeadline(time.Now().Add(helloTime)); err != nil {
		return err
	}
	kind, content, _, err := in.next()
	if err == nil && kind != frameHello {
		err = fmt.Errorf("%w: kind %d comes first", errFrame, kind)
	}
	if err == nil {
		f.hello, err = decodeHello(content)
	}
	if err == nil {
		f.asked.Store(f.hello)
		return nil
	}
	f.hello = new(hello)
	if errors.Is(err, errFrame) {
		return bye(CodeMalformed, "%v", err)
	}
	return err
}

// welcome decides whether the child is served, and says so.
func (f *feed) welcome() error {
	if err := f.circle(f.s.config.Local.Path()); err != nil {
		return err
	}
	now, _ := f.s.config.Local.Epochs()
	if f.epoch = f.hello.epoch; f.epoch == 0 {
		f.epoch = now
	}
	if f.s.config.Filter == nil && len(f.filter) > 0 {
		return bye(CodeFilter, "%s serves whole streams only; mend: follow another edge, or ask for all tables", f.s.config.Node)
	}
	if f.s.config.Filter != nil {
		var err error
		if f.rewrite, err = f.s.config.Filter(f.filter); err != nil {
			return bye(CodeFilter, "%v", err)
		}
	}
	f.after, f.chain = f.index, f.hello.chain
	if err := f.find(); err != nil {
		return err
	}
	if f.log == nil {
		return bye(CodeNoLog, "%s has no log of the stream yet", f.s.config.Node)
	}
	if err := f.openReader(); err != nil {
		return err
	}
	if f.log == nil {
		return bye(CodeNoLog, "the log of %s is closed", f.s.config.Node)
	}
	state := f.state()
	if f.reader != nil {
		state.From, state.FromChain = f.reader.From()
	}
	f.told, f.topic = time.Now(), state.TopicID != ""
	return f.out.frame(frameWelcome, appendNodeState(nil, &state))
}

// circle refuses a child that this node follows, itself among them.
func (f *feed) circle(path []string) error {
	switch {
	case f.node == f.s.config.Node:
		return bye(CodeLoop, "edge %s would follow itself; mend: name another upstream, or give each edge a name of its own (edge.id)", f.node)
	case slices.Contains(path, f.node):
		return bye(CodeLoop, "edge %s would follow itself: %s follows it; mend: name an upstream that does not, or give each edge a name of its own (edge.id)", f.node, f.s.config.Node)
	case len(path) >= maxPath:
		return bye(CodeLoop, "%d edges stand above %s, more than may; mend: name an upstream nearer to Kafka", len(path), f.s.config.Node)
	}
	return nil
}

// find looks up the log of the epoch. It leaves none where that is not open now and may
// be again.
func (f *feed) find() error {
	node := f.s.config.Node
	now, next := f.s.config.Local.Epochs()
	switch {
	case f.epoch != 0 && f.epoch < max(now, next) && f.epoch != now:
		return bye(CodeEpochOver, "epoch %v is over at %s, which serves epoch %v", f.epoch, node, now)
	case f.epoch > max(now, next):
		return bye(CodeEpochUnknown, "epoch %v has not begun at %s, which serves epoch %v", f.epoch, node, now)
	}
	f.log = f.s.config.Local.Log(f.epoch)
	if f.log == nil {
		return nil
	}
	s := f.log.Status()
	switch {
	case s.Stream.IsZero():
		f.log = nil // it was not begun yet
	case !f.stream.IsZero() && f.stream != s.Stream:
		return bye(CodeStream, "%s serves stream %v, not %v; mend: correct edge.upstream, or streams.<name>.id", node, s.Stream, f.stream)
	case f.epoch == 0:
		f.epoch = s.Epoch
	case f.epoch != s.Epoch:
		f.log = nil
	}
	return nil
}

// openReader goes to the place behind which records are sent. It leaves no reader where
// the log has not come so far, and no log where that is closed.
func (f *feed) openReader() error {
	if f.newest {
		f.after = f.log.Status().End
	}
	r, err := f.log.Reader(f.after)
	var pruned *edgelog.PrunedError
	switch {
	case err == nil:
	case errors.Is(err, edgelog.ErrAhead):
		return nil
	case errors.Is(err, edgelog.ErrClosed):
		f.log = nil
		return nil
	case errors.As(err, &pruned):
		return bye(CodePruned, "the log of %s begins at index %v", f.s.config.Node, pruned.Oldest+1)
	default:
		f.s.config.Logger.Warn("log cannot be read for another edge", "node", f.node, "error", err)
		return bye(CodeNoLog, "the log of %s cannot be read there", f.s.config.Node)
	}
	from, chain := r.From()
	switch {
	case f.newest:
		f.after, f.chain, f.newest = from, chain, false
	case from == f.after && from > 0 && chain != f.chain:
		_ = r.Close() // it was only read
		return bye(CodeDiverged, "at index %v %s has chain %v, and %s has %v", from, f.s.config.Node, chain.Short(), f.node, f.chain.Short())
	}
	f.reader = r
	return nil
}

func (f *feed) closeReader() {
	if f.reader != nil {
		_ = f.reader.Close() // it was only read
		f.reader = nil
	}
	if f.endBeat != nil {
		f.endBeat()
	}
}

// state says where this node stands.
func (f *feed) state() State {
	now, next := f.s.config.Local.Epochs()
	s := State{Node: f.s.config.Node, Epoch: f.epoch, Path: f.s.config.Local.Path()}
	if len(s.Path) > maxPath {
		s.Path = s.Path[:maxPath]
	}
	log := f.log
	if log == nil {
		log, s.Epoch = f.s.config.Local.Log(0), now
	}
	if newest := max(now, next); newest > s.Epoch {
		s.Next = newest
	}
	if log == nil {
		return s
	}
	if l := log.Status(); l.Segments > 0 {
		s.Stream, s.Oldest, s.Newest = l.Stream, l.Begin+1, l.End
		s.Chain, s.Time, s.TopicID = l.Chain, l.Time, l.TopicID
	}
	return s
}

// tellWhenDue tells the child where this node stands, once a beat, and before the first
// records of a topic.
func (f *feed) tellWhenDue() error {
	if now := time.Now(); now.Sub(f.told) >= f.s.config.Beat || !f.topic && f.reader != nil && f.log.Status().TopicID != "" {
		state := f.state()
		f.told, f.topic = now, state.TopicID != ""
		if err := f.circle(state.Path); err != nil {
			return err
		}
		return f.out.frame(frameState, appendNodeState(nil, &state))
	}
	return nil
}

// run sends records and beats.
func (f *feed) run(ctx context.Context) error {
	for {
		if err := f.step(ctx); err != nil {
			return err
		}
		if err := f.tellWhenDue(); err != nil {
			return err
		}
	}
}

// step sends what there is, or waits, at most until the next beat.
func (f *feed) step(ctx context.Context) error {
	if f.beat == nil || f.beat.Err() != nil {
		if f.endBeat != nil {
			f.endBeat()
		}
		f.beat, f.endBeat = context.WithDeadline(ctx, f.told.Add(f.s.config.Beat))
	}
	if f.reader == nil {
		if err := f.reopen(); err != nil {
			return err
		}
		if f.reader == nil {
			return f.wait(ctx)
		}
	}
	sent := f.out.sent
	err := f.send(f.beat)
	f.s.metrics.bytes.Add(float64(f.out.sent - sent))
	var last *byeError
	var pruned *edgelog.PrunedError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, context.DeadlineExceeded) && f.beat.Err() != nil:
		return nil //nolint:nilerr // a beat is due
	case errors.As(err, &last):
		return err
	case errors.Is(err, edgelog.ErrClosed), errors.Is(err, edgelog.ErrRenewed):
		_ = f.reader.Close() // it was only read
		f.reader, f.log = nil, nil
		return nil
	case errors.As(err, &pruned):
		return bye(CodePruned, "the log of %s begins at index %v; it was dropped while it was read", f.s.config.Node, pruned.Oldest+1)
	case errors.Is(err, edgelog.ErrDamaged):
		return bye(CodeNoLog, "the log of %s is damaged there", f.s.config.Node)
	}
	return err
}

// reopen looks for the log again, and for the place in it.
func (f *feed) reopen() error {
	if f.log == nil {
		if err := f.find(); err != nil {
			return err
		}
	}
	if f.log != nil {
		if err := f.openReader(); err != nil {
			return err
		}
	}
	if f.log != nil {
		f.closed = time.Time{}
		return nil
	}
	if f.closed.IsZero() {
		f.closed = time.Now()
	}
	if time.Since(f.closed) > reopenTime {
		return bye(CodeNoLog, "the log of %s is closed", f.s.config.Node)
	}
	return nil
}

// wait waits until the log has more, or a beat is due.
func (f *feed) wait(ctx context.Context) error {
	var changed <-chan struct{}
	if f.log != nil {
		changed = f.log.Changed()
		if s := f.log.Status(); s.End >= f.after && s.Segments > 0 {
			return nil // it came meanwhile
		}
	}
	select {
	case <-changed:
		if f.log.Status().Segments == 0 {
			f.log = nil // closed, or begun anew
		}
	case <-f.beat.Done():
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// send sends what the log has, and waits for it until ctx ends.
func (f *feed) send(ctx context.Context) error {
	if f.rewrite == nil && f.until == 0 {
		_, err := f.reader.CopyTo(ctx, f.out, pieceSize)
		f.after, f.chain = f.reader.At()
		return err
	}
	if f.until != 0 && f.after >= f.until {
		return bye(CodeDone, "index %v is reached", f.after)
	}
	r, err := f.reader.Next(ctx)
	if err != nil {
		return err
	}
	if f.until != 0 && r.Header.Kind == millrace.RecordBatch && r.Header.Last() > f.until {
		return bye(CodeDone, "index %v is the last before %v at which a batch ends", f.after, f.until)
	}
	value := r.Value
	if f.rewrite != nil {
		if value, err = f.rewrite(value); err != nil {
			f.s.config.Logger.Error("a record cannot be rewritten for another edge", "node", f.node, "index", r.Header.First, "error", err)
			return bye(CodeFilter, "the record of index %v cannot be made what the filter asks for: %v", r.Header.First, err)
		}
	}
	f.frame = edgelog.AppendFrame(f.frame[:0], r.Offset, value)
	if _, err := f.out.Write(f.frame); err != nil {
		return err
	}
	f.after, f.chain = f.reader.At()
	return nil
}

// listen takes what the child says until it is gone or silent.
func (f *feed) listen(in *frameReader) error {
	for {
		if err := f.conn.SetReadDeadline(time.Now().Add(f.s.config.Silence)); err != nil {
			return err
		}
		kind, content, _, err := in.next()
		switch {
		case isTimeout(err):
			return fmt.Errorf("it has said nothing for %v", f.s.config.Silence)
		case err != nil:
			return err
		}
		switch kind {
		case framePlace:
			p, err := decodePlace(content)
			if err != nil {
				return err
			}
			f.placed.Store(&p)
		case frameReport:
			if f.s.config.Reports != nil {
				f.s.config.Reports(f.node, bytes.Clone(content))
			}
		default:
			return fmt.Errorf("%w: a child sends kind %d", errFrame, kind)
		}
	}
}
