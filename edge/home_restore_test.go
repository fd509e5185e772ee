package edge

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/millrace-db/millrace"
)

// taken is what an image holds, in memory.
type taken struct {
	contents *Contents
	rows     [][2][]byte
	sets     []int
}

func take(t testing.TB, s *Store) *taken {
	t.Helper()
	m := new(taken)
	err := s.Snapshot(t.Context(), func(v *View) (err error) {
		if m.contents, err = v.Contents(); err != nil {
			return err
		}
		for i, set := range m.contents.Sets {
			err := v.EachRow(t.Context(), set, func(key, row []byte) error {
				m.rows = append(m.rows, [2][]byte{bytes.Clone(key), bytes.Clone(row)})
				m.sets = append(m.sets, i)
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *taken) fill(add func(set int, key, row []byte) error) error {
	for i, r := range m.rows {
		if err := add(m.sets[i], r[0], r[1]); err != nil {
			return err
		}
	}
	return nil
}

func (m *taken) equal(o *taken) bool {
	return slices.Equal(m.sets, o.sets) && slices.EqualFunc(m.rows, o.rows, func(a, b [2][]byte) bool {
		return bytes.Equal(a[0], b[0]) && bytes.Equal(a[1], b[1])
	})
}

// sourceOfRestore fills a store with all that there is: large rows, long keys,
// two versions of a schema, a table marked as diverged, and a load under way with
// rows that lack columns.
func sourceOfRestore(t *testing.T, s *Store) (f *feed, tf tableFeed) {
	fill(t, s, 3) // what the reader in another process knows
	f = newFeed(t, s)
	f.epoch = 3
	tf = f.loaded(testSchema(7, 7, "t", oidText, "note", "big"))
	var unit []*millrace.Entry
	for i := range 500 {
		unit = append(unit, tf.put(strconv.Itoa(i), "NULL", strings.Repeat("v", 37*i)))
		if i%50 == 0 {
			unit = append(unit, tf.put(strings.Repeat("k", 460+i), "long", strconv.Itoa(i)))
		}
	}
	f.must(unit...)
	tf.schema = testSchema(7, 8, "t", oidText, "note", "big")
	f.must(tf.describe(), tf.put("0", "second version", "x"))
	u := f.loaded(testSchema(9, 9, "u", oidInt8, "note"))
	f.must(u.put("1", "a"), &millrace.Entry{Kind: millrace.KindQuarantine, Table: 9, Quarantine: &millrace.Quarantined{Kind: millrace.KindPut, Reason: "too large"}})
	f.must(tf.control(millrace.KindLoadBegin, 20), tf.put("1", "lacks", unchanged), tf.load(20, "2", "loaded", strings.Repeat("w", 9000)))
	return f, tf
}

// What is taken from a store and restored elsewhere is the same, is kept so by
// what follows, and readers are led to it, also those of another process.
func TestRestore(t *testing.T) {
	dir := t.TempDir()
	change := func(o *Options) { o.MapSize, o.MaxDBs = 1<<30, 64 }
	source := openHome(t, filepath.Join(dir, "source"), change)
	f, tf := sourceOfRestore(t, source.Store())
	m := take(t, source.Store())
	if len(m.contents.Sets) != 5 || len(m.contents.Diverged) != 1 || len(m.contents.Schemas) != 5 {
		t.Fatalf("contents are %+v", m.contents)
	}

	home := filepath.Join(dir, "home")
	h := openHome(t, home, change, func(o *Options) { o.Indexes = map[string][][]string{"public.t": {{"note"}}} })
	fill(t, h.Store(), 1)
	follower := startFollower(t, home)
	follower.sees(1)
	checking := 0
	restore := func() *Restored {
		t.Helper()
		r, err := h.Restore(t.Context(), m.contents, m.fill, func() { checking++ })
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if err := restore().Drop(); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, home, "data.mdb")
	r := restore()
	if !m.equal(take(t, r.Store())) || checking != 2 {
		t.Errorf("the restored store does not hold what was taken; checked %d times", checking)
	}
	// What follows makes the same of both.
	g := newFeed(t, r.Store())
	g.epoch, g.loads = 3, map[millrace.TableID]millrace.LoadID{7: 20}
	for _, f := range []*feed{f, g} {
		f.must(tf.load(20, "1", "loaded", "x"), tf.put("3", "new", strings.Repeat("z", 5000)))
		f.must(tf.control(millrace.KindLoadEnd, 20))
		f.sweep()
	}
	if err := r.Switch(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.leaving.Wait()
	g.w.Close()
	f.w.Close()
	m = take(t, source.Store())
	if !m.equal(take(t, h.Store())) || dump(t, h.Store(), "public.t") != dump(t, source.Store(), "public.t") {
		t.Error("the restored store has not come to where its source is")
	}
	if ids, err := inIndex(h.Store(), 0, nil, "note"); err != nil || len(ids) != 3 {
		t.Errorf("index gives %v, %v", ids, err)
	}
	wantFiles(t, home, currentName, copyDir(3, 1))
	follower.sees(3)

	// What readers use is not given up with what it came from.
	if err := r.Drop(); err != nil {
		t.Fatal(err)
	}
	if !m.equal(take(t, h.Store())) {
		t.Error("the store that readers use is gone")
	}

	// The same place again, beside the store of the same epoch.
	if err := restore().Switch(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.leaving.Wait()
	wantFiles(t, home, currentName, copyDir(3, 2))
	follower.stop()
	closeHome(t, h)
	h = openHome(t, home, change)
	if !m.equal(take(t, h.Store())) {
		t.Error("opened again, the store does not hold what was taken")
	}
}

// Contents that cannot be are refused, and leave everything as it was.
func TestRestoreRefuses(t *testing.T) {
	dir := t.TempDir()
	change := func(o *Options) { o.MapSize, o.MaxDBs = 1<<30, 64 }
	source := openHome(t, filepath.Join(dir, "source"), change)
	f, _ := sourceOfRestore(t, source.Store())
	f.w.Close()
	home := filepath.Join(dir, "home")
	h := openHome(t, home)
	fill(t, h.Store(), 1)
	for name, c := range map[string]struct {
		change func(*taken)
		want   string
	}{
		"order":      {func(m *taken) { m.rows[5], m.rows[6] = m.rows[6], m.rows[5] }, "comes after a greater one"},
		"twice":      {func(m *taken) { m.rows[6] = m.rows[5] }, "comes after a greater one"},
		"fewer":      {func(m *taken) { m.rows, m.sets = m.rows[1:], m.sets[1:] }, "rows came"},
		"none":       {func(m *taken) { m.rows, m.sets = nil, nil }, "rows came"},
		"set":        {func(m *taken) { m.sets[7] = 9 }, "rows of set 9"},
		"row":        {func(m *taken) { m.rows[7][1] = []byte{0xFF} }, "restore table public.a key"},
		"other key":  {func(m *taken) { m.rows[7][0] = append(m.rows[7][0][:1], m.rows[7][0]...) }, "key"},
		"no key":     {func(m *taken) { m.rows[0][0] = nil }, "has no key"},
		"schema":     {func(m *taken) { m.contents.Schemas = m.contents.Schemas[1:] }, "no schema is here"},
		"load":       {func(m *taken) { m.contents.Checkpoint.Catalog.Loads = nil }, "has a shadow of load 20"},
		"checkpoint": {func(m *taken) { m.contents.Checkpoint = nil }, "nothing has been applied"},
		"stream":     {func(m *taken) { m.contents.Checkpoint.Stream[0]++ }, ErrOtherStream.Error()},
		"older":      {func(m *taken) { m.contents.Checkpoint.Epoch, m.contents.Checkpoint.Index = 1, 2 }, "readers are at"},
		"forked": {func(m *taken) {
			m.contents.Checkpoint.Epoch, m.contents.Checkpoint.Index = 1, h.Place().Index
			m.contents.Checkpoint.Chain[0]++
		}, "not this stream's history"},
		"map":  {func(m *taken) { m.contents.Sets[0].Bytes = 1 << 40 }, "map_size"},
		"sets": {func(m *taken) { m.contents.Sets = append(m.contents.Sets, m.contents.Sets...) }, "two live generations"},
	} {
		m := take(t, source.Store())
		c.change(m)
		if _, err := h.Restore(t.Context(), m.contents, m.fill, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	m := take(t, source.Store())
	if _, err := h.Restore(ctx, m.contents, m.fill, cancel); !errors.Is(err, context.Canceled) {
		t.Errorf("Restore that is told to end: %v", err)
	}
	wantFiles(t, home, "data.mdb")
	// What a process left that died is removed when the next one begins.
	closeHome(t, h)
	if err := os.MkdirAll(filepath.Join(home, restoringName), 0o700); err != nil {
		t.Fatal(err)
	}
	h = openHome(t, home)
	if _, err := os.Stat(filepath.Join(home, restoringName)); err == nil {
		t.Error("a store that was being restored is left")
	}
	// A first copy that has not ended does not take the place of tables.
	early := openHome(t, filepath.Join(dir, "early"))
	c := newCopy(t, early.Store(), 2)
	c.begin()
	c.w.Close()
	m = take(t, early.Store())
	r, err := h.Restore(t.Context(), m.contents, m.fill, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Switch(t.Context()); err == nil || !strings.Contains(err.Error(), "first copy had not ended") {
		t.Errorf("Switch to a first copy: %v", err)
	}
	if err := r.Drop(); err != nil {
		t.Fatal(err)
	}
}

// A store of a newer epoch that a process had restored when it was killed is no copy to go
// on with: readers come to it only where its image was confirmed, which Next knows nothing
// of.
func TestRestoredIsNoCopyToGoOnWith(t *testing.T) {
	dir := t.TempDir()
	change := func(o *Options) { o.MapSize, o.MaxDBs = 1<<30, 64 }
	source := openHome(t, filepath.Join(dir, "source"), change)
	f, _ := sourceOfRestore(t, source.Store())
	f.w.Close()
	m := take(t, source.Store())
	home := filepath.Join(dir, "home")
	h := openHome(t, home, change)
	fill(t, h.Store(), 1)
	r, err := h.Restore(t.Context(), m.contents, m.fill, nil)
	if err != nil {
		t.Fatal(err)
	}
	// Neither Switch nor Drop: the process is killed here.
	if err := r.s.Close(); err != nil {
		t.Fatal(err)
	}
	closeHome(t, h)
	h = openHome(t, home, change)
	next, err := h.Next(3)
	if err != nil {
		t.Fatal(err)
	}
	if next.Index() != 0 || next.Unproven().Image != 0 {
		t.Errorf("the copy begins at index %v, with rows of image %v", next.Index(), next.Unproven().Image)
	}
	if err := h.DropNext(); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, home, "data.mdb")
}
