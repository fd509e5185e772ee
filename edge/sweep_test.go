package edge

import (
	"context"
	"strconv"
	"strings"
	"testing"

	"github.com/millrace-db/millrace"
)

// What is gone is removed in slices of a bounded size, pieces and notes included,
// while changes go on; the databases are used again.
func TestSweepInSlices(t *testing.T) {
	s := openStore(t, t.TempDir())
	f := newFeed(t, s)
	tf := f.loaded(testSchema(1, 1, "t", oidInt8, "note", "big"))
	const rows = sweepRows + 2000
	var unit []*millrace.Entry
	for i := range rows {
		unit = append(unit, tf.put(strconv.Itoa(i), "n", "v"))
	}
	for i := range 3 { // each costs a slice of its own
		unit = append(unit, tf.put(strconv.Itoa(rows+i), "n", strings.Repeat("v", (sweepRows-100)*s.sizes.piece)))
	}
	f.must(unit...)
	// A shadow that is given up, most of whose rows lack a column.
	unit = []*millrace.Entry{tf.control(millrace.KindLoadBegin, 9)}
	for i := range rows {
		unit = append(unit, tf.put(strconv.Itoa(i), "n", unchanged))
	}
	f.must(unit...)
	f.must(tf.control(millrace.KindLoadBegin, 10), tf.control(millrace.KindTruncate, 0))
	names := len(s.catalog.Load().generations)

	sweeps := 0
	for more := true; more; sweeps++ {
		before := garbageItems(t, s)
		var err error
		if more, err = f.w.Chore(); err != nil {
			t.Fatal(err)
		}
		// A value is removed whole, so the last one may go over it.
		if removed := before - garbageItems(t, s); removed > 2*sweepRows {
			t.Errorf("sweep %d removed %d rows and pieces, most is %d", sweeps, removed, 2*sweepRows)
		}
		f.must(tf.put(strconv.Itoa(sweeps), "live", "v"))
		if err := s.Check(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if sweeps < 8 {
		t.Errorf("all was removed in %d sweeps", sweeps)
	}
	if f.w.HasChores() {
		t.Error("garbage is left")
	}
	if n := len(s.catalog.Load().withUsage(free)); n != names-2 {
		t.Errorf("%d databases are free, want %d", n, names-2)
	}
	if got := strings.Count(dump(t, s, "public.t"), "=live"); got != sweeps {
		t.Errorf("table has %d rows, want %d", got, sweeps)
	}
	if n := entries(t, s, s.catalog.Load().pieces); n != 0 {
		t.Errorf("%d pieces are left", n)
	}
}

// garbageItems counts what is to be removed: rows, pieces and notes. There are no
// other pieces and notes.
func garbageItems(t testing.TB, s *Store) (n uint64) {
	t.Helper()
	cat := s.catalog.Load()
	n = entries(t, s, cat.pieces)
	for _, g := range cat.generations {
		if g.usage == garbage {
			n += g.missing + entries(t, s, g.dbi)
		}
	}
	return n
}
