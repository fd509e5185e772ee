package edge

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/millrace-db/millrace"
)

// zonedSchema describes public.NAME with the key (zone, id).
func zonedSchema(table millrace.TableID, version millrace.SchemaVersion, name string) *millrace.Schema {
	s := testSchema(table, version, name, oidInt8, "note", "big")
	s.Columns = slices.Insert(s.Columns, 0, millrace.Column{Name: "zone", Type: oidInt8, Typmod: -1, NotNull: true, KeyOrdinal: 1})
	s.Columns[1].KeyOrdinal = 2
	return s
}

// zoned makes entries of a table with the key (zone, id).
type zoned struct {
	tableFeed
}

func (z zoned) key(zone, id int) []byte {
	codec, err := millrace.NewKeyCodec(z.schema)
	if err != nil {
		z.t.Fatal(err)
	}
	k, err := codec.Append(nil, [][]byte{strconv.AppendInt(nil, int64(zone), 10), strconv.AppendInt(nil, int64(id), 10)})
	if err != nil {
		z.t.Fatal(err)
	}
	return k
}

func (z zoned) set(zone, id int, note, big string) *millrace.Entry {
	row := encodeRow(z.schema.Version, strconv.Itoa(zone), strconv.Itoa(id), note, big)
	return &millrace.Entry{Kind: millrace.KindPut, Table: z.schema.Table, Key: z.key(zone, id), Row: row}
}

func (z zoned) unset(zone, id int) *millrace.Entry {
	return &millrace.Entry{Kind: millrace.KindDelete, Table: z.schema.Table, Key: z.key(zone, id)}
}

