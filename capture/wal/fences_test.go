package wal

import (
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// started is a rig with a small table, after its first copy and one change.
func started(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key); insert into a values (1)")
	r := newRig(t, db, change, "a")
	r.open()
	r.copied()
	db.Exec("insert into a values (2)")
	r.sync()
	return r
}

func TestSlotFences(t *testing.T) {
	drop := func(r *rig) {
		r.close()
		until(t, "drop slot", func() bool {
			return r.db.String("select count(pg_drop_replication_slot(slot_name)) from pg_replication_slots where slot_name = $1 and not active", r.cfg.Slot) == "1"
		})
	}
	t.Run("missing", func(t *testing.T) {
		r := started(t, nil)
		drop(r)
		_ = r.openFails(ErrSlotMissing)
	})
	t.Run("made again", func(t *testing.T) {
		r := started(t, nil)
		drop(r)
		r.db.Exec("insert into a values (3)")
		r.db.Exec("select pg_create_logical_replication_slot('" + r.cfg.Slot + "', 'pgoutput')")
		_ = r.openFails(ErrSlotAhead)
	})
	t.Run("advanced", func(t *testing.T) {
		r := started(t, nil)
		r.close()
		r.db.Exec("insert into a values (3)")
		until(t, "advance slot", func() bool {
			return r.db.String("select pg_replication_slot_advance(slot_name, pg_current_wal_lsn()) from pg_replication_slots where slot_name = $1 and not active", r.cfg.Slot) != ""
		})
		_ = r.openFails(ErrSlotAhead)
	})
	t.Run("of another plugin", func(t *testing.T) {
		r := started(t, nil)
		drop(r)
		r.db.Exec("select pg_create_logical_replication_slot('" + r.cfg.Slot + "', 'test_decoding')")
		_ = r.openFails(ErrSlotForeign)
		// Not even a first start touches it.
		r.edge = newEdge()
		_ = r.openFails(ErrSlotForeign)
	})
	t.Run("another name", func(t *testing.T) {
		r := started(t, nil)
		r.close()
		r.edge.at.Position.Slot = "other"
		_ = r.openFails(ErrSlotForeign)
	})
	t.Run("other system", func(t *testing.T) {
		r := started(t, nil)
		r.close()
		r.edge.at.Position.SystemID++
		_ = r.openFails(capture.ErrOtherSystem)
	})
	t.Run("other mode", func(t *testing.T) {
		r := started(t, nil)
		r.close()
		r.edge.at.Position = millrace.Position{Mode: millrace.ModeTrigger, SystemID: 1, Tick: 1}
		_ = r.openFails(capture.ErrMode)
	})
	t.Run("source restored", func(t *testing.T) {
		r := started(t, nil)
		r.close()
		r.edge.at.Position.LSN += 1 << 40
		_ = r.openFails(capture.ErrRewound)
	})
	t.Run("future timeline", func(t *testing.T) {
		r := started(t, nil)
		r.close()
		r.edge.at.Position.Timeline++
		_ = r.openFails(capture.ErrTimeline)
	})
}

func TestTableFences(t *testing.T) {
	t.Run("table removed after its copy was cut off", func(t *testing.T) {
		db := pgtest.New(t)
		db.Exec("create table a (id int primary key); create table b (id int primary key); insert into a values (1)")
		r := newRig(t, db, nil, "a", "b")
		r.open()
		r.next() // the loads begin
		r.reconfigure("a")
		r.open()
		r.copied()
		r.sync()
		r.equal()
		if c := r.edge.at.Catalog; len(c.Schemas) != 1 || len(c.Loads) != 0 {
			t.Errorf("the stream has %d tables, %d loads are under way", len(c.Schemas), len(c.Loads))
		}
		r.reconfigure("a", "b")
		r.open()
		r.sync()
		r.load()
		r.equal()
	})
	t.Run("publication dropped", func(t *testing.T) {
		r := started(t, nil)
		r.close()
		r.db.Exec("drop publication " + r.c.cfg.Publication)
		_ = r.openFails(ErrPublication)
	})
	t.Run("publication dropped while streaming", func(t *testing.T) {
		r := started(t, nil)
		r.db.Exec("drop publication " + r.c.cfg.Publication)
		r.db.Exec("insert into a values (3)")
		_ = r.fails(ErrPublication)
	})
	t.Run("table taken out and put back while streaming", func(t *testing.T) {
		r := started(t, nil)
		r.close()
		r.c.watchInterval = 10 * time.Millisecond
		r.open()
		r.db.Exec("alter publication " + r.c.cfg.Publication + " drop table a")
		r.db.Exec("insert into a values (3)")
		r.db.Exec("alter publication " + r.c.cfg.Publication + " add table a")
		_ = r.fails(ErrPublication)
	})
	t.Run("table added to the publication while streaming", func(t *testing.T) {
		r := started(t, nil)
		r.close()
		r.c.watchInterval = 10 * time.Millisecond
		r.open()
		r.db.Exec("create table b (id int primary key); alter publication " + r.c.cfg.Publication + " add table b")
		r.db.Exec("insert into b values (3)")
		_ = r.fails(ErrPublication)
	})
}

