package pgbench

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// books is zero if the balances of accounts, tellers, branches and history
// agree.
const books = `
SELECT (a <> t OR a <> b OR a <> h)::int FROM
    (SELECT coalesce(sum(abalance), 0) a FROM pgbench_accounts) x, (SELECT coalesce(sum(tbalance), 0) t FROM pgbench_tellers) y,
    (SELECT coalesce(sum(bbalance), 0) b FROM pgbench_branches) z, (SELECT coalesce(sum(delta), 0) h FROM pgbench_history) w`

func TestTablesAndLoad(t *testing.T) {
	program, err := pgtest.Server(t).Binaries().Program("pgbench")
	if err != nil {
		t.Fatal(err)
	}
	for name, program := range map[string]string{"program": program, "here": ""} {
		t.Run(name, func(t *testing.T) {
			db := pgtest.New(t)
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			conn, err := pgx.Connect(ctx, db.URL)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close(ctx) }()
			b := &Bench{URL: db.URL, Program: program}
			made, err := b.Make(ctx, conn, 1)
			if err != nil || made == "" {
				t.Fatalf("make: got %q, %v", made, err)
			}
			if made, err = b.Make(ctx, conn, 1); err != nil || made != "" {
				t.Errorf("make again: got %q, %v, want nothing to do", made, err)
			}
			if got := db.String("select count(*) from pgbench_accounts"); got != "100000" {
				t.Errorf("accounts: got %s, want 100000", got)
			}
			loading, stop := context.WithCancel(ctx)
			done := make(chan error, 1)
			go func() { done <- b.Run(loading, Load{Clients: 2, Rate: 500}) }()
			for db.String("select count(*) >= 20 from pgbench_history") != "t" {
				select {
				case err := <-done:
					t.Fatalf("load ended: %v", err)
				case <-ctx.Done():
					t.Fatal("no transactions within a minute")
				default:
				}
			}
			stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
			if db.String(books) != "0" {
				t.Error("the books do not balance")
			}
			if got := db.String("select count(distinct id) = count(*) from pgbench_history"); got != "t" {
				t.Error("history has no key")
			}
		})
	}
}

func TestLoadWithoutTables(t *testing.T) {
	db := pgtest.New(t)
	b := &Bench{URL: db.URL}
	if err := b.Run(context.Background(), Load{Clients: 1}); err == nil {
		t.Error("load without tables: want an error")
	}
	db.Exec("create table pgbench_tellers (tid int primary key)")
	conn, err := pgx.Connect(context.Background(), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := b.Make(context.Background(), conn, 1); err == nil {
		t.Error("one of four tables is there: want an error")
	}
}
