package control

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func connect(t *testing.T, db *pgtest.DB) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(testContext(t), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// bank makes a database with one registered stream.
func bank(t *testing.T) (*pgtest.DB, *pgx.Conn, Stream) {
	t.Helper()
	db := pgtest.New(t)
	conn := connect(t, db)
	ctx := testContext(t)
	if err := Migrate(ctx, conn); err != nil {
		t.Fatal(err)
	}
	s, err := CreateStream(ctx, conn, Stream{Name: "bank", Capture: "wal", Topic: "millrace.bank", TopicID: "abc", Publication: "millrace_bank", Slot: "millrace_bank"})
	if err != nil {
		t.Fatal(err)
	}
	return db, conn, s
}

func TestMigrateFromSeveralProcessesAndAgain(t *testing.T) {
	db := pgtest.New(t)
	ctx := testContext(t)
	first := connect(t, db)
	pending, err := Pending(ctx, first)
	if err != nil {
		t.Fatal(err)
	}
	all, err := Migrations()
	if err != nil {
		t.Fatal(err)
	}
	if len(pending) != len(all) || len(all) == 0 {
		t.Fatalf("pending before: got %d of %d files, want all", len(pending), len(all))
	}
	var wg sync.WaitGroup
	errs := make([]error, 6)
	for i := range errs {
		conn := connect(t, db)
		wg.Go(func() { errs[i] = Migrate(ctx, conn) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if pending, err = Pending(ctx, first); err != nil || len(pending) != 0 {
		t.Fatalf("pending after: got %v, %v, want none", pending, err)
	}
	if got := db.String(`select count(*) from millrace.version`); got != "1" && len(all) == 1 {
		t.Errorf("rows of millrace.version: got %s, want 1", got)
	}
	db.Exec(`insert into millrace.version (number) values (9999)`)
	if err := Migrate(ctx, first); !errors.Is(err, ErrNewer) {
		t.Errorf("migrate a newer schema: got %v, want ErrNewer", err)
	}
}

func TestStreams(t *testing.T) {
	db := pgtest.New(t)
	conn := connect(t, db)
	ctx := testContext(t)
	if _, err := LoadStream(ctx, conn, "bank"); !errors.Is(err, ErrNotInitialised) {
		t.Errorf("load before init: got %v, want ErrNotInitialised", err)
	}
	if err := Migrate(ctx, conn); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadStream(ctx, conn, "bank"); !errors.Is(err, ErrNoStream) {
		t.Errorf("load of no stream: got %v, want ErrNoStream", err)
	}
	want := Stream{Name: "bank", Capture: "wal", Topic: "millrace.bank", TopicID: "abc", Publication: "millrace_bank", Slot: "millrace_bank"}
	got, err := CreateStream(ctx, conn, want)
	if err != nil {
		t.Fatal(err)
	}
	if got.ID.IsZero() || got.Epoch != 1 || got.Topic != want.Topic || got.Slot != want.Slot {
		t.Errorf("created: got %+v", got)
	}
	want.Topic = "other"
	again, err := CreateStream(ctx, conn, want)
	if err != nil || again != got {
		t.Errorf("create again: got %+v, %v, want the first %+v", again, err, got)
	}
	for _, name := range []string{"", "Bank", "1a", "a-b", "ä", strings.Repeat("a", 41)} {
		if _, err := CreateStream(ctx, conn, Stream{Name: name, Capture: "wal", Topic: "t", TopicID: "i"}); err == nil {
			t.Errorf("create stream %q: want an error", name)
		}
	}
	if _, err := CreateStream(ctx, conn, Stream{Name: "second", Capture: "trigger", Topic: "t", TopicID: "i"}); err != nil {
		t.Fatal(err)
	}
	list, err := ListStreams(ctx, conn)
	if err != nil || len(list) != 2 || list[1].Publication != "" {
		t.Errorf("list: got %+v, %v, want two", list, err)
	}
	if dropped, err := DropStream(ctx, conn, "second"); err != nil || dropped {
		t.Errorf("drop one of two: got %v, %v, want the schema to stay", dropped, err)
	}
	if dropped, err := DropStream(ctx, conn, "bank"); err != nil || !dropped {
		t.Errorf("drop the last: got %v, %v, want the schema to go", dropped, err)
	}
	if dropped, err := DropStream(ctx, conn, "bank"); err != nil || dropped {
		t.Errorf("drop without a schema: got %v, %v", dropped, err)
	}
}

func TestLedger(t *testing.T) {
	db, conn, s := bank(t)
	ctx := testContext(t)
	if got, err := NewestLedger(ctx, conn, "bank", 1); got != nil || err != nil {
		t.Fatalf("newest of none: got %v, %v", got, err)
	}
	counts := make(Counts)
	counts.Add(16384, millrace.KindPut, 7)
	counts.Add(0, millrace.KindHeartbeat, 1)
	row := LedgerRow{
		Stream: "bank", Epoch: 1, Term: 3, Publisher: millrace.PublisherID{1}, First: 1, Last: 1<<64 - 1,
		Chain: millrace.NewChain(s.ID, 1), TopicID: "abc", LastOffset: 99, StateOffset: millrace.NoOffset,
		Position: millrace.Position{Mode: millrace.ModeWAL, SystemID: 1<<64 - 1, Timeline: 1, Slot: "s", LSN: 1<<64 - 2},
		Captured: counts, ReadBack: counts, SourceTime: time.Now().UTC().Truncate(time.Microsecond),
	}
	for i := range 3 {
		if i == 2 {
			row.StateOffset = 42
		}
		if err := InsertLedger(ctx, conn, &row); err != nil {
			t.Fatal(err)
		}
	}
	got, err := NewestLedger(ctx, conn, "bank", 1)
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != 3 || got.Last != row.Last || got.Chain != row.Chain || got.Position != row.Position || got.StateOffset != 42 ||
		!got.Captured.Equal(counts) || !got.ReadBack.Equal(counts) || !got.SourceTime.Equal(row.SourceTime) || got.Publisher != row.Publisher || got.Term != 3 {
		t.Errorf("newest: got %+v, want %+v", got, row)
	}
	if got.Captured.Total() != 8 {
		t.Errorf("total: got %d, want 8", got.Captured.Total())
	}
	if got, err := NewestLedger(ctx, conn, "bank", 2); got != nil || err != nil {
		t.Errorf("newest of another epoch: got %v, %v, want none", got, err)
	}
	if n, err := PruneLedger(ctx, conn, "bank", time.Hour); n != 0 || err != nil {
		t.Errorf("prune young rows: got %d, %v, want 0", n, err)
	}
	db.Exec(`update millrace.ledger set written_at = now() - interval '2 hours'`)
	if n, err := PruneLedger(ctx, conn, "bank", time.Hour); n != 2 || err != nil {
		t.Errorf("prune old rows: got %d, %v, want 2: the newest stays", n, err)
	}
	row.Stream = "none"
	if err := InsertLedger(ctx, conn, &row); !errors.Is(err, ErrNoStream) {
		t.Errorf("insert for no stream: got %v, want ErrNoStream", err)
	}
}
