package edge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/bmatsuo/lmdb-go/lmdb"

	"github.com/millrace-db/millrace"
)

// The head of a snapshot is used by views of that one, for a second, and by no other.
func TestSeenIsOfOneSnapshot(t *testing.T) {
	s := openStore(t, t.TempDir())
	f := newFeed(t, s)
	schema := testSchema(1, 1, "t", oidInt8, "note")
	tf := f.loaded(schema)
	var entries []*millrace.Entry
	for i := range 100 {
		entries = append(entries, tf.put(strconv.Itoa(2*i), "x"))
	}
	f.must(entries...)
	codec, err := millrace.NewKeyCodec(schema)
	if err != nil {
		t.Fatal(err)
	}
	look := func(id int) (found bool) {
		t.Helper()
		key, err := codec.Append(nil, [][]byte{[]byte(strconv.Itoa(id))})
		if err != nil {
			t.Fatal(err)
		}
		err = s.View(context.Background(), func(v *View) error {
			table, err := v.Table("public.t")
			if err != nil {
				return err
			}
			return table.Get(key, new(Row))
		})
		if err != nil && !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
		return err == nil
	}
	if look(41) || !look(40) {
		t.Fatal("rows 40 and 41: want the first alone")
	}
	first := s.seen.Load()
	f.must(tf.put("41", "new"))
	if !look(41) {
		t.Error("a row that was absent before is still")
	}
	second := s.seen.Load()
	if second == first || second.id == first.id {
		t.Error("a new snapshot is taken for the one before")
	}
	second.at -= 2 * int64(lookAgain)
	if look(43); s.seen.Load() == second {
		t.Error("what was seen long ago is still believed")
	}
}

