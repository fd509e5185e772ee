package edgestatus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/internal/topic"
)

func TestMain(m *testing.M) { kafkatest.Main(m) }

const waitLimit = time.Minute

func until(t *testing.T, what string, holds func() error) {
	t.Helper()
	deadline := time.NewTimer(waitLimit)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := holds()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("wait until %s: %v", what, err)
		case <-tick.C:
		}
	}
}

type recorder struct {
	mu    sync.Mutex
	lines strings.Builder
}

func (r *recorder) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lines.Write(b)
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lines.String()
}

func report(edge string, epoch millrace.Epoch, index millrace.Index) *Report {
	return &Report{Edge: edge, Stream: "bank", Epoch: epoch, Index: index, State: StateStream, StartedAt: time.Now().UTC(), ReportedAt: time.Now().UTC(), Interval: 10, Version: "test"}
}

func message(t *testing.T, r *Report, at time.Time) topic.Message {
	t.Helper()
	value, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return topic.Message{Key: []byte(r.Edge), Value: value, Time: at}
}

func TestFleet(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	f := &Fleet{StreamID: "1"}
	f.Take(message(t, report("b", 1, 5), now.Add(-time.Minute)))
	f.Take(message(t, report("b", 2, 7), now.Add(-31*time.Second)))
	f.Take(message(t, report("a", 2, 9), now.Add(-29*time.Second)))
	stopped := report("c", 2, 8)
	stopped.State = StateStopped
	f.Take(message(t, stopped, now.Add(-time.Hour)))
	f.Take(message(t, report("old epoch", 1, 1), now))
	gone := report("gone", 2, 2)
	f.Take(message(t, gone, now))
	f.Take(topic.Message{Key: []byte("gone"), Time: now})

	whole := message(t, report("x", 2, 1), now)
	foreign := report("x", 2, 1)
	foreign.StreamID = "2"
	for name, m := range map[string]topic.Message{
		"no JSON":        {Key: []byte("x"), Value: []byte("hello")},
		"another's key":  {Key: []byte("y"), Value: whole.Value},
		"no key":         {Value: whole.Value},
		"another form":   {Key: []byte("x"), Value: []byte(strings.Replace(string(whole.Value), `"v":1`, `"v":2`, 1))},
		"no state":       {Key: []byte("x"), Value: []byte(strings.Replace(string(whole.Value), `"state":"stream"`, `"state":""`, 1))},
		"other types":    {Key: []byte("x"), Value: []byte(strings.Replace(string(whole.Value), `"index":1`, `"index":"one"`, 1))},
		"another stream": message(t, foreign, now),
		"too large":      {Key: []byte("x"), Value: append(make([]byte, 0, MaxReport+8), append([]byte(strings.Repeat(" ", MaxReport)), whole.Value...)...)},
	} {
		before := f.Ignored
		if f.Take(m); f.Ignored != before+1 {
			t.Errorf("%s: not ignored", name)
		}
	}

	var got []string
	for _, e := range f.Edges(now) {
		got = append(got, fmt.Sprintf("%s@%v %v %v", e.Edge, e.Index, e.AgeSeconds, e.Silent))
	}
	if want := "a@9 29 false|b@7 31 true|c@8 3600 false|old epoch@1 0 false"; strings.Join(got, "|") != want {
		t.Errorf("edges are %s, want %s", strings.Join(got, "|"), want)
	}
	if index, ok := f.Lowest(2); !ok || index != 7 {
		t.Errorf("lowest index is %v, %v, want 7", index, ok)
	}
	if _, ok := f.Lowest(3); ok {
		t.Error("there is a lowest index of an epoch that no edge holds")
	}
}

