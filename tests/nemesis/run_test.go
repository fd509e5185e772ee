package nemesis

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/internal/pgserver"
	"github.com/millrace-db/millrace/internal/pgtest"
	"github.com/millrace-db/millrace/internal/testdir"
	"github.com/millrace-db/millrace/tests/harness"
)

const (
	// stopLimit is how long a process may take to end in order, settleLimit how
	// long the edges may take to come to the source's end after whatever was
	// done to them.
	stopLimit   = time.Minute
	settleLimit = 3 * time.Minute
	sqlLimit    = 2 * time.Minute
	// filesLimit is how long it may take until transfer has looked at the files of
	// a partitioned table, and loaded it.
	filesLimit = 3 * time.Minute
)

// ground is what a walk goes over. Walks that go on at a time have a source each:
// on one server the slots and loads of each would wait for the transactions of all
// others.
type ground struct {
	mode   mode
	server *pgserver.Server
	kafka  *broker
	*tally
}

// tally is of all walks of a mode.
type tally struct {
	// streamed counts transactions that were streamed before their end.
	streamed atomic.Int64
	// lost counts crashes of the server that took acknowledged commits along.
	lost atomic.Int64
}

// broker is all walks' own. One walk at a time may pause it.
type broker struct {
	*kafkatest.Cluster
	pause sync.Mutex
}

func newBroker(t *testing.T) *broker {
	t.Helper()
	return &broker{Cluster: kafkatest.Start(t, 1)}
}

// grounds are those that no walk goes over at the moment.
type grounds struct {
	mode mode
	*tally
	free chan *ground
}

// newGrounds makes as many as walks go on at a time, n at most.
func newGrounds(t *testing.T, m mode, kafka *broker, n int) *grounds {
	t.Helper()
	settings := map[string]string{
		"max_prepared_transactions": "64",
		// What is committed without waiting is not durable for a while.
		"wal_writer_delay": "2s",
		// Transactions are streamed early, so that several are at once.
		"logical_decoding_work_mem": "64kB",
	}
	if m == byTrigger { // where logical decoding is not to be had
		settings["wal_level"], settings["max_wal_senders"] = "replica", "0"
	}
	limit, err := strconv.Atoi(flag.Lookup("test.parallel").Value.String())
	if err != nil {
		t.Fatal(err)
	}
	n = min(n, limit)
	all := &grounds{mode: m, tally: &tally{}, free: make(chan *ground, n)}
	for range n {
		all.free <- &ground{mode: m, server: pgtest.Cluster(t, pgtest.Options{Settings: settings}), kafka: kafka, tally: all.tally}
	}
	return all
}

// take returns a ground, which goes back when the test has cleaned up.
func (all *grounds) take(t *testing.T) *ground {
	t.Helper()
	g := <-all.free
	t.Cleanup(func() { all.free <- g })
	return g
}

// run does one walk over a database and a topic of its own.
type run struct {
	t        *testing.T
	g        *ground
	s        *harness.System
	sessions []*pgx.Conn
	transfer *harness.Transfer
	edges    []*harness.Edge
	// leaf is the edge that follows others; nil if there is none yet. trimmed tells that
	// the topic does not begin at its start any more.
	leaf    *harness.Edge
	trimmed bool
	witness *harness.Witness
	// env is added to the environment of transfer when it starts again: planted
	// bugs.
	env    []string
	checks int
	// limit is how long the edges may take to come to the source's end.
	limit time.Duration
	// epoch is the stream's.
	epoch int
	// audited tells how the audits of the first edge ended.
	audited    chan error
	stopAudits context.CancelFunc
	audits     int
	counts     map[string]int
	// streamed counts transactions that the source streamed before their end.
	streamed int
	rows     int
}

