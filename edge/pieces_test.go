package edge

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bmatsuo/lmdb-go/lmdb"

	"github.com/millrace-db/millrace"
)

// largeText is a text of a size, other for each seed.
func largeText(seed uint64, size int) string {
	rnd := rand.New(rand.NewPCG(seed, uint64(size)))
	b := make([]byte, size)
	for i := range b {
		b[i] = 'a' + byte(rnd.IntN(26))
	}
	return string(b)
}

// wantRows compares a table with texts by ID, row by row and in a scan.
func wantRows(t testing.TB, s *Store, schema *millrace.Schema, want map[string]string) {
	t.Helper()
	err := s.View(context.Background(), func(v *View) error {
		table, err := v.Table(schema.QualifiedName())
		if err != nil {
			return err
		}
		var row Row
		for id, text := range want {
			if err := table.Get(encodeKey(t, schema, id), &row); err != nil {
				return err
			}
			if got := string(row.Columns[1].Text); got != text {
				return fmt.Errorf("row %.40s has %d bytes, want %d", id, len(got), len(text))
			}
		}
		n := 0
		err = table.Scan(nil, nil, 0, func(_ []byte, row *Row) error {
			n++
			if id := string(row.Columns[0].Text); want[id] != string(row.Columns[1].Text) {
				return fmt.Errorf("scanned row %.40s has %d bytes, want %d", id, len(row.Columns[1].Text), len(want[id]))
			}
			return nil
		})
		if err == nil && n != len(want) {
			err = fmt.Errorf("scan gave %d rows, want %d", n, len(want))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// Values of any size come back as they were put, whatever stood there before;
// no value needs pages that lie side by side, and none leaves a piece behind.
func TestPieces(t *testing.T) {
	seed := testSeed(t)
	rnd := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	s := openStore(t, dir)
	f := newFeed(t, s)
	tf := f.loaded(testSchema(1, 1, "t", oidText, "note"))
	z := s.sizes
	sizes := []int{0, z.item - 60, z.item - 12, z.item - 11, z.item, z.piece - 1, z.piece, z.piece + 1, 2 * z.piece, 3*z.piece - 20, 3*z.piece + z.item, 300_000}
	// Some keys are long ones, which are content too.
	ids := []string{"a", "b", "c", strings.Repeat("k", 600), strings.Repeat("l", 9000)}
	want := map[string]string{}
	for i, size := range sizes {
		id := "size" + strconv.Itoa(i)
		want[id] = largeText(seed, size)
		f.must(tf.put(id, want[id]))
	}
	for round := range 30 {
		var unit []*millrace.Entry
		for range 3 {
			id := ids[rnd.IntN(len(ids))]
			if _, ok := want[id]; ok && rnd.IntN(4) == 0 {
				delete(want, id)
				unit = append(unit, tf.delete(id))
				continue
			}
			want[id] = largeText(seed+uint64(round), sizes[rnd.IntN(len(sizes))])
			unit = append(unit, tf.put(id, want[id]))
		}
		f.must(unit...)
		if round%10 == 0 {
			wantRows(t, s, tf.schema, want)
		}
	}
	wantRows(t, s, tf.schema, want)
	runsOfPages(t, s, "public.t")
	f.w.Close()
	closeStore(t, s)
	s = openStore(t, dir)
	f = newFeed(t, s)
	wantRows(t, s, tf.schema, want)

	for id := range want {
		f.must(tf.delete(id))
	}
	if n := entries(t, s, s.catalog.Load().pieces); n != 0 {
		t.Errorf("%d pieces are left of no rows", n)
	}
}

// runsOfPages fails if any value has more than one page of its own.
func runsOfPages(t testing.TB, s *Store, table string) {
	t.Helper()
	cat := s.catalog.Load()
	err := s.env.View(func(txn *lmdb.Txn) error {
		stat, err := txn.Stat(cat.visible[table].live.dbi)
		if err == nil && stat.OverflowPages > 0 {
			t.Errorf("%d pages of their own among the rows", stat.OverflowPages)
		}
		if err != nil {
			return err
		}
		stat, err = txn.Stat(cat.pieces)
		if err == nil && stat.OverflowPages > stat.Entries {
			t.Errorf("%d pieces have %d pages of their own", stat.Entries, stat.OverflowPages)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func entries(t testing.TB, s *Store, dbi lmdb.DBI) (n uint64) {
	t.Helper()
	err := s.env.View(func(txn *lmdb.Txn) error {
		stat, err := txn.Stat(dbi)
		n = stat.Entries
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A row whose pieces are not whole is never given out: Get, Scan, Check and a
// change that needs it say which row and which piece.
func TestDamagedPieces(t *testing.T) {
	s, err := Open(Options{Dir: t.TempDir(), Stream: testStream, MapSize: 1 << 30, MaxDBs: 64})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	f := newFeed(t, s)
	tf := f.loaded(testSchema(1, 1, "t", oidInt8, "note", "big"))
	text := largeText(1, 3*s.sizes.piece)
	for i := range 3 {
		f.must(tf.put(strconv.Itoa(i), "n", text))
	}
	whole, whole2 := make([]byte, 0), make([]byte, 0)
	pieces := s.catalog.Load().pieces
	second, other := appendPieceKey(nil, 2, 1), appendPieceKey(nil, 3, 1)
	rawChange(t, s, func(txn *lmdb.Txn) error {
		a, err := txn.Get(pieces, second)
		whole = append(whole, a...)
		b, err2 := txn.Get(pieces, other)
		whole2 = append(whole2, b...)
		return errFirst(err, err2)
	})
	flipped := append([]byte(nil), whole...)
	flipped[100] ^= 4
	for _, c := range []struct {
		name string
		set  []byte // nil removes the piece
		says string
	}{
		{"missing", nil, "piece 2 of 3 of value 2 is missing"},
		{"flipped bit", flipped, "CRC-32C of the 3 pieces of value 2"},
		{"torn", whole[:len(whole)-1], "the 3 pieces of value 2 have"},
		{"of another value", append([]byte("x"), whole2[1:]...), "CRC-32C"},
	} {
		rawChange(t, s, func(txn *lmdb.Txn) error {
			if c.set == nil {
				return txn.Del(pieces, second, nil)
			}
			return txn.Put(pieces, second, c.set, 0)
		})
		says := func(what string, err error) {
			t.Helper()
			if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "table public.t key 1") {
				t.Errorf("%s: %s: %v, want one that says %q of key 1", c.name, what, err, c.says)
			}
		}
		err := s.View(context.Background(), func(v *View) error {
			table, err := v.Table("public.t")
			if err != nil {
				return err
			}
			var row Row
			says("Get", table.Get(encodeKey(t, tf.schema, "1"), &row))
			if err := table.Get(encodeKey(t, tf.schema, "2"), &row); err != nil || string(row.Columns[2].Text) != text {
				t.Errorf("%s: Get of another row: %v", c.name, err)
			}
			says("Scan", table.Scan(nil, nil, 0, func([]byte, *Row) error { return nil }))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		says("Check", s.Check(context.Background()))
		index := f.index
		says("Apply", f.unit(tf.put("1", "changed", unchanged)))
		f.w.Abort()
		f.index = index
		rawChange(t, s, func(txn *lmdb.Txn) error { return txn.Put(pieces, second, whole, 0) })
		if err := s.Check(context.Background()); err != nil {
			t.Fatalf("%s: mended: %v", c.name, err)
		}
	}
	rawChange(t, s, func(txn *lmdb.Txn) error { return txn.Put(pieces, appendPieceKey(nil, 9, 0), whole, 0) })
	if err := s.Check(context.Background()); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "database pieces holds") {
		t.Errorf("a piece of no value: Check: %v", err)
	}
}

// growChild has a store of the first format open until a large row of the newest
// one is in it.
func growChild() error {
	s, err := Open(Options{Dir: os.Getenv("DIR"), ReadOnly: true})
	if err != nil {
		return err
	}
	fmt.Println("open")
	key := encodeKey(fatalT{}, testSchema(1, 1, "t", oidInt8, "note", "big"), "19")
	for end := time.Now().Add(time.Minute); ; {
		n := 0
		err := s.View(context.Background(), func(v *View) error {
			table, err := v.Table("public.t")
			if err != nil {
				return err
			}
			var row Row
			err = table.Get(key, &row)
			n = len(row.Columns[2].Text)
			return err
		})
		if err != nil {
			return err
		}
		if n == 30_000 {
			return s.Close()
		}
		if time.Now().After(end) {
			return fmt.Errorf("row 19 still has %d bytes", n)
		}
	}
}

// A store that a version before the pieces wrote is read as it is, and becomes
// one of the newest format when it is written.
func TestOldFormat(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Open("testdata/format1.mdb.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "data.mdb"), append(b, make([]byte, slack)...), 0o600); err != nil {
		t.Fatal(err)
	}
	schema, long := testSchema(1, 1, "t", oidInt8, "note", "big"), testSchema(2, 2, "long", oidText, "note")
	big := map[string]string{}
	keys := map[string]string{}
	for i := range 20 {
		if i != 3 {
			big[strconv.Itoa(i)] = strings.Repeat("v", i*1000)
		}
		keys[strings.Repeat("k", i*100)+strconv.Itoa(i)] = "x"
	}
	read := func(s *Store) {
		t.Helper()
		wantRows(t, s, long, keys)
		got := dump(t, s, "public.t")
		if strings.Count(got, "=") != len(big) {
			t.Errorf("table has %d rows, want %d", strings.Count(got, "="), len(big))
		}
		for id, text := range big {
			if note := "n"; id != "2" && !strings.Contains(" "+got+" ", " "+id+"="+note+","+text+" ") {
				t.Errorf("row %s is not as it was", id)
			}
		}
	}
	// A process that only reads leaves it as it is.
	ro, err := Open(Options{Dir: dir, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	read(ro)
	if err := errors.Join(ro.Check(context.Background()), ro.Close()); err != nil {
		t.Error(err)
	}
	// Another process has it open from before on.
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"=grow", "DIR="+dir)
	var told lockedBuffer
	cmd.Stderr = &told
	startChild(t, cmd, "open")
	s := openStore(t, dir)
	read(s)
	if err := s.Check(context.Background()); err != nil {
		t.Fatal(err)
	}
	w := newFeed(t, s)
	w.loads[1] = 9
	tf := tableFeed{t, schema}
	big["19"], big["18"] = strings.Repeat("z", 30_000), strings.Repeat("v", 18_000)
	w.must(tf.put("19", "n", big["19"]), tf.put("18", "n", unchanged), tf.delete("17"))
	delete(big, "17")
	read(s)
	if err := cmd.Wait(); err != nil {
		t.Errorf("the process that had it open: %v, %s", err, told.String())
	}
	w.w.Close()
	closeStore(t, s)
	s = openStore(t, dir)
	read(s)
}
