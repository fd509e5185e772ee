package image

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/millrace-db/millrace"
)

func mustCreate(t testing.TB, s *source, dir string, keep int) *Created {
	t.Helper()
	c, err := Create(t.Context(), s.store, Options{Dir: dir, Keep: keep})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func openImage(t testing.TB, path string) *Image {
	t.Helper()
	i, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = i.Close() })
	return i
}

// restoreTo restores an image into a home and leads its readers there.
func restoreTo(t testing.TB, dir, path string) {
	t.Helper()
	h := openHome(t, dir)
	r, err := Restore(t.Context(), h, openImage(t, path), nil)
	if err == nil {
		err = r.Switch(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	closeHome(t, h)
}

func names(t testing.TB, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		if e.Name() != listingName {
			all = append(all, e.Name())
		}
	}
	return strings.Join(all, " ")
}

// An image is of one snapshot, with a load that is under way, and a store
// restored from it is the same and is kept so by what follows.
func TestImage(t *testing.T) {
	dir := t.TempDir()
	s := newSource(t, openStore(t, options(filepath.Join(dir, "store"))))
	if _, err := Create(t.Context(), openStore(t, options(filepath.Join(dir, "empty"))), Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "nothing has been applied") {
		t.Errorf("image of an empty store: %v", err)
	}
	s.unit(1)
	s.apply(&millrace.Entry{Kind: millrace.KindLoadBegin, Table: 1, Load: 9}, put(t, 1, 9, "5", "2:"))
	var last Progress
	images := filepath.Join(dir, "images")
	c, err := Create(t.Context(), s.store, Options{Dir: images, Progress: func(p Progress) { last = p }})
	if err != nil {
		t.Fatal(err)
	}
	m := c.Manifest
	if c.Existed || last.Rows != m.Rows() || last.Of != 2*sourceRows+1 || len(m.Sets) != 3 || m.Sets[1].Load != 9 || m.Sets[1].Rows != 1 || m.Checkpoint.Index != s.index {
		t.Errorf("created %+v, progress %+v, sets %+v", c, last, m.Sets)
	}
	if again := mustCreate(t, s, images, 0); !again.Existed || again.Path != c.Path {
		t.Errorf("created again: %+v", again)
	}
	rows, _ := rowsOf(t, s.store)
	i := openImage(t, c.Path)
	if err := i.Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if got := i.Manifest(); len(got.Header) != 0 || !got.Created.Equal(m.Created) || got.Stored() != m.Stored() || got.Checkpoint.Offset != m.Checkpoint.Offset {
		t.Errorf("manifest read back: %+v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := i.Verify(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Verify that is told to end: %v", err)
	}
	home := filepath.Join(dir, "home")
	restoreTo(t, home, c.Path)
	restored := openStore(t, options(home))
	if got, _ := rowsOf(t, restored); !slices.Equal(got, rows) {
		t.Error("the restored store has other rows")
	}
	f := newSource(t, restored)
	f.loads = s.loads
	for _, x := range []*source{s, f} {
		x.apply(&millrace.Entry{Kind: millrace.KindLoadEnd, Table: 1, Load: 9})
		x.unit(3)
	}
	want, _ := rowsOf(t, s.store)
	if got, number := rowsOf(t, restored); !slices.Equal(got, want) || number != "3" {
		t.Errorf("after what follows, the restored store has other rows, of unit %s", number)
	}
}

// Old images go, and what writers have left; two writers keep apart.
func TestKeep(t *testing.T) {
	dir := t.TempDir()
	s := newSource(t, openStore(t, options(filepath.Join(dir, "store"))))
	images := filepath.Join(dir, "images")
	for _, left := range []string{"image-2-1" + partSuffix, "image-1-77" + goneSuffix, "image-9-1" + partSuffix, "other" + partSuffix} {
		if err := os.MkdirAll(filepath.Join(images, left, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 4 {
		s.unit(n)
		if c := mustCreate(t, s, images, 2); (n > 1) != (c.Removed == 1) {
			t.Errorf("image %d: %d were removed", n, c.Removed)
		}
	}
	all, err := List(images)
	if err != nil || len(all) != 2 || all[0].Index != s.index || all[1].Index >= s.index {
		t.Errorf("List: %+v, %v", all, err)
	}
	want := fmt.Sprintf("%s %s %s other.part", imageName(2, all[1].Index), imageName(2, all[0].Index), lockName)
	if got := names(t, images); got != want {
		t.Errorf("there are %s, want %s", got, want)
	}
	lock, err := lockDir(images)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Create(t.Context(), s.store, Options{Dir: images}); !errors.Is(err, ErrInUse) {
		t.Errorf("Create beside another one: %v", err)
	}
	_ = lock.Close()
	if all, err := List(filepath.Join(dir, "none")); err != nil || len(all) != 0 {
		t.Errorf("List of no directory: %v, %v", all, err)
	}
}

// Any byte that changes, and any length, is seen before a row of it is used.
func TestDamage(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	s := newSource(t, openStore(t, options(filepath.Join(dir, "store"))))
	s.unit(1)
	path := mustCreate(t, s, dir, 0).Path
	verify := func() error {
		i, err := Open(path)
		if err != nil {
			return err
		}
		return errors.Join(i.Verify(t.Context(), nil), i.Close())
	}
	for _, name := range []string{manifestName, rowsName} {
		file := filepath.Join(path, name)
		whole, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for range 150 {
			b := slices.Clone(whole)
			at := rnd.IntN(len(b))
			switch rnd.IntN(4) {
			case 0:
				b = b[:at]
			case 1:
				b = append(b, byte(at))
			default:
				b[at] ^= 1 << rnd.IntN(8)
			}
			if err := os.WriteFile(file, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := verify(); !errors.Is(err, ErrMalformed) {
				t.Fatalf("%s damaged at byte %d, %d bytes: %v", name, at, len(b), err)
			}
		}
		if err := os.WriteFile(file, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := verify(); err != nil {
		t.Errorf("mended: %v", err)
	}
}

// forge writes an image whose hashes are right, of frames that are given.
func forge(t *testing.T, dir string, m *Manifest, frames ...[]byte) string {
	t.Helper()
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	var rows []byte
	for n, raw := range frames {
		stored := encoder.EncodeAll(raw, nil)
		f := &m.Frames[n]
		f.Stored, f.Sum = len(stored), sha256.Sum256(stored)
		rows = append(rows, stored...)
	}
	_ = encoder.Close()
	text, err := AppendManifest(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "forged")
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{manifestName: text, rowsName: rows} {
		if err := os.WriteFile(filepath.Join(path, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// An image whose hashes are right and whose rows are not what a store may hold is
// refused when it is verified, and when it is restored, which changes nothing.
func TestForged(t *testing.T) {
	dir := t.TempDir()
	s := newSource(t, openStore(t, options(filepath.Join(dir, "store"))))
	s.apply(put(t, 1, 0, "a", "1:"), put(t, 1, 0, "b", "1:"), put(t, 2, 0, "c", "1:"))
	path := mustCreate(t, s, dir, 0).Path
	h := openHome(t, filepath.Join(dir, "home"))
	defer closeHome(t, h)
	row := func(id string) (key, row []byte) {
		e := put(t, 1, 0, id, "1:")
		return e.Key, e.Row
	}
	frame := func(ids ...string) (b []byte) {
		for _, id := range ids {
			key, row := row(id)
			b = appendRow(b, key, row)
		}
		return b
	}
	c := put(t, 2, 0, "c", "1:")
	second := appendRow(nil, c.Key, c.Row)
	_, aRow := row("a")
	bKey, _ := row("b")
	for name, x := range map[string]struct {
		first  []byte
		change func(*Manifest)
		want   string
	}{
		"true":      {frame("a", "b"), func(*Manifest) {}, ""},
		"order":     {frame("b", "a"), func(*Manifest) {}, "order"},
		"twice":     {frame("a", "a"), func(*Manifest) {}, "order"},
		"fewer":     {frame("a"), func(*Manifest) {}, "1 rows"},
		"more":      {frame("a", "b", "c"), func(*Manifest) {}, "3 rows"},
		"cut off":   {append(frame("a"), 7, 1), func(*Manifest) {}, "cut off"},
		"no row":    {binary.AppendUvarint(frame("a"), 1<<60), func(*Manifest) {}, "cut off"},
		"other key": {appendRow(frame("a"), bKey, aRow), func(*Manifest) {}, "key"},
		"no key":    {appendRow(appendRow(nil, nil, aRow), bKey, aRow), func(*Manifest) {}, "no key"},
		"no row at": {appendRow(frame("a"), bKey, []byte{0x80}), func(*Manifest) {}, "row"},
		"raw":       {frame("a", "b"), func(m *Manifest) { m.Frames[0].Raw++ }, "the manifest says"},
		"bomb":      {make([]byte, 1<<20), func(m *Manifest) { m.Frames[0].Raw = len(frame("a", "b")) }, "unpacked"},
		"schema":    {frame("a", "b"), func(m *Manifest) { m.Schemas = m.Schemas[1:] }, "schema"},
		"sets":      {frame("a", "b"), func(m *Manifest) { m.Sets[0].Rows = 3 }, "less"},
		"set":       {frame("a", "b"), func(m *Manifest) { m.Frames[1].Set = 2 }, "frame 1 is of set 2"},
		"table":     {frame("a", "b"), func(m *Manifest) { m.Sets[1].Table = 1 }, "order of table"},
	} {
		whole := openImage(t, path)
		m := whole.Manifest()
		m.Frames[0].Raw = len(x.first)
		x.change(m)
		forged := forge(t, dir, m, x.first, second)
		i, err := Open(forged)
		if err == nil {
			err = i.Verify(t.Context(), nil)
			r, rerr := Restore(t.Context(), h, i, nil)
			if (rerr == nil) != (x.want == "") {
				t.Errorf("%s: Restore: %v", name, rerr)
			}
			if rerr == nil {
				if err := r.Drop(); err != nil {
					t.Error(err)
				}
			}
			_ = i.Close()
		}
		if x.want == "" != (err == nil) || err != nil && (!errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), x.want)) {
			t.Errorf("%s: %v, want %q", name, err, x.want)
		}
	}
	if h.Place().Index != 0 {
		t.Error("readers have gone over to a forged image")
	}
}
