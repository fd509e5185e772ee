package edge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/bmatsuo/lmdb-go/lmdb"

	"github.com/millrace-db/millrace"
)

// inIndex reads an index of public.t and returns the IDs of its rows.
func inIndex(s *Store, limit int, r func(*millrace.IndexCodec) (Range, error), columns ...string) (ids []string, err error) {
	err = s.View(context.Background(), func(v *View) error {
		table, err := v.Table("public.t")
		if err != nil {
			return err
		}
		ix, err := table.Index(columns...)
		if err != nil {
			return err
		}
		var bounds Range
		if r != nil {
			if bounds, err = r(ix.Codec()); err != nil {
				return err
			}
		}
		return ix.Scan(bounds, limit, func(_ []byte, row *Row) error {
			ids = append(ids, string(row.Columns[0].Text))
			return nil
		})
	})
	return ids, err
}

func wantInIndex(t testing.TB, s *Store, want string, limit int, r func(*millrace.IndexCodec) (Range, error), columns ...string) {
	t.Helper()
	ids, err := inIndex(s, limit, r, columns...)
	if got := strings.Join(ids, " "); err != nil || got != want {
		t.Errorf("index %v gives %q, %v, want %q", columns, got, err, want)
	}
}

func text(s string) millrace.Datum {
	if s == "NULL" {
		return millrace.Datum{State: millrace.ColumnNull}
	}
	return millrace.Datum{Text: []byte(s)}
}

func prefixed(values ...string) func(*millrace.IndexCodec) (Range, error) {
	return func(k *millrace.IndexCodec) (r Range, err error) {
		list := make([]millrace.Datum, len(values))
		for i := range values {
			list[i] = text(values[i])
		}
		r.Prefix, err = k.Append(nil, list)
		return r, err
	}
}

func between(from, to string) func(*millrace.IndexCodec) (Range, error) {
	return func(k *millrace.IndexCodec) (r Range, err error) {
		var err2 error
		r.From, err = k.Append(nil, []millrace.Datum{text(from)})
		r.To, err2 = k.Append(nil, []millrace.Datum{text(to)})
		return r, errors.Join(err, err2)
	}
}

