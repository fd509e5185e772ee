package edge

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
)

var seedFlag = flag.Uint64("seed", 0, "seed of randomised tests; 0 takes one from the clock")

func testSeed(t testing.TB) uint64 {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d; run again with -args -seed=%d", seed, seed)
	return seed
}

// damageRows are the rows of the store that is damaged: even IDs only.
const damageRows = 3000

func damageValue(id int) string { return fmt.Sprintf("row %d %s", id, strings.Repeat("y", id%61)) }

func damageSchema() *millrace.Schema { return testSchema(1, 1, "d", oidInt8, "note") }

func fillForDamage(t testing.TB, dir string) {
	t.Helper()
	s := openStore(t, dir, func(o *Options) { o.Indexes = map[string][][]string{"public.big": {{"note"}}} })
	f := newFeed(t, s)
	tf := f.loaded(damageSchema())
	var unit []*millrace.Entry
	for id := range damageRows {
		unit = append(unit, tf.put(strconv.Itoa(2*id), damageValue(2*id)))
	}
	f.must(unit...)
	// Another table's rows are in pieces, and it has an index.
	tf = f.loaded(damageBigSchema())
	unit = nil
	for id := range damageBigRows {
		unit = append(unit, tf.put(strconv.Itoa(id), damageBigValue(id)))
	}
	f.must(unit...)
	f.w.Close()
	closeStore(t, s)
}

// damageBigRows are the rows of the table that is kept in pieces.
const damageBigRows = 24

func damageBigSchema() *millrace.Schema { return testSchema(2, 2, "big", oidInt8, "note") }

func damageBigValue(id int) string { return strconv.Itoa(id%5) + largeText(uint64(id), 3000+400*id) }

// A byte that changes anywhere in the file is found by Check, and never makes
// the store give a wrong row or pass one over. Where LMDB itself falls over the
// damage, the process that reads ends; so a child does the reading.
func TestDamagedByte(t *testing.T) {
	seed := testSeed(t)
	dir := t.TempDir()
	fillForDamage(t, dir)
	const trials = 80
	fell := 0
	for next := 0; next < trials; {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childVariable+"=damage", "DIR="+dir, "TMPDIR="+t.TempDir(),
			fmt.Sprint("SEED=", seed), fmt.Sprint("FROM=", next), fmt.Sprint("TO=", trials))
		var diag strings.Builder
		cmd.Stderr = &diag
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		started := next
		for lines := bufio.NewScanner(out); lines.Scan(); {
			text := lines.Text()
			if wrong, ok := strings.CutPrefix(text, "wrong "); ok {
				t.Errorf("trial %d: %s", next, wrong)
			}
			if text == "done" {
				next++
			}
		}
		if err := cmd.Wait(); err == nil {
			continue
		}
		if !strings.Contains(diag.String(), "SIG") && !strings.Contains(diag.String(), "Assertion") {
			t.Fatalf("trial %d: child failed: %s", next, diag.String())
		}
		fell++
		next++
		if next == started {
			t.Fatal("child makes no progress")
		}
	}
	t.Logf("%d of %d damaged files ended the process that read them", fell, trials)
	if fell > trials/4 {
		t.Errorf("%d of %d damaged files ended the process that read them", fell, trials)
	}
}

// pagesOf leaves out what the file has behind its last page.
func pagesOf(file []byte) []byte {
	n := len(bytes.TrimRight(file, "\x00"))
	return file[:(n+4095)/4096*4096]
}

// damageChild damages copies of the store and reads them.
func damageChild() error {
	number := func(name string) int {
		n, _ := strconv.Atoi(os.Getenv(name))
		return n
	}
	seed, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64)
	if err != nil {
		return err
	}
	whole, err := os.ReadFile(filepath.Join(os.Getenv("DIR"), "data.mdb"))
	if err != nil {
		return err
	}
	whole = pagesOf(whole)
	for i := number("FROM"); i < number("TO"); i++ {
		rnd := rand.New(rand.NewPCG(seed, uint64(i)))
		at := 2*4096 + rnd.IntN(len(whole)-2*4096)
		if i%3 == 0 { // the part of a page that leads to its items
			at = at/4096*4096 + rnd.IntN(64)
		}
		flip := byte(1) << rnd.IntN(8)
		if err := damageTrial(whole, at, flip); err != nil {
			return err
		}
		fmt.Println("done")
	}
	return nil
}

func damageTrial(whole []byte, at int, flip byte) error {
	dir, err := os.MkdirTemp("", "damage")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	b := append(bytes.Clone(whole), make([]byte, slack)...)
	b[at] ^= flip
	if err := os.WriteFile(filepath.Join(dir, "data.mdb"), b, 0o600); err != nil {
		return err
	}
	wrong := func(format string, args ...any) {
		fmt.Printf("wrong byte %d of page %d, bit %#x: %s\n", at%4096, at/4096, flip, fmt.Sprintf(format, args...))
	}
	s, err := Open(Options{Dir: dir, MapSize: 1 << 30, MaxDBs: 64})
	if err != nil {
		if !errors.Is(err, ErrCorrupt) {
			wrong("Open: %v", err)
		}
		return nil
	}
	defer func() { _ = s.Close() }()
	checked := s.Check(context.Background())
	if checked != nil && !errors.Is(checked, ErrCorrupt) {
		wrong("Check: %v", checked)
	}
	err = readForDamage(s)
	if err != nil && !errors.Is(err, ErrCorrupt) {
		wrong("%v", err)
	}
	if err != nil && checked == nil {
		wrong("Check finds nothing, but %v", err)
	}
	return nil
}

