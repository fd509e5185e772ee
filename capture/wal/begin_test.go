package wal

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// TestBegin makes a place beside a transaction that was at work before: Begin waits for
// it, and what it did is seen by later snapshots or comes with the changes; no load
// begins.
func TestBegin(t *testing.T) {
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text); insert into a values (1, 'before')")
	r := newRig(t, db, nil, "a")
	tx, err := db.Pool.BeginTx(r.ctx(), pgx.TxOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(r.ctx(), "insert into a values (2, 'open')"); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		from, err := r.c.Begin(r.ctx())
		if err == nil {
			r.edge.at.Position, r.edge.at.Time, r.edge.at.Catalog = from.Position, from.Time, from.Catalog
		}
		done <- err
	}()
	until(t, "the slot is being made", func() bool {
		select {
		case err := <-done:
			t.Fatalf("Begin ended beside an open transaction: %v", err)
		default:
		}
		return db.String("select count(*) from pg_replication_slots where slot_name = $1", r.cfg.Slot) == "1"
	})
	if err := tx.Commit(r.ctx()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := db.String("select count(*) from a"); got != "2" {
		t.Errorf("a snapshot behind Begin sees %s rows, want 2", got)
	}
	db.Exec("insert into a values (3, 'behind')")
	src, err := r.c.Open(r.ctx(), &r.edge.at)
	if err != nil {
		t.Fatal(err)
	}
	r.src = src
	for puts := 0; puts == 0; {
		u, err := src.Next(r.ctx())
		if err != nil {
			t.Fatal(err)
		}
		run, err := u.Body.Next(1 << 20)
		for len(run) > 0 && err == nil {
			var h millrace.Head
			if run, err = millrace.NextHead(run, &h); h.Kind != millrace.KindPut && h.Kind != millrace.KindHeartbeat {
				t.Fatalf("a stream whose rows somebody else copies begins with %v", h.Kind)
			}
			if h.Kind == millrace.KindPut {
				puts++
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