func newRun(t *testing.T, g *ground, variant harness.Variant) *run {
	t.Helper()
	statements, _, names := setUp(g.mode)
	db := pgtest.On(t, g.server)
	r := &run{t: t, g: g, epoch: 1, limit: settleLimit, counts: map[string]int{}, s: &harness.System{
		T: t, DB: db, Kafka: g.kafka.Cluster, Stream: "walk", Topic: kafkatest.Topic(t), Dir: testdir.For(t),
		SourceURL: db.URL, Capture: string(g.mode), Variant: variant, Lease: time.Second, Sparse: true, MoreKafka: retained,
	}}
	if g.mode == byTrigger {
		// More windows in the same time, and logs that change their segment now and
		// then.
		r.s.More = ", poll: {min: 1ms, max: 5ms}, audit: {retain: 1m}"
	}
	for _, sql := range statements {
		db.Exec(sql)
	}
	harness.NewJournal(t, r.s, 0)
	for _, name := range append(names, "journal") {
		r.s.Tables = append(r.s.Tables, "public."+name)
	}
	r.sessions = make([]*pgx.Conn, sessions)
	r.connect()
	t.Cleanup(r.disconnect)
	t.Cleanup(r.forgetPrepared)
	r.s.Init()
	r.witness = r.s.Witness()
	r.transfer = r.s.StartTransfer()
	r.addEdge()
	var ctx context.Context
	ctx, r.stopAudits = context.WithCancel(t.Context())
	t.Cleanup(r.stopAudits)
	r.audited = make(chan error, 1)
	client := r.edges[0].Client
	go func() {
		var err error
		r.audits, err = audit(ctx, client)
		r.audited <- err
	}()
	// A slot is made only when no transaction is open, so the walk waits for it.
	if err := r.settle(true); err != nil {
		t.Fatal(err)
	}
	return r
}

// forgetPrepared rolls back what a walk that failed has left: it would keep the
// database from being dropped.
func (r *run) forgetPrepared() {
	ctx, cancel := context.WithTimeout(context.Background(), sqlLimit)
	defer cancel()
	rows, err := r.s.DB.Pool.Query(ctx, "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")
	if err != nil {
		r.t.Error(err)
		return
	}
	gids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		r.t.Error(err)
	}
	for _, gid := range gids {
		if _, err := r.s.DB.Pool.Exec(ctx, "ROLLBACK PREPARED '"+gid+"'", pgx.QueryExecModeSimpleProtocol); err != nil {
			r.t.Error(err)
		}
	}
}

// walk does the steps. Its error says what is wrong with the stream; what is
// wrong with the walk itself ends the test.
func (r *run) walk(steps []step) error {
	for i, s := range steps {
		r.counts[s.Do]++
		if len(r.audited) > 0 {
			return <-r.audited
		}
		if err := r.do(s); err != nil {
			return fmt.Errorf("step %d of %d, %v: %w", i+1, len(steps), s, err)
		}
	}
	r.stopAudits()
	return <-r.audited
}

func (r *run) do(s step) error {
	switch s.Do {
	case "sql":
		r.sql(s)
		return nil
	case "pass":
		harness.Pass(r.t.Context(), time.Duration(s.MS)*time.Millisecond)
		return nil
	case "check":
		return r.check(false)
	case "final check":
		r.forgetPrepared() // where a walk was cut off
		return r.check(true)
	}
	if err := r.keepUp(); err != nil {
		return err
	}
	switch s.Do {
	case "kill transfer":
		r.transfer.Kill()
		r.startTransfer()
	case "kill edge":
		e := r.edges[s.MS%len(r.edges)]
		e.Kill()
		e.Start()
	case "end connection":
		r.s.DB.Exec(r.connections())
	case "disable trigger":
		return r.disableTrigger(s)
	case "crash":
		return r.crash(s)
	case "zombie":
		return r.zombie()
	case "epoch":
		return r.newEpoch(s)
	case "load":
		return r.load(s.Table)
	case "verify":
		return r.verify(s.Table)
	case "trim":
		return r.trim(s)
	case "kill relay":
		return r.relay(false)
	case "hang relay":
		return r.relay(true)
	case "pause broker":
		r.pauseBroker(time.Duration(s.MS) * time.Millisecond)
	default:
		r.t.Fatalf("unknown step %q", s.Do)
	}
	return nil
}

func (r *run) sql(s step) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), sqlLimit)
	defer cancel()
	sql := strings.ReplaceAll(s.SQL, "{db}", r.s.DB.Name)
	if _, err := r.sessions[s.Session].Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		r.t.Fatalf("the walk is at fault: %v: %v", s, err)
	}
}

// connections ends those of transfer at the source.
func (r *run) connections() string {
	if r.g.mode == byTrigger {
		return "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'millrace%'"
	}
	return "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = current_database() AND active_pid IS NOT NULL"
}

