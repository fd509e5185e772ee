package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// wrap makes a manifest of a body, with the right size and hash.
func wrap(body []byte) []byte {
	b := append([]byte(magic), version)
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	b = append(b, body...)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

func goldenBytes(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(goldenPath(t), name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A manifest that is read without an error is written again as one that reads the
// same, whatever its bytes.
func FuzzManifest(f *testing.F) {
	whole := goldenBytes(f, manifestName)
	f.Add(whole[headSize : len(whole)-sha256.Size])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, body []byte) {
		_, _ = DecodeManifest(body)
		m, err := DecodeManifest(wrap(body))
		if err != nil {
			return
		}
		b, err := AppendManifest(nil, m)
		if err != nil {
			t.Fatal(err)
		}
		n, err := DecodeManifest(b)
		if err != nil {
			t.Fatalf("written again: %v", err)
		}
		if again, err := AppendManifest(nil, n); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("written a third time it differs, %v", err)
		}
		if _, err := newRowChecker(m); err != nil && !errors.Is(err, ErrMalformed) {
			t.Fatal(err)
		}
	})
}

// A frame is read or refused, whatever its bytes, and takes no more room than the
// manifest says.
func FuzzFrame(f *testing.F) {
	m, err := DecodeManifest(goldenBytes(f, manifestName))
	if err != nil {
		f.Fatal(err)
	}
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		f.Fatal(err)
	}
	e := put(f, 1, 0, "a", "7:")
	raw := appendRow(nil, e.Key, e.Row)
	f.Add(raw, uint32(len(raw)))
	f.Add(encoder.EncodeAll(raw, nil), uint32(len(raw)))
	f.Add(encoder.EncodeAll(make([]byte, 10_000), nil), uint32(10_000))
	f.Add([]byte("\x05abcde\x01x"), uint32(8))
	u, err := newUnpacker()
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(u.close)
	f.Fuzz(func(t *testing.T, b []byte, size uint32) {
		c, err := newRowChecker(m)
		if err != nil {
			t.Fatal(err)
		}
		check := func(raw []byte) {
			_, err := eachRow(raw, func(key, row []byte) error { return c.check(0, key, row) })
			if err != nil && !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
		}
		check(b)
		frame := Frame{Raw: int(size % (1 << 20)), Stored: len(b), Sum: sha256.Sum256(b)}
		raw, err := u.unpack(&frame, b)
		if err == nil {
			check(raw)
		} else if !errors.Is(err, ErrMalformed) {
			t.Fatal(err)
		}
		if cap(u.raw) > 1<<20 {
			t.Fatalf("room for %d bytes was made", cap(u.raw))
		}
	})
}

// The golden image was written by an earlier version of this package.
func TestGolden(t *testing.T) {
	if *updateGolden {
		writeGolden(t)
	}
	i := openImage(t, goldenPath(t))
	if err := i.Verify(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s := newSource(t, openStore(t, options(filepath.Join(dir, "store"))))
	fillGolden(s)
	j := openImage(t, mustCreate(t, s, dir, 0).Path)
	// The encoder's bytes may differ between versions of it; nothing else may.
	text := func(i *Image) []byte {
		m := *i.Manifest()
		m.Created, m.Header = j.Manifest().Created, nil
		m.Frames = nil
		b, err := AppendManifest(nil, &m)
		if err != nil {
			t.Fatal(err)
		}
		err = i.Each(t.Context(), nil, func(set int, key, row []byte) error {
			b = appendRow(append(b, byte(set)), key, row)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if !bytes.Equal(text(i), text(j)) {
		t.Error("an image that is written now is not what the golden one is")
	}
	home := filepath.Join(dir, "home")
	restoreTo(t, home, goldenPath(t))
	rows, _ := rowsOf(t, s.store)
	if got, _ := rowsOf(t, openStore(t, options(home))); len(got) != len(rows) || len(rows) != 2*sourceRows {
		t.Errorf("%d rows were restored, want %d", len(got), len(rows))
	}
}
