package proof

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// shop is a table at the source and what an edge has of it.
type shop struct {
	*pgtest.DB
	store  *edge.Store
	schema *millrace.Schema
	codec  *millrace.KeyCodec
	index  millrace.Index
}

const (
	oidInt4, oidText = 23, 25
	farAway          = 1 << 60 // an LSN behind everything
)

var stream = millrace.StreamID{1}

func newShop(t *testing.T, rows int) *shop {
	t.Helper()
	db := pgtest.New(t)
	db.Exec(fmt.Sprintf(`CREATE TABLE items (id int PRIMARY KEY, note text);
		INSERT INTO items SELECT i, CASE WHEN i %% 3 = 0 THEN NULL ELSE 'note ' || i END FROM generate_series(1, %d) i`, rows))
	store, err := edge.Open(edge.Options{Dir: t.TempDir(), Stream: stream, MapSize: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(store.Check(context.Background()), store.Close()); err != nil {
			t.Error(err)
		}
	})
	s := &shop{DB: db, store: store, schema: &millrace.Schema{
		Version: 1, Table: 16384, Namespace: "public", Name: "items",
		Columns: []millrace.Column{{Name: "id", Type: oidInt4, Typmod: -1, NotNull: true, KeyOrdinal: 1}, {Name: "note", Type: oidText, Typmod: -1}},
		Types: []millrace.TypeDesc{
			{OID: oidInt4, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "int4"},
			{OID: oidText, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "text"},
		},
	}}
	if s.codec, err = millrace.NewKeyCodec(s.schema); err != nil {
		t.Fatal(err)
	}
	s.apply(t, farAway,
		&millrace.Entry{Kind: millrace.KindSchema, Table: s.schema.Table, Schema: s.schema},
		&millrace.Entry{Kind: millrace.KindLoadBegin, Table: s.schema.Table, Load: 1, LoadInfo: &millrace.LoadInfo{}},
		&millrace.Entry{Kind: millrace.KindLoadEnd, Table: s.schema.Table, Load: 1, LoadInfo: &millrace.LoadInfo{}})
	var puts []*millrace.Entry
	for i := 1; i <= rows; i++ {
		note := fmt.Sprintf("note %d", i)
		if i%3 == 0 {
			note = ""
		}
		puts = append(puts, s.put(t, i, note))
	}
	s.apply(t, farAway, puts...)
	return s
}

func (s *shop) key(t *testing.T, id int) []byte {
	t.Helper()
	key, err := s.codec.Append(nil, [][]byte{fmt.Append(nil, id)})
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// put makes a row; an empty note is null.
func (s *shop) put(t *testing.T, id int, note string) *millrace.Entry {
	t.Helper()
	columns := []millrace.Datum{{Text: fmt.Append(nil, id)}, {Text: []byte(note)}}
	if note == "" {
		columns[1] = millrace.Datum{State: millrace.ColumnNull}
	}
	return &millrace.Entry{Kind: millrace.KindPut, Table: s.schema.Table, Key: s.key(t, id), Row: millrace.AppendRow(nil, 1, columns)}
}

// apply commits entries to the store as one unit that ended at lsn.
func (s *shop) apply(t *testing.T, lsn millrace.LSN, entries ...*millrace.Entry) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- s.write(lsn, entries) }() // the writer keeps its thread
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func (s *shop) write(lsn millrace.LSN, entries []*millrace.Entry) error {
	w, err := s.store.NewWriter()
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Begin(); err != nil {
		return err
	}
	for _, e := range entries {
		if err := w.Apply(e, millrace.ModeWAL); err != nil {
			return err
		}
	}
	s.index += millrace.Index(len(entries))
	c := &millrace.Checkpoint{
		Stream: stream, Epoch: 1, Index: s.index, Chain: millrace.NewChain(stream, 1), Term: 1, Publisher: millrace.PublisherID{1},
		Offset: millrace.Offset(s.index), Position: millrace.Position{Mode: millrace.ModeWAL, SystemID: 1, Timeline: 1, Slot: "s", LSN: lsn}, Time: time.Now(),
	}
	c.Catalog = millrace.Catalog{Schemas: []*millrace.Schema{s.schema}, LastVersion: 1, LastLoad: 1}
	return w.Commit(c)
}