func TestIndex(t *testing.T) {
	s := openStore(t, t.TempDir(), func(o *Options) {
		o.Indexes = map[string][][]string{"public.t": {{"note"}, {"note", "big"}, {"id"}}}
	})
	f := newFeed(t, s)
	tf := f.loaded(testSchema(1, 1, "t", oidInt8, "note", "big"))
	f.must(tf.put("1", "b", "x"), tf.put("2", "a", "y"), tf.put("3", "NULL", "x"), tf.put("4", "b", "NULL"), tf.put("-5", "b", "a"), tf.put("6", "ab", "z"))
	check := func() {
		t.Helper()
		wantInIndex(t, s, "2 6 -5 1 4 3", 0, nil, "note")
		wantInIndex(t, s, "2 6 -5 1 4 3", 0, nil, "note", "big")
		wantInIndex(t, s, "-5 1 2 3 4 6", 0, nil, "id")
		wantInIndex(t, s, "-5 1 4", 0, prefixed("b"), "note")
		wantInIndex(t, s, "-5 1", 2, prefixed("b"), "note")
		wantInIndex(t, s, "3", 0, prefixed("NULL"), "note")
		wantInIndex(t, s, "1", 0, prefixed("b", "x"), "note", "big")
		wantInIndex(t, s, "4", 0, prefixed("b", "NULL"), "note", "big")
		wantInIndex(t, s, "", 0, prefixed("c"), "note")
		wantInIndex(t, s, "6 -5 1 4", 0, between("ab", "c"), "note")
		wantInIndex(t, s, "2 6", 0, between("", "b"), "note")
		wantInIndex(t, s, "-5 1 4 3", 0, func(k *millrace.IndexCodec) (r Range, err error) {
			r.From, err = k.Append(nil, []millrace.Datum{text("b")})
			return r, err
		}, "note")
		wantInIndex(t, s, "2 6", 0, func(k *millrace.IndexCodec) (r Range, err error) {
			r.Prefix, err = k.AppendPartial(nil, nil, []byte("a"))
			return r, err
		}, "note")
	}
	check()
	down := func(r func(*millrace.IndexCodec) (Range, error)) func(*millrace.IndexCodec) (Range, error) {
		return func(k *millrace.IndexCodec) (bounds Range, err error) {
			if r != nil {
				bounds, err = r(k)
			}
			bounds.Descending = true
			return bounds, err
		}
	}
	wantInIndex(t, s, "3 4 1 -5 6 2", 0, down(nil), "note")
	wantInIndex(t, s, "4 1 -5", 0, down(prefixed("b")), "note")
	wantInIndex(t, s, "4 1", 2, down(prefixed("b")), "note")
	wantInIndex(t, s, "4 1 -5 6", 0, down(between("ab", "c")), "note")
	wantInIndex(t, s, "6 2", 0, down(between("", "b")), "note")
	wantInIndex(t, s, "3", 0, down(prefixed("NULL")), "note")
	wantInIndex(t, s, "", 0, down(prefixed("c")), "note")
	// Page by page, from the key of the last row on.
	var pages []string
	var after []byte
	for range 4 {
		err := s.View(context.Background(), func(v *View) error {
			table, err := v.Table("public.t")
			if err != nil {
				return err
			}
			ix, err := table.Index("note")
			if err != nil {
				return err
			}
			return ix.Scan(Range{After: after}, 2, func(key []byte, row *Row) error {
				after = bytes.Clone(key)
				pages = append(pages, string(row.Columns[0].Text))
				return nil
			})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := strings.Join(pages, " "); got != "2 6 -5 1 4 3" {
		t.Errorf("pages give %q", got)
	}
	// An index goes with its rows when a load ends and when a table is emptied.
	f.must(tf.control(millrace.KindLoadBegin, 9), tf.put("1", "b", unchanged), tf.load(9, "2", "a", "y"), tf.load(9, "3", "NULL", "x"))
	check()
	f.must(tf.load(9, "1", "b", "x"), tf.load(9, "4", "b", "NULL"), tf.load(9, "-5", "b", "a"), tf.load(9, "6", "ab", "z"), tf.control(millrace.KindLoadEnd, 9))
	check()
	f.must(tf.control(millrace.KindTruncate, 0), tf.put("7", "only", "x"))
	wantInIndex(t, s, "7", 0, nil, "note")
	f.must(tf.move("7", "8", "only", unchanged), tf.delete("7"), tf.put("8", "renamed", unchanged))
	wantInIndex(t, s, "8", 0, prefixed("renamed", "x"), "note", "big")
	wantInIndex(t, s, "", 0, prefixed("only"), "note")
	f.sweep()
	if _, err := inIndex(s, 0, nil, "big"); !errors.Is(err, ErrNoIndex) {
		t.Errorf("index that is not declared: %v", err)
	}
}

// pagesOfIndex reads the index over note page by page.
func pagesOfIndex(s *Store, r Range, size int) (ids []string, err error) {
	for n := size; n == size && err == nil; {
		n = 0
		err = s.View(context.Background(), func(v *View) error {
			table, err := v.Table("public.t")
			if err != nil {
				return err
			}
			ix, err := table.Index("note")
			if err != nil {
				return err
			}
			return ix.Scan(r, size, func(key []byte, row *Row) error {
				n++
				r.After = bytes.Clone(key)
				ids = append(ids, string(row.Columns[0].Text))
				return nil
			})
		})
	}
	return ids, err
}

// An index that is declared on a table with rows is built beside changes, and
// read only when it is whole; one that is no longer declared goes.
func TestIndexBuildsBesideChanges(t *testing.T) {
	seed := testSeed(t)
	rnd := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	s := openStore(t, dir, func(o *Options) { o.slice = 50 })
	f := newFeed(t, s)
	tf := f.loaded(testSchema(1, 1, "t", oidInt8, "note", "big"))
	const rows = 700
	want := map[string]string{}
	value := func() string { return [...]string{"a", "b", "NULL", strings.Repeat("c", 600)}[rnd.IntN(4)] }
	var unit []*millrace.Entry
	for i := range rows {
		id, note := strconv.Itoa(i), value()
		want[id] = note
		unit = append(unit, tf.put(id, note, strings.Repeat("v", 3000*(i%2))))
	}
	f.must(unit...)
	f.sweep()
	if err := s.DeclareIndexes(map[string][][]string{"public.t": {{"note"}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := inIndex(s, 0, nil, "note"); !errors.Is(err, ErrNoIndex) || !strings.Contains(err.Error(), "not been made") {
		t.Errorf("before it is built: %v", err)
	}
	steps := 0
	for more := true; more; steps++ {
		if rnd.IntN(6) == 0 { // a process may end and another one go on
			f.w.Close()
			closeStore(t, s)
			s = openStore(t, dir, func(o *Options) {
				o.slice, o.Indexes = 50, map[string][][]string{"public.t": {{"note"}}}
			})
			f = newFeed(t, s)
		}
		var err error
		if more, err = f.w.Chore(); err != nil {
			t.Fatal(err)
		}
		if _, err := inIndex(s, 0, nil, "note"); more && !errors.Is(err, ErrNoIndex) {
			t.Fatalf("after %d steps: %v, want ErrNoIndex", steps, err)
		}
		unit = unit[:0]
		for range 5 {
			id := strconv.Itoa(rnd.IntN(rows + 50))
			if _, ok := want[id]; ok && rnd.IntN(3) == 0 {
				delete(want, id)
				unit = append(unit, tf.delete(id))
				continue
			}
			want[id] = value()
			unit = append(unit, tf.put(id, want[id], "v"))
		}
		f.must(unit...)
		if err := s.Check(context.Background()); err != nil {
			t.Fatalf("after %d steps: %v", steps, err)
		}
	}
	if steps < rows/50 {
		t.Errorf("the index was built in %d steps", steps)
	}
	for _, note := range []string{"a", "b", "NULL", strings.Repeat("c", 600)} {
		ids, err := inIndex(s, 0, prefixed(note), "note")
		n := 0
		for id, v := range want {
			if v == note {
				n++
			}
			_ = id
		}
		if err != nil || len(ids) != n {
			t.Errorf("index gives %d rows of %.10q, %v, want %d", len(ids), note, err, n)
		}
		for _, id := range ids {
			if want[id] != note {
				t.Errorf("index gives row %s for %.10q", id, note)
			}
		}
	}
	// Both ways, and page by page in either, give the same.
	up, err := pagesOfIndex(s, Range{}, 7)
	if err != nil || len(up) != len(want) {
		t.Fatalf("pages give %d rows, %v, want %d", len(up), err, len(want))
	}
	back, err := pagesOfIndex(s, Range{Descending: true}, 7)
	slices.Reverse(back)
	if err != nil || !slices.Equal(up, back) {
		t.Errorf("pages the other way give %d rows, %v, not those of the one way", len(back), err)
	}
	if err := s.DeclareIndexes(nil); err != nil {
		t.Fatal(err)
	}
	f.sweep()
	if _, err := inIndex(s, 0, nil, "note"); !errors.Is(err, ErrNoIndex) || !strings.Contains(err.Error(), "none is declared") {
		t.Errorf("after it was dropped: %v", err)
	}
	cat := s.catalog.Load()
	if n := len(cat.withUsage(indexed)) + len(cat.withUsage(garbage)); n != 0 {
		t.Errorf("%d databases of the index are left", n)
	}
}

// What a new description of the table does to its indexes.
func TestIndexAndSchemas(t *testing.T) {
	s := openStore(t, t.TempDir(), func(o *Options) {
		o.Indexes = map[string][][]string{"public.t": {{"note"}, {"title"}, {"big"}}}
	})
	numbered := func(version millrace.SchemaVersion, columns ...string) *millrace.Schema {
		s := testSchema(1, version, "t", oidInt8, columns...)
		for i := range s.Columns {
			s.Columns[i].Number = uint32(i + 1)
		}
		return s
	}
	f := newFeed(t, s)
	tf := f.loaded(numbered(1, "note", "big"))
	f.must(tf.put("1", "b", "7"), tf.put("2", "a", "NULL"))
	info := func() string {
		t.Helper()
		all, err := s.Indexes(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		var list []string
		for _, i := range all {
			list = append(list, fmt.Sprint(strings.Join(i.Columns, ","), " ", i.Whole, " ", strings.Contains(i.Refused, "no such column")))
		}
		return strings.Join(list, "; ")
	}
	f.sweep()
	if got := info(); got != "big true false; note true false; title false true" {
		t.Errorf("indexes are %s", got)
	}
	// A column that is renamed takes its index along to another declaration.
	before := tf.put("3", "c", "8")
	tf.schema = numbered(2, "title", "big")
	f.must(before, tf.describe(), tf.put("4", "d", "9"))
	f.sweep()
	if got := info(); got != "big true false; note false true; title true false" {
		t.Errorf("after the column was renamed, indexes are %s", got)
	}
	wantInIndex(t, s, "2 1 3 4", 0, nil, "title")
	wantInIndex(t, s, "1 3 4 2", 0, nil, "big")
	// A column of another type is indexed anew; its rows come with a load.
	tf.schema = numbered(3, "title", "big")
	tf.schema.Columns[2].Type = oidInt8
	f.must(tf.describe(), tf.control(millrace.KindLoadBegin, 9), tf.put("5", "e", "10"))
	f.sweep()
	f.must(tf.load(9, "1", "b", "7"), tf.load(9, "2", "a", "NULL"), tf.load(9, "3", "c", "80"), tf.load(9, "4", "d", "9"), tf.load(9, "5", "e", "10"), tf.control(millrace.KindLoadEnd, 9))
	wantInIndex(t, s, "1 4 5 3 2", 0, nil, "big")
	// A row that does not fit the index costs the index, not the stream.
	f.must(tf.put("6", "f", "no number"))
	if _, err := inIndex(s, 0, nil, "big"); !errors.Is(err, ErrNoIndex) || !strings.Contains(err.Error(), "no number") {
		t.Errorf("index over a row that does not fit: %v", err)
	}
	f.sweep()
	if got := dump(t, s, "public.t"); !strings.Contains(got, "6=f,no number") {
		t.Errorf("rows are %s", got)
	}
	tf.schema = numbered(4, "big", "title") // numbers say that they were made anew
	f.must(tf.describe())
	f.sweep()
}

// Check finds an index that does not have what its rows have, and a scan never
// gives a row that its entry does not stand for.
func TestDamagedIndex(t *testing.T) {
	s, err := Open(Options{
		Dir: t.TempDir(), Stream: testStream, MapSize: 1 << 30, MaxDBs: 64,
		Indexes: map[string][][]string{"public.t": {{"note"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	f := newFeed(t, s)
	tf := f.loaded(testSchema(1, 1, "t", oidInt8, "note"))
	f.must(tf.put("1", "a"), tf.put("2", "b"), tf.put("3", "c"))
	ix := s.catalog.Load().withUsage(indexed)[0]
	entry := func(note, id string) []byte {
		key, err := ix.index.codec.Append(nil, []millrace.Datum{text(note)})
		if err != nil {
			t.Fatal(err)
		}
		return append(key, encodeKey(t, tf.schema, id)...)
	}
	value := func(key []byte) []byte { return ix.index.appendEntry(nil, key, nil) }
	for _, c := range []struct {
		name       string
		do, undo   func(txn *lmdb.Txn) error
		check, use string
	}{
		{
			"entry missing",
			func(txn *lmdb.Txn) error { return txn.Del(ix.dbi, entry("b", "2"), nil) },
			func(txn *lmdb.Txn) error { return txn.Put(ix.dbi, entry("b", "2"), value(entry("b", "2")), 0) },
			"key 2: index (note): the row's entry is missing", "",
		},
		{
			"entry of no row",
			func(txn *lmdb.Txn) error { return txn.Put(ix.dbi, entry("b", "9"), value(entry("b", "9")), 0) },
			func(txn *lmdb.Txn) error { return txn.Del(ix.dbi, entry("b", "9"), nil) },
			"4 entries of 3 rows", "key 9: index (note): the row of an entry is missing",
		},
		{
			"entry that another row should have",
			func(txn *lmdb.Txn) error { return txn.Put(ix.dbi, entry("bb", "1"), value(entry("bb", "1")), 0) },
			func(txn *lmdb.Txn) error { return txn.Del(ix.dbi, entry("bb", "1"), nil) },
			"4 entries of 3 rows", "key 1: index (note): the row does not go with its entry",
		},
		{
			"flipped bit",
			func(txn *lmdb.Txn) error {
				return txn.Put(ix.dbi, entry("b", "2"), append(value(entry("b", "2"))[:3], 1), 0)
			},
			func(txn *lmdb.Txn) error { return txn.Put(ix.dbi, entry("b", "2"), value(entry("b", "2")), 0) },
			"its entry is", "CRC-32C",
		},
	} {
		rawChange(t, s, c.do)
		if err := s.Check(context.Background()); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), c.check) {
			t.Errorf("%s: Check: %v, want one that says %q", c.name, err, c.check)
		}
		if _, err := inIndex(s, 0, nil, "note"); c.use != "" && (!errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), c.use)) {
			t.Errorf("%s: Scan: %v, want one that says %q", c.name, err, c.use)
		}
		rawChange(t, s, c.undo)
		if err := s.Check(context.Background()); err != nil {
			t.Fatalf("%s: mended: %v", c.name, err)
		}
	}
}