// readForDamage reads everything, and returns the first ErrCorrupt or what is
// wrong.
func readForDamage(s *Store) error {
	codec, err := millrace.NewKeyCodec(damageSchema())
	if err != nil {
		return err
	}
	var damaged error
	note := func(err error) error {
		if errors.Is(err, ErrCorrupt) {
			damaged = err
			return nil
		}
		return err
	}
	err = s.View(context.Background(), func(v *View) error {
		table, err := v.Table("public.d")
		if err != nil {
			return err
		}
		n := 0
		var differs error
		err = table.Scan(nil, nil, 0, func(_ []byte, row *Row) error {
			if got, want := rowString(row), fmt.Sprintf("%d=%s", 2*n, damageValue(2*n)); got != want && differs == nil {
				differs = fmt.Errorf("scanned row %q, want %q", got, want)
			}
			n++
			return nil
		})
		if err == nil && n != damageRows {
			err = fmt.Errorf("scan gave %d rows, want %d", n, damageRows)
		}
		// Rows that are out of place are given before it shows that they are.
		if err == nil {
			err = differs
		}
		if err := note(err); err != nil {
			return err
		}
		var row Row
		for id := range 2 * damageRows {
			key, err := codec.Append(nil, [][]byte{[]byte(strconv.Itoa(id))})
			if err != nil {
				return err
			}
			err = table.Get(key, &row)
			switch {
			case errors.Is(err, ErrNotFound) && id%2 == 1:
			case err == nil && id%2 == 0 && rowString(&row) == fmt.Sprintf("%d=%s", id, damageValue(id)):
			case err == nil:
				return fmt.Errorf("row %d is %q", id, rowString(&row))
			default:
				if err := note(fmt.Errorf("row %d: %w", id, err)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err == nil {
		err = s.View(context.Background(), func(v *View) error { return readBigForDamage(v, note) })
	}
	if err != nil {
		return err
	}
	return damaged
}

// readBigForDamage reads the table that is in pieces: by key, in order, and by
// its index.
func readBigForDamage(v *View, note func(error) error) error {
	table, err := v.Table("public.big")
	if err != nil {
		return err
	}
	var row Row
	for id := range damageBigRows {
		err := table.Get(encodeKey(fatalT{}, damageBigSchema(), strconv.Itoa(id)), &row)
		if err == nil && rowString(&row) != fmt.Sprintf("%d=%s", id, damageBigValue(id)) {
			return fmt.Errorf("large row %d is %.40q", id, rowString(&row))
		}
		if err := note(err); err != nil {
			return fmt.Errorf("large row %d: %w", id, err)
		}
	}
	seen := make(map[string]bool)
	see := func(_ []byte, row *Row) error {
		id, _ := strconv.Atoi(string(row.Columns[0].Text))
		if got := rowString(row); got != fmt.Sprintf("%d=%s", id, damageBigValue(id)) || seen[got] {
			return fmt.Errorf("scanned large row %.40q, which is wrong or comes twice", got)
		}
		seen[rowString(row)] = true
		return nil
	}
	ix, err := table.Index("note")
	if err != nil {
		return err
	}
	for _, scan := range []func() error{
		func() error { return table.Scan(nil, nil, 0, see) },
		func() error { return ix.Scan(Range{}, 0, see) },
	} {
		clear(seen)
		err := scan()
		if err == nil && len(seen) != damageBigRows {
			err = fmt.Errorf("scan gave %d large rows, want %d", len(seen), damageBigRows)
		}
		if err := note(err); err != nil {
			return err
		}
	}
	return nil
}

// A store whose file was cut off, or whose page was overwritten, says so.
func TestDamagedFile(t *testing.T) {
	dir := t.TempDir()
	fillForDamage(t, dir)
	path := filepath.Join(dir, "data.mdb")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	open := func() (*Store, error) { return Open(Options{Dir: dir, MapSize: 1 << 30, MaxDBs: 64}) }

	if err := os.Truncate(path, int64(len(pagesOf(whole))/4096/2*4096)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the first try must not make it look whole
		s, err := open()
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "cut off") || !strings.Contains(err.Error(), "mend:") {
			t.Errorf("Open of a file that was cut off: %v", err)
		}
		if err == nil {
			_ = s.Close()
		}
	}
	if s, err := Open(Options{Dir: dir, ReadOnly: true, MaxDBs: 64}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("read-only Open of a file that was cut off: %v", err)
		if err == nil {
			_ = s.Close()
		}
	}

	for name, fill := range map[string]func(i int) byte{
		"zeros": func(int) byte { return 0 },
		"ones":  func(int) byte { return 0xFF },
		"noise": func(i int) byte { return byte(i*i>>3 ^ i) },
	} {
		for _, page := range []int{9, 12} {
			b := append([]byte(nil), whole...)
			for i := range 4096 {
				b[page*4096+i] = fill(i)
			}
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := open()
			if err != nil {
				t.Fatalf("%s in page %d: Open: %v", name, page, err)
			}
			if err := s.Check(context.Background()); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "page "+strconv.Itoa(page)) {
				t.Errorf("%s in page %d: Check: %v", name, page, err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	}

	if err := os.WriteFile(path, []byte("not a store"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(); !errors.Is(err, ErrCorrupt) {
		t.Errorf("Open of a file that is no store: %v", err)
	}
}
