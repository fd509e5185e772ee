package trigger

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/chunk"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// loadRig is a rig whose edge loads and verifies: a store.
type loadRig struct {
	*rig
	store *store
	late  func() // ends a test that takes units without an end
}

// newLoadRig is newRig for tables that have rows, with small chunks.
func newLoadRig(t testing.TB, db *pgtest.DB, change func(*Config), tables ...string) *loadRig {
	t.Helper()
	r := &loadRig{rig: newRig(t, db, func(c *Config) {
		c.Heartbeat, c.SpoolDir = 20*time.Millisecond, t.TempDir()
		if change != nil {
			change(c)
		}
	}, tables...), store: newStore()}
	r.c.chunks = chunk.Limits{Blocks: 4}
	r.c.holdLoads = false
	r.late = r.boundedBy("what the test takes units for", 2*limit)
	return r
}

// open opens a source after what the store has.
func (r *loadRig) open() {
	r.t.Helper()
	r.close()
	src, err := r.c.Open(r.ctx(), &r.store.at)
	if err != nil {
		r.t.Fatalf("open: %v", err)
	}
	r.src = src
}

// bounded ends a test that takes units for too long.
func (r *loadRig) bounded(what string) func() { return r.boundedBy(what, limit) }

func (r *loadRig) boundedBy(what string, limit time.Duration) func() {
	deadline := time.Now().Add(limit)
	return func() {
		r.t.Helper()
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: not within %v; at %v, loads %+v, passes %+v, walsenders %s", what, limit, r.store.at.Position, r.src.Loads(), r.src.Passes(),
				r.db.String("select coalesce(string_agg(s::text, ' '), 'none') from pg_stat_replication s"))
		}
	}
}

// take applies one unit and confirms it.
func (r *loadRig) take() *stored {
	r.t.Helper()
	r.late()
	u, err := r.src.Next(r.ctx())
	if err != nil {
		r.t.Fatalf("next: %v", err)
	}
	a, err := r.store.apply(u)
	if err != nil {
		r.t.Fatalf("apply: %v", err)
	}
	r.src.Confirm(u.Position)
	return a
}

// loaded takes units until no load is under way, and returns their number.
func (r *loadRig) loaded() (n int) {
	r.t.Helper()
	late := r.bounded("loads end")
	for first := true; first || len(r.store.at.Catalog.Loads) > 0; n++ {
		first = false
		r.take()
		late()
	}
	return n
}

// settle takes units until the store has seen what is committed by now, and wants
// the tables to be equal.
func (r *loadRig) settle() {
	r.t.Helper()
	var text string
	if err := r.db.Pool.QueryRow(r.ctx(), "SELECT pg_current_snapshot()::text").Scan(&text); err != nil {
		r.t.Fatal(err)
	}
	now, err := chunk.ParseSnapshot(text)
	if err != nil {
		r.t.Fatal(err)
	}
	late := r.bounded("all is seen, and loads end")
	for {
		late()
		if at, err := chunk.ParseSnapshot(r.store.at.Position.Snapshot); err == nil && at.Xmin >= now.Xmax && len(r.store.at.Catalog.Loads) == 0 {
			break
		}
		r.db.Exec("SELECT pg_current_xact_id()") // so that it comes to an end
		r.take()
	}
	r.same()
}

// same compares the store's tables with the source's, row by row.
func (r *loadRig) same() {
	r.t.Helper()
	conn, err := pgx.Connect(r.ctx(), r.db.URL)
	if err != nil {
		r.t.Fatal(err)
	}
	defer capture.Close(conn)
	for _, s := range r.store.at.Catalog.Schemas {
		var want map[string]string
		err := look(r.ctx(), conn, func(pgx.Tx) (err error) {
			want, err = rowsOf(r.ctx(), conn, s, r.c.choices.Where[s.QualifiedName()])
			return err
		})
		if err != nil {
			r.t.Fatal(err)
		}
		if err := r.store.differs(s, want); err != nil {
			r.t.Error(err)
		}
	}
}

// store is an edge that holds tables in memory, by the rules of the format.
type store struct {
	at      millrace.Checkpoint
	schemas map[millrace.SchemaVersion]*millrace.Schema
	tables  map[millrace.TableID]map[string]storedRow
	shadows map[millrace.LoadID]map[string]storedRow
	reasons []string
	// verified has the number of passes that came to their ends by table, differing the
	// ranges in which the rows are others.
	verified  map[millrace.TableID]int
	differing []string
}