// A report stays small enough for any topic, whatever there is to say; what is
// wrong goes last.
func TestReportIsBounded(t *testing.T) {
	r := report("edge", 1, 1)
	r.Error = strings.Repeat("é", 1<<20)
	for i := range 20_000 {
		v := TableVerify{Table: fmt.Sprintf("public.table_%d", i)}
		if i%1000 == 0 {
			for range 3 {
				v.Differences = append(v.Differences, Difference{Low: strings.Repeat("k", 1<<20), Reason: strings.Repeat("ü", 1000)})
			}
		}
		r.Verify = append(r.Verify, v)
	}
	b, err := r.Encode()
	if err != nil || len(b) > MaxReport || !utf8.Valid(b) {
		t.Fatalf("report has %d bytes, the limit is %d (%v)", len(b), MaxReport, err)
	}
	got, err := Decode([]byte("edge"), b)
	if err != nil {
		t.Fatal(err)
	}
	wrong := 0
	for _, v := range got.Verify {
		if len(v.Differences) > 0 {
			wrong++
		}
	}
	if wrong != 20 || got.LeftOut != 20_000-len(got.Verify) || !got.Differs() {
		t.Errorf("%d of 20 tables that differ are in it, %d tables in all, %d left out", wrong, len(got.Verify), got.LeftOut)
	}
	for i := range r.Verify {
		r.Verify[i].Differences = []Difference{{Low: strings.Repeat("k", 1000)}}
		r.Diverged = append(r.Diverged, Diverged{r.Verify[i].Table, strings.Repeat("why ", 1000)})
	}
	if b, err = r.Encode(); err != nil || len(b) > MaxReport {
		t.Errorf("report on much that is wrong has %d bytes (%v)", len(b), err)
	}
}

