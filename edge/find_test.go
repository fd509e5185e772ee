package edge

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"unsafe"
)

// A look-up that looks at no more than it needs gives the row or nothing, whatever the
// pages hold: it stays within them, and what it gives has the row's checksum.
func TestFindInDamagedPages(t *testing.T) {
	seed := testSeed(t)
	dir := t.TempDir()
	fillForDamage(t, dir)
	file, err := os.ReadFile(filepath.Join(dir, "data.mdb"))
	if err != nil {
		t.Fatal(err)
	}
	file = pagesOf(file)
	s := openStore(t, dir)
	var record tree
	var crcSeed uint32
	err = s.View(t.Context(), func(v *View) error {
		table := v.cat.visible["public.d"]
		crcSeed = table.seed
		record, err = v.treeNamed(table.live.name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	schema := damageSchema()
	var keys [][]byte
	for id := range 2 * damageRows {
		keys = append(keys, encodeKey(t, schema, strconv.Itoa(id)))
	}
	values := make([][]byte, len(keys))
	whole := memoryMap{base: unsafe.Pointer(unsafe.SliceData(file)), page: os.Getpagesize(), size: len(file)}
	for id, key := range keys {
		value, found := whole.find(&record, key)
		if found != (id%2 == 0) {
			t.Fatalf("row %d: found is %v", id, found)
		}
		values[id] = value
	}
	rnd := rand.New(rand.NewPCG(seed, 1))
	missed := 0
	for range 60 {
		b := bytes.Clone(file)
		damaged := memoryMap{base: unsafe.Pointer(unsafe.SliceData(b)), page: whole.page, size: len(b)}
		for range 1 + rnd.IntN(40) {
			at := 2*whole.page + rnd.IntN(len(b)-2*whole.page)
			if rnd.IntN(2) == 0 { // what leads to the items
				at = at/whole.page*whole.page + rnd.IntN(64)
			}
			b[at] = byte(rnd.Uint32())
		}
		for range 500 {
			id := rnd.IntN(len(keys))
			value, found := damaged.find(&record, keys[id])
			if !found {
				missed += 1 - id%2
				continue
			}
			if _, err := checkValue(crcSeed, keys[id], value); err == nil && !bytes.Equal(value, values[id]) {
				t.Fatalf("row %d has the value %x, want %x", id, value, values[id])
			}
		}
	}
	if missed == 0 {
		t.Error("no damage was met")
	}
}

// A damaged row is refused by name also where it is found at once.
func TestFindDamagedRow(t *testing.T) {
	dir := t.TempDir()
	fillForDamage(t, dir)
	path := filepath.Join(dir, "data.mdb")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := []byte(damageValue(3000))
	if bytes.Count(b, text) == 0 {
		t.Fatal("the row is not in the file")
	}
	if err := os.WriteFile(path, bytes.ReplaceAll(b, text, bytes.ToUpper(text)), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	err = s.View(t.Context(), func(v *View) error {
		table, err := v.Table("public.d")
		if err != nil {
			return err
		}
		var row Row
		for _, id := range []string{"2", "4", "6"} {
			if err := table.Get(encodeKey(t, damageSchema(), id), &row); err != nil {
				return err
			}
		}
		if v.seen.tree(table.t.live.name) == nil {
			t.Error("the table is not remembered")
		}
		var corrupt *CorruptError
		if err := table.Get(encodeKey(t, damageSchema(), "3000"), &row); !errors.As(err, &corrupt) || corrupt.Table != "public.d" || corrupt.Key != "3000" {
			t.Errorf("a damaged row: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
