package edge

import (
	"bytes"
	"errors"
	"strconv"
	"testing"
)

// A page that was found in order is looked at again when any of its bytes is another one.
func TestCheckedPages(t *testing.T) {
	s := openStore(t, t.TempDir())
	f := newFeed(t, s)
	tf := f.loaded(testSchema(1, 1, "t", oidInt8, "note"))
	for i := range 20 {
		f.must(tf.put(strconv.Itoa(2*i), "note"))
	}
	err := s.View(t.Context(), func(v *View) error {
		table, err := v.Table("public.t")
		if err != nil {
			return err
		}
		record, err := v.treeNamed(table.t.live.name)
		if err != nil {
			return err
		}
		page, err := s.pages.read(record.start, 1)
		if err != nil {
			return err
		}
		w := s.newWalk(record)
		b := bytes.Clone(page)
		want := order.Uint16(b[10:]) & pageKinds
		for range 2 {
			if n, err := w.items(record.start, b, want); err != nil || n != 20 {
				t.Fatalf("a whole page: %d items, %v", n, err)
			}
		}
		if _, err := w.items(record.start, b, want^(pageLeaf|pageBranch)); err == nil {
			t.Error("a page of another kind is taken")
		}
		// The places of the first two items change sides.
		b[pageHeader], b[pageHeader+1], b[pageHeader+2], b[pageHeader+3] = b[pageHeader+2], b[pageHeader+3], b[pageHeader], b[pageHeader+1]
		if _, err := w.items(record.start, b, want); err == nil {
			t.Error("an altered page is taken for the one that was looked at")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Rows that are there and rows that are not are found as such in any order of asking.
func TestFindInTurns(t *testing.T) {
	s := openStore(t, t.TempDir())
	f := newFeed(t, s)
	tf := f.loaded(testSchema(1, 1, "t", oidInt8, "note"))
	for i := range 2000 {
		f.must(tf.put(strconv.Itoa(2*i), "note "+strconv.Itoa(2*i)))
		if i%100 != 0 {
			continue
		}
		// Each commit is another snapshot for the same readers.
		for _, j := range []int{-1, 0, 1, 2 * i, 2*i + 1, 2*i + 2, i, i | 1, 0} {
			err := s.View(t.Context(), func(v *View) error {
				table, err := v.Table("public.t")
				if err != nil {
					return err
				}
				var row Row
				return table.Get(tf.put(strconv.Itoa(j), "").Key, &row)
			})
			there := j >= 0 && j%2 == 0 && j <= 2*i
			if there && err != nil || !there && !errors.Is(err, ErrNotFound) {
				t.Fatalf("row %d of 0 to %d: %v", j, 2*i, err)
			}
		}
	}
}
