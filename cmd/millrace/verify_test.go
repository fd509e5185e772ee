package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/edgestatus"
	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/internal/loopback"
	"github.com/millrace-db/millrace/internal/testdir"
	"github.com/millrace-db/millrace/internal/topic"
	"github.com/millrace-db/millrace/transfer"
	"github.com/millrace-db/millrace/transfer/admin"
)

// command runs the program within the test.
func command(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	ctx, cancel := context.WithTimeout(ctx, runLimit)
	defer cancel()
	return commandUntil(ctx, args...)
}

// commandUntil is command for one that runs until ctx ends.
func commandUntil(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, err syncBuilder
	code = run(ctx, &environment{args: args, stdout: &out, stderr: &err})
	return code, out.String(), err.String()
}

type syncBuilder struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *syncBuilder) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *syncBuilder) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// desk takes commands as a publisher would, and carries them out step by step
// each time that it is asked how far it is.
type desk struct {
	mu     sync.Mutex
	status transfer.Status
	ready  bool
	loads  []admin.LoadStatus
	asked  []admin.LoadStatus // listed when they have been looked for several times
	looks  int
	passes []admin.VerifyStatus
	// lose has the next request for passes be forgotten, as a new reign does.
	lose bool
	fail string
}

func (d *desk) Status() transfer.Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.status
}

func (d *desk) Ready() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ready
}

func (d *desk) unknown(table string) error {
	if table != "public.items" && table != "public.shops" {
		return fmt.Errorf("table %s: %w: it has public.items, public.shops", table, admin.ErrUnknownTable)
	}
	return nil
}

func (d *desk) Load(_ context.Context, table, reason string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.unknown(table); err != nil {
		return err
	}
	d.looks = 0
	d.asked = append(d.asked, admin.LoadStatus{Table: table, Reason: reason, Phase: admin.PhaseWaiting, Blocks: 4})
	return nil
}

func (d *desk) Loads() []admin.LoadStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.loads {
		l := &d.loads[i]
		if l.Paused || l.Phase == admin.PhaseDone {
			continue
		}
		l.Phase, l.BlocksDone, l.Rows = admin.PhaseRunning, l.BlocksDone+1, l.Rows+10
		eta := time.Now().Add(time.Minute)
		l.ETA = &eta
		if l.BlocksDone == l.Blocks {
			l.Phase = admin.PhaseDone
		}
		if d.fail != "" {
			l.Phase, l.Problem = admin.PhaseFailed, d.fail
		}
	}
	shown := slices.Clone(d.loads)
	if d.looks++; len(d.asked) > 0 && d.looks > 2 {
		for _, l := range d.asked {
			l.StartedAt = time.Now()
			d.loads = append(d.loads, l)
		}
		d.asked = nil
	}
	return shown
}

func (d *desk) PauseLoads(pause bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.loads {
		d.loads[i].Paused = pause
	}
}

func (d *desk) Verify(_ context.Context, tables []string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, table := range tables {
		if err := d.unknown(table); err != nil {
			return err
		}
	}
	for _, table := range tables {
		d.passes = slices.DeleteFunc(d.passes, func(v admin.VerifyStatus) bool { return v.Table == table })
		d.passes = append(d.passes, admin.VerifyStatus{Table: table, Phase: admin.PhaseWaiting, RequestedAt: time.Now()})
	}
	if d.lose {
		d.lose, d.passes = false, nil
	}
	return nil
}

func (d *desk) Verifications() []admin.VerifyStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	shown := slices.Clone(d.passes)
	for i := range d.passes {
		if v := &d.passes[i]; v.ID == 0 {
			v.ID, v.Phase, v.Ranges, v.Index = 7, admin.PhaseDone, 2, 100
		}
	}
	return shown
}

// forget makes the next pass the first one.
func (d *desk) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.passes = nil
}

func (d *desk) loseNext() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lose = true
}

// office is a desk behind an admin listener, with a broker and a configuration.
type office struct {
	*desk
	file    string
	server  *admin.Server
	reports *topic.Topic
	brokers []string
}

