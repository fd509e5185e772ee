package transfer

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/control"
	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// onPostgres gives a world its registry, hold and ledger in a real database, as
// they are by default.
func onPostgres(t *testing.T, w *world) (url string, conn *pgx.Conn, config Config) {
	t.Helper()
	ctx := testContext(t)
	url = pgtest.New(t).URL
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	if err := control.Migrate(ctx, conn); err != nil {
		t.Fatal(err)
	}
	if w.stream, err = control.CreateStream(ctx, conn, w.stream); err != nil {
		t.Fatal(err)
	}
	config = w.config()
	config.AcquireHold, config.OpenLedger, config.SourceURL = nil, nil, url // with the lease that is the default: a busy machine loses shorter ones
	return url, conn, config
}

func TestLedgerAndHoldInPostgres(t *testing.T) {
	w := newWorld(t, kafkatest.Fake(t))
	_, conn, config := onPostgres(t, w)
	ignore := goleak.IgnoreCurrent()
	w.commit(100)
	first := w.start(config)
	w.waitConfirmed(100)
	second := w.start(config)
	w.commit(10)
	w.waitConfirmed(110)
	first.stop()
	w.commit(10)
	w.waitConfirmed(120)
	second.stop()
	v := w.check(120)
	row, err := control.NewestLedger(testContext(t), conn, w.stream.Name, 1)
	if err != nil || row == nil {
		t.Fatalf("newest row: %v, %v", row, err)
	}
	if row.Last != v.fold.Index() || row.Chain != v.fold.Chain() || row.Term != 2 || row.StateOffset == millrace.NoOffset || !row.Captured.Equal(row.ReadBack) {
		t.Errorf("newest row: %+v", row)
	}
	if !slices.Contains(v.notedStates, row.StateOffset) {
		t.Errorf("the ledger attests offset %v, states were accepted at %v", row.StateOffset, v.notedStates)
	}
	marks, err := control.Marks(testContext(t), conn, w.stream.Name, 1)
	if err != nil || len(marks) == 0 || marks[len(marks)-1].Offset != row.StateOffset {
		t.Errorf("marks are %+v, the ledger attests %v (%v)", marks, row.StateOffset, err)
	}
	for i, m := range marks {
		if !slices.Contains(v.notedStates, m.Offset) || i > 0 && (m.Bytes <= marks[i-1].Bytes || m.Index < marks[i-1].Index) {
			t.Errorf("mark %d: %+v", i, m)
		}
	}
	var covered int64
	err = conn.QueryRow(testContext(t), `SELECT sum(last_index - first_index + 1)::bigint FROM millrace.ledger`).Scan(&covered)
	if err != nil || millrace.Index(covered) != v.fold.Index() {
		t.Errorf("rows cover %d indexes of %v (%v)", covered, v.fold.Index(), err)
	}
	if err := kafkatest.Leaks(testContext(t), append(kafkatest.IgnoreFake(), ignore)...); err != nil {
		t.Fatal(err)
	}
}

// TestOlderSchema: where the tables that trimming goes by are missing, publishing and
// ledger go on as before, and the log says once what is missing.
func TestOlderSchema(t *testing.T) {
	w := newWorld(t, kafkatest.Fake(t))
	_, conn, config := onPostgres(t, w)
	if _, err := conn.Exec(testContext(t), `DROP TABLE millrace.mark; DROP TABLE millrace.trim`); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	var mu sync.Mutex
	config.Logger = slog.New(slog.NewTextHandler(locked{&mu, &log}, nil))
	config.StateEvery = time.Nanosecond
	config.Retain = Retain{Time: time.Nanosecond, Least: time.Nanosecond, Readers: new(fleet).read}
	r := w.start(config)
	for n := 1; n <= 20; n++ {
		w.commit(1)
		w.waitConfirmed(n)
	}
	if _, err := r.Trim(testContext(t), TrimRequest{}); !errors.Is(err, control.ErrNotInitialised) {
		t.Errorf("trim without its tables: %v", err)
	}
	r.stop()
	w.check(20)
	row, err := control.NewestLedger(testContext(t), conn, w.stream.Name, 1)
	if err != nil || row == nil || row.Last != r.Status().Index {
		t.Errorf("the ledger ends with %+v, %v, the stream with %v", row, err, r.Status().Index)
	}
	mu.Lock()
	defer mu.Unlock()
	if n := strings.Count(log.String(), "so it is not trimmed"); n != 1 || !strings.Contains(log.String(), "millrace init") {
		t.Errorf("it was said %d times: %s", n, log.String())
	}
}

// locked writes under a lock.
type locked struct {
	mu *sync.Mutex
	to io.Writer
}

func (l locked) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.to.Write(b)
}

// TestHoldTakenAway ends the session that has the hold: the reign ends and the
// next one begins.
func TestHoldTakenAway(t *testing.T) {
	w := newWorld(t, kafkatest.Fake(t))
	_, conn, config := onPostgres(t, w)
	w.commit(5)
	r := w.start(config)
	w.waitConfirmed(5)
	var ended bool
	if err := conn.QueryRow(testContext(t), `SELECT pg_terminate_backend(pid) FROM millrace.hold`).Scan(&ended); err != nil || !ended {
		t.Fatalf("end the holder: %v %v", ended, err)
	}
	w.wait("a second reign", func() bool { return w.opened >= 2 })
	w.commit(5)
	w.waitConfirmed(10)
	r.stop()
	w.check(10)
}

// TestEpochBegunMeanwhile: one that waits for the hold while a new epoch is begun
// does not publish in the old one.
func TestEpochBegunMeanwhile(t *testing.T) {
	w := newWorld(t, kafkatest.Fake(t))
	_, conn, config := onPostgres(t, w)
	w.commit(5)
	first := w.start(config)
	w.waitConfirmed(5)
	second := w.start(config)
	next := w.stream
	next.Epoch, next.Topic, next.TopicID = 2, w.stream.Topic+".2", "another"
	if err := control.BeginEpoch(testContext(t), conn, w.stream, next); err != nil {
		t.Fatal(err)
	}
	first.stop()
	if err := second.wait(); !errors.Is(err, ErrEpoch) || millrace.NeedsOperator(err) || !strings.Contains(err.Error(), next.Topic) {
		t.Errorf("the second one ends with %v, want ErrEpoch", err)
	}
	w.check(5)
}

func TestNotInitialised(t *testing.T) {
	w := newWorld(t, kafkatest.Fake(t))
	_, conn, config := onPostgres(t, w)
	if _, err := conn.Exec(testContext(t), `DROP SCHEMA millrace CASCADE`); err != nil {
		t.Fatal(err)
	}
	err := w.start(config).wait()
	if !millrace.NeedsOperator(err) || !errors.Is(err, control.ErrNotInitialised) || !strings.Contains(err.Error(), "millrace init") {
		t.Errorf("without a control schema: %v", err)
	}
}