type storedRow struct {
	version millrace.SchemaVersion
	columns []millrace.Datum
}

// stored is a unit after it was applied.
type stored struct {
	counts [millrace.NumKinds]int
	loads  map[millrace.TableID]int // rows of loads
	ends   []millrace.TableID
}

func newStore() *store {
	s := &store{
		schemas: make(map[millrace.SchemaVersion]*millrace.Schema), tables: make(map[millrace.TableID]map[string]storedRow),
		shadows: make(map[millrace.LoadID]map[string]storedRow), verified: make(map[millrace.TableID]int),
	}
	s.at.Epoch = 1
	return s
}

func (s *store) apply(u *millrace.Unit) (*stored, error) {
	a := &stored{loads: make(map[millrace.TableID]int)}
	if err := u.Position.Validate(); err != nil {
		return nil, err
	}
	n := uint64(0)
	for {
		run, err := u.Body.Next(1 << 20)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, errors.Join(err, u.Body.Close())
		}
		run = bytes.Clone(run)
		for len(run) > 0 {
			var h millrace.Head
			if run, err = millrace.NextHead(run, &h); err != nil {
				return nil, err
			}
			var e millrace.Entry
			if err := millrace.DecodeEntry(h.Body, &e); err != nil {
				return nil, err
			}
			if e.Ordinal != n || e.Last != (n+1 == u.Entries) || e.Last && e.End.Token != u.Position.Tick {
				return nil, fmt.Errorf("entry %d of %d: ordinal %d, last %v, end %+v", n, u.Entries, e.Ordinal, e.Last, e.End)
			}
			n++
			if err := s.entry(&e, a); err != nil {
				return nil, err
			}
		}
	}
	if n != u.Entries || u.Position.Tick < s.at.Position.Tick {
		return nil, fmt.Errorf("unit at %v has %d entries and says %d; the one before is at %v", u.Position, n, u.Entries, s.at.Position)
	}
	s.at.Position, s.at.Time = u.Position, u.Time
	return a, u.Body.Close()
}

