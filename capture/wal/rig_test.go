package wal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// limit bounds every wait of a test.
const limit = 2 * time.Minute

// rig is a database, a capture of it, and an edge that its units are applied to.
type rig struct {
	t    testing.TB
	db   *pgtest.DB
	c    *Capture
	cfg  Config
	src  *Source
	edge *edge
	mark int
}

// newRig installs a capture of tables, which must exist. Names are of schema
// public.
func newRig(t testing.TB, db *pgtest.DB, change func(*Config), tables ...string) *rig {
	t.Helper()
	cfg := Config{
		URL: db.URL, Stream: "s", Slot: "slot_" + strings.SplitN(db.Name, "_", 2)[0], SpoolDir: t.TempDir(),
		Heartbeat:   time.Hour,
		RetainLimit: 1 << 40, // without one, check warns
		Logger:      slog.New(slog.NewTextHandler(&shown{out: t.Output()}, nil)),
	}
	for _, name := range tables {
		cfg.Tables = append(cfg.Tables, "public."+name)
	}
	if change != nil {
		change(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, db: db, c: c, cfg: cfg, edge: newEdge()}
	if err := c.Install(r.ctx()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.close)
	return r
}

func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	r.t.Cleanup(cancel)
	return ctx
}

// shown passes the beginning of a log on to a test's output.
type shown struct {
	out   io.Writer
	lines atomic.Int32
}

func (s *shown) Write(b []byte) (int, error) {
	if s.lines.Add(1) > 300 {
		return len(b), nil
	}
	return s.out.Write(b)
}

// open opens a source after what the edge has.
func (r *rig) open() {
	r.t.Helper()
	// After the first copy loads are held until a test wants them: rig.load.
	r.openHeld(len(r.edge.at.Catalog.Schemas) > 0 && !r.edge.copying())
}

// openHeld is open, and says whether loads are held.
func (r *rig) openHeld(hold bool) {
	r.t.Helper()
	r.c.holdLoads = hold
	src, err := r.c.Open(r.ctx(), &r.edge.at)
	if err != nil {
		r.t.Fatalf("open: %v", err)
	}
	r.src = src
}

// openFails wants Open to fail with want, for an operator to mend.
func (r *rig) openFails(want error) error {
	r.t.Helper()
	src, err := r.c.Open(r.ctx(), &r.edge.at)
	if err == nil {
		_ = src.Close()
		r.t.Fatalf("open: got no error, want %v", want)
	}
	if !errors.Is(err, want) {
		r.t.Fatalf("open: got %v, want %v", err, want)
	}
	if !millrace.NeedsOperator(err) {
		r.t.Errorf("open: %v does not need an operator", err)
	}
	if !strings.Contains(err.Error(), "mend:") {
		r.t.Errorf("open: %v names no mend", err)
	}
	return err
}

func (r *rig) close() {
	if r.src == nil {
		return
	}
	if err := r.src.Close(); err != nil {
		r.t.Errorf("close: %v", err)
	}
	r.src = nil
}

// next takes one unit and applies it.
func (r *rig) next() *applied {
	r.t.Helper()
	u, err := r.src.Next(r.ctx())
	if err != nil {
		r.t.Fatalf("next: %v; the stream stands at %v, loads: %+v", err, r.edge.at.Position.LSN, r.src.Loads())
	}
	a, err := r.edge.apply(u)
	if err != nil {
		r.t.Fatalf("apply: %v", err)
	}
	return a
}

// take takes units until ok, which is asked before each. Heartbeats alone would come
// for ever.
func (r *rig) take(what string, ok func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(limit); !ok(); r.next() {
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: not within %v; loads are %+v, the stream stands at %v", what, limit, r.src.Loads(), r.edge.at.Position.LSN)
		}
	}
}

// loadBegins takes units until a load is under way.
func (r *rig) loadBegins() {
	r.t.Helper()
	r.take("a load begins", func() bool { return len(r.edge.at.Catalog.Loads) > 0 })
}

