package edge

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/millrace-db/millrace"
)

// What does not fit the rows that are here stops with a name, and leaves the
// store as it was.
func TestInconsistentChanges(t *testing.T) {
	s := openStore(t, t.TempDir())
	f := newFeed(t, s)
	tf := f.loaded(testSchema(1, 1, "t", oidInt8, "note", "big"))
	other := tableFeed{t, testSchema(2, 2, "u", oidInt8, "note", "big")}
	f.must(tf.put("1", "a", "b"), other.describe())
	for _, c := range []struct {
		name    string
		entries []*millrace.Entry
		want    error
		says    string
	}{
		{"delete of an absent row", []*millrace.Entry{tf.delete("2")}, ErrInconsistent, "key 2"},
		{"delete of a deleted row", []*millrace.Entry{tf.delete("1"), tf.delete("1")}, ErrInconsistent, "key 1"},
		{"delete of an absent row that is put again", []*millrace.Entry{tf.delete("2"), tf.put("2", "a", "b")}, ErrInconsistent, "key 2"},
		{"unchanged column of an absent row", []*millrace.Entry{tf.put("2", "a", unchanged)}, ErrInconsistent, "key 2"},
		{"unchanged column of a deleted row", []*millrace.Entry{tf.delete("1"), tf.put("1", "a", unchanged)}, ErrInconsistent, "key 1"},
		{"move from an absent row", []*millrace.Entry{tf.move("7", "2", "a", unchanged)}, ErrInconsistent, "key 7"},
		{"row of no load", []*millrace.Entry{tf.load(9, "2", "a", "b")}, ErrInconsistent, "load 9"},
		{"end of no load", []*millrace.Entry{tf.control(millrace.KindLoadEnd, 9)}, ErrInconsistent, "load 9"},
		{"table that was not loaded", []*millrace.Entry{other.put("1", "a", "b")}, ErrInconsistent, "public.u"},
		{"unknown table", []*millrace.Entry{{Kind: millrace.KindTruncate, Table: 99}}, ErrInconsistent, "99"},
		{"schema twice", []*millrace.Entry{tf.describe()}, ErrInconsistent, "version 1"},
		{"unknown schema version", []*millrace.Entry{{Kind: millrace.KindPut, Table: 1, Key: []byte{1}, Row: encodeRow(9, "1")}}, millrace.ErrMalformed, "9"},
		{"too few columns", []*millrace.Entry{{Kind: millrace.KindPut, Table: 1, Key: []byte{1}, Row: encodeRow(1, "1")}}, millrace.ErrMalformed, "1 columns"},
		{"load that ends with a row that lacks a column", []*millrace.Entry{
			tf.control(millrace.KindLoadBegin, 9), tf.put("1", "a", unchanged), tf.control(millrace.KindLoadEnd, 9),
		}, ErrInconsistent, "lack"},
	} {
		index := f.index
		err := f.unit(c.entries...)
		f.w.Abort()
		f.index, f.loads = index, map[millrace.TableID]millrace.LoadID{}
		if !errors.Is(err, c.want) || !millrace.NeedsOperator(err) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %v that says %q", c.name, err, c.want, c.says)
		}
		if got := dump(t, s, "public.t"); got != "1=a,b" {
			t.Errorf("%s: rows are %q", c.name, got)
		}
	}
	// Trigger mode deletes keys that came and went within one window.
	if err := f.w.Begin(); err != nil {
		t.Fatal(err)
	}
	if err := f.w.Apply(tf.delete("2"), millrace.ModeTrigger); err != nil {
		t.Fatal(err)
	}
	if err := f.w.Commit(f.checkpoint()); err != nil {
		t.Errorf("delete of an absent row in trigger mode: %v", err)
	}
}

// Columns that did not change are found by name where the table was altered
// since the row was written.
func TestUnchangedAcrossSchemas(t *testing.T) {
	s := openStore(t, t.TempDir())
	f := newFeed(t, s)
	tf := f.loaded(testSchema(1, 1, "t", oidInt8, "note", "gone", "big"))
	f.must(tf.put("1", "a", "x", "B"), tf.put("2", "a", "x", "C"))
	tf.schema = testSchema(1, 2, "t", oidInt8, "big", "note")
	f.must(tf.describe(), tf.put("1", unchanged, "new"), tf.move("2", "3", unchanged, "moved"), tf.delete("2"))
	if got, want := dump(t, s, "public.t"), "1=B,new 3=C,moved"; got != want {
		t.Errorf("rows are %q, want %q", got, want)
	}
	tf.schema = testSchema(1, 3, "t", oidInt8, "big", "note", "added")
	err := f.unit(tf.describe(), tf.put("1", unchanged, "x", unchanged))
	if !errors.Is(err, ErrInconsistent) || !strings.Contains(err.Error(), "added") {
		t.Errorf("unchanged column that the row does not have: %v", err)
	}
}

