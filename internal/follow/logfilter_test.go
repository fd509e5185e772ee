package follow

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/millrace-db/millrace"
)

// The log of an edge that held less is of no use to one that holds more.
func TestHoldLog(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	filter := func(names ...string) *millrace.Filter {
		f, err := millrace.NewFilter(names, nil)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	segment := filepath.Join(dir, "epoch-3", "00000000000000000000.mlog")
	for i, c := range []struct {
		filter  *millrace.Filter
		renewed bool
	}{
		{filter(), false},
		{filter("public.a", "public.b"), false},
		{filter("public.a"), false},
		{filter("public.a"), false},
		{filter("public.a", "public.b"), true},
		{filter("public.b"), false},
		{filter(), true},
		{filter(), false},
	} {
		if err := os.MkdirAll(filepath.Dir(segment), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(segment, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		renewed, err := holdLog(dir, c.filter)
		_, gone := os.Stat(segment)
		if err != nil || renewed != c.renewed || (gone != nil) != c.renewed {
			t.Errorf("%d, holding %v: renewed %v, want %v (%v, %v)", i, c.filter, renewed, c.renewed, err, gone)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, logFilterName), []byte{1}, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := holdLog(dir, filter()); err == nil {
		t.Error("a file that is no filter is taken")
	}
}
