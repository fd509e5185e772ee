package image

import (
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/millrace-db/millrace"
)

var benchRows = flag.Int("rows", 200_000, "rows of the benchmarks' store")

// benchSource fills a store with rows of about 160 bytes.
func benchSource(b *testing.B, dir string) *source {
	b.Helper()
	s := newSource(b, openStore(b, options(dir)))
	var unit []*millrace.Entry
	for i := range *benchRows {
		id := strconv.Itoa(i)
		unit = append(unit, put(b, 1, 0, id, "1:"+strings.Repeat(id+".", 120/(len(id)+1))))
		if len(unit) == 20_000 {
			s.apply(unit...)
			unit = unit[:0]
		}
	}
	if len(unit) > 0 {
		s.apply(unit...)
	}
	return s
}

// storeSize is what the pages of the store below dir take.
func storeSize(b *testing.B, dir string) (size float64) {
	b.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Name() != "data.mdb" {
			return err
		}
		info, err := e.Info()
		if err == nil {
			size += float64(info.Size())
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return size
}

// BenchmarkImage writes an image, reads it through, and restores it.
func BenchmarkImage(b *testing.B) {
	dir := b.TempDir()
	s := benchSource(b, filepath.Join(dir, "store"))
	images := filepath.Join(dir, "images")
	perRow := func(b *testing.B) {
		b.ReportMetric(float64(*benchRows)*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
	}
	b.Run("create", func(b *testing.B) {
		for range b.N {
			if err := os.RemoveAll(images); err != nil {
				b.Fatal(err)
			}
			mustCreate(b, s, images, 0)
		}
		perRow(b)
		b.ReportMetric(storeSize(b, dir)/float64(*benchRows), "B/row-applied")
	})
	path := mustCreate(b, s, images, 0).Path
	b.Run("verify", func(b *testing.B) {
		for range b.N {
			if err := openImage(b, path).Verify(b.Context(), nil); err != nil {
				b.Fatal(err)
			}
		}
		perRow(b)
	})
	b.Run("restore", func(b *testing.B) {
		var home string
		for range b.N {
			home = b.TempDir()
			restoreTo(b, home, path)
		}
		perRow(b)
		b.ReportMetric(storeSize(b, home)/float64(*benchRows), "B/row-restored")
	})
	b.ReportMetric(float64(openImage(b, path).Manifest().Stored())/float64(*benchRows), "B/row")
}