func TestQuarantineAndRename(t *testing.T) {
	s := openStore(t, t.TempDir())
	f := newFeed(t, s)
	tf := f.loaded(testSchema(1, 1, "t", oidInt8, "note"))
	info := func() (all []TableInfo) {
		t.Helper()
		if err := s.View(context.Background(), func(v *View) (err error) { all, err = v.Tables(); return err }); err != nil {
			t.Fatal(err)
		}
		return all
	}
	f.must(tf.put("1", "a"), &millrace.Entry{Kind: millrace.KindQuarantine, Table: 1, Quarantine: &millrace.Quarantined{Kind: millrace.KindPut, Reason: "too large"}},
		&millrace.Entry{Kind: millrace.KindHeartbeat}, &millrace.Entry{Kind: millrace.KindMessage, Message: &millrace.LogicalMessage{Prefix: "x"}})
	if got := info(); len(got) != 1 || got[0].Rows != 1 || !strings.Contains(got[0].Diverged, "too large") {
		t.Errorf("tables are %+v", got)
	}
	tf.schema = testSchema(1, 2, "renamed", oidInt8, "note")
	f.must(tf.describe())
	f.must(tf.control(millrace.KindLoadBegin, 8), tf.load(8, "5", "b"))
	if got := info(); len(got) != 1 || got[0].Name != "public.renamed" || !got[0].Loading || got[0].Rows != 1 || got[0].Diverged == "" {
		t.Errorf("tables are %+v", got)
	}
	f.must(tf.control(millrace.KindLoadEnd, 8))
	if got := fmt.Sprint(info()); got != "[{public.renamed 1 1 false  [] []}]" {
		t.Errorf("tables are %v", got)
	}
	f.sweep()
	if f.w.HasChores() {
		t.Error("garbage is left after a sweep")
	}
}

// While a table is loaded again, rows that the live generation does not have as
// the source has them are no fault: it goes on showing what it showed.
func TestTransition(t *testing.T) {
	s := openStore(t, t.TempDir())
	f := newFeed(t, s)
	schema := func(version millrace.SchemaVersion, columns ...string) *millrace.Schema {
		s := testSchema(1, version, "t", oidInt8, columns...)
		s.Columns[0].Number = 1
		return s
	}
	numbered := func(s *millrace.Schema, numbers ...uint32) *millrace.Schema {
		for i, n := range numbers {
			s.Columns[i+1].Number = n
		}
		return s
	}
	tf := f.loaded(numbered(schema(1, "note", "big"), 2, 3))
	f.must(tf.put("1", "a", "b"), tf.put("2", "c", "d"))
	// Renamed, and without a load: completed by number.
	tf.schema = numbered(schema(2, "note", "large"), 2, 3)
	f.must(tf.describe(), tf.put("1", "a2", unchanged))
	// A column came with values that were never sent.
	tf.schema = numbered(schema(3, "note", "large", "filled"), 2, 3, 4)
	strict := []*millrace.Entry{tf.put("2", "x", unchanged, unchanged)}
	index := f.index
	if err := f.unit(append([]*millrace.Entry{tf.describe()}, strict...)...); !errors.Is(err, ErrInconsistent) {
		t.Fatalf("before a load began: %v, want ErrInconsistent", err)
	}
	f.index = index
	f.must(tf.describe(), tf.put("1", "a3", unchanged, "new"), tf.control(millrace.KindLoadBegin, 9),
		tf.put("2", "c2", unchanged, unchanged), // null, as readers have seen it
		tf.put("7", "z", unchanged, "n"),        // of a row that was never sent
		tf.delete("8"), tf.move("9", "10", "z", unchanged, "n"), tf.delete("9"),
		tf.delete("7"), tf.put("7", "y", unchanged, "n"), tf.put("11", "new", "row", "v"), tf.put("11", "newer", unchanged, "v"))
	if got, want := dump(t, s, "public.t"), "1=a3,b,new 2=c2,d,NULL 11=newer,row,v"; got != want {
		t.Errorf("rows are %q, want %q", got, want)
	}
	if err := f.unit(tf.control(millrace.KindLoadEnd, 9)); !errors.Is(err, ErrInconsistent) {
		t.Errorf("end of the load while rows lack columns: %v", err)
	}
	f.index, f.loads[1] = s.Index(), 9
	f.must(tf.load(9, "1", "a3", "b", "new"), tf.load(9, "2", "c2", "d", "filled"), tf.load(9, "7", "y", "Z", "n"), tf.load(9, "10", "z", "Z", "n"))
	// What came before the load's end is judged as it was when it came.
	f.must(tf.delete("8"), tf.control(millrace.KindLoadEnd, 9))
	if got, want := dump(t, s, "public.t"), "1=a3,b,new 2=c2,d,filled 7=y,Z,n 10=z,Z,n 11=newer,row,v"; got != want {
		t.Errorf("rows are %q, want %q", got, want)
	}
	if err := f.unit(tf.delete("8")); !errors.Is(err, ErrInconsistent) {
		t.Errorf("delete of an absent row after the load: %v", err)
	}
}

