package edge

import (
	"bufio"
	"context"
	"errors"
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

// A store is compacted while it is written and read, from this process and from
// another one; it holds what it held, takes less room, and goes on.
func TestCompact(t *testing.T) {
	dir := t.TempDir()
	change := func(o *Options) {
		o.MapSize, o.MaxDBs = 1<<30, 64
		o.Indexes = map[string][][]string{"public.t": {{"note"}}}
	}
	h := openHome(t, dir, change)
	if _, err := h.Compact(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "nothing has been applied") {
		t.Errorf("Compact of an empty store: %v", err)
	}
	fill(t, h.Store(), 1)
	follower := startFollower(t, dir)
	follower.sees(1)

	f := newFeed(t, h.Store())
	f.epoch = 1
	tf := f.loaded(testSchema(7, 7, "t", oidInt8, "note", "big"))
	const rows = 3000
	var unit []*millrace.Entry
	for i := range rows {
		unit = append(unit, tf.put(strconv.Itoa(i), strconv.Itoa(i%7), strings.Repeat("v", 100*(i%60))))
	}
	f.must(unit...)
	unit = nil
	for i := range rows {
		if i%10 > 0 {
			unit = append(unit, tf.delete(strconv.Itoa(i)))
		}
	}
	f.must(unit...)
	f.must(tf.control(millrace.KindLoadBegin, 20), tf.put("0", "lacks", unchanged))

	var reports []CopyProgress
	var late []*millrace.Entry
	next, err := h.Compact(t.Context(), func(p CopyProgress) {
		reports = append(reports, p)
		if len(reports) > 1 {
			return
		}
		// While the copy is made, changes go on.
		late = append(late, tf.put("5000", "late", "x"), tf.delete("10"), tf.put("20", "changed", unchanged))
		f.must(late...)
		f.must(late[0])
	})
	if err != nil {
		t.Fatal(err)
	}
	last := reports[len(reports)-1]
	if !last.Checking || last.Items != last.Of || last.Of == 0 {
		t.Errorf("progress ends with %+v", last)
	}
	if _, err := h.Compact(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("Compact beside another one: %v", err)
	}
	if _, err := h.SwitchCompacted(); err == nil || !strings.Contains(err.Error(), "readers are at") {
		t.Errorf("SwitchCompacted of a copy that is behind: %v", err)
	}
	g := newFeed(t, next)
	g.epoch, g.loads = 1, map[millrace.TableID]millrace.LoadID{7: 20}
	g.must(late...)
	g.must(late[0])
	want := dump(t, h.Store(), "public.t")
	f.w.Close()
	old := h.Store()
	was, err := h.SwitchCompacted()
	if err != nil {
		t.Fatal(err)
	}
	h.leaving.Wait()
	if h.Store() == old || dump(t, h.Store(), "public.t") != want {
		t.Error("the compacted store does not hold what the old one held")
	}
	now, _, err := h.Store().fullSize()
	if err != nil || now > was/2 {
		t.Errorf("store takes %d bytes, %v, and took %d", now, err, was)
	}
	// It is followed, compacted again, and followed into the next epoch.
	g.must(tf.load(20, "0", "loaded", "x"), tf.load(20, "20", "2", "x"), tf.control(millrace.KindLoadEnd, 20), tf.put("1", "new", "y"))
	ids, err := inIndex(h.Store(), 0, nil, "note")
	if err != nil || strings.Join(ids, " ") != "20 5000 0 1" {
		t.Errorf("index gives %v, %v", ids, err)
	}
	if _, err := h.Compact(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := h.DropCompacted(); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Compact(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	g.w.Close()
	if _, err := h.SwitchCompacted(); err != nil {
		t.Fatal(err)
	}
	h.leaving.Wait()
	wantFiles(t, dir, currentName, copyDir(1, 2))
	closeHome(t, h)

	h = openHome(t, dir, change)
	if got := dump(t, h.Store(), "public.t"); got != "0=loaded,x 1=new,y 20=2,x 5000=late,x" {
		t.Errorf("opened again: %s", got)
	}
	fill(t, prepare(t, h, 2), 2)
	switchHome(t, h)
	follower.sees(2)
	follower.stop()
	h.leaving.Wait()
	wantFiles(t, dir, currentName, epochDir(2))
}

// A store that is damaged is not compacted, and one that cannot be copied leaves
// nothing behind.
func TestCompactRefuses(t *testing.T) {
	dir := t.TempDir()
	h := openHome(t, dir)
	fill(t, h.Store(), 1)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := h.Compact(ctx, func(p CopyProgress) {
		if p.Checking {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Compact that is told to end: %v", err)
	}
	schema, _ := homeTables()
	rawPut(t, h.Store(), schema, true, "3", "damaged")
	if _, err := h.Compact(t.Context(), nil); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "key 3") {
		t.Errorf("Compact of a damaged store: %v", err)
	}
	wantFiles(t, dir, "data.mdb")
	rawPut(t, h.Store(), schema, false, "3", "1")
}

// compactChild writes units as the writer of the crash test does, and compacts
// the store again and again meanwhile.
func compactChild() error {
	seed, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64)
	if err != nil {
		return err
	}
	rnd := rand.New(rand.NewPCG(seed, 0))
	t := fatalT{}
	h, err := OpenHome(Options{
		Dir: os.Getenv("DIR"), Stream: testStream, MapSize: 1 << 30, MaxDBs: 64, slice: 7,
		Indexes: map[string][][]string{"public.a": {{"note"}}},
	})
	if err != nil {
		return err
	}
	sa, sb := crashTables()
	a, b := tableFeed{t, sa}, tableFeed{t, sb}
	f := newFeed(t, h.Store())
	if f.index == 0 {
		f.must(a.describe(), b.describe(), a.control(millrace.KindLoadBegin, 1), b.control(millrace.KindLoadBegin, 2),
			a.control(millrace.KindLoadEnd, 1), b.control(millrace.KindLoadEnd, 2))
	}
	load := millrace.LoadID(100 + f.index)
	at := func(f *feed) (unit uint64, err error) {
		err = f.s.View(context.Background(), func(v *View) (err error) {
			unit, err = checkWriterRows(v)
			return err
		})
		return unit, err
	}
	write := func(f *feed) (uint64, error) {
		unit, err := at(f)
		if err != nil {
			return 0, err
		}
		unit++
		load++
		f.must(writerUnit(rnd, a, b, unit, load)...)
		for range 4 { // or databases would run out
			if _, err := f.w.Chore(); err != nil {
				return 0, err
			}
		}
		return unit, nil
	}
	type made struct {
		s   *Store
		err error
	}
	for {
		ready := make(chan made)
		go func() {
			s, err := h.Compact(context.Background(), nil)
			ready <- made{s, err}
		}()
		var unit uint64
		var got made
		for got.s == nil {
			if unit, err = write(f); err != nil {
				return err
			}
			fmt.Println("unit", unit)
			select {
			case got = <-ready:
				if got.err != nil {
					return got.err
				}
			default:
			}
		}
		g := newFeed(t, got.s)
		copied, err := at(g) // it may have the last unit already
		for err == nil && copied < unit {
			copied, err = write(g)
		}
		if err != nil {
			return err
		}
		// Indexes are no measure here, as the units are made anew.
		for g.index < f.index {
			g.must(&millrace.Entry{Kind: millrace.KindHeartbeat})
		}
		f.w.Close()
		if _, err := h.SwitchCompacted(); err != nil {
			return err
		}
		f = g
	}
}

// A process that is killed while it compacts leaves a home with one store, which
// is whole and not behind.
func TestKilledCompaction(t *testing.T) {
	seed := testSeed(t)
	rnd := rand.New(rand.NewPCG(seed, 1))
	dir := t.TempDir()
	for round := range *killsFlag {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childVariable+"=compact", "DIR="+dir, fmt.Sprint("SEED=", seed+uint64(round)))
		var diag strings.Builder
		cmd.Stderr = &diag
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		after := rnd.IntN(40)
		delay := time.Duration(rnd.IntN(20_000)) * time.Microsecond
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
		h, err := OpenHome(Options{Dir: dir, Stream: testStream, MapSize: 1 << 30, MaxDBs: 64})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if err := h.Store().Check(context.Background()); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		err = h.View(context.Background(), func(v *View) error {
			unit, err := checkWriterRows(v)
			if err == nil && (unit < said || unit > said+1) {
				err = fmt.Errorf("store is at unit %d, the child had said %d", unit, said)
			}
			return err
		})
		if err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		_ = os.Remove(filepath.Join(dir, currentName+".new")) // it is written anew
		if name := h.dirName(h.Store()); name != "" {
			wantFiles(t, dir, currentName, name)
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}
}