const officeID = "000102030405060708090a0b0c0d0e0f"

func newOffice(t *testing.T) *office {
	t.Helper()
	o := &office{brokers: kafkatest.Fake(t), desk: &desk{ready: true, status: transfer.Status{
		Stream: "shop", StreamID: officeID, Epoch: 1, Index: 120, Chain: "ab", Phase: transfer.PhasePublishing, PhaseSince: time.Now(),
	}}}
	server, err := admin.New(t.Context(), admin.Config{Listen: "127.0.0.1:0", Streams: []admin.Stream{o.desk}, Commands: map[string]admin.Commands{"shop": o.desk}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	o.server = server
	ports, err := loopback.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	w := world{dir: testdir.For(t)}
	o.file = w.write(t, "millrace.yaml", fmt.Sprintf(`
streams:
  - name: shop
    source: {url: "postgres://nobody@127.0.0.1:1/none", tables: [public.items, public.shops]}
    kafka: {brokers: [%q]}
transfer: {admin: %q}
edge: {http: {listen: "127.0.0.1:%d"}}
`, o.brokers[0], server.Address(), ports[0]))
	o.reports, err = topic.Open(t.Context(), topic.Config{Brokers: o.brokers, Topic: "millrace.shop.status"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.reports.Close() })
	return o
}

func (o *office) put(t *testing.T, r *edgestatus.Report) {
	t.Helper()
	r.Stream, r.StreamID, r.Epoch, r.Version = "shop", officeID, 1, "test"
	r.StartedAt, r.ReportedAt = time.Now().UTC(), time.Now().UTC()
	if r.Interval == 0 {
		r.Interval = 600
	}
	value, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := o.reports.Put(t.Context(), []byte(r.Edge), value); err != nil {
		t.Fatal(err)
	}
}

func (o *office) run(t *testing.T, wantCode int, args ...string) (stdout, stderr string) {
	t.Helper()
	code, stdout, stderr := command(t.Context(), append(args, "-c", o.file)...)
	if code != wantCode {
		t.Errorf("millrace %s: exit code %d, want %d: %s%s", strings.Join(args, " "), code, wantCode, stdout, stderr)
	}
	return stdout, stderr
}

func wantWords(t *testing.T, what, text string, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("%s does not say %q:\n%s", what, word, text)
		}
	}
}