func (s *store) entry(e *millrace.Entry, a *stored) error {
	a.counts[e.Kind]++
	cat := &s.at.Catalog
	live := s.tables[e.Table]
	under := slices.IndexFunc(cat.Loads, func(l millrace.Load) bool { return l.Table == e.Table })
	if e.Load != 0 && e.Kind != millrace.KindLoadBegin && (under < 0 || cat.Loads[under].ID != e.Load) {
		return fmt.Errorf("%v of load %v of table %v, which is not under way", e.Kind, e.Load, e.Table)
	}
	switch e.Kind {
	case millrace.KindSchema:
		if e.Schema.Version != cat.LastVersion+1 {
			return fmt.Errorf("schema version %v after %v", e.Schema.Version, cat.LastVersion)
		}
		cat.LastVersion = e.Schema.Version
		s.schemas[e.Schema.Version] = e.Schema
		cat.Schemas = append(slices.DeleteFunc(cat.Schemas, func(o *millrace.Schema) bool { return o.Table == e.Table }), e.Schema)
		slices.SortFunc(cat.Schemas, func(a, b *millrace.Schema) int { return int(a.Table) - int(b.Table) })
	case millrace.KindLoadBegin:
		if e.Load != cat.LastLoad+1 {
			return fmt.Errorf("load %v after %v", e.Load, cat.LastLoad)
		}
		cat.LastLoad = e.Load
		cat.Loads = slices.DeleteFunc(cat.Loads, func(l millrace.Load) bool { return l.Table == e.Table })
		cat.Loads = append(cat.Loads, millrace.Load{ID: e.Load, Table: e.Table, Progress: e.LoadInfo.Progress})
		s.shadows[e.Load] = make(map[string]storedRow)
		s.reasons = append(s.reasons, cat.Schema(e.Table).Name+": "+e.LoadInfo.Reason)
	case millrace.KindLoadEnd:
		cat.Loads = slices.Delete(cat.Loads, under, under+1)
		s.tables[e.Table] = s.shadows[e.Load]
		delete(s.shadows, e.Load)
		a.ends = append(a.ends, e.Table)
	case millrace.KindLoadProgress:
		cat.Loads[under].Progress = e.LoadInfo.Progress
	case millrace.KindDrop:
		cat.Schemas = slices.DeleteFunc(cat.Schemas, func(o *millrace.Schema) bool { return o.Table == e.Table })
		cat.Loads = slices.DeleteFunc(cat.Loads, func(l millrace.Load) bool { return l.Table == e.Table })
		delete(s.tables, e.Table)
	case millrace.KindVerify:
		return s.verify(e)
	case millrace.KindPut, millrace.KindDelete, millrace.KindTruncate:
		var shadow map[string]storedRow
		if under >= 0 {
			shadow = s.shadows[cat.Loads[under].ID]
		}
		if e.Load != 0 {
			a.loads[e.Table]++
			live = nil
		} else if live == nil && shadow == nil {
			return fmt.Errorf("%v of table %v, which has neither rows nor a load", e.Kind, e.Table)
		}
		for _, rows := range []map[string]storedRow{live, shadow} {
			if rows != nil {
				if err := s.change(e, rows); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (s *store) change(e *millrace.Entry, rows map[string]storedRow) error {
	switch e.Kind {
	case millrace.KindTruncate:
		clear(rows)
	case millrace.KindDelete:
		delete(rows, string(e.Key))
	default:
		var row millrace.Row
		if err := millrace.DecodeRow(e.Row, &row); err != nil {
			return err
		}
		if newest := s.at.Catalog.Schema(e.Table); newest == nil || newest.Version != row.Version {
			return fmt.Errorf("row of version %v, the newest is %v", row.Version, newest)
		}
		rows[string(e.Key)] = storedRow{row.Version, slices.Clone(row.Columns)}
	}
	return nil
}

// verify compares the rows of a range with what the entry says of them.
func (s *store) verify(e *millrace.Entry) error {
	v := e.Verify
	if len(v.LeftOut) > 0 {
		return fmt.Errorf("%d keys are left out of a range", len(v.LeftOut))
	}
	var sum millrace.VerifySum
	for key, row := range s.tables[e.Table] {
		if !v.Holds([]byte(key)) {
			continue
		}
		if err := sum.Add(millrace.NewVerifyPlan(s.schemas[row.version]), []byte(key), row.columns); err != nil {
			return err
		}
	}
	if v.High == nil {
		s.verified[e.Table]++
	}
	if sum.Rows != v.Rows || sum.Sum() != v.Hash {
		s.differing = append(s.differing, fmt.Sprintf("table %v from %x to %x: %d rows here, %d at the source, snapshot %s", e.Table, v.Low, v.High, sum.Rows, v.Rows, v.Snapshot))
	}
	return nil
}

// rows returns a table's rows as rowsOf does, under the newest schema.
func (s *store) rows(newest *millrace.Schema) map[string]string {
	all := make(map[string]string)
	for key, row := range s.tables[newest.Table] {
		mapped := make([]millrace.Datum, len(newest.Columns))
		old := s.schemas[row.version]
		for i := range newest.Columns {
			mapped[i] = millrace.Datum{State: millrace.ColumnNull}
			if j := old.Counterpart(&newest.Columns[i]); j >= 0 {
				mapped[i] = row.columns[j]
			}
		}
		all[key] = string(millrace.AppendRow(nil, 1, mapped))
	}
	return all
}

// differs says in what the store's rows of a table are others than those given.
func (s *store) differs(newest *millrace.Schema, want map[string]string) error {
	got := s.rows(newest)
	if maps.Equal(got, want) {
		return nil
	}
	n, example := 0, ""
	note := func(key string) {
		if got[key] != want[key] {
			n++
			example = fmt.Sprintf("key %x: got row %q, want %q", key, got[key], want[key])
		}
	}
	for key := range got {
		note(key)
	}
	for key := range want {
		if _, ok := got[key]; !ok {
			note(key)
		}
	}
	return fmt.Errorf("%s: the store has %d rows, the source %d, %d differ: %s", newest.QualifiedName(), len(got), len(want), n, example)
}

// table returns the ID of a table of the stream.
func (r *loadRig) table(name string) millrace.TableID {
	r.t.Helper()
	for _, s := range r.store.at.Catalog.Schemas {
		if s.Name == name {
			return s.Table
		}
	}
	r.t.Fatalf("the stream has no table %s", name)
	return 0
}
