package trigger

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/trigger/keylog"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// Statements that fail are a suspicion: it is shown, and the table is verified. A row
// that was written without its triggers stops the stream.
func TestWatch(t *testing.T) {
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v int unique)")
	r := newRig(t, db, nil, "a")
	r.c.watchInterval = 50 * time.Millisecond
	r.begin()
	ctx, cancel := context.WithCancel(r.ctx())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- r.c.Watch(ctx) }()
	await := func(what string, happened func() bool) {
		t.Helper()
		for deadline := time.Now().Add(limit); !happened(); db.String("select pg_sleep(0.02)") {
			if time.Now().After(deadline) {
				t.Fatalf("%s: it does not come; warning %q, passes %+v", what, r.c.Warning(), r.src.Passes())
			}
			select {
			case err := <-ended:
				t.Fatalf("%s: the watch has ended: %v", what, err)
			default:
			}
		}
	}
	db.Exec("insert into a values (1, 1)")
	if text := r.c.Warning(); text != "" {
		t.Errorf("warning %q", text)
	}
	await("a suspicion", func() bool {
		// Again and again: the watch may have looked for the first time in between.
		if _, err := db.Pool.Exec(ctx, "insert into a values (2, 2), (3, 1)"); err == nil {
			t.Fatal("the statement was to fail")
		}
		return strings.Contains(r.c.Warning(), "public.a")
	})
	await("a verification", func() bool {
		return slices.ContainsFunc(r.src.Passes(), func(p capture.PassStatus) bool { return p.Table == "public.a" })
	})
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("watch: %v", err)
	}

	// While pg_class says that the table has no triggers none fires, as with what
	// writes below SQL.
	ended = make(chan error, 1)
	go func() { ended <- r.c.Watch(r.ctx()) }()
	for n := 100; ; n++ {
		db.Exec("begin; update pg_class set relhastriggers = false where oid = 'a'::regclass; insert into a select max(id) + 10, max(v) + 10 from a; update pg_class set relhastriggers = true where oid = 'a'::regclass; commit")
		select {
		case err := <-ended:
			_ = r.stops(err, keylog.ErrUnlogged)
			return
		case <-time.After(100 * time.Millisecond):
		}
		if n > 1000 {
			t.Fatal("a row without its triggers is not found")
		}
	}
}
