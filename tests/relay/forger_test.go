package relay

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/millrace-db/millrace"
	edgelog "github.com/millrace-db/millrace/edge/log"
	"github.com/millrace-db/millrace/edge/relay"
	"github.com/millrace-db/millrace/internal/testdir"
	"github.com/millrace-db/millrace/tests/harness"
)

const forgedText = "forged"

// forger is a relay that is honest until it is told to lie: then it puts rows of its own
// in the place of those that come, with the chain that belongs to them.
type forger struct {
	t     testing.TB
	url   string
	log   *edgelog.Log
	lying atomic.Bool
	// fold is of what it serves.
	fold  *millrace.Fold
	close func()
	// next is the log of an epoch that it makes up, and asked how often that was wanted.
	next  atomic.Pointer[edgelog.Log]
	asked atomic.Int64
}

func newForger(t testing.TB, above *member) *forger {
	t.Helper()
	log, err := edgelog.Open(edgelog.Options{Dir: testdir.For(t)})
	if err != nil {
		t.Fatal(err)
	}
	f := &forger{t: t, log: log}
	server, err := relay.NewServer(relay.ServerConfig{Node: "forger", Local: f})
	if err != nil {
		t.Fatal(err)
	}
	http := serveGated(server, newGate())
	f.url = http.URL
	up, err := relay.ParseUpstream(above.http.URL)
	if err != nil {
		t.Fatal(err)
	}
	client, err := relay.NewClient(relay.ClientConfig{
		Node: "forger", Stream: "s", Upstreams: []relay.Upstream{up}, Applied: func() relay.Applied { return relay.Applied{} },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() { f.follow(ctx, client) })
	f.close = sync.OnceFunc(func() {
		cancel()
		work.Wait()
		_ = server.Close()
		http.Close()
		if err := f.log.Close(); err != nil {
			f.t.Error(err)
		}
	})
	t.Cleanup(f.close)
	return f
}

func (f *forger) Log(epoch millrace.Epoch) *edgelog.Log {
	if epoch > 1 {
		f.asked.Add(1)
		return f.next.Load()
	}
	return f.log
}

func (f *forger) Epochs() (now, next millrace.Epoch) {
	if made := f.next.Load(); made != nil {
		return 1, made.Status().Epoch
	}
	return 1, 0
}

func (f *forger) Path() []string { return nil }

func (f *forger) lie() { f.lying.Store(true) }

func (f *forger) follow(ctx context.Context, client *relay.Client) {
	source, err := client.Open(ctx, relay.From{})
	if err != nil {
		f.t.Errorf("the forger follows nobody: %v", err)
		return
	}
	defer func() { _ = source.Close() }()
	f.fold = millrace.NewFold(source.Stream(), source.Epoch())
	c := f.fold.Checkpoint()
	c.TopicID = source.TopicID()
	f.log.Start(&c)
	for {
		offset, value, err := source.Next(ctx)
		if err == nil {
			err = f.take(offset, value, source.TopicID())
		}
		if err != nil {
			if ctx.Err() == nil {
				f.t.Errorf("the forger: %v", err)
			}
			return
		}
	}
}

// take keeps a record, or what it makes of it.
func (f *forger) take(offset millrace.Offset, value []byte, topic string) error {
	r, err := millrace.DecodeRecord(value, nil)
	if err != nil {
		return err
	}
	if f.lying.Load() && r.Kind == millrace.RecordBatch {
		if value, err = f.forge(r); err != nil {
			return err
		}
		if r, err = millrace.DecodeRecord(value, nil); err != nil {
			return err
		}
	}
	if _, err := f.fold.Step(r); err != nil {
		return err
	}
	whole := r.Kind == millrace.RecordBatch
	f.log.Append(offset, value, r, whole)
	if whole {
		at := f.fold.Checkpoint()
		at.TopicID, at.Offset = topic, offset
		f.log.Commit(&at)
	}
	return nil
}

// forge makes a batch of other rows, for the same indexes.
func (f *forger) forge(r *millrace.Record) ([]byte, error) {
	var entries []*millrace.Entry
	payload := r.Payload
	for range r.Count {
		var h millrace.Head
		var e millrace.Entry
		var err error
		if payload, err = millrace.NextHead(payload, &h); err != nil {
			return nil, err
		}
		if err = millrace.DecodeEntry(h.Body, &e); err != nil {
			return nil, err
		}
		entries = append(entries, &millrace.Entry{
			Kind: millrace.KindPut, Table: e.Table, Key: e.Key,
			Row: millrace.AppendRow(nil, 1, []millrace.Datum{{Text: []byte("1")}, {Text: []byte(forgedText)}}),
		})
	}
	h, payload, err := framed(f.fold, entries, r.Time)
	if err != nil {
		return nil, err
	}
	h.Stream, h.Epoch, h.Publisher = r.Stream, r.Epoch, r.Publisher
	return millrace.AppendRecord(nil, &h, payload, nil)
}

// told waits until an edge's status shows that the forger is untrue, if it followed it.
func (f *forger) told(m *member) func(context.Context) error {
	return func(context.Context) error {
		for _, u := range m.stream.UpstreamStatus().Upstreams {
			if u.URL == f.url && strings.Contains(u.Untrue, "is not signed") && m.upstream() != "forger" {
				return nil
			}
		}
		return harness.NotYet("it follows %s: %+v", m.upstream(), m.stream.UpstreamStatus())
	}
}