func mustNew(t testing.TB, cfg Config) *Capture {
	t.Helper()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestServerFences(t *testing.T) {
	t.Parallel()
	t.Run("wal_level", func(t *testing.T) {
		server := pgtest.Cluster(t, pgtest.Options{Settings: map[string]string{"wal_level": "replica"}})
		db := pgtest.On(t, server)
		db.Exec("create table a (id int primary key)")
		c := mustNew(t, Config{URL: db.URL, Stream: "s", Tables: []string{"public.a"}, SpoolDir: t.TempDir()})
		if err := c.Install(t.Context()); !errors.Is(err, ErrWALLevel) {
			t.Errorf("install: %v", err)
		}
		if _, err := c.Open(t.Context(), &millrace.Checkpoint{}); !errors.Is(err, ErrWALLevel) {
			t.Errorf("open: %v", err)
		}
		findings, err := c.Check(t.Context())
		if err != nil || len(findings) != 1 || !strings.Contains(findings[0].String(), "wal_level") {
			t.Errorf("check: %v, %v", findings, err)
		}
	})
	t.Run("no slots left", func(t *testing.T) {
		server := pgtest.Cluster(t, pgtest.Options{Settings: map[string]string{"max_replication_slots": "1"}})
		db := pgtest.On(t, server)
		db.Exec("create table a (id int primary key)")
		db.Exec("select pg_create_logical_replication_slot('taken', 'pgoutput')")
		r := newRig(t, db, nil, "a")
		_ = r.openFails(ErrSlotMissing)
	})
}

// A standby is refused; a promoted server is gone on with if it has all that was
// published, and refused if not.
func TestPromotion(t *testing.T) {
	t.Parallel()
	server := pgtest.Cluster(t, pgtest.Options{})
	db := pgtest.On(t, server)
	db.Exec("create table a (id int primary key); insert into a values (1)")
	r := newRig(t, db, nil, "a")
	r.open()
	r.copied()
	db.Exec("insert into a values (2)")
	r.sync()
	r.close()

	marker := filepath.Join(server.Dir(), "standby.signal")
	if err := os.WriteFile(marker, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(marker, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := server.Restart(r.ctx()); err != nil {
		t.Fatal(err)
	}
	db.Pool.Reset()
	_ = r.openFails(capture.ErrStandby)
	if got := db.String("select pg_promote()"); got != "t" {
		t.Fatalf("promote: %s", got)
	}
	db.Exec("insert into a values (3)")
	before := r.edge.at
	r.open()
	r.sync()
	r.equal()
	if got, was := r.edge.at.Position.Timeline, before.Position.Timeline; got != was+1 {
		t.Errorf("timeline after promotion: %d, before %d", got, was)
	}
	r.close()

	r.edge.at = before
	r.edge.at.Position.LSN += 1 << 30
	err := r.openFails(capture.ErrTimeline)
	if !strings.Contains(err.Error(), "failover") {
		t.Errorf("error: %v", err)
	}
	r.edge.at.Position.Timeline = 7
	_ = r.openFails(capture.ErrTimeline)
}

func TestFenceSystem(t *testing.T) {
	file := []byte("1\t0/3000000\tno recovery target specified\n\n2\t0/5000000\tbefore 2026\n")
	now := system{id: 9, timeline: 3, end: 0x6000000}
	for _, c := range []struct {
		name string
		p    millrace.Position
		want error
	}{
		{"same timeline", millrace.Position{SystemID: 9, Timeline: 3, LSN: 0x6000000}, nil},
		{"at the switch", millrace.Position{SystemID: 9, Timeline: 1, LSN: 0x3000000}, nil},
		{"after the switch", millrace.Position{SystemID: 9, Timeline: 1, LSN: 0x3000001}, capture.ErrTimeline},
		{"second switch", millrace.Position{SystemID: 9, Timeline: 2, LSN: 0x4000000}, nil},
		{"older server", millrace.Position{SystemID: 9, Timeline: 4, LSN: 1}, capture.ErrTimeline},
		{"other server", millrace.Position{SystemID: 8, Timeline: 3, LSN: 1}, capture.ErrOtherSystem},
		{"rewound", millrace.Position{SystemID: 9, Timeline: 3, LSN: 0x6000001}, capture.ErrRewound},
	} {
		if err := fenceSystem(c.p, now, func() ([]byte, error) { return file, nil }); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
	for _, bad := range []string{"", "x\t0/1\t", "1", "5\t0/1\tother"} {
		if _, err := switchPoint([]byte(bad), 1); err == nil {
			t.Errorf("history %q: no error", bad)
		}
	}
}

func TestRefusedConnections(t *testing.T) {
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key)")
	role := "norepl_" + db.Name[:strings.IndexByte(db.Name, '_')]
	db.Exec("create role " + role + " login; grant select on a to " + role)
	t.Cleanup(func() { db.Exec("drop owned by " + role + "; drop role " + role) })
	with := func(change func(*url.URL)) string {
		u, err := url.Parse(db.URL)
		if err != nil {
			t.Fatal(err)
		}
		change(u)
		return u.String()
	}
	for _, c := range []struct{ name, url, mend string }{
		{"no such database", with(func(u *url.URL) { u.Path = "/nowhere" }), "database"},
		{"no such role", with(func(u *url.URL) { u.User = url.User("nobody_here") }), "role"},
		{"not a URL", "postgres://%zz", "source URL"},
	} {
		wrong := mustNew(t, Config{URL: c.url, Stream: "s", Tables: []string{"public.a"}, SpoolDir: t.TempDir()})
		_, err := wrong.Open(t.Context(), &millrace.Checkpoint{})
		if !errors.Is(err, capture.ErrConnect) || !strings.Contains(err.Error(), c.mend) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	r := newRig(t, db, nil, "a")
	cfg := r.cfg
	cfg.URL = with(func(u *url.URL) { u.User = url.User(role) })
	r.c = mustNew(t, cfg)
	err := r.openFails(capture.ErrConnect)
	if !strings.Contains(err.Error(), "REPLICATION") {
		t.Errorf("no REPLICATION: %v", err)
	}
	findings, err := r.c.Check(t.Context())
	if err != nil || len(findings) == 0 || !strings.Contains(findings[len(findings)-1].String(), "replication connection") {
		t.Errorf("check: %v, %v", findings, err)
	}
	// What a pooler answers.
	pooler := &pgconn.PgError{Severity: "FATAL", Code: "08P01", Message: "unsupported startup parameter: extra_float_digits"}
	if err := r.c.connectError(pooler); !errors.Is(err, capture.ErrConnect) || !strings.Contains(err.Error(), "pooler") {
		t.Errorf("pooler: %v", err)
	}
	if err := r.c.connectError(&pgconn.PgError{Code: "28P01"}); !errors.Is(err, capture.ErrConnect) {
		t.Errorf("wrong password: %v", err)
	}
	// A server that is not there may come back.
	gone := mustNew(t, Config{URL: "postgres://u@127.0.0.1:1/db?sslmode=disable", Stream: "s", Tables: []string{"public.a"}, SpoolDir: t.TempDir()})
	if _, err := gone.Open(t.Context(), &millrace.Checkpoint{}); err == nil || millrace.NeedsOperator(err) {
		t.Errorf("no server: %v", err)
	}
}
