package trigger

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// TestApart: who keeps a table to himself delays its rows, and not those of others.
func TestApart(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(`create table a (id int primary key, v text); create table b (id int primary key, v text);
		create table p (id int primary key, v text) partition by range (id); create table p1 partition of p for values from (0) to (100)`)
	registry := prometheus.NewRegistry()
	r := newRig(t, db, func(c *Config) { c.Registerer, c.Heartbeat = registry, 50*time.Millisecond }, "a", "b", "p")
	r.c.lockTimeout = 20 * time.Millisecond
	r.begin()
	db.Exec("insert into a values (1, 'old'); insert into p values (1, 'old')")
	r.next()
	r.equal()
	// puts takes units until one has rows.
	puts := func() error {
		for {
			a, err := r.tryNext()
			if err != nil || a.counts[millrace.KindPut] > 0 {
				return err
			}
		}
	}
	for _, change := range []string{"truncate a; insert into a values (2, 'new')", "alter table a alter v type varchar using v || '!'", "truncate p1; insert into p values (2, 'new')"} {
		holder := r.client()
		holder.exec("begin; " + change)
		for range 2 { // the second begins without the table at once
			db.Exec("insert into b select coalesce(max(id), 0) + 1, 'meanwhile' from b")
			if err := puts(); err != nil {
				t.Fatal(err)
			}
		}
		holder.exec("rollback")
		r.equal()
	}

	// What is new of the table, from before it was locked, is not passed over.
	db.Exec("insert into a values (3, 'before')")
	holder := r.client()
	holder.exec("begin; lock table a")
	db.Exec("insert into b values (100, 'behind')")
	waits := counted(t, registry, "millrace_capture_lock_waits_total")
	done := make(chan error, 1)
	go func() { done <- puts() }()
	until(t, "windows are held up", func() bool {
		return counted(t, registry, "millrace_capture_lock_waits_total") >= waits+3
	})
	select {
	case err := <-done:
		t.Fatalf("a window went past a table's news: %v", err)
	default:
	}
	holder.exec("truncate a; insert into a values (4, 'after'); commit")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	r.equal()
}
