package edge

import (
	"fmt"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/millrace-db/millrace"
)

// restoredOf restores what was taken into a new home, and leaves a store there.
func restoredOf(t *testing.T, m *taken, dir string) {
	t.Helper()
	h := openHome(t, dir, func(o *Options) { o.MapSize, o.MaxDBs = 1<<30, 64 })
	r, err := h.Restore(t.Context(), m.contents, m.fill, nil)
	if err == nil {
		err = r.Switch(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	closeHome(t, h)
}

// Rows that came with an image are not proven until their table's keys were found
// equal within one pass, or none of them is left; a restart forgets nothing of it.
func TestUnproven(t *testing.T) {
	dir := t.TempDir()
	store := openStore(t, filepath.Join(dir, "source"))
	f := newFeed(t, store)
	var tables []tableFeed
	var sources []*sourceRows
	for id := range 6 {
		schema := testSchema(millrace.TableID(id+1), millrace.SchemaVersion(id+1), fmt.Sprint("t", id+1), oidText, "note")
		tf, src := f.loaded(schema), newSource(t, schema)
		tables, sources = append(tables, tf), append(sources, src)
		var unit []*millrace.Entry
		for i := range 9 {
			unit = append(unit, tf.put(src.put(strconv.Itoa(i), "x")...))
		}
		f.must(unit...)
	}
	// A load of table 6 is under way: what it has brought ends as the table.
	f.must(tables[5].control(millrace.KindLoadBegin, 70), tables[5].load(70, "0", "x"))
	if u := store.Unproven(); u.Image != 0 {
		t.Errorf("a store that was not restored has unproven rows: %+v", u)
	}
	image := store.Index()
	home := filepath.Join(dir, "home")
	restoredOf(t, take(t, store), home)
	f.w.Close()

	s := openStore(t, home)
	g := newFeed(t, s)
	g.loads = map[millrace.TableID]millrace.LoadID{6: 70}
	want := func(what string, ids ...millrace.TableID) {
		t.Helper()
		settled(t, s)
		u := s.Unproven()
		if fmt.Sprint(u.Tables) != fmt.Sprint(ids) || (u.Image != 0) != (len(ids) > 0) || u.Image != 0 && u.Image != image {
			t.Errorf("%s: unproven are %+v, want tables %v of image %v", what, u, ids, image)
		}
	}
	verify := func(table int, pass uint64, low, high string) {
		t.Helper()
		g.must(sources[table].verify(sources[table].between(pass, low, high)))
	}
	want("restored", 1, 2, 3, 4, 5, 6)
	verify(0, 1, "", "5")
	want("half a pass", 1, 2, 3, 4, 5, 6)
	verify(0, 2, "5", "")
	want("the other half, in another pass", 1, 2, 3, 4, 5, 6)
	verify(0, 3, "", "2")
	verify(0, 3, "5", "")
	want("a range is missing", 1, 2, 3, 4, 5, 6)
	verify(0, 4, "", "2")
	verify(0, 4, "2", "7")
	verify(0, 4, "7", "")
	want("a whole pass", 2, 3, 4, 5, 6)

	bucket := func(pass uint64, n uint32) *millrace.Entry {
		v := sources[1].between(pass, "", "")
		v.Buckets, v.Bucket = 3, n
		return sources[1].verify(v)
	}
	g.must(bucket(5, 0))
	g.must(bucket(5, 2))
	g.must(bucket(6, 1))
	want("buckets of two passes", 2, 3, 4, 5, 6)
	for n := range uint32(3) {
		g.must(bucket(7, n))
	}
	want("all buckets", 3, 4, 5, 6)

	g.must(tables[2].control(millrace.KindTruncate, 0))
	want("truncated", 4, 5, 6)
	g.must(tables[3].control(millrace.KindLoadBegin, 80))
	want("a load has begun", 4, 5, 6)
	g.must(tables[3].load(80, "0", "y"), tables[3].control(millrace.KindLoadEnd, 80))
	want("a load has ended", 5, 6)
	g.must(tables[5].control(millrace.KindLoadEnd, 70))
	want("the image's own load has ended", 5, 6)

	// What differs proves nothing.
	sources[4].put("3", "other")
	verify(4, 8, "", "")
	want("a difference", 5, 6)
	g.w.Close()
	closeStore(t, s)
	s = openStore(t, home)
	g = newFeed(t, s)
	want("opened again", 5, 6)
	g.must(tables[4].put("3", "other"))
	verify(4, 9, "", "")
	sources[5].rows = map[string][]string{"0": {"0", "x"}}
	verify(5, 9, "", "")
	want("all")
	g.w.Close()
	closeStore(t, s)
	s = openStore(t, home)
	want("opened a last time")
}
