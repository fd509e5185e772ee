package edge

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
)

// The writer of the crash test keeps these rules, so that any snapshot can be
// checked without knowing its history: unit n gives all rows of both tables the
// value n; table b has n%5+1 rows; every 7th unit truncates b before filling it;
// every 11th loads a anew.
const crashRows = 40

func crashTables() (a, b *millrace.Schema) {
	return testSchema(1, 1, "a", oidInt8, "note"), testSchema(2, 2, "b", oidText, "note")
}

type fatalT struct{ testing.TB }

func (fatalT) Helper()                        {}
func (fatalT) Fatalf(format string, a ...any) { panic(fmt.Sprintf(format, a...)) }
func (fatalT) Cleanup(func())                 {}

// writerChild writes units until it is killed or has written UNITS, and says
// after each commit which one it was.
func writerChild() error {
	seed, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64)
	if err != nil {
		return err
	}
	limit, _ := strconv.ParseUint(os.Getenv("UNITS"), 10, 64)
	rnd := rand.New(rand.NewPCG(seed, 0))
	t := fatalT{}
	// Which indexes there are to be changes from process to process, and they are
	// built, and what is gone is removed, in slices of a few rows.
	opts := Options{Dir: os.Getenv("DIR"), Stream: testStream, MapSize: 1 << 30, MaxDBs: 64, slice: 7}
	opts.Indexes = [...]map[string][][]string{
		{"public.a": {{"note"}}, "public.b": {{"note", "id"}}},
		{"public.a": {{"note", "id"}, {"note"}}},
		nil,
		{"public.a": {{"id"}}, "public.b": {{"note"}}},
	}[seed%4]
	s, err := Open(opts)
	if err != nil {
		return err
	}
	f := newFeed(t, s)
	sa, sb := crashTables()
	a, b := tableFeed{t, sa}, tableFeed{t, sb}
	if s.Index() == 0 {
		f.must(a.describe(), b.describe(), a.control(millrace.KindLoadBegin, 1), b.control(millrace.KindLoadBegin, 2),
			a.control(millrace.KindLoadEnd, 1), b.control(millrace.KindLoadEnd, 2))
	}
	fmt.Println("unit", 0)
	var unit uint64
	err = s.View(context.Background(), func(v *View) (err error) {
		unit, err = checkWriterRows(v)
		return err
	})
	if err != nil {
		return err
	}
	load := millrace.LoadID(100 + f.index)
	for limit == 0 || unit < limit {
		unit++
		load++
		for _, e := range writerUnit(rnd, a, b, unit, load) {
			if err := f.apply(e); err != nil {
				return err
			}
			if rnd.IntN(50) == 0 {
				if err := f.w.Flush(); err != nil {
					return err
				}
			}
		}
		if err := f.w.Commit(f.checkpoint()); err != nil {
			return err
		}
		fmt.Println("unit", unit)
		for range rnd.IntN(6) {
			if _, err := f.w.Chore(); err != nil {
				return err
			}
		}
	}
	f.w.Close()
	return s.Close()
}

// writerUnit makes a unit by the writer's rules.
func writerUnit(rnd *rand.Rand, a, b tableFeed, unit uint64, load millrace.LoadID) (entries []*millrace.Entry) {
	value := strconv.FormatUint(unit, 10)
	if unit%11 == 0 {
		entries = append(entries, a.control(millrace.KindLoadBegin, load))
		for id := range crashRows {
			entries = append(entries, a.load(load, strconv.Itoa(id), value))
		}
		entries = append(entries, a.control(millrace.KindLoadEnd, load))
	} else {
		for _, id := range rnd.Perm(crashRows) {
			entries = append(entries, a.put(strconv.Itoa(id), value))
		}
	}
	before, after := writerWidth(unit-1), writerWidth(unit)
	if unit%7 == 0 {
		entries, before = append(entries, b.control(millrace.KindTruncate, 0)), 0
	}
	for id := range after {
		entries = append(entries, b.put(writerKey(id), value))
	}
	for id := after; id < before; id++ {
		entries = append(entries, b.delete(writerKey(id)))
	}
	return entries
}

// writerWidth is the number of rows of table b after a unit, the longest of
// their keys being long ones.
func writerWidth(unit uint64) int {
	if unit == 0 {
		return 0
	}
	return int(unit%5) + 1
}

func writerKey(id int) string { return strings.Repeat("k", 200*id) + strconv.Itoa(id) }

// checkWriterRows checks a snapshot by the writer's rules and returns the number
// of the unit it is at.
func checkWriterRows(v *View) (unit uint64, err error) {
	for _, name := range []string{"public.a", "public.b"} {
		table, err := v.Table(name)
		if errors.Is(err, ErrNoTable) && v.Index() == 0 {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		rows := 0
		err = table.Scan(nil, nil, 0, func(_ []byte, row *Row) error {
			n, err := strconv.ParseUint(string(row.Columns[1].Text), 10, 64)
			if err != nil {
				return err
			}
			if unit == 0 {
				unit = n
			}
			if n != unit {
				return fmt.Errorf("table %s has a row of unit %d, another row is of %d", name, n, unit)
			}
			rows++
			return nil
		})
		if err != nil {
			return 0, err
		}
		want := writerWidth(unit)
		if name == "public.a" && unit > 0 {
			want = crashRows
		}
		if rows != want {
			return 0, fmt.Errorf("table %s has %d rows at unit %d, want %d", name, rows, unit, want)
		}
	}
	return unit, nil
}

var killsFlag = flag.Int("kills", 10, "how often the tests that kill a process do so")

// A writer that is killed at any moment leaves a store that is whole: at the end
// of a unit, not before the last one it said was committed, and no more than one
// after it.
func TestKilledWriter(t *testing.T) {
	seed := testSeed(t)
	rnd := rand.New(rand.NewPCG(seed, 1))
	dir := t.TempDir()
	for round := range *killsFlag {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childVariable+"=writer", "DIR="+dir, fmt.Sprint("SEED=", seed+uint64(round)))
		var diag strings.Builder
		cmd.Stderr = &diag
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// The kill falls at a random moment after a random unit.
		after := rnd.IntN(40)
		delay := time.Duration(rnd.IntN(3000)) * time.Microsecond
		var said uint64
		n := 0
		for lines := bufio.NewScanner(out); lines.Scan(); n++ {
			if _, err := fmt.Sscanf(lines.Text(), "unit %d", &said); err != nil {
				t.Fatalf("child says %q", lines.Text())
			}
			if n == after {
				time.AfterFunc(delay, func() { _ = cmd.Process.Kill() })
			}
		}
		_ = cmd.Wait()
		if diag.Len() > 0 {
			t.Fatalf("round %d: child failed: %s", round, diag.String())
		}
		s := openStore(t, dir)
		err = s.View(context.Background(), func(v *View) error {
			unit, err := checkWriterRows(v)
			if err != nil {
				return err
			}
			if n > 1 && (unit < said || unit > said+1) {
				return fmt.Errorf("store is at unit %d, the writer had said %d", unit, said)
			}
			c, err := v.Checkpoint()
			if err == nil && (c == nil || c.Index != v.Index()) {
				err = fmt.Errorf("checkpoint %+v does not fit index %v", c, v.Index())
			}
			return err
		})
		if err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		closeStore(t, s)
	}
}
