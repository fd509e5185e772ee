package control

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// triggerBank makes a database with one registered stream that is captured by
// triggers, and returns a URL of it that leads through a real PgBouncer in
// transaction mode.
func triggerBank(t *testing.T) (*pgtest.DB, *pgx.Conn, string) {
	t.Helper()
	db := pgtest.New(t)
	conn := connect(t, db)
	ctx := testContext(t)
	if err := Migrate(ctx, conn); err != nil {
		t.Fatal(err)
	}
	if _, err := CreateStream(ctx, conn, Stream{Name: "bank", Capture: CaptureTrigger, Topic: "millrace.bank", TopicID: "abc"}); err != nil {
		t.Fatal(err)
	}
	return db, conn, pgtest.Bouncer(t, db.Server, db.Name, "")
}

func waitFor(t *testing.T, db *pgtest.DB, query, want string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		got := db.String(query)
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: got %s, want %s", query, got, want)
		}
	}
}

// holdsNothingBack looks at the open transaction between two of its statements.
func holdsNothingBack(t *testing.T, db *pgtest.DB) {
	t.Helper()
	held := `select state || ' ' || coalesce(backend_xmin::text, 'no xmin') || ' ' || coalesce(backend_xid::text, 'no xid')
		from pg_stat_activity where pid = (select pid from millrace.hold)`
	for range 50 {
		state := db.String(held)
		if strings.HasPrefix(state, "active") {
			continue
		}
		if state != "idle in transaction no xmin no xid" {
			t.Fatalf("the holder is %q, want that it holds back no vacuum", state)
		}
	}
}

// Through a pooler in transaction mode a hold excludes others for longer than a
// lease, costs the database neither a snapshot nor a transaction ID, and passes on.
func TestPooledHold(t *testing.T) {
	t.Parallel()
	db, conn, pooler := triggerBank(t)
	ctx := testContext(t)
	a := acquire(t, pooler, publisherA, keptLease)
	holdsNothingBack(t, db)
	got := make(chan error, 1)
	var b *Hold
	go func() {
		var err error
		b, err = AcquireHold(ctx, pooler, "bank", publisherB, keptLease, nil)
		got <- err
	}()
	waitFor(t, db, `select count(*) from millrace.hold where renewed_at > acquired_at + `+keptLong, "1")
	holdsNothingBack(t, db) // after it was renewed several times
	// That of the holder; who waits has one only for as long as it asks.
	waitFor(t, db, `select count(*) from pg_stat_activity where datname = current_database() and state = 'idle in transaction' and application_name = 'millrace hold bank'`, "1")
	select {
	case err := <-got:
		t.Fatalf("a second one has the hold while the first renews it: %v", err)
	case <-a.Lost():
		t.Fatal("the first lost the hold while it renewed it")
	default:
	}
	holder, err := LookHolder(ctx, conn, "bank")
	if err != nil || holder == nil || holder.PID != a.pid || holder.Silent > keptLease {
		t.Errorf("holder: got %+v, %v, want process %d", holder, err, a.pid)
	}
	if err := a.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	if err := b.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if holder, err := LookHolder(ctx, conn, "bank"); holder != nil || err != nil {
		t.Errorf("holder after both: got %+v, %v, want none", holder, err)
	}
}

// A stopped process keeps its transaction, behind the pooler too. It is ended, and
// the pooler's client learns of it.
func TestPooledHoldOfASilentHolderIsTaken(t *testing.T) {
	db, _, pooler := triggerBank(t)
	a := acquire(t, pooler, publisherA, testLease)
	a.stop() // it renews no more, and looks no more
	<-a.done
	renewed := db.String(`select renewed_at from millrace.hold`)
	b := acquire(t, pooler, publisherB, testLease)
	afterLease(t, db, renewed)
	if _, err := a.conn.Exec(testContext(t), pooledPing, pgx.QueryExecModeSimpleProtocol); err == nil {
		t.Error("the silent holder's transaction still answers")
	}
	if got := db.String(`select pid from millrace.hold`); got != strconv.Itoa(int(b.pid)) {
		t.Errorf("the hold is process %s's, want %d's", got, b.pid)
	}
}

