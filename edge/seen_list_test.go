package edge

import (
	"fmt"
	"testing"

	"github.com/millrace-db/millrace"
)

// More tables than are remembered are read as well, with no look-up more for those that
// are left out.
func TestSeenListIsBounded(t *testing.T) {
	s := openStore(t, t.TempDir())
	f := newFeed(t, s)
	const tables = maxSeenTrees + 3
	var keys [tables][]byte
	for i := range tables {
		schema := testSchema(millrace.TableID(1+i), millrace.SchemaVersion(1+i), fmt.Sprint("t", i), oidInt8, "note")
		tf := f.loaded(schema)
		f.must(tf.put("1", fmt.Sprint("of ", i)))
		keys[i] = encodeKey(t, schema, "1")
	}
	for range 3 {
		err := s.View(t.Context(), func(v *View) error {
			for i := range tables {
				table, err := v.Table(fmt.Sprint("public.t", i))
				if err != nil {
					return err
				}
				var row Row
				if err := table.Get(keys[i], &row); err != nil {
					return err
				}
				if got, want := rowString(&row), fmt.Sprint("1=of ", i); got != want {
					t.Errorf("table %d: row %q, want %q", i, got, want)
				}
			}
			if n := len(v.seen.trees); n != maxSeenTrees {
				t.Errorf("%d databases are remembered", n)
			}
			if v.r.tree.txn != 0 && v.seen.tree(v.r.tree.name) == nil {
				t.Errorf("database %s was looked up for nothing", v.r.tree.name)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
