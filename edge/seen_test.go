package edge

import (
	"context"
	"errors"
	"strconv"
	"testing"

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