func filterOf(t testing.TB, tables []string, prefixes map[string][][]string) *millrace.Filter {
	t.Helper()
	f, err := millrace.NewFilter(tables, prefixes)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func withFilter(f *millrace.Filter) func(*Options) { return func(o *Options) { o.Filter = f } }

// heldRows are the rows of a table that a store holds, "key=note,big" in their order.
func heldRows(t testing.TB, s *Store, name string, only func(zone string) bool) (rows []string) {
	t.Helper()
	err := s.View(context.Background(), func(v *View) error {
		table, err := v.Table(name)
		if err != nil {
			return err
		}
		prefixes := table.Held()
		if prefixes == nil {
			prefixes = [][]byte{nil}
		}
		for _, p := range prefixes {
			err := table.Scan(p, nil, 0, func(_ []byte, row *Row) error {
				if only == nil || only(string(row.Columns[0].Text)) {
					rows = append(rows, rowString(row))
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("read %s: %v", name, err)
	}
	return rows
}

// get reads one row.
func (z zoned) get(s *Store, zone, id int) (got string, err error) {
	err = s.View(context.Background(), func(v *View) error {
		table, err := v.Table(z.schema.QualifiedName())
		if err != nil {
			return err
		}
		var row Row
		if err := table.Get(z.key(zone, id), &row); err != nil {
			return err
		}
		got = rowString(&row)
		return nil
	})
	return got, err
}

// TestPartialModel: what a partial store holds are the rows that one which holds
// everything has, whatever is applied to both, and what it does not hold it does not
// answer.
func TestPartialModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 2))
	filter := filterOf(t, []string{"public.a"}, map[string][][]string{"public.b": {{"2"}, {"3", "1"}}})
	whole, part := openStore(t, t.TempDir()), openStore(t, t.TempDir(), withFilter(filter))
	feeds := []*feed{newFeed(t, whole), newFeed(t, part)}
	both := func(entries ...*millrace.Entry) {
		t.Helper()
		for i, f := range feeds {
			if err := f.unit(entries...); err != nil {
				t.Fatalf("store %d: %v", i, err)
			}
		}
	}
	var tables []zoned
	load := millrace.LoadID(0)
	for i, name := range []string{"a", "b", "c"} {
		z := zoned{tableFeed{t, zonedSchema(millrace.TableID(i+1), millrace.SchemaVersion(i+1), name)}}
		load++
		both(z.describe(), z.control(millrace.KindLoadBegin, load), z.control(millrace.KindLoadEnd, load))
		tables = append(tables, z)
	}
	type place struct {
		table    millrace.TableID
		zone, id int
	}
	rows, loads := make(map[place]bool), make(map[millrace.TableID]millrace.LoadID)
	for range 300 {
		var unit []*millrace.Entry
		for range 1 + r.IntN(5) {
			z := tables[r.IntN(len(tables))]
			p := place{z.schema.Table, r.IntN(5), r.IntN(4)}
			size := 20
			if r.IntN(8) == 0 {
				size = 9000
			}
			note, big := strconv.Itoa(r.IntN(1000)), strings.Repeat("v", r.IntN(size))
			switch n := r.IntN(20); {
			case n < 5 && rows[p]:
				unit = append(unit, z.unset(p.zone, p.id))
				delete(rows, p)
			case n < 7 && rows[p]:
				unit = append(unit, z.set(p.zone, p.id, note, unchanged))
			case n == 8:
				unit = append(unit, &millrace.Entry{Kind: millrace.KindTruncate, Table: p.table})
				for q := range rows {
					if q.table == p.table {
						delete(rows, q)
					}
				}
			case n == 9 && loads[p.table] == 0:
				load++
				loads[p.table] = load
				unit = append(unit, z.control(millrace.KindLoadBegin, load))
				for q := range rows {
					if q.table == p.table {
						e := z.set(q.zone, q.id, "loaded", "x")
						e.Load = load
						unit = append(unit, e)
					}
				}
			case n == 10 && loads[p.table] != 0:
				unit = append(unit, z.control(millrace.KindLoadEnd, loads[p.table]))
				delete(loads, p.table)
			default:
				unit = append(unit, z.set(p.zone, p.id, note, big))
				rows[p] = true
			}
		}
		both(unit...)
		if r.IntN(20) == 0 {
			for _, f := range feeds {
				f.sweep()
			}
		}
	}
	for _, z := range tables {
		name := z.schema.QualifiedName()
		for zone := range 5 {
			for id := range 4 {
				want, wantErr := z.get(whole, zone, id)
				got, err := z.get(part, zone, id)
				held := name == "public.a" || name == "public.b" && (zone == 2 || zone == 3 && id == 1)
				switch {
				case !held && !errors.Is(err, ErrNotHeld):
					t.Errorf("%s %d,%d: %q, %v, and it is not held", name, zone, id, got, err)
				case held && (got != want || !errors.Is(err, wantErr)):
					t.Errorf("%s %d,%d: %q, %v, want %q, %v", name, zone, id, got, err, want, wantErr)
				}
			}
		}
	}
	if got, want := heldRows(t, part, "public.b", func(zone string) bool { return zone == "2" }), heldRows(t, whole, "public.b", func(zone string) bool { return zone == "2" }); !slices.Equal(got, want) {
		t.Errorf("rows under 2: %q, want %q", got, want)
	}
}

// TestPartialReads: no read of what is not held says that there is nothing.
func TestPartialReads(t *testing.T) {
	filter := filterOf(t, nil, map[string][][]string{"public.b": {{"2"}}})
	s := openStore(t, t.TempDir(), withFilter(filter), func(o *Options) {
		o.Indexes = map[string][][]string{"public.b": {{"zone", "note"}, {"note"}}}
	})
	f := newFeed(t, s)
	b := zoned{tableFeed{t, zonedSchema(2, 2, "b")}}
	f.must(b.describe(), b.control(millrace.KindLoadBegin, 1), b.control(millrace.KindLoadEnd, 1))
	c := zoned{tableFeed{t, zonedSchema(3, 3, "c")}}
	f.must(c.describe(), c.control(millrace.KindLoadBegin, 2), c.set(1, 1, "x", "y"), c.control(millrace.KindLoadEnd, 2))
	f.must(b.set(2, 1, "n", "x"), b.set(1, 1, "n", "x"))
	f.sweep()
	one := b.key(2, 1)
	zone := func(n int) []byte { return b.key(n, 0)[:8] }
	none := func([]byte, *Row) error { return nil }
	err := s.View(t.Context(), func(v *View) error {
		table, err := v.Table("public.b")
		if err != nil {
			return err
		}
		var row Row
		by := func(columns ...string) *Index {
			ix, err := table.Index(columns...)
			if err != nil {
				t.Fatal(err)
			}
			return ix
		}
		prefix := func(ix *Index, texts ...string) Range {
			values := make([]millrace.Datum, len(texts))
			for i := range texts {
				values[i] = text(texts[i])
			}
			p, err := ix.Codec().Append(nil, values)
			if err != nil {
				t.Fatal(err)
			}
			return Range{Prefix: p}
		}
		zoned, noted := by("zone", "note"), by("note")
		_, tableC := v.Table("public.c")
		_, unknown := v.Table("public.unknown")
		for what, e := range map[string]struct {
			err  error
			held bool
		}{
			"a row":                    {table.Get(one, &row), true},
			"a row elsewhere":          {table.Get(b.key(1, 1), &row), false},
			"no row there":             {table.Get(b.key(9, 9), &row), false},
			"a scan":                   {table.Scan(zone(2), nil, 0, none), true},
			"a scan within":            {table.Scan(one, nil, 0, none), true},
			"a scan elsewhere":         {table.Scan(zone(3), nil, 0, none), false},
			"a scan of all":            {table.Scan(nil, nil, 0, none), false},
			"a range":                  {table.ScanRange(Range{Prefix: zone(2)}, 0, none), true},
			"a range in bounds":        {table.ScanRange(Range{From: zone(2), To: zone(3)}, 0, none), true},
			"a range beyond":           {table.ScanRange(Range{From: zone(2)}, 0, none), false},
			"a range from before":      {table.ScanRange(Range{From: zone(1), To: zone(3), Descending: true}, 0, none), false},
			"an index":                 {zoned.Scan(prefix(zoned, "2", "n"), 0, none), true},
			"an index elsewhere":       {zoned.Scan(prefix(zoned, "1"), 0, none), false},
			"an index as a whole":      {zoned.Scan(Range{}, 0, none), false},
			"an index without the key": {noted.Scan(prefix(noted, "n"), 0, none), false},
			"another table":            {tableC, false},
			"no table":                 {unknown, false},
		} {
			if e.held && e.err != nil || !e.held && !errors.Is(e.err, ErrNotHeld) {
				t.Errorf("%s: %v", what, e.err)
			}
		}
		all, err := v.Tables()
		if err != nil {
			return err
		}
		if len(all) != 1 || all[0].Rows != 1 || fmt.Sprint(all[0].Prefixes) != "[2]" {
			t.Errorf("tables are %+v", all)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestPartialNarrower: a filter that holds less removes the rest in slices, over a
// restart; one that holds more is refused.
func TestPartialNarrower(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	f := newFeed(t, s)
	var tables []zoned
	for i, name := range []string{"a", "b"} {
		z := zoned{tableFeed{t, zonedSchema(millrace.TableID(i+1), millrace.SchemaVersion(i+1), name)}}
		load := millrace.LoadID(i + 1)
		f.must(z.describe(), z.control(millrace.KindLoadBegin, load), z.control(millrace.KindLoadEnd, load))
		var unit []*millrace.Entry
		for zone := range 3 {
			for id := range 100 {
				unit = append(unit, z.set(zone, id, "n", strings.Repeat("v", 40*id)))
			}
		}
		f.must(unit...)
		tables = append(tables, z)
	}
	want := heldRows(t, s, "public.b", func(zone string) bool { return zone == "1" })
	f.w.Close()
	closeStore(t, s)

	filter := filterOf(t, nil, map[string][][]string{"public.b": {{"1"}}})
	small := func(o *Options) { o.Filter, o.slice = filter, 7 }
	s = openStore(t, dir, small)
	if _, err := tables[1].get(s, 0, 1); !errors.Is(err, ErrNotHeld) {
		t.Errorf("a row that is not removed yet: %v", err)
	}
	if _, err := tables[0].get(s, 0, 1); !errors.Is(err, ErrNotHeld) {
		t.Errorf("a row of a table that is not held any more: %v", err)
	}
	f = newFeed(t, s)
	for range 3 {
		if _, err := f.w.Chore(); err != nil {
			t.Fatal(err)
		}
	}
	f.must(tables[1].unset(0, 99), tables[1].set(1, 5, "changed", "x"), tables[1].set(2, 5, "changed", "x"))
	f.w.Close()
	closeStore(t, s)
	s = openStore(t, dir, small)
	f = newFeed(t, s)
	f.sweep()
	got := heldRows(t, s, "public.b", nil)
	want[5] = "1=5,changed,x"
	if !slices.Equal(got, want) {
		t.Errorf("rows are %q\nwant %q", got, want)
	}
	if err := s.View(t.Context(), func(v *View) error {
		if v.cat.narrowing != nil {
			t.Error("it still removes rows")
		}
		all, err := v.Tables()
		if len(all) != 1 || all[0].Rows != 100 {
			t.Errorf("tables are %+v", all)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	f.w.Close()
	closeStore(t, s)
	for name, wider := range map[string]*millrace.Filter{
		"everything":     new(millrace.Filter),
		"the table":      filterOf(t, []string{"public.b"}, nil),
		"another prefix": filterOf(t, nil, map[string][][]string{"public.b": {{"1"}, {"2"}}}),
	} {
		if s, err := Open(Options{Dir: dir, Filter: wider}); !errors.Is(err, ErrWider) || !millrace.NeedsOperator(err) {
			t.Errorf("%s: %v", name, err)
			if err == nil {
				closeStore(t, s)
			}
		}
	}
	bad := filterOf(t, nil, map[string][][]string{"public.b": {{"1", "north"}}})
	if s, err := Open(Options{Dir: dir, Filter: bad}); !errors.Is(err, millrace.ErrPrefix) {
		t.Errorf("a prefix that is no key: %v", err)
		if err == nil {
			closeStore(t, s)
		}
	}
	// Who only reads, or asks for nothing, takes what is there.
	s = openStore(t, dir)
	if !s.Filter().Equal(filter) {
		t.Errorf("it holds %v", s.Filter())
	}
}

// TestPartialRenames: a table that comes to be called what is held has no rows here
// until it is loaded, and one that is called otherwise goes.
func TestPartialRenames(t *testing.T) {
	s := openStore(t, t.TempDir(), withFilter(filterOf(t, []string{"public.a"}, map[string][][]string{"public.b": {{"1"}}})))
	f := newFeed(t, s)
	z := zoned{tableFeed{t, zonedSchema(1, 1, "z")}}
	f.must(z.describe(), z.control(millrace.KindLoadBegin, 1), z.set(1, 1, "n", "x"), z.control(millrace.KindLoadEnd, 1))
	rename := func(version millrace.SchemaVersion, name string) {
		z.schema = zonedSchema(1, version, name)
		f.must(z.describe())
	}
	rename(2, "a")
	f.must(z.set(1, 2, "n", "x"), z.unset(1, 1))
	if _, err := z.get(s, 1, 2); !errors.Is(err, ErrNotHeld) || !strings.Contains(err.Error(), "millrace load public.a") {
		t.Errorf("a table without its rows: %v", err)
	}
	f.must(z.control(millrace.KindLoadBegin, 2))
	load := z.set(1, 2, "n", "x")
	load.Load = 2
	f.must(load, z.set(2, 2, "n", "x"), z.control(millrace.KindLoadEnd, 2))
	if got := heldRows(t, s, "public.a", nil); len(got) != 2 {
		t.Errorf("after its load: %q", got)
	}
	rename(3, "b")
	f.sweep()
	if got := heldRows(t, s, "public.b", nil); !slices.Equal(got, []string{"1=2,n,x"}) {
		t.Errorf("called what is held by prefixes: %q", got)
	}
	rename(4, "a")
	if _, err := z.get(s, 1, 2); !errors.Is(err, ErrNotHeld) {
		t.Errorf("called what is held wholly: %v", err)
	}
	rename(5, "z")
	f.must(z.set(1, 3, "n", "x"))
	if _, err := z.get(s, 1, 3); !errors.Is(err, ErrNotHeld) {
		t.Errorf("called what is not held: %v", err)
	}
}

// TestPartialMovedRow: a row that comes from a key which is not held, without columns
// that did not change, is neither shown wrong nor shown as absent.
func TestPartialMovedRow(t *testing.T) {
	s := openStore(t, t.TempDir(), withFilter(filterOf(t, nil, map[string][][]string{"public.b": {{"1"}}})))
	f := newFeed(t, s)
	z := zoned{tableFeed{t, zonedSchema(1, 1, "b")}}
	f.must(z.describe(), z.control(millrace.KindLoadBegin, 1), z.set(2, 7, "n", "big"), z.set(1, 1, "n", "x"), z.control(millrace.KindLoadEnd, 1))
	moved := z.set(1, 7, "n", unchanged)
	moved.From = z.key(2, 7)
	f.must(moved, z.unset(2, 7))
	f.must(z.set(1, 7, "again", unchanged))
	if _, err := z.get(s, 1, 7); !errors.Is(err, ErrNotHeld) || errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "millrace load public.b") {
		t.Errorf("a row that lacks a column: %v", err)
	}
	if got, err := z.get(s, 1, 1); got != "1=1,n,x" {
		t.Errorf("another row: %q, %v", got, err)
	}
	if err := s.View(t.Context(), func(v *View) error {
		all, err := v.Tables()
		if len(all) != 1 || !strings.Contains(all[0].Diverged, "1,7") {
			t.Errorf("tables are %+v", all)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(t.Context()); err != nil {
		t.Error(err)
	}
	// While it is loaded, too.
	one, seven := z.set(1, 1, "n", "x"), z.set(1, 7, "again", "big")
	one.Load, seven.Load = 2, 2
	eight := z.set(1, 8, "n", unchanged)
	eight.From = z.key(2, 8)
	f.must(z.control(millrace.KindLoadBegin, 2), one, seven, eight, z.unset(2, 8), z.control(millrace.KindLoadEnd, 2))
	if got, err := z.get(s, 1, 7); got != "1=7,again,big" {
		t.Errorf("after the load: %q, %v", got, err)
	}
	if _, err := z.get(s, 1, 8); !errors.Is(err, ErrNotHeld) {
		t.Errorf("a row that moved during the load: %v", err)
	}
	f.must(z.set(1, 8, "n", "whole"))
	if got, err := z.get(s, 1, 8); got != "1=8,n,whole" {
		t.Errorf("after a change of all columns: %q, %v", got, err)
	}
	one.Load = 3
	f.must(z.control(millrace.KindLoadBegin, 3), one, z.control(millrace.KindLoadEnd, 3))
	f.sweep()
	if err := s.View(t.Context(), func(v *View) error {
		all, err := v.Tables()
		if len(all) != 1 || all[0].Diverged != "" {
			t.Errorf("tables are %+v", all)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// TestPartialVerify: ranges that are held are compared, others are skipped by name.
func TestPartialVerify(t *testing.T) {
	s := openStore(t, t.TempDir(), withFilter(filterOf(t, nil, map[string][][]string{"public.b": {{"1"}}})))
	f := newFeed(t, s)
	z := zoned{tableFeed{t, zonedSchema(1, 1, "b")}}
	f.must(z.describe(), z.control(millrace.KindLoadBegin, 1), z.set(2, 7, "n", "big"), z.set(1, 1, "n", "x"), z.control(millrace.KindLoadEnd, 1))
	plan := millrace.NewVerifyPlan(z.schema)
	verify := func(v millrace.VerifyRange) {
		var sum millrace.VerifySum
		for _, zone := range []int{1, 2} {
			key, columns := z.key(1, 1), []millrace.Datum{text("1"), text("1"), text("n"), text("x")}
			if zone == 2 {
				key, columns = z.key(2, 7), []millrace.Datum{text("2"), text("7"), text("n"), text("big")}
			}
			if v.Holds(key) {
				if err := sum.Add(plan, key, columns); err != nil {
					t.Fatal(err)
				}
			}
		}
		v.Rows, v.Hash = sum.Rows, sum.Sum()
		f.must(&millrace.Entry{Kind: millrace.KindVerify, Table: 1, Verify: &v, Last: true})
		settled(t, s)
	}
	verify(millrace.VerifyRange{ID: 1, Low: z.key(1, 0), High: z.key(1, 50)})
	verify(millrace.VerifyRange{ID: 1, Low: z.key(1, 50)})
	verify(millrace.VerifyRange{ID: 2, Buckets: 1})
	got := oneTable(t, s)
	if got.Equal != 1 || got.Different != 0 || got.Skipped != 2 || got.SkipReason != skipPartial {
		t.Errorf("verified: %+v", got)
	}
}

// TestPartialRestore: an edge that holds less takes what it holds of an image, one that
// holds more takes none.
func TestPartialRestore(t *testing.T) {
	source := openStore(t, t.TempDir(), withFilter(filterOf(t, []string{"public.a", "public.b"}, nil)))
	f := newFeed(t, source)
	for i, name := range []string{"a", "b", "c"} {
		z := zoned{tableFeed{t, zonedSchema(millrace.TableID(i+1), millrace.SchemaVersion(i+1), name)}}
		load := millrace.LoadID(i + 1)
		f.must(z.describe(), z.control(millrace.KindLoadBegin, load), z.set(1, 1, "n", "x"), z.set(2, 1, "n", strings.Repeat("v", 9000)), z.control(millrace.KindLoadEnd, load))
	}
	image := take(t, source)
	home := func(filter *millrace.Filter) *Home {
		h, err := OpenHome(Options{Dir: t.TempDir(), Stream: testStream, MapSize: 1 << 30, MaxDBs: 64, Filter: filter})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := h.Close(); err != nil {
				t.Error(err)
			}
		})
		return h
	}
	filter := filterOf(t, nil, map[string][][]string{"public.b": {{"2"}}})
	h := home(filter)
	r, err := h.Restore(t.Context(), image.contents, image.fill, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Switch(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !h.Filter().Equal(filter) {
		t.Errorf("it holds %v", h.Filter())
	}
	if got := heldRows(t, h.Store(), "public.b", nil); len(got) != 1 || !strings.HasPrefix(got[0], "2=1,n,vvv") {
		t.Errorf("rows are %.40q", got)
	}
	if u := h.Unproven(); len(u.Tables) != 1 || u.Tables[0] != 2 {
		t.Errorf("not proven: %+v", u)
	}
	for name, filter := range map[string]*millrace.Filter{"everything": nil, "another table": filterOf(t, []string{"public.a", "public.c"}, nil)} {
		if _, err := home(filter).Restore(t.Context(), image.contents, image.fill, nil); !errors.Is(err, ErrWider) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPartialEpoch: the store of a new epoch holds what the one before does, whatever the
// home was opened with, and readers go over when what they hold is copied.
func TestPartialEpoch(t *testing.T) {
	filter := filterOf(t, []string{"public.a"}, nil)
	o := Options{Dir: t.TempDir(), Stream: testStream, MapSize: 1 << 30, MaxDBs: 64, Filter: filter}
	open := func() *Home {
		h, err := OpenHome(o)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	h := open()
	c := newCopy(t, h.Store(), 1)
	c.begin()
	c.rows()
	if ok, err := h.Store().Copied(t.Context()); ok || err != nil {
		t.Errorf("copied before the loads have ended: %v, %v", ok, err)
	}
	c.end()
	c.w.Close()
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	o.Filter = nil
	h = open()
	next, err := h.Next(2)
	if err != nil {
		t.Fatal(err)
	}
	if !next.Filter().Equal(filter) {
		t.Errorf("the next store holds %v", next.Filter())
	}
	c = newCopy(t, next, 2)
	c.begin()
	c.rows()
	c.end()
	if ok, err := next.Copied(t.Context()); !ok || err != nil {
		t.Errorf("not copied: %v, %v", ok, err)
	}
	c.w.Close()
	if err := h.Switch(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := heldRows(t, h.Store(), "public.a", nil); len(got) != homeRows || h.Place().Epoch != 2 {
		t.Errorf("%d rows at epoch %v", len(got), h.Place().Epoch)
	}
	if _, err := h.Compact(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := h.SwitchCompacted(); err != nil {
		t.Fatal(err)
	}
	if got := heldRows(t, h.Store(), "public.a", nil); len(got) != homeRows || !h.Filter().Equal(filter) {
		t.Errorf("compacted it has %d rows and holds %v", len(got), h.Filter())
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestPartialHandover: a process that is to take a home over is refused for what it wants
// to hold before the other has given it up, and holds less once it has taken it.
func TestPartialHandover(t *testing.T) {
	o := Options{Dir: t.TempDir(), Stream: testStream, MapSize: 1 << 30, MaxDBs: 64, Filter: filterOf(t, []string{"public.a", "public.b"}, nil)}
	h, err := OpenHome(o)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, h.Store(), 1)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	for _, wider := range []*millrace.Filter{new(millrace.Filter), filterOf(t, []string{"public.a", "public.c"}, nil)} {
		o.Filter = wider
		if _, err := OpenHomeStandby(o); !errors.Is(err, ErrWider) {
			t.Errorf("holding %v: %v", wider, err)
		}
	}
	o.Filter = filterOf(t, []string{"public.b"}, nil)
	if h, err = OpenHomeStandby(o); err != nil {
		t.Fatal(err)
	}
	if got := heldRows(t, h.Store(), "public.a", nil); len(got) != homeRows {
		t.Errorf("%d rows before it is taken over", len(got))
	}
	if err := h.TakeOver(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !h.Filter().Equal(o.Filter) {
		t.Errorf("it holds %v", h.Filter())
	}
	if err := h.View(t.Context(), func(v *View) error { _, err := v.Table("public.a"); return err }); !errors.Is(err, ErrNotHeld) {
		t.Errorf("what is not held any more: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
}