// The writer leaves with its commit what views of it would look up, for the tables that
// are read; a view of the snapshot before goes on with what that one has.
func TestWriterLeavesWhatViewsLookUp(t *testing.T) {
	s := openStore(t, t.TempDir())
	f := newFeed(t, s)
	schema := testSchema(1, 1, "t", oidInt8, "note")
	tf := f.loaded(schema)
	f.must(tf.put("1", "old"), tf.put("2", "old"))
	look := func(v *View, id, want string) {
		t.Helper()
		table, err := v.Table("public.t")
		if err != nil {
			t.Fatal(err)
		}
		var row Row
		err = table.Get(encodeKey(t, schema, id), &row)
		switch {
		case errors.Is(err, ErrNotFound) && want == "":
		case err != nil:
			t.Errorf("row %s: %v", id, err)
		case rowString(&row) != id+"="+want:
			t.Errorf("row %s is %q, want %s", id, rowString(&row), want)
		}
	}
	view := func(fn func(v *View)) {
		t.Helper()
		err := s.View(t.Context(), func(v *View) error {
			fn(v)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	view(func(v *View) { // the second look-up makes it a table that is read
		look(v, "1", "old")
		look(v, "2", "old")
	})
	database := s.catalog.Load().visible["public.t"].live.name
	var before tree
	view(func(v *View) {
		known := v.seen.tree(database)
		if known == nil {
			t.Fatal("a table that was read is not remembered")
		}
		before = *known
		look(v, "1", "old")
		f.must(tf.delete("1"), tf.put("2", "new"), tf.put("3", "new"))
		look(v, "1", "old")
		look(v, "2", "old")
		look(v, "3", "")
	})
	left := s.seen.Load()
	if at := left.tree(database); at == nil || *at == before || left.head.index != s.Index() {
		t.Fatalf("the writer has left %+v for index %v", left, s.Index())
	}
	view(func(v *View) {
		if v.seen != left {
			t.Error("a view looks up what the writer has left")
		}
		look(v, "1", "")
		look(v, "2", "new")
		look(v, "3", "new")
	})
	// What belongs to the snapshot before is of no use, nor that of one to come.
	for _, id := range []uintptr{left.id - 1, left.id + 1} {
		wrong := *left
		wrong.id, wrong.head.index = id, 1
		wrong.trees = []seenTree{{database, before}}
		s.seen.Store(&wrong)
		view(func(v *View) {
			if v.Index() != s.Index() {
				t.Errorf("a view stands at %v, the store at %v", v.Index(), s.Index())
			}
			look(v, "3", "new")
			look(v, "1", "")
			look(v, "2", "new")
		})
	}
	// Before the writer has left anything there is what it announced.
	announced := *left
	announced.trees = nil
	s.seen.Store(nil)
	s.coming.Store(&announced)
	view(func(v *View) {
		if v.seen != &announced {
			t.Error("a view looks up what was announced")
		}
		look(v, "3", "new")
		look(v, "1", "")
		look(v, "2", "new")
	})
	s.coming.Store(nil)
	view(func(v *View) { look(v, "3", "new") })

	// Nor is the list for ever, so that it holds what is being read.
	old := *s.seen.Load()
	old.listed -= 2 * int64(lookAgain)
	s.seen.Store(&old)
	f.must(tf.put("3", "newer"))
	if n := len(s.seen.Load().trees); n != 0 {
		t.Errorf("%d databases that were read long ago are looked up still", n)
	}
	view(func(v *View) { look(v, "3", "newer") })
}

// What was announced of a commit that failed is taken back: the next one has its ID.
func TestFailedCommitIsNotAnnounced(t *testing.T) {
	s := openStore(t, t.TempDir())
	f := newFeed(t, s)
	tf := f.loaded(testSchema(1, 1, "t", oidInt8, "note"))
	f.must(tf.put("1", "old"))
	index := s.Index()

	fd, err := s.env.FD()
	if err != nil {
		t.Fatal(err)
	}
	saved, err := syscall.Dup(int(fd))
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull) // which cannot be written
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	if err := syscall.Dup3(int(null.Fd()), int(fd), syscall.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	failed := f.unit(tf.put("1", "new"))
	if err := syscall.Dup3(saved, int(fd), syscall.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Close(saved); err != nil {
		t.Fatal(err)
	}
	if failed == nil {
		t.Fatal("a commit that cannot be written succeeds")
	}
	err = s.env.Update(func(txn *lmdb.Txn) error {
		return errors.Join(txn.Put(s.meta, []byte("other"), []byte("x"), 0), txn.Del(s.meta, []byte("other"), nil))
	})
	if err != nil {
		t.Fatal(err)
	}
	err = s.View(t.Context(), func(v *View) error {
		if v.Index() != index {
			t.Errorf("a view stands at %v, want %v", v.Index(), index)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Beside a writer that never pauses each view sees one unit: its head, what is in each
// row, and whether a row is there that comes and goes.
func TestViewsBesideWriter(t *testing.T) {
	s := openStore(t, t.TempDir())
	f := newFeed(t, s)
	schema := testSchema(1, 1, "t", oidInt8, "note")
	tf := f.loaded(schema)
	const rows, comes = 20, 20 // the one behind them is there after even units
	unit := func(n int) {
		var entries []*millrace.Entry
		for id := range rows {
			entries = append(entries, tf.put(strconv.Itoa(id), strconv.Itoa(n)))
		}
		if n%2 == 0 {
			entries = append(entries, tf.put(strconv.Itoa(comes), strconv.Itoa(n)))
		} else {
			entries = append(entries, tf.delete(strconv.Itoa(comes)))
		}
		f.must(entries...)
	}
	unit(0)
	first := s.Index()
	var keys [][]byte
	for id := range rows + 1 {
		keys = append(keys, encodeKey(t, schema, strconv.Itoa(id)))
	}
	var ended atomic.Bool
	var work sync.WaitGroup
	for range 3 {
		work.Go(func() {
			var row Row
			for !ended.Load() {
				err := s.View(t.Context(), func(v *View) error {
					table, err := v.Table("public.t")
					if err != nil {
						return err
					}
					n := int(v.Index()-first) / (rows + 1)
					for id, key := range keys {
						err := table.Get(key, &row)
						if there := id < rows || n%2 == 0; there && err == nil {
							if got, want := rowString(&row), fmt.Sprintf("%d=%d", id, n); got != want {
								return fmt.Errorf("unit %d: row %q, want %q", n, got, want)
							}
						} else if there || !errors.Is(err, ErrNotFound) {
							return fmt.Errorf("unit %d: row %d: %w", n, id, err)
						}
					}
					return nil
				})
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for n := 1; n <= 100 && !t.Failed(); n++ {
		unit(n)
	}
	ended.Store(true)
	work.Wait()
}