// Each of the two forms excludes the other: the stream may have been registered
// anew with another capture while somebody still holds it.
func TestHoldsOfBothForms(t *testing.T) {
	db, _, pooler := triggerBank(t)
	ctx := testContext(t)
	session := connect(t, db)
	var locked bool
	if err := session.QueryRow(ctx, holdLock, "bank").Scan(&locked); err != nil || !locked {
		t.Fatalf("lock: %v, %v", locked, err)
	}
	short, cancel := context.WithTimeout(ctx, testLease/2)
	defer cancel()
	if _, err := AcquireHold(short, pooler, "bank", publisherA, testLease, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("hold that a session has: got %v, want that it waits", err)
	}
}

func TestPooledHoldLost(t *testing.T) {
	for name, take := range map[string]func(db *pgtest.DB, h *Hold){
		"with the transaction": func(db *pgtest.DB, h *Hold) { db.String(`select pg_terminate_backend($1::int)`, int(h.pid)) },
		"with the row":         func(db *pgtest.DB, _ *Hold) { db.Exec(`update millrace.hold set pid = 1`) },
	} {
		t.Run(name, func(t *testing.T) {
			db, _, pooler := triggerBank(t)
			h := acquire(t, pooler, publisherA, testLease)
			take(db, h)
			waitLost(t, h)
			if err := h.Close(context.Background()); err != nil {
				t.Errorf("close a lost hold: %v", err)
			}
		})
	}
}

// The connection that writes the row may die without the hold.
func TestPooledHoldOutlivesItsWriter(t *testing.T) {
	t.Parallel()
	db, _, pooler := triggerBank(t)
	h := acquire(t, pooler, publisherA, keptLease)
	db.Exec(`select pg_terminate_backend(pid) from pg_stat_activity
		where datname = current_database() and application_name = 'millrace hold bank' and pid <> (select pid from millrace.hold)`)
	waitFor(t, db, `select count(*) from millrace.hold where renewed_at > acquired_at + `+keptLong, "1")
	select {
	case <-h.Lost():
		t.Error("the hold was lost with the connection that writes its row")
	default:
	}
}

// What commands and the ledger do works through a pooler that knows no prepared
// statements.
func TestControlThroughAPooler(t *testing.T) {
	for _, prepared := range pgtest.BouncerPrepared(t) {
		t.Run(fmt.Sprintf("%d prepared statements", prepared), func(t *testing.T) {
			db, _, _ := triggerBank(t)
			controlThroughAPooler(t, pgtest.BouncerWith(t, db.Server, db.Name, pgtest.BouncerOptions{Prepared: prepared}))
		})
	}
}

func controlThroughAPooler(t *testing.T, pooler string) {
	t.Helper()
	ctx := testContext(t)
	cfg, err := pgx.ParseConfig(pooler)
	if err != nil {
		t.Fatal(err)
	}
	cfg.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	// Two clients share the pooler's server connections and meet each other's
	// statements there.
	for range 2 {
		conn, err := pgx.ConnectConfig(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		s, err := LoadStream(ctx, conn, "bank")
		if err != nil {
			t.Fatal(err)
		}
		counts := make(Counts)
		counts.Add(16384, millrace.KindPut, 7)
		row := LedgerRow{
			Stream: "bank", Epoch: s.Epoch, Term: 3, Publisher: publisherA, First: 1, Last: 8, Chain: millrace.NewChain(s.ID, 1), TopicID: "abc",
			StateOffset: millrace.NoOffset, Position: millrace.Position{Mode: millrace.ModeTrigger, SystemID: 7, Timeline: 1, Tick: 9, Snapshot: "1:1:"},
			Captured: counts, ReadBack: counts, SourceTime: time.Now(),
		}
		for range 3 {
			if err := InsertLedger(ctx, conn, &row); err != nil {
				t.Fatal(err)
			}
			if _, err := PruneLedger(ctx, conn, "bank", time.Hour); err != nil {
				t.Fatal(err)
			}
			got, err := NewestLedger(ctx, conn, "bank", s.Epoch)
			if err != nil || got == nil || got.Position != row.Position || !got.ReadBack.Equal(counts) {
				t.Fatalf("newest: got %+v, %v, want %+v", got, err, row)
			}
			if err := Migrate(ctx, conn); err != nil {
				t.Fatal(err)
			}
		}
	}
}