func (s *shop) prove(t *testing.T) *Result {
	t.Helper()
	r, err := Run(context.Background(), Config{SourceURL: s.URL, Stream: "shop", Tables: []string{"public.items"}, Store: s.store})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestEqual(t *testing.T) {
	s := newShop(t, 100)
	r := s.prove(t)
	if r.Differences() != 0 || r.SourceRows() != 100 || r.EdgeRows() != 100 || r.Index != s.index || len(r.Examples()) != 0 {
		t.Errorf("got %+v, want 100 equal rows at index %v", r, s.index)
	}
	if r.Held <= 0 || r.Took < r.Held {
		t.Errorf("held %v, took %v", r.Held, r.Took)
	}
}

// A checker is worth what it catches: each kind of difference, alone and where
// the counts of rows hide it.
func TestDifferences(t *testing.T) {
	for _, c := range []struct {
		name                      string
		plant                     func(t *testing.T, s *shop)
		missing, extra, different uint64
		example                   string
	}{
		{"only at the source", func(t *testing.T, s *shop) {
			s.apply(t, farAway, &millrace.Entry{Kind: millrace.KindDelete, Table: s.schema.Table, Key: s.key(t, 7)})
		}, 1, 0, 0, `only the source has key 7: id="7" note="note 7"`},
		{"only at the edge", func(t *testing.T, s *shop) {
			s.apply(t, farAway, s.put(t, 999, "more"))
		}, 0, 1, 0, `only the edge has key 999: id="999" note="more"`},
		{"one for another", func(t *testing.T, s *shop) {
			s.apply(t, farAway, s.put(t, 999, "more"))
			s.apply(t, farAway, &millrace.Entry{Kind: millrace.KindDelete, Table: s.schema.Table, Key: s.key(t, 7)})
		}, 1, 1, 0, "key"},
		{"another value", func(t *testing.T, s *shop) {
			s.apply(t, farAway, s.put(t, 7, "note 8"))
		}, 0, 0, 1, `key 7 differs: source id="7" note="note 7", edge id="7" note="note 8"`},
		{"a value for null", func(t *testing.T, s *shop) {
			s.apply(t, farAway, s.put(t, 9, "x"))
		}, 0, 0, 1, `note=null, edge`},
		{"a change that did not come", func(_ *testing.T, s *shop) {
			s.Exec(`UPDATE items SET note = 'new' WHERE id = 5`)
		}, 0, 0, 1, `note="new", edge`},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newShop(t, 20)
			c.plant(t, s)
			r := s.prove(t).Tables[0]
			if r.Missing != c.missing || r.Extra != c.extra || r.Different != c.different {
				t.Errorf("got %d missing, %d extra, %d different, want %d, %d, %d", r.Missing, r.Extra, r.Different, c.missing, c.extra, c.different)
			}
			if all := strings.Join(r.Examples, "\n"); !strings.Contains(all, c.example) {
				t.Errorf("examples: got %s, want one with %s", all, c.example)
			}
		})
	}
}

func TestTableThatTheEdgeLacks(t *testing.T) {
	s := newShop(t, 5)
	s.Exec(`CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1), (2)`)
	r, err := Run(context.Background(), Config{SourceURL: s.URL, Stream: "shop", Tables: []string{"public.items", "public.other"}, Store: s.store})
	if err != nil {
		t.Fatal(err)
	}
	if r.Differences() != 2 || r.Tables[1].Missing != 2 {
		t.Errorf("got %+v, want two rows missing", r)
	}
}

// TestWaitsForTheEdge: rows are compared only when the edge has come to where
// the source was locked, and writers are held off until then.
func TestWaitsForTheEdge(t *testing.T) {
	s := newShop(t, 5)
	s.apply(t, 1, s.put(t, 5, "note 5")) // the edge is back at an early place
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	type outcome struct {
		r   *Result
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		r, err := Run(ctx, Config{SourceURL: s.URL, Stream: "shop", Tables: []string{"public.items"}, Store: s.store})
		done <- outcome{r, err}
	}()
	locked := `SELECT count(*) FROM pg_locks WHERE mode = 'ShareLock' AND granted AND relation = 'items'::regclass`
	for s.String(locked) != "1" {
		if ctx.Err() != nil {
			t.Fatal("the table is not locked within a minute")
		}
	}
	s.apply(t, farAway, s.put(t, 4, "note 4"))
	o := <-done
	if o.err != nil {
		t.Fatal(o.err)
	}
	if o.r.Differences() != 0 || o.r.Index != s.index {
		t.Errorf("got %+v, want no differences at index %v", o.r, s.index)
	}
	if got := s.String(locked); got != "0" {
		t.Errorf("locks left: %s", got)
	}
}

func TestEdgeThatDoesNotCome(t *testing.T) {
	s := newShop(t, 5)
	s.apply(t, 1, s.put(t, 5, "note 5"))
	_, err := Run(context.Background(), Config{
		SourceURL: s.URL, Stream: "shop", Tables: []string{"public.items"}, Store: s.store, CatchUp: 100 * time.Millisecond,
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
}

func TestBusyTables(t *testing.T) {
	s := newShop(t, 5)
	ctx := context.Background()
	writer, err := s.Pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := writer.Exec(ctx, `UPDATE items SET note = 'x' WHERE id = 1`); err != nil {
		t.Fatal(err)
	}
	_, err = Run(ctx, Config{
		SourceURL: s.URL, Stream: "shop", Tables: []string{"public.items"}, Store: s.store, LockTimeout: 20 * time.Millisecond, Attempts: 2,
	})
	if !errors.Is(err, ErrBusy) {
		t.Errorf("got %v, want ErrBusy", err)
	}
	if err := writer.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if r := s.prove(t); r.Differences() != 0 {
		t.Errorf("got %+v", r)
	}
}

func TestProber(t *testing.T) {
	s := newShop(t, 1)
	p := NewProber(s.URL, "shop", millrace.ModeWAL, s.store, time.Millisecond)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	done := make(chan struct{})
	go func() { p.Run(ctx); close(done) }()
	if err := p.Wait(ctx, 25); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-done
	l := p.Latency()
	if l.Probes < 25 || l.P50 > l.P99 || l.P99 > l.Max || !strings.Contains(l.String(), "p99") {
		t.Errorf("got %v", l)
	}
}

func TestRanks(t *testing.T) {
	p := NewProber("", "", millrace.ModeWAL, nil, 0)
	if got := p.Latency().String(); got != "not measured yet" {
		t.Errorf("without probes: got %q", got)
	}
	for i := 100; i >= 1; i-- {
		p.add(time.Duration(i) * time.Millisecond)
	}
	if l := p.Latency(); l.P50 != 50*time.Millisecond || l.P99 != 99*time.Millisecond || l.Max != 100*time.Millisecond {
		t.Errorf("got %+v, want 50, 99 and 100 ms", l)
	}
}