func TestLoadCommand(t *testing.T) {
	o := newOffice(t)
	out, _ := o.run(t, exitOK, "load")
	wantWords(t, "load without loads", out, "no loads")
	out, progress := o.run(t, exitOK, "load", "public.items", "--wait", "--reason", "drill")
	wantWords(t, "load --wait", out, "load of public.items has ended: 40 rows")
	wantWords(t, "its progress", progress, "public.items waiting", "public.items running", "% done", "ends in")
	out, _ = o.run(t, exitOK, "load")
	wantWords(t, "load", out, "public.items", "done", "100 %", "drill")
	out, _ = o.run(t, exitOK, "load", "public.shops")
	wantWords(t, "load without --wait", out, "begins at the next occasion")
	for range 3 {
		o.run(t, exitOK, "load")
	}
	out, _ = o.run(t, exitOK, "load", "pause")
	wantWords(t, "load pause", out, "public.shops", "(paused)")
	out, _ = o.run(t, exitOK, "load", "resume", "--json")
	var all []admin.LoadStatus
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all) != 2 || all[1].Paused {
		t.Errorf("load resume --json: %s (%v)", out, err)
	}
	// An earlier load of the table is not taken for the one that is awaited.
	out, _ = o.run(t, exitOK, "load", "public.items", "--wait", "--json", "--reason", "again")
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all) != 1 || all[0].Phase != admin.PhaseDone || all[0].Reason != "again" {
		t.Errorf("load --wait --json: %s (%v)", out, err)
	}

	one := func(what string, code int, args []string, words ...string) {
		t.Helper()
		_, stderr := o.run(t, code, args...)
		if strings.Count(strings.TrimSpace(stderr), "\n") != 0 {
			t.Errorf("%s: want one line, got %s", what, stderr)
		}
		wantWords(t, what, stderr, words...)
	}
	one("unknown table", exitFailure, []string{"load", "public.none"}, "public.none", "public.items", "source.tables")
	one("no schema", exitUsage, []string{"load", "items"}, "schema.table")
	one("two tables", exitUsage, []string{"load", "public.items", "public.shops"}, "one table")
	o.mu.Lock()
	o.fail = "table was dropped"
	o.mu.Unlock()
	_, stderr := o.run(t, exitFailure, "load", "public.items", "--wait")
	wantWords(t, "a load that fails", stderr, "load of public.items has failed: table was dropped")

	stop := func(phase, problem string) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.ready, o.status.Phase, o.status.Problem = false, phase, problem
	}
	stop(transfer.PhaseWaiting, "")
	one("not publishing", exitFailure, []string{"load", "public.items"}, "shop", "waiting since", "ask the transfer that publishes")
	stop(transfer.PhaseFenced, "term 5 reigns")
	one("fenced", exitFailure, []string{"verify"}, "fenced since", "term 5 reigns")
	stop(transfer.PhaseStopped, "slot lost")
	one("stopped", exitOperator, []string{"load", "public.items"}, "slot lost", "start transfer again")

	nobody := closedPort(t)
	w := world{dir: testdir.For(t)}
	text := fmt.Sprintf("streams: [{name: shop, source: {url: \"postgres://nobody@127.0.0.1:1/none\", tables: [public.items]}}]\ntransfer: {admin: %q}\n", nobody)
	o.file = w.write(t, "nobody.yaml", text)
	one("nobody listens", exitFailure, []string{"load", "public.items"}, "transfer at "+nobody+" cannot be reached", "is it running?")
	o.file = w.write(t, "off.yaml", strings.ReplaceAll(text, strconv.Quote(nobody), "off"))
	one("admin off", exitUsage, []string{"verify"}, "transfer.admin is off")
}

func tableVerify(table string, pass edgestatus.Pass, differences ...edgestatus.Difference) edgestatus.TableVerify {
	at := time.Now().UTC()
	return edgestatus.TableVerify{Table: table, Index: pass.To, Time: &at, Equal: pass.Equal, Different: pass.Different, Skipped: pass.Skipped, Pass: pass, Differences: differences}
}

