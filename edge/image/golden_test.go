package image

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/millrace-db/millrace"
)

// go test -run TestGolden -update ./edge/image
var updateGolden = flag.Bool("update", false, "write the golden image anew")

const goldenDir = "testdata/golden"

func goldenPath(t testing.TB) string {
	t.Helper()
	all, err := List(goldenDir)
	if err != nil || len(all) != 1 {
		t.Fatalf("golden images: %v, %v", all, err)
	}
	return all[0].Path
}

// fillGolden is what the golden image is of.
func fillGolden(s *source) {
	s.unit(7)
	s.apply(
		&millrace.Entry{Kind: millrace.KindQuarantine, Table: 2, Quarantine: &millrace.Quarantined{Kind: millrace.KindPut, Reason: "too large"}},
		&millrace.Entry{Kind: millrace.KindLoadBegin, Table: 1, Load: 9}, put(s.t, 1, 9, "5", "7:"))
}

func writeGolden(t testing.TB) {
	t.Helper()
	if err := os.RemoveAll(goldenDir); err != nil {
		t.Fatal(err)
	}
	s := newSource(t, openStore(t, options(filepath.Join(t.TempDir(), "store"))))
	fillGolden(s)
	if _, err := Create(t.Context(), s.store, Options{Dir: goldenDir}); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(goldenDir, lockName)); err != nil {
		t.Fatal(err)
	}
}