// An edge whose reports cannot be sent says so once and goes on; it reports as
// soon as it can, when its state changes, and when it ends.
func TestReporter(t *testing.T) {
	brokers := kafkatest.Fake(t)
	where := topic.Config{Brokers: brokers, Topic: TopicOf(kafkatest.Topic(t))}
	log := new(recorder)
	var state atomic.Value
	state.Store(StateStream)
	var index atomic.Uint64
	registry := prometheus.NewRegistry()
	r, err := NewReporter(Config{
		Topic: where, Interval: time.Second, Logger: slog.New(slog.NewTextHandler(log, nil)), Registerer: registry,
		State: func() string { return state.Load().(string) },
		Report: func(context.Context) (*Report, error) {
			r := report("edge 1", 1, millrace.Index(index.Add(1)))
			r.State = state.Load().(string)
			return r, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.lastLimit = time.Minute
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	until(t, "it has tried several times", func() error {
		if n := index.Load(); n < 3 {
			return fmt.Errorf("%d times", n)
		}
		return nil
	})
	if n := strings.Count(log.String(), "level=WARN"); n != 1 || !strings.Contains(log.String(), "millrace init") {
		t.Errorf("%d warnings for want of a topic, want 1 with its mend: %s", n, log)
	}

	reports, err := topic.Open(t.Context(), where)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reports.Close() })
	if err := reports.CreateCompacted(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	edges := func(want string) func() error {
		return func() error {
			f, err := Read(t.Context(), reports, "")
			if err != nil {
				return err
			}
			all := f.Edges(time.Now())
			if len(all) != 1 || all[0].State != want || all[0].Silent || all[0].Interval != r.config.Interval.Seconds() {
				return fmt.Errorf("got %+v", all)
			}
			return nil
		}
	}
	until(t, "a report comes", edges(StateStream))
	// The report can be read before its sender knows that it was taken.
	until(t, "the log says that it goes again", func() error {
		if !strings.Contains(log.String(), "reported again") {
			return fmt.Errorf("got %s", log)
		}
		return nil
	})
	state.Store(StateRetry)
	until(t, "the change is reported", edges(StateRetry))
	cancel()
	<-done
	if err := edges(StateStopped)(); err != nil {
		t.Errorf("after its end: %v", err)
	}
}

// A change is reported before the interval is over.
func TestReporterTellsOfChanges(t *testing.T) {
	brokers := kafkatest.Fake(t)
	where := topic.Config{Brokers: brokers, Topic: TopicOf(kafkatest.Topic(t))}
	reports, err := topic.Open(t.Context(), where)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reports.Close() })
	if err := reports.CreateCompacted(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	var news, made atomic.Int64
	r, err := NewReporter(Config{
		Topic: where, Interval: time.Hour, State: func() string { return fmt.Sprint(news.Load()) },
		Report: func(context.Context) (*Report, error) {
			made.Add(1)
			return report("edge 1", 1, millrace.Index(news.Load())), nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	began := time.Now()
	go func() {
		defer close(done)
		r.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	for i := range int64(3) {
		news.Store(i + 1)
		until(t, "the change is reported", func() error {
			f, err := Read(t.Context(), reports, "")
			if err != nil {
				return err
			}
			if all := f.Edges(time.Now()); len(all) != 1 || all[0].Index != millrace.Index(i+1) {
				return fmt.Errorf("got %+v", all)
			}
			return nil
		})
	}
	if n, most := made.Load(), int64(time.Since(began)/leastGap)+2; n > most {
		t.Errorf("%d reports within %v, want at most one a second", n, time.Since(began))
	}
}

// TestReporterOfAChild: an edge that follows another one hands its reports to it, and
// takes back what an edge of its name has put into the topic before.
func TestReporterOfAChild(t *testing.T) {
	brokers := kafkatest.Fake(t)
	where := topic.Config{Brokers: brokers, Topic: TopicOf(kafkatest.Topic(t))}
	reports, err := topic.Open(t.Context(), where)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reports.Close() })
	if err := reports.CreateCompacted(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*Report{report("edge 1", 1, 5), report("edge 2", 1, 5)} {
		m := message(t, r, time.Time{})
		if err := reports.Put(t.Context(), m.Key, m.Value); err != nil {
			t.Fatal(err)
		}
	}
	var connected atomic.Bool
	var above Collector
	log := new(recorder)
	r, err := NewReporter(Config{
		Topic: where, Interval: time.Second, State: func() string { return "" }, Logger: slog.New(slog.NewTextHandler(log, nil)),
		Report: func(context.Context) (*Report, error) { return report("edge 1", 1, 7), nil },
		Up: func(payload []byte) bool {
			if !connected.Load() {
				return false
			}
			above.Take("edge 1", payload)
			return true
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	until(t, "it says that nobody takes its reports", func() error {
		if !strings.Contains(log.String(), "no relay") {
			return fmt.Errorf("got %s", log)
		}
		return nil
	})
	if above.Below(nil) != nil {
		t.Error("something came although nobody took it")
	}
	connected.Store(true)
	until(t, "the report is above, and there alone", func() error {
		s := above.Below(nil)
		f, err := Read(t.Context(), reports, "")
		if err != nil {
			return err
		}
		all := f.Edges(time.Now())
		if s == nil || s.Edges != 1 || s.Epochs[0].Lowest != 7 || len(all) != 1 || all[0].Edge != "edge 2" {
			return fmt.Errorf("above is %+v, in the topic %+v", s, all)
		}
		return nil
	})
}

// TestFailedReportIsSentAgain: what could not be sent does not wait for the interval.
func TestFailedReportIsSentAgain(t *testing.T) {
	t.Parallel()
	var made atomic.Int64
	r, err := NewReporter(Config{
		Interval: time.Hour, State: func() string { return "the same" },
		Report: func(context.Context) (*Report, error) { return report("edge 1", 1, 7), nil },
		Up:     func([]byte) bool { return made.Add(1) > 1 },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	until(t, "it is sent again", func() error {
		if n := made.Load(); n != 2 {
			return fmt.Errorf("%d tries", n)
		}
		return nil
	})
}

// TestFresh: what is asked for now has all that was reported before, and an error says
// so where it cannot be had.
func TestFresh(t *testing.T) {
	brokers := kafkatest.Fake(t)
	where := topic.Config{Brokers: brokers, Topic: TopicOf(kafkatest.Topic(t))}
	w, err := NewWatcher(where, "", func() millrace.Epoch { return 1 }, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Fresh(t.Context()); !errors.Is(err, topic.ErrNoTopic) {
		t.Errorf("without a topic: %v", err)
	}
	reports, err := topic.Open(t.Context(), where)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reports.Close() })
	if err := reports.CreateCompacted(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	limited, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	// Where the machine is slow, the time is over before the brokers were reached.
	if _, err := w.Fresh(limited); err == nil || limited.Err() == nil {
		t.Errorf("while nobody follows the topic: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	for i := range 5 {
		m := message(t, report("a", 1, millrace.Index(i)), time.Time{})
		if err := reports.Put(t.Context(), m.Key, m.Value); err != nil {
			t.Fatal(err)
		}
		edges, err := w.Fresh(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(edges) != 1 || edges[0].Index != millrace.Index(i) {
			t.Fatalf("after report %d: %+v", i, edges)
		}
	}
}

func TestWatcher(t *testing.T) {
	brokers := kafkatest.Fake(t)
	where := topic.Config{Brokers: brokers, Topic: TopicOf(kafkatest.Topic(t))}
	reports, err := topic.Open(t.Context(), where)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reports.Close() })
	if err := reports.CreateCompacted(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	put := func(r *Report) {
		t.Helper()
		m := message(t, r, time.Time{})
		if err := reports.Put(t.Context(), m.Key, m.Value); err != nil {
			t.Fatal(err)
		}
	}
	put(report("a", 1, 12))
	registry := prometheus.NewRegistry()
	w, err := NewWatcher(where, "", func() millrace.Epoch { return 1 }, nil, registry)
	if err != nil {
		t.Fatal(err)
	}
	gathered := func() map[string]float64 {
		t.Helper()
		all, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := make(map[string]float64)
		for _, f := range all {
			for _, m := range f.Metric {
				name := f.GetName()
				for _, l := range m.Label {
					name += " " + l.GetValue()
				}
				got[name] = m.Gauge.GetValue() + m.Counter.GetValue()
			}
		}
		return got
	}
	if got := gathered(); !math.IsNaN(got["millrace_edge_lowest_index"]) {
		t.Errorf("before anything is known the lowest index is %v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	lowest := func(want millrace.Index) func() error {
		return func() error {
			if got, ok := w.Lowest(); !ok || got != want {
				return fmt.Errorf("got %v, %v", got, ok)
			}
			return nil
		}
	}
	until(t, "what was there is known", lowest(12))
	other := report("b", 1, 3)
	other.Verify = []TableVerify{{Table: "t", Differences: []Difference{{Low: "1"}}}}
	put(other)
	if err := reports.Put(t.Context(), []byte("c"), []byte("no report")); err != nil {
		t.Fatal(err)
	}
	until(t, "what comes is known", lowest(3))
	until(t, "the metrics tell", func() error {
		got := gathered()
		if got["millrace_edges reporting"] != 2 || got["millrace_edges silent"] != 0 || got["millrace_edge_lowest_index"] != 3 ||
			got["millrace_edges_different"] != 1 || got["millrace_edges_by_version test"] != 2 || got["millrace_edges_forked"] != 0 || got["millrace_edge_reports_ignored_total"] != 1 {
			return fmt.Errorf("got %v", got)
		}
		return nil
	})
}

func TestReadWithoutTopic(t *testing.T) {
	missing, err := topic.Open(t.Context(), topic.Config{Brokers: kafkatest.Fake(t), Topic: "missing"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = missing.Close() })
	if _, err := Read(t.Context(), missing, ""); !errors.Is(err, topic.ErrNoTopic) {
		t.Errorf("Read of a missing topic: %v, want ErrNoTopic", err)
	}
}

// TestReportForm holds the form against the description that other readers go by.
func TestReportForm(t *testing.T) {
	lag, at := 0.25, time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	r := Report{
		Edge: "fra-1", Stream: "bank", StreamID: "b48c", Epoch: 1, Index: 1042, Chain: "6f1a", Term: 3, LagSeconds: &lag, SourceTime: &at,
		State: StateStream, Tables: 2, Rows: 100, Version: "0.1", StartedAt: at, ReportedAt: at, Interval: 10,
		Verify: []TableVerify{{
			Table: "public.accounts", ID: 16385, Index: 1040, Time: &at, Equal: 11, Different: 1, Pass: Pass{ID: 7, Equal: 4, Different: 1, Rows: 50, From: 1000, To: 1040},
			Differences: []Difference{{Low: "7", High: "9", Since: 1040, Index: 1040, Time: at, Rows: 1, SourceRows: 2, Reason: "1 rows here, 2 at the source"}},
		}},
	}
	b, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"v":1,"edge":"fra-1","stream":"bank","stream_id":"b48c","epoch":1,"index":1042,"chain":"6f1a","term":3,"lag_seconds":0.25,` +
		`"source_time":"2026-05-01T12:00:00Z","state":"stream","tables":2,"rows":100,"verifying":0,"verify":[{"table":"public.accounts","id":16385,` +
		`"index":1040,"time":"2026-05-01T12:00:00Z","equal":11,"different":1,"skipped":0,"pass":{"id":7,"equal":4,"different":1,"skipped":0,"rows":50,"from":1000,"to":1040},` +
		`"differences":[{"low":"7","high":"9","since":1040,"index":1040,"time":"2026-05-01T12:00:00Z","rows":1,"source_rows":2,"reason":"1 rows here, 2 at the source"}]}],` +
		`"diverged":[],"version":"0.1","started_at":"2026-05-01T12:00:00Z","reported_at":"2026-05-01T12:00:00Z","interval_seconds":10}`
	if string(b) != want {
		t.Errorf("report is\n%s, want\n%s", b, want)
	}
}