func (r *run) startTransfer() {
	r.transfer = r.s.StartTransferWith(r.transfer.Config, r.transfer.Admin, r.env...)
}

// keepUp starts again what has ended with the exit code that a unit file restarts
// on. Any other end is a fault.
func (r *run) keepUp() error {
	if !r.transfer.Running() {
		if code := r.transfer.ExitCode(); code != harness.ExitFailure {
			return fmt.Errorf("transfer ended with exit code %d: %s", code, lastLine(r.transfer.Stderr()))
		}
		r.counts["transfer ended by itself"]++
		r.startTransfer()
	}
	for _, e := range r.edges {
		if e.Running() {
			continue
		}
		if code := e.ExitCode(); code != harness.ExitFailure {
			return fmt.Errorf("%s ended with exit code %d: %s", e.ID, code, lastLine(e.Stderr()))
		}
		r.counts["edge ended by itself"]++
		e.Start()
	}
	return nil
}

func (r *run) pauseBroker(d time.Duration) {
	r.t.Helper()
	r.g.kafka.pause.Lock()
	defer r.g.kafka.pause.Unlock()
	if err := r.g.kafka.Pause(0); err != nil {
		r.t.Fatal(err)
	}
	harness.Pass(r.t.Context(), d)
	if err := r.g.kafka.Resume(0); err != nil {
		r.t.Fatal(err)
	}
}

// zombie stops transfer, lets a successor publish, and wakes the stopped one.
func (r *run) zombie() error {
	// One that does not reign when it is stopped would only wait for its turn.
	if err := r.settle(false); err != nil {
		return err
	}
	old := r.transfer
	old.Pause()
	harness.Until(r.t, stopLimit, "transfer is stopped", func(context.Context) error {
		if !old.Paused() {
			return harness.NotYet("it runs")
		}
		return nil
	})
	r.transfer = r.s.StartTransfer(r.env...)
	err := r.settle(false)
	before := len(old.Stderr())
	old.Resume()
	if err != nil {
		return fmt.Errorf("behind a stopped transfer: %w", err)
	}
	// It is fenced, or has seen before that it has lost the hold, and waits for its
	// turn.
	waits := false
	err = harness.Wait(r.t.Context(), settleLimit, func(context.Context) error {
		if waits = strings.Contains(old.Stderr()[before:], "waiting for the stream's hold"); waits || !old.Running() {
			return nil
		}
		return harness.NotYet("it goes on: %s", lastLine(old.Stderr()))
	})
	if err != nil {
		return fmt.Errorf("a transfer that was stopped until another publishes: %w", err)
	}
	if waits {
		r.counts["zombie waits for its turn"]++
		old.Kill()
	} else if code := old.ExitCode(); code != harness.ExitFenced {
		return fmt.Errorf("a fenced transfer ended with exit code %d, want %d: %s", code, harness.ExitFenced, lastLine(old.Stderr()))
	}
	return nil
}

