package trigger

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/control"
	"github.com/millrace-db/millrace/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// limit bounds every wait of a test.
const limit = 2 * time.Minute

// rig is a database, a capture of it, and an edge that its windows are applied to.
// Its tables are empty when the capture begins, so the edge need not load them.
type rig struct {
	t    testing.TB
	db   *pgtest.DB
	c    *Capture
	src  *Source
	edge *edge
}

// newRig migrates the control schema and installs a capture of tables of schema
// public, which must exist and be empty.
func newRig(t testing.TB, db *pgtest.DB, change func(*Config), tables ...string) *rig {
	t.Helper()
	cfg := Config{URL: db.URL, Stream: "s", Heartbeat: time.Hour}
	if _, bench := t.(*testing.B); !bench { // whose output is always shown
		cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	for _, name := range tables {
		cfg.Tables = append(cfg.Tables, "public."+name)
	}
	if change != nil {
		change(&cfg)
	}
	r := &rig{t: t, db: db, edge: newEdge()}
	conn, err := pgx.Connect(r.ctx(), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer capture.Close(conn)
	if err := control.Migrate(r.ctx(), conn); err != nil {
		t.Fatal(err)
	}
	r.configure(cfg)
	if err := r.c.Install(r.ctx()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.close)
	return r
}

func (r *rig) configure(cfg Config) {
	r.t.Helper()
	c, err := New(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	c.holdLoads = true // the edge of a rig has no use for them; that of a loadRig has
	r.c = c
}

func (r *rig) ctx() context.Context {
	d := limit
	if t, ok := r.t.(interface{ patience() time.Duration }); ok {
		d = t.patience()
	}
	ctx, cancel := context.WithTimeout(context.Background(), d)
	r.t.Cleanup(cancel)
	return ctx
}

// open opens a source after what the edge has.
func (r *rig) open() {
	r.t.Helper()
	src, err := r.c.Open(r.ctx(), &r.edge.at)
	if err != nil {
		r.t.Fatalf("open: %v", err)
	}
	r.src = src
}

// begin opens a source and takes the window that it begins with.
func (r *rig) begin() *applied {
	r.t.Helper()
	r.open()
	return r.next()
}

// openFails wants Open to fail with want, for an operator to mend.
func (r *rig) openFails(want error) error {
	r.t.Helper()
	src, err := r.c.Open(r.ctx(), &r.edge.at)
	if err == nil {
		_ = src.Close()
	}
	return r.stops(err, want)
}

// stops wants an error that an operator has to mend.
func (r *rig) stops(err, want error) error {
	r.t.Helper()
	if !errors.Is(err, want) || !millrace.NeedsOperator(err) {
		r.t.Fatalf("got error %v, want %v", err, want)
	}
	if !strings.Contains(err.Error(), "mend:") {
		r.t.Errorf("%v names no mend", err)
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

// restart opens another source after what the edge has.
func (r *rig) restart() *applied {
	r.t.Helper()
	r.close()
	return r.begin()
}

// next takes one unit and applies it.
func (r *rig) next() *applied {
	r.t.Helper()
	a, err := r.tryNext()
	if err != nil {
		r.t.Fatalf("next: %v", err)
	}
	return a
}

func (r *rig) tryNext() (*applied, error) {
	u, err := r.src.Next(r.ctx())
	if err != nil {
		return nil, err
	}
	return r.edge.apply(u)
}

// fails takes units until the source stops with want.
func (r *rig) fails(want error) error {
	r.t.Helper()
	for {
		if _, err := r.tryNext(); err != nil {
			return r.stops(err, want)
		}
	}
}

// due makes the next window due.
func (r *rig) due() { r.src.given = time.Time{} }

// exec runs statements and takes the window that they are in.
func (r *rig) exec(sql string) *applied {
	r.t.Helper()
	r.db.Exec(sql)
	a := r.next()
	r.equal()
	return a
}

// equal compares the edge's tables with the source's, row by row.
func (r *rig) equal() {
	r.t.Helper()
	conn, err := pgx.Connect(r.ctx(), r.db.URL)
	if err != nil {
		r.t.Fatal(err)
	}
	defer capture.Close(conn)
	err = look(r.ctx(), conn, func(tx pgx.Tx) error {
		for _, s := range r.edge.at.Catalog.Schemas {
			rows, err := rowsOf(r.ctx(), conn, s, r.c.choices.Where[s.QualifiedName()])
			if err == nil {
				err = r.edge.differs(s, rows)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		r.t.Error(err)
	}
}

// rowsOf reads the rows of a table as the transaction sees them: their encoded
// forms, but for the schema's version, by key.
func rowsOf(ctx context.Context, conn *pgx.Conn, s *millrace.Schema, where string) (map[string]string, error) {
	codec, err := millrace.NewKeyCodec(s)
	if err != nil {
		return nil, err
	}
	var columns []string
	for _, c := range s.Columns {
		columns = append(columns, pgx.Identifier{c.Name}.Sanitize())
	}
	query := "SELECT " + strings.Join(columns, ", ") + " FROM " + pgx.Identifier{s.Namespace, s.Name}.Sanitize()
	if where != "" {
		query += " WHERE " + where
	}
	all := make(map[string]string)
	row := make([]millrace.Datum, len(columns))
	err = ask(ctx, conn.PgConn(), query, func(values [][]byte) error {
		for i, v := range values {
			row[i] = millrace.Datum{State: millrace.ColumnNull}
			if v != nil {
				row[i] = millrace.Datum{Text: bytes.Clone(v)}
			}
		}
		key, err := codec.AppendRowKey(nil, row)
		all[string(key)] = string(millrace.AppendRow(nil, 1, row))
		return err
	})
	return all, err
}

// edge applies units to tables in memory.
type edge struct {
	at     millrace.Checkpoint
	tables map[millrace.TableID]map[string]string
	// reasons are those of loads that were begun since somebody last looked.
	reasons []string
}

func newEdge() *edge {
	e := &edge{tables: make(map[millrace.TableID]map[string]string)}
	e.at.Epoch = 1
	return e
}

// applied is a unit after it was applied.
type applied struct {
	position millrace.Position
	counts   [millrace.NumKinds]int
	entries  uint64
}

// String names the kinds of entries, with their numbers.
func (a *applied) String() string {
	var all []string
	for k, n := range a.counts {
		if n > 0 {
			all = append(all, fmt.Sprintf("%v:%d", millrace.Kind(k), n))
		}
	}
	return strings.Join(all, " ")
}

func (e *edge) apply(u *millrace.Unit) (*applied, error) {
	a := &applied{position: u.Position}
	var changes []millrace.Entry
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
			var entry millrace.Entry
			if err := millrace.DecodeEntry(h.Body, &entry); err != nil {
				return nil, err
			}
			if entry.Ordinal != a.entries || entry.Last != (entry.Ordinal+1 == u.Entries) {
				return nil, fmt.Errorf("entry %d of %d: ordinal %d, last %v", a.entries, u.Entries, entry.Ordinal, entry.Last)
			}
			if entry.Last && (entry.End.Token != u.Position.Tick || !entry.End.Time.Equal(u.Time)) {
				return nil, fmt.Errorf("unit's end is %+v, its position %v, its time %v", entry.End, u.Position, u.Time)
			}
			a.entries++
			a.counts[entry.Kind]++
			changes = append(changes, entry)
		}
	}
	if a.entries != u.Entries {
		return nil, fmt.Errorf("unit has %d entries and says %d", a.entries, u.Entries)
	}
	if u.Position.Tick <= e.at.Position.Tick {
		return nil, fmt.Errorf("unit at %v comes after %v", u.Position, e.at.Position)
	}
	for i := range changes {
		if err := e.entry(&changes[i]); err != nil {
			return nil, err
		}
	}
	e.at.Position, e.at.Time = u.Position, u.Time
	return a, u.Body.Close()
}

func (e *edge) entry(entry *millrace.Entry) error {
	cat := &e.at.Catalog
	rows := e.tables[entry.Table]
	switch entry.Kind {
	case millrace.KindSchema:
		s := entry.Schema
		if s.Version != cat.LastVersion+1 {
			return fmt.Errorf("schema version %v after %v", s.Version, cat.LastVersion)
		}
		e.drop(s.Table)
		cat.LastVersion = s.Version
		cat.Schemas = append(cat.Schemas, s)
		slices.SortFunc(cat.Schemas, func(a, b *millrace.Schema) int { return cmp.Compare(a.Table, b.Table) })
		if rows == nil {
			e.tables[s.Table] = make(map[string]string)
		}
	case millrace.KindLoadBegin:
		if entry.Load != cat.LastLoad+1 {
			return fmt.Errorf("load %v after %v", entry.Load, cat.LastLoad)
		}
		cat.LastLoad = entry.Load
		e.reasons = append(e.reasons, cat.Schema(entry.Table).Name+": "+entry.LoadInfo.Reason)
	case millrace.KindDrop:
		if rows == nil {
			return fmt.Errorf("drop of table %v, which is not there", entry.Table)
		}
		e.drop(entry.Table)
		delete(e.tables, entry.Table)
	case millrace.KindTruncate:
		clear(rows)
	case millrace.KindDelete:
		delete(rows, string(entry.Key))
	case millrace.KindPut:
		var row millrace.Row
		if err := millrace.DecodeRow(entry.Row, &row); err != nil {
			return err
		}
		if s := cat.Schema(entry.Table); s == nil || s.Version != row.Version {
			return fmt.Errorf("row of version %v, the newest is %v", row.Version, s)
		}
		rows[string(entry.Key)] = string(millrace.AppendRow(nil, 1, row.Columns))
	}
	return nil
}

func (e *edge) drop(id millrace.TableID) {
	var kept []*millrace.Schema
	for _, s := range e.at.Catalog.Schemas {
		if s.Table != id {
			kept = append(kept, s)
		}
	}
	e.at.Catalog.Schemas = kept
}

// loads returns why loads were begun, since it was last called.
func (e *edge) loads() string {
	all := strings.Join(e.reasons, "; ")
	e.reasons = nil
	return all
}

// differs says in what the edge's rows of a table are others than those given.
func (e *edge) differs(s *millrace.Schema, want map[string]string) error {
	got := e.tables[s.Table]
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
	return fmt.Errorf("%s: edge has %d rows, source %d, %d differ: %s", s.QualifiedName(), len(got), len(want), n, example)
}

// until polls a condition.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, limit)
		}
		<-tick.C
	}
}