// fails takes units until the source fails, and wants that to be with want.
func (r *rig) fails(want error) error {
	r.t.Helper()
	for deadline := time.Now().Add(limit); ; {
		if time.Now().After(deadline) {
			r.t.Fatalf("next: no error within %v, want %v", limit, want)
		}
		u, err := r.src.Next(r.ctx())
		if err == nil {
			_, err = r.edge.apply(u)
			if err != nil {
				r.t.Fatal(err)
			}
			continue
		}
		if !errors.Is(err, want) {
			r.t.Fatalf("next: got %v, want %v", err, want)
		}
		return err
	}
}

// copied takes units up to the end of the first copy.
func (r *rig) copied() []*applied {
	r.t.Helper()
	var all []*applied
	for deadline := time.Now().Add(limit); ; {
		a := r.next()
		all = append(all, a)
		if a.has(millrace.KindLoadEnd) {
			r.src.PauseLoads(true)
			return all
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("the first copy does not end within %v: %+v", limit, r.src.Loads())
		}
	}
}

// sync writes a message at the source and takes units up to it.
func (r *rig) sync() []*applied {
	r.t.Helper()
	r.mark++
	text := fmt.Sprintf("mark %d", r.mark)
	r.db.Exec("select pg_logical_emit_message(true, 'test', '" + text + "')")
	var all []*applied
	for {
		a := r.next()
		for i := range a.entries {
			if m := a.entries[i].Message; m != nil && string(m.Content) == text {
				return all
			}
		}
		all = append(all, a)
	}
}

// restart opens another source after what the edge has.
func (r *rig) restart() {
	r.t.Helper()
	r.close()
	r.open()
}

// equal compares the edge's tables with the source's, row by row.
func (r *rig) equal() {
	r.t.Helper()
	conn, err := r.c.connect(r.ctx(), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	defer capture.Close(conn)
	for _, name := range r.c.tables {
		if err := r.edge.equalTable(r.ctx(), conn, name, ""); err != nil {
			r.t.Error(err)
		}
	}
}

// load lets the loads under way end. It returns why loads were begun, but for the
// first copy, since it was last called.
func (r *rig) load() []string {
	r.t.Helper()
	r.src.PauseLoads(false)
	r.take("loads end", func() bool { return len(r.edge.at.Catalog.Loads) == 0 })
	r.src.PauseLoads(true)
	reasons := r.edge.reasons
	r.edge.reasons = nil
	return reasons
}

// slotLSN is where the slot says that we are done.
func (r *rig) slotLSN() millrace.LSN {
	r.t.Helper()
	lsn, err := millrace.ParseLSN(r.db.String("select confirmed_flush_lsn from pg_replication_slots where slot_name = $1", r.c.cfg.Slot))
	if err != nil {
		r.t.Fatal(err)
	}
	return lsn
}

// oneChunk lets one chunk of a table be read, or none where the worker loses its
// patience, and takes the units up to there. Loads are held before and after; the
// table's is not read to its end.
func (r *rig) oneChunk(table string) {
	r.t.Helper()
	s := r.client()
	defer func() { _ = s.conn.Close(r.ctx()) }() // nothing is lost with it
	s.exec("begin; lock table " + table)
	r.src.PauseLoads(false)
	until(r.t, "a worker waits for the table", func() bool {
		return r.db.String("select count(*) from pg_locks where relation = $1::regclass and not granted", table) == "1"
	})
	r.src.PauseLoads(true) // what is under way is finished, unless it gives the lock up
	s.exec("rollback")
	until(r.t, "the worker is done", func() bool {
		r.src.loads.mu.Lock()
		defer r.src.loads.mu.Unlock()
		return !slices.ContainsFunc(r.src.loads.inOrderLocked(), func(ld *load) bool { return ld.taken })
	})
	r.sync()
}

// until polls a condition. state, if there is one, says what there is where it does
// not come about.
func until(t testing.TB, what string, ok func() bool, state ...func() string) {
	t.Helper()
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			text := ""
			for _, of := range state {
				text += ": " + of()
			}
			t.Fatalf("%s: not within %v%s", what, limit, text)
		}
		<-tick.C
	}
}