// newEpoch begins a new epoch, in every other case behind a slot that is lost, or
// ticks. The
// edges stay as they are and go over by themselves. It waits until they have:
// the slot is made when nothing is open.
func (r *run) newEpoch(s step) error {
	r.transfer.Kill()
	if s.MS%2 == 0 {
		harness.Until(r.t, stopLimit, "the slot or the ticks are gone", func(ctx context.Context) error {
			if r.g.mode == byTrigger {
				_, err := r.s.DB.Pool.Exec(ctx, "DELETE FROM millrace.tick")
				return err
			}
			_, err := r.s.DB.Pool.Exec(ctx, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()")
			return err // its reader may not have noticed its end
		})
	}
	p := r.s.Run(r.transfer.Config, "epoch", "new", "--yes")
	if p.ExitCode() != 0 {
		return fmt.Errorf("millrace epoch new: exit code %d: %s", p.ExitCode(), lastLine(p.Stderr()))
	}
	r.epoch++
	w, err := harness.NewWitness(r.g.kafka.Brokers(), fmt.Sprintf("%s.%d", r.s.Topic, r.epoch))
	if err != nil {
		return err
	}
	r.t.Cleanup(w.Close)
	r.witness = w
	r.startTransfer()
	return r.settle(false)
}

// settle waits until every edge has what is committed now, and with loads until
// none is under way: one may wait for a transaction that has altered its table.
func (r *run) settle(loads bool) error {
	r.checks++
	marker := fmt.Sprint(r.checks)
	r.s.DB.Exec("INSERT INTO public.journal VALUES (-1, " + marker + ", 'marker')")
	for _, e := range r.edges {
		var gone error
		err := harness.Wait(r.t.Context(), r.limit, func(ctx context.Context) error {
			if gone = r.keepUp(); gone != nil {
				return nil //nolint:nilerr // no use in waiting on; gone is looked at below
			}
			if _, err := e.Row(ctx, harness.JournalTable, "-1", marker); err != nil {
				return err
			}
			if !loads {
				return nil
			}
			status, err := e.Status(ctx)
			if err == nil && len(status.Loading) > 0 {
				err = harness.NotYet("%v are being loaded", status.Loading)
			}
			return err
		})
		if err = errors.Join(gone, err); err != nil {
			return fmt.Errorf("wait until the last commit is at %s: %w", e.ID, err)
		}
	}
	return nil
}

// check compares everything with nothing open, and otherwise all but the tables
// of which a load is under way: after a new publisher has begun, a load waits for
// the transactions that were open then. The second edge begins after the first
// check, at the topic's start.
func (r *run) check(final bool) error {
	if err := r.settle(final); err != nil {
		return err
	}
	settled := time.Now()
	for {
		began := time.Now()
		faults, err := r.compare()
		if err != nil {
			return err
		}
		if len(faults) == 0 {
			break
		}
		// TRUNCATE of a partition is seen when its files are looked at.
		elsewhere := slices.ContainsFunc(faults, func(fault string) bool { return !strings.Contains(fault, "public.part:") })
		if elsewhere || time.Since(settled) > filesLimit {
			return errors.New(strings.Join(faults, "\n"))
		}
		harness.Pass(r.t.Context(), time.Since(began))
	}
	if final && reason("verify") == "" {
		return r.verifyAll()
	}
	if len(r.edges) == 1 {
		r.addEdge()
	}
	return nil
}

// compare asks all witnesses about every edge and returns what they find wrong.
func (r *run) compare() (faults []string, err error) {
	for _, e := range r.edges {
		if err := r.agree(r.t.Context(), e); err != nil {
			return nil, err
		}
		tables, err := r.comparable(e)
		if err != nil {
			return nil, err
		}
		s := *r.s
		s.Tables = tables
		v := s.Judge(e, r.witness, r.transfer.Config, nil)
		r.rows += v.Rows
		for _, fault := range v.Faults {
			faults = append(faults, e.ID+": "+fault)
		}
	}
	return faults, nil
}

// comparable returns the tables of which no load is under way at e.
func (r *run) comparable(e *harness.Edge) ([]string, error) {
	status, err := e.Status(r.t.Context())
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", e.ID, err)
	}
	r.counts["left out, being loaded"] += len(status.Loading)
	return slices.DeleteFunc(slices.Clone(r.s.Tables), func(table string) bool { return slices.Contains(status.Loading, table) }), nil
}

// end ends the processes in order and looks through the stores.
func (r *run) end() error {
	// How many transactions the source has streamed before their end, of the newest
	// epoch.
	if _, err := fmt.Sscan(r.s.DB.String(`SELECT coalesce(sum(t.stream_txns), 0) FROM pg_stat_replication_slots t
		JOIN pg_replication_slots s USING (slot_name) WHERE s.database = current_database()`), &r.streamed); err != nil {
		return fmt.Errorf("read the slot's statistics: %w", err)
	}
	r.transfer.Stop(stopLimit)
	for _, e := range r.edges {
		e.Stop(stopLimit)
		if err := e.CheckStore(r.t.Context()); err != nil {
			return fmt.Errorf("store of %s: %w", e.ID, err)
		}
	}
	return nil
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// keep writes the steps of a failure where they outlive the test.
func keep(t *testing.T, m mode, name string, steps []step) {
	t.Helper()
	f, err := os.CreateTemp("", fmt.Sprintf("millrace-%s-%s-*.walk", m, name))
	if err == nil {
		if err = errors.Join(f.Close(), writeSteps(f.Name(), steps)); err == nil {
			t.Logf("the steps are in %s (take them back with -capture %s -walk %s)", f.Name(), m, f.Name())
		}
	}
	if err != nil {
		t.Error(err)
	}
}