func TestVerifyCommand(t *testing.T) {
	o := newOffice(t)
	_, stderr := o.run(t, exitFailure, "verify", "public.none")
	wantWords(t, "unknown table", stderr, "public.none")
	out, _ := o.run(t, exitOK, "verify", "public.items")
	wantWords(t, "verify without --wait", out, "public.items")
	o.forget()
	_, stderr = o.run(t, exitFailure, "verify", "--wait")
	wantWords(t, "without a topic of reports", stderr, "millrace.shop.status", "does not exist", "millrace init")
	o.forget()
	if err := o.reports.CreateCompacted(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	_, stderr = o.run(t, exitFailure, "verify", "--wait")
	wantWords(t, "without edges", stderr, "no edge of stream shop reports")

	pass := edgestatus.Pass{ID: 7, Equal: 2, Rows: 50, From: 90, To: 100}
	good := &edgestatus.Report{Edge: "good", State: edgestatus.StateStream, Index: 110, Verify: []edgestatus.TableVerify{tableVerify("public.items", pass), tableVerify("public.shops", pass)}}
	o.put(t, good)
	o.put(t, &edgestatus.Report{Edge: "gone", State: edgestatus.StateStopped, Index: 3})
	o.forget()
	out, _ = o.run(t, exitOK, "verify", "--wait")
	wantWords(t, "verify --wait", out, "good", "public.items", "equal", "50", "the edge is stopped")

	o.forget()
	o.loseNext()
	out, _ = o.run(t, exitOK, "verify", "--wait", "--timeout", "1m")
	wantWords(t, "verify --wait over a transfer that begins anew", out, "good", "public.items", "equal", "50")

	// Edges that are behind, or have not compared it all, are waited for.
	late := &edgestatus.Report{Edge: "late", State: edgestatus.StateStream, Index: 99}
	o.put(t, late)
	reading := &edgestatus.Report{Edge: "reading", State: edgestatus.StateStream, Index: 105, Verifying: 100, Verify: good.Verify}
	o.put(t, reading)
	o.forget()
	_, stderr = o.run(t, exitFailure, "verify", "--wait", "--timeout", "3s")
	wantWords(t, "edges that are late", stderr, "within 3s", "late, reading")
	different := pass
	different.Equal, different.Different = 1, 1
	late.Index, late.Verify = 100, []edgestatus.TableVerify{
		tableVerify("public.items", different, edgestatus.Difference{Low: "7", High: "9", Index: 95, Rows: 1, SourceRows: 2, Reason: "1 rows here, 2 at the source"}),
		tableVerify("public.shops", edgestatus.Pass{ID: 7, Equal: 1, Skipped: 1, From: 90, To: 100}),
	}
	o.put(t, late)
	reading.Verifying = 101
	o.put(t, reading)
	o.forget()
	out, stderr = o.run(t, exitFailure, "verify", "--wait")
	wantWords(t, "verify of what differs", out, "from key 7 to before 9", "1 rows here, 2 at the source", "millrace load public.items", "skipped")
	wantWords(t, "its error", stderr, "differ", "1 of 8")
	o.forget()
	out, _ = o.run(t, exitFailure, "verify", "public.shops", "--wait", "--json")
	var results []verifyResult
	if err := json.Unmarshal([]byte(out), &results); err != nil || len(results) != 4 || results[1].Result != resultEqual || results[2].Result != resultSkipped {
		t.Errorf("verify --json: %s (%v)", out, err)
	}

	// Those behind a relay are waited for as well, and have a line of their own.
	below := func(r edgestatus.Report) edgestatus.Edge {
		r.Epoch, r.State = good.Epoch, edgestatus.StateStream
		return edgestatus.Edge{Report: r}
	}
	relay := &edgestatus.Report{Edge: "relay", State: edgestatus.StateStream, Index: 110, Verify: good.Verify}
	relay.Below = edgestatus.Summarise([]edgestatus.Edge{
		below(edgestatus.Report{Edge: "leaf-1", Index: 110, Verify: good.Verify}), below(edgestatus.Report{Edge: "leaf-2", Index: 99}),
	}, nil)
	o.put(t, relay)
	o.forget()
	_, stderr = o.run(t, exitFailure, "verify", "--wait", "--timeout", "3s", "--json")
	wantWords(t, "edges behind a relay that are late", stderr, "within 3s", "1 below relay")
	relay.Below = edgestatus.Summarise([]edgestatus.Edge{
		below(edgestatus.Report{Edge: "leaf-1", Index: 110, Verify: good.Verify}),
		below(edgestatus.Report{Edge: "leaf-2", Index: 100, Verify: []edgestatus.TableVerify{tableVerify("public.items", different)}}),
	}, nil)
	o.put(t, relay)
	o.forget()
	out, stderr = o.run(t, exitFailure, "verify", "--wait")
	wantWords(t, "verify behind a relay", out, "2 below relay", "ranges differ at 1 of them", "1 of 2 that report have no result of this pass")
	wantWords(t, "its error", stderr, "differ", "2 of 12")
	relay.Below = edgestatus.Summarise([]edgestatus.Edge{below(edgestatus.Report{Edge: "leaf-1", Index: 110, Verify: good.Verify})}, nil)
	o.put(t, relay)
	if r := resultBelow(&edgestatus.Edge{Report: *relay}, &admin.VerifyStatus{Table: "public.items", ID: 7, Ranges: 2}); r.Result != resultEqual || !r.reports {
		t.Errorf("all below a relay are equal: %+v", r)
	}

	// The same is in the status.
	o.put(t, &edgestatus.Report{Edge: "dead", State: edgestatus.StateStream, Index: 1, Interval: 0.001, Error: "no route\nto host\x1b[2J"})
	until(t, "the dead edge is silent", func() error {
		out, _ = o.run(t, exitOK, "status")
		if !strings.Contains(out, "silent (stream)") {
			return fmt.Errorf("got %s", out)
		}
		return nil
	})
	wantWords(t, "status", out, "shop", "120", "good", "stopped", "1 range differs", "equal at 100",
		"edge late, stream shop: table public.items differs from key 7 to before 9 at index 95: 1 rows here, 2 at the source; mend: millrace load public.items",
		"edge dead, stream shop: no route; to host\uFFFD[2J")
	out, _ = o.run(t, exitOK, "status", "--json")
	var places []map[string]any
	if err := json.Unmarshal([]byte(out), &places); err != nil || len(places) != 1 {
		t.Fatalf("status --json: %s (%v)", out, err)
	}
	if edges, _ := places[0]["edges"].([]any); len(edges) != 6 {
		t.Errorf("status --json has %d edges, want 6: %s", len(edges), out)
	}
	for _, name := range []string{"stream", "epoch", "index", "chain", "lag_seconds"} {
		if _, ok := places[0][name]; !ok {
			t.Errorf("status --json has no %s", name)
		}
	}
	o.run(t, exitFailure, "status", "--forget", "nobody")
	o.run(t, exitOK, "status", "--forget", "dead")
	if out, _ = o.run(t, exitOK, "status"); strings.Contains(out, "dead") {
		t.Errorf("status after --forget: %s", out)
	}
}

// TestVerifyPartialEdges: no result is expected of what an edge does not hold, nor of
// ranges with keys that it does not.
func TestVerifyPartialEdges(t *testing.T) {
	pass := &admin.VerifyStatus{Table: "public.items", ID: 7, Ranges: 3}
	edge := func(p edgestatus.Pass, holds ...edgestatus.Held) *edgestatus.Edge {
		p.ID = 7
		return &edgestatus.Edge{Report: edgestatus.Report{Edge: "e", State: edgestatus.StateStream, Holds: holds, Verify: []edgestatus.TableVerify{tableVerify("public.items", p)}}}
	}
	for name, c := range map[string]struct {
		e              *edgestatus.Edge
		result         string
		reports, apart bool
	}{
		"everything":       {edge(edgestatus.Pass{Equal: 3}), resultEqual, true, false},
		"the table":        {edge(edgestatus.Pass{Equal: 2, Skipped: 1}, edgestatus.Held{Table: "public.items"}), resultSkipped, true, false},
		"some keys":        {edge(edgestatus.Pass{Equal: 1, Skipped: 2}, edgestatus.Held{Table: "public.items", Prefixes: 1}), resultSkipped, false, true},
		"some keys, wrong": {edge(edgestatus.Pass{Different: 1, Skipped: 2}, edgestatus.Held{Table: "public.items", Prefixes: 1}), resultDifferent, true, false},
		"another table":    {edge(edgestatus.Pass{}, edgestatus.Held{Table: "public.shops"}), resultNone, false, true},
	} {
		if r := resultOf(c.e, pass); r.Result != c.result || r.reports != c.reports || r.apart != c.apart {
			t.Errorf("holding %s: %+v", name, r)
		}
	}
}

// log is a topic with the records of a publisher.
type logTopic struct {
	t      *testing.T
	topic  *topic.Topic
	header millrace.Header
}

func (l *logTopic) append(kind millrace.RecordKind, entries ...*millrace.Entry) {
	l.t.Helper()
	h := &l.header
	h.Kind, h.Count = kind, uint32(len(entries))
	var payload []byte
	if kind == millrace.RecordBatch {
		var w millrace.UnitWriter
		for _, e := range entries {
			if err := w.Append(e); err != nil {
				l.t.Fatal(err)
			}
		}
		var err error
		if payload, err = w.Finish(millrace.UnitEnd{Time: time.Now(), Token: uint64(h.First)}); err != nil {
			l.t.Fatal(err)
		}
		var unit millrace.UnitHash
		unit.Add(16384, payload)
		h.Chain = unit.Chain(h.Prev)
		h.Position = millrace.Position{Mode: millrace.ModeWAL, SystemID: 1, Timeline: 1, Slot: "s", LSN: millrace.LSN(h.First)}
	}
	record := *h
	if kind == millrace.RecordTerm {
		record.First, record.Prev, record.Chain, record.Position = 0, millrace.Chain{}, millrace.Chain{}, millrace.Position{}
	}
	b, err := millrace.AppendRecord(nil, &record, payload, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	if _, err := l.topic.Append(l.t.Context(), b, h.First, h.Count); err != nil {
		l.t.Fatal(err)
	}
	if kind == millrace.RecordBatch {
		h.First, h.Prev = h.First+millrace.Index(len(entries)), h.Chain
	}
}

// TestEdgeVerifiesAndReports: an edge process compares what it has stored with
// Verify entries, reports it, answers it, and says when it ends.
func TestEdgeVerifiesAndReports(t *testing.T) {
	brokers := kafkatest.Fake(t)
	ports, err := loopback.FreePorts(2)
	if err != nil {
		t.Fatal(err)
	}
	w := world{dir: testdir.For(t)}
	listen := fmt.Sprintf("127.0.0.1:%d", ports[0])
	file := w.write(t, "millrace.yaml", fmt.Sprintf("streams: [{name: shop, kafka: {brokers: [%q]}}]\ntransfer: {admin: \"127.0.0.1:%d\"}\n"+
		"edge: {id: fra-1, data_dir: %q, report: 1s, http: {listen: %q}}\n", brokers[0], ports[1], w.dir, listen))
	reports, err := topic.Open(t.Context(), topic.Config{Brokers: brokers, Topic: "millrace.shop.status"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reports.Close() })
	l := &logTopic{t: t}
	if l.topic, err = topic.Open(t.Context(), topic.Config{Brokers: brokers, Topic: "millrace.shop"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.topic.Close() })
	if err := l.topic.Create(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	id := millrace.StreamID{7}
	l.header = millrace.Header{Stream: id, Epoch: 1, Term: 1, Publisher: millrace.PublisherID{1}, First: 1, Prev: millrace.NewChain(id, 1), Time: time.Now()}

	schema := &millrace.Schema{
		Version: 1, Table: 16384, Namespace: "public", Name: "items",
		Columns: []millrace.Column{{Name: "id", Type: 25, Typmod: -1, NotNull: true, KeyOrdinal: 1}, {Name: "note", Type: 25, Typmod: -1}},
		Types:   []millrace.TypeDesc{{OID: 25, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "text"}},
	}
	codec, err := millrace.NewKeyCodec(schema)
	if err != nil {
		t.Fatal(err)
	}
	plan := millrace.NewVerifyPlan(schema)
	var sum millrace.VerifySum
	var rows []*millrace.Entry
	for i := range 9 {
		columns := []millrace.Datum{{Text: fmt.Append(nil, "k", i)}, {Text: fmt.Append(nil, "note ", i)}}
		key, err := codec.AppendRowKey(nil, columns)
		if err != nil {
			t.Fatal(err)
		}
		if err := sum.Add(plan, key, columns); err != nil {
			t.Fatal(err)
		}
		rows = append(rows, &millrace.Entry{Kind: millrace.KindPut, Table: 16384, Load: 1, Key: key, Row: millrace.AppendRow(nil, 1, columns)})
	}
	verify := func(pass, rows uint64) *millrace.Entry {
		return &millrace.Entry{Kind: millrace.KindVerify, Table: 16384, Verify: &millrace.VerifyRange{ID: pass, Low: codecKey(t, codec, "k0"), Rows: rows, Hash: sum.Sum()}}
	}
	l.append(millrace.RecordTerm)
	l.append(millrace.RecordBatch, &millrace.Entry{Kind: millrace.KindSchema, Table: 16384, Schema: schema}, &millrace.Entry{Kind: millrace.KindLoadBegin, Table: 16384, Load: 1})
	l.append(millrace.RecordBatch, rows...)
	l.append(millrace.RecordBatch, &millrace.Entry{Kind: millrace.KindLoadEnd, Table: 16384, Load: 1})
	l.append(millrace.RecordBatch, verify(1, 9))

	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan string, 1)
	go func() {
		code, _, stderr := commandUntil(ctx, "edge", "-c", file)
		ended <- fmt.Sprint(code, " ", stderr)
	}()
	stop := sync.OnceValue(func() string { cancel(); return <-ended })
	t.Cleanup(func() {
		if said := stop(); t.Failed() {
			t.Log(said)
		}
	})
	// Without the topic of reports the edge applies and answers all the same.
	until(t, "the edge is ready", func() error { return httpOK("http://" + listen + "/readyz") })
	client := newClient("http://"+listen, "the edge", "tcp", listen)
	until(t, "a report has failed", func() error {
		text, _, err := client.ask(t.Context(), http.MethodGet, "/metrics", nil)
		if err == nil && strings.Contains(string(text), `millrace_edge_reports_total{result="failed",stream="shop"} 0`) {
			err = errors.New("none has")
		}
		return err
	})
	if err := reports.CreateCompacted(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	reported := func(holds func(e *edgestatus.Edge) bool) func() error {
		return func() error {
			fleet, err := edgestatus.Read(t.Context(), reports, id.String())
			if err != nil {
				return err
			}
			if all := fleet.Edges(time.Now()); len(all) != 1 || !holds(&all[0]) {
				return fmt.Errorf("got %+v", all)
			}
			return nil
		}
	}
	until(t, "the edge reports that its rows are equal", reported(func(e *edgestatus.Edge) bool {
		return e.Edge == "fra-1" && e.State == edgestatus.StateStream && e.Index == l.header.First-1 && e.Tables == 1 && e.Rows == 9 &&
			e.Chain == l.header.Prev.String() && e.StreamID == id.String() && e.Verifying == 0 &&
			len(e.Verify) == 1 && e.Verify[0].Equal == 1 && e.Verify[0].Pass.ID == 1 && e.Verify[0].Time != nil
	}))
	l.append(millrace.RecordBatch, verify(2, 10))
	until(t, "the edge reports a difference", reported(func(e *edgestatus.Edge) bool {
		return len(e.Verify) == 1 && e.Verify[0].Different == 1 && len(e.Verify[0].Differences) == 1 && e.Verify[0].Differences[0].Low == "k0" && e.Differs()
	}))
	var status struct {
		Verify []struct {
			Table       string
			Different   uint64
			Differences []struct {
				Low    string
				Reason string
			}
		}
	}
	if err := client.get(t.Context(), "/v1/streams/shop/status", &status); err != nil {
		t.Fatal(err)
	}
	if len(status.Verify) != 1 || status.Verify[0].Different != 1 || !strings.Contains(status.Verify[0].Differences[0].Reason, "9 rows here, 10 at the source") {
		t.Errorf("the edge's status is %+v", status)
	}
	text, _, err := client.ask(t.Context(), http.MethodGet, "/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	wantWords(t, "metrics", string(text), `millrace_edge_verify_ranges_total{result="different",stream="shop"} 1`, `millrace_edge_verify_differences{stream="shop"} 1`, `millrace_edge_reports_total{result="sent",stream="shop"}`)

	code, out, _ := command(t.Context(), "tail", "-c", file, "--from", "14")
	if code != exitOK {
		t.Errorf("tail: exit code %d", code)
	}
	wantWords(t, "tail", out, `"kind":"verify","table":"public.items","verify":{"id":2,"low":"k0","high":"","rows":10,"hash":"`, `"left_out":0`)
	if said := stop(); !strings.HasPrefix(said, "0 ") || !strings.Contains(said, "millrace load public.items") || strings.Count(said, "is not reported") != 1 {
		t.Errorf("the edge ended with %s, want 0, an alarm, and one warning of the missing topic", said)
	}
	if err := reported(func(e *edgestatus.Edge) bool { return e.State == edgestatus.StateStopped && e.Differs() })(); err != nil {
		t.Errorf("after the end: %v", err)
	}
}

func codecKey(t *testing.T, codec *millrace.KeyCodec, text string) []byte {
	t.Helper()
	key, err := codec.Append(nil, [][]byte{[]byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	return key
}
