package wal

import (
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// A connection that is half open in the middle of a transaction, to a server that
// never asks for a sign of life (wal_sender_timeout = 0): noticed, and gone on
// with from the whole transactions that came. The server keeps its end for as
// long as it likes; the next start ends it.
func TestHalfOpenWithoutSenderTimeout(t *testing.T) {
	t.Parallel()
	db := pgtest.On(t, pgtest.Cluster(t, pgtest.Options{}))
	streaming(db)
	db.Exec(tableA + "alter database " + db.Name + " set wal_sender_timeout = 0")
	port := ":" + strconv.Itoa(db.Server.Port()) + "/"
	proxy := freezer(t, "127.0.0.1"+strings.TrimSuffix(port, "/"))
	_, through, err := net.SplitHostPort(proxy.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, db, func(c *Config) {
		c.URL = strings.Replace(db.URL, port, ":"+through+"/", 1)
		c.MemoryBudget, c.Silence, c.Heartbeat = 1<<20, 3*time.Second, 50*time.Millisecond
	}, "a")
	r.open()
	r.copied()
	r.sync()
	s := r.client()
	s.exec("begin; " + insert(1, 3000))
	until(t, "the transaction is being streamed", func() bool { return metricValue(t, r.c.metrics.open) == 1 })
	proxy.freeze()
	s.exec(insert(3001, 6000) + "commit")
	for err = nil; err == nil; {
		var u *millrace.Unit
		if u, err = r.src.Next(r.ctx()); err == nil {
			if _, err := r.edge.apply(u); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !errors.Is(err, ErrSilent) || millrace.NeedsOperator(err) {
		t.Fatalf("next over a frozen connection: %v", err)
	}
	r.close()
	active := "select count(*) from pg_replication_slots where active and slot_name = '" + r.cfg.Slot + "'"
	if got := db.String(active); got != "1" {
		t.Errorf("the server has missed us: %s connections read from the slot, want 1", got)
	}
	// Over the frozen link nobody can be reached; that passes.
	cfg := r.cfgWithout()
	cfg.URL += "&connect_timeout=1"
	if _, err := mustNew(t, cfg).Open(r.ctx(), &r.edge.at); err == nil || millrace.NeedsOperator(err) {
		t.Errorf("open over a frozen link: %v, want an error that a retry mends", err)
	}
	cfg.URL = db.URL // another way there
	r.c = mustNew(t, cfg)
	r.open()
	// Heartbeats may come before and behind it.
	most := 0
	units := r.sync()
	for _, u := range units {
		most = max(most, len(u.entries))
	}
	if most != 6000 {
		t.Errorf("got %d units, of at most %d entries, want one of 6000", len(units), most)
	}
	r.equal()
}

// A source that is reached and does not answer while a stream is being opened.
func TestOpeningIsBounded(t *testing.T) {
	r := started(t, nil)
	r.close()
	s := r.client()
	s.exec("begin; lock table pg_publication in access exclusive mode")
	r.c.stepLimit = 500 * time.Millisecond
	done := make(chan error, 1)
	go func() {
		src, err := r.c.Open(r.ctx(), &r.edge.at)
		if err == nil {
			err = src.Close()
		}
		done <- err
	}()
	select {
	case err := <-done:
		if !errors.Is(err, context.DeadlineExceeded) || millrace.NeedsOperator(err) {
			t.Errorf("open: %v, want a time-out that a retry mends", err)
		}
	case <-time.After(limit / 2):
		t.Fatal("open does not end")
	}
	s.exec("rollback")
	r.c.stepLimit = stepLimit
	r.open()
	r.sync()
	r.equal()
}