// A table that leaves the stream is gone with all that belongs to it, and may
// come back under its ID.
func TestDrop(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	f := newFeed(t, s)
	tf, other := f.loaded(testSchema(1, 1, "t", oidInt8, "note", "big")), f.loaded(testSchema(2, 2, "other", oidInt8, "note"))
	f.must(tf.put("1", "a", "b"), other.put("7", "kept"))
	tf.schema = testSchema(1, 3, "t", oidInt8, "note", "big")
	f.must(tf.describe(), tf.control(millrace.KindLoadBegin, 9), &millrace.Entry{Kind: millrace.KindLoadProgress, Table: 1, Load: 9, LoadInfo: &millrace.LoadInfo{Added: []byte("x")}},
		tf.put("1", "lacks", unchanged), &millrace.Entry{Kind: millrace.KindQuarantine, Table: 1, Quarantine: &millrace.Quarantined{Kind: millrace.KindPut, Reason: "too large"}})
	index := f.index
	// Given up, it leaves nothing behind.
	if err := f.apply(tf.put("3", "x", "y"), tf.control(millrace.KindDrop, 0)); err != nil {
		t.Fatal(err)
	}
	f.w.Abort()
	f.index, f.loads[1] = index, 9
	f.must(tf.put("3", "x", "y"))
	if got := dump(t, s, "public.t"); got != "1=lacks,b 3=x,y" {
		t.Fatalf("rows are %q", got)
	}
	f.must(tf.put("4", "x", "y"), tf.control(millrace.KindDrop, 0), other.put("8", "kept"))
	err := s.View(context.Background(), func(v *View) error { _, err := v.Table("public.t"); return err })
	if !errors.Is(err, ErrNoTable) {
		t.Errorf("after the drop: %v, want ErrNoTable", err)
	}
	if got := dump(t, s, "public.other"); got != "7=kept 8=kept" {
		t.Errorf("rows of the other table are %q", got)
	}
	for _, e := range []*millrace.Entry{tf.control(millrace.KindDrop, 0), tf.put("5", "x", "y"), tf.control(millrace.KindTruncate, 0), tf.control(millrace.KindLoadBegin, 10)} {
		if err := f.unit(e); !errors.Is(err, ErrInconsistent) {
			t.Errorf("%v entry of a table that is gone: %v, want ErrInconsistent", e.Kind, err)
		}
		f.index = s.Index()
	}
	f.w.Close()
	closeStore(t, s)
	s = openStore(t, dir)
	f = newFeed(t, s)
	var c *millrace.Checkpoint
	err = s.View(context.Background(), func(v *View) (err error) { c, err = v.Checkpoint(); return err })
	if err != nil || len(c.Catalog.Schemas) != 1 || c.Catalog.Schemas[0].Table != 2 {
		t.Errorf("checkpoint has schemas %v, %v", c.Catalog.Schemas, err)
	}
	tf = f.loaded(testSchema(1, 11, "t", oidInt8, "note"))
	f.must(tf.put("1", "back"))
	if got := dump(t, s, "public.t"); got != "1=back" {
		t.Errorf("rows of the table that came back are %q", got)
	}
	f.sweep()
	if f.w.HasChores() {
		t.Error("garbage is left after a sweep")
	}
}

// Databases are used again, so loads and truncates do not use up the limit; what
// is over the limit is refused by name, and the store goes on.
func TestDatabaseLimit(t *testing.T) {
	s := openStore(t, t.TempDir(), func(o *Options) { o.MaxDBs = 4 })
	f := newFeed(t, s)
	tf := f.loaded(testSchema(1, 1, "t", oidInt8, "note"))
	for i := range 20 {
		f.must(tf.put(fmt.Sprint(i), "a"), tf.control(millrace.KindTruncate, 0), tf.put("1", "kept"))
		f.sweep()
	}
	var truncates []*millrace.Entry
	for range 5 {
		truncates = append(truncates, tf.control(millrace.KindTruncate, 0))
	}
	index := f.index
	if err := f.unit(truncates...); !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "generations") {
		t.Errorf("more databases than allowed: %v, want ErrFull", err)
	}
	f.index = index
	f.must(tf.put("2", "b"))
	if got := dump(t, s, "public.t"); got != "1=kept 2=b" {
		t.Errorf("rows are %q", got)
	}
}

// A full map stops applying and nothing else.
func TestFullMap(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, func(o *Options) { o.MapSize = 1 << 20 })
	f := newFeed(t, s)
	tf := f.loaded(testSchema(1, 1, "t", oidInt8, "note"))
	var err error
	n := 0
	for ; err == nil && n < 1000; n++ {
		err = f.unit(tf.put(fmt.Sprint(n), strings.Repeat("x", 10_000)))
	}
	if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "map_size") || millrace.NeedsOperator(err) {
		t.Fatalf("error after %d rows: %v, want ErrFull", n, err)
	}
	if got := strings.Count(dump(t, s, "public.t"), "="); got != n-1 {
		t.Errorf("store has %d rows, want %d", got, n-1)
	}
	f.w.Close()
	closeStore(t, s)
	s = openStore(t, dir, func(o *Options) { o.MapSize = 1 << 24 })
	f = newFeed(t, s)
	f.must(tf.put("5000", "fits"))
}
