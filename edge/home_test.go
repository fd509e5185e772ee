package edge

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
)

// The rows of these tests say which epoch they are of, in two tables, so that any
// view can be checked by itself.
func homeTables() (a, b *millrace.Schema) {
	return testSchema(1, 1, "a", oidInt8, "note"), testSchema(2, 2, "b", oidInt8, "note")
}

const homeRows = 20

// epochOf wants a view to hold all rows of one epoch, and returns it.
func epochOf(v *View) (millrace.Epoch, error) {
	for _, name := range []string{"public.a", "public.b"} {
		table, err := v.Table(name)
		if err != nil {
			return 0, fmt.Errorf("at epoch %v index %v: %w", v.Place().Epoch, v.Index(), err)
		}
		rows := 0
		err = table.Scan(nil, nil, 0, func(_ []byte, row *Row) error {
			rows++
			if got, want := string(row.Columns[1].Text), fmt.Sprint(v.Place().Epoch); got != want {
				return fmt.Errorf("%s has a row of epoch %s in a view of %s", name, got, want)
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
		if rows != homeRows {
			return 0, fmt.Errorf("%s has %d rows at epoch %v, want %d", name, rows, v.Place().Epoch, homeRows)
		}
	}
	return v.Place().Epoch, nil
}

// copyFeed fills a store as a first copy does: loads begin, rows come in units of
// their own, and both loads end in one unit.
type copyFeed struct {
	*feed
	a, b tableFeed
}

func newCopy(t testing.TB, s *Store, epoch millrace.Epoch) *copyFeed {
	t.Helper()
	f := newFeed(t, s)
	f.epoch = epoch
	sa, sb := homeTables()
	return &copyFeed{f, tableFeed{t, sa}, tableFeed{t, sb}}
}

func (c *copyFeed) begin() {
	c.t.Helper()
	c.must(c.a.describe(), c.b.describe(), c.a.control(millrace.KindLoadBegin, 1), c.b.control(millrace.KindLoadBegin, 2))
}

func (c *copyFeed) rows() {
	c.t.Helper()
	for i := range homeRows {
		c.must(c.a.load(1, fmt.Sprint(i), fmt.Sprint(c.epoch)))
		c.must(c.b.load(2, fmt.Sprint(i), fmt.Sprint(c.epoch)))
	}
}

func (c *copyFeed) end() {
	c.t.Helper()
	c.must(c.a.control(millrace.KindLoadEnd, 1), c.b.control(millrace.KindLoadEnd, 2))
	c.w.Close()
}

func fill(t testing.TB, s *Store, epoch millrace.Epoch) {
	t.Helper()
	c := newCopy(t, s, epoch)
	c.begin()
	c.rows()
	c.end()
}

func openHome(t testing.TB, dir string, change ...func(*Options)) *Home {
	t.Helper()
	o := Options{Dir: dir, Stream: testStream, MapSize: 1 << 24, MaxDBs: 16}
	for _, f := range change {
		f(&o)
	}
	h, err := OpenHome(o)
	if err != nil {
		t.Fatalf("OpenHome: %v", err)
	}
	t.Cleanup(func() { closeHome(t, h) })
	return h
}

func closeHome(t testing.TB, h *Home) {
	t.Helper()
	h.leaving.Wait()
	if err := h.Store().Check(context.Background()); err != nil && !errors.Is(err, ErrClosed) {
		t.Errorf("Check: %v", err)
	}
	if err := h.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		t.Errorf("Close: %v", err)
	}
}

func wantEpoch(t testing.TB, h *Home, want millrace.Epoch) {
	t.Helper()
	var got millrace.Epoch
	err := h.View(context.Background(), func(v *View) (err error) {
		got, err = epochOf(v)
		return err
	})
	if err != nil || got != want {
		t.Fatalf("readers see epoch %v, %v, want %v", got, err, want)
	}
}

func prepare(t testing.TB, h *Home, epoch millrace.Epoch) *Store {
	t.Helper()
	s, err := h.Next(epoch)
	if err != nil {
		t.Fatalf("Next(%v): %v", epoch, err)
	}
	return s
}

func switchHome(t testing.TB, h *Home) {
	t.Helper()
	if err := h.Switch(context.Background()); err != nil {
		t.Fatalf("Switch: %v", err)
	}
}

// wantFiles wants these names in a directory, whatever its lock files.
func wantFiles(t testing.TB, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		if !strings.Contains(e.Name(), "lock") {
			got = append(got, e.Name())
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s holds %v, want %v", dir, got, want)
	}
}

// followChild reads a home from another process, reopening it when it is told
// to, and says which epochs it sees.
func followChild() error {
	r, err := OpenReadOnly(Options{Dir: os.Getenv("DIR")})
	if err != nil {
		return err
	}
	for last := millrace.Epoch(0); ; {
		err := r.View(context.Background(), func(v *View) error {
			epoch, err := epochOf(v)
			switch {
			case err != nil:
				return err
			case epoch < last:
				return fmt.Errorf("epoch %v after %v", epoch, last)
			case epoch > last:
				last = epoch
				fmt.Println("epoch", uint64(epoch))
			}
			return nil
		})
		if err != nil {
			return errors.Join(err, r.Close())
		}
	}
}

// follower is a reader in another process.
type follower struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines *bufio.Scanner
	diag  strings.Builder
}

func startFollower(t *testing.T, dir string) *follower {
	t.Helper()
	f := &follower{t: t, cmd: exec.CommandContext(t.Context(), os.Args[0])}
	f.cmd.Env = append(os.Environ(), childVariable+"=follow", "DIR="+dir)
	f.cmd.Stderr = &f.diag
	out, err := f.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f.lines = bufio.NewScanner(out)
	return f
}

func (f *follower) sees(epoch millrace.Epoch) {
	f.t.Helper()
	if want := fmt.Sprint("epoch ", uint64(epoch)); !f.lines.Scan() || f.lines.Text() != want {
		_ = f.cmd.Wait()
		f.t.Fatalf("the reader in another process says %q, want %q: %s", f.lines.Text(), want, f.diag.String())
	}
}

func (f *follower) stop() {
	_ = f.cmd.Process.Kill()
	_ = f.cmd.Wait()
	if f.diag.Len() > 0 {
		f.t.Errorf("the reader in another process: %s", f.diag.String())
	}
}

// Readers in this process and in another one read without a pause while two
// epochs come and go; each view is of one epoch, whole, and none is older than
// the one before.
func TestHomeGoesOver(t *testing.T) {
	dir := t.TempDir()
	registry := prometheus.NewRegistry()
	h := openHome(t, dir, func(o *Options) { o.Registerer = registry })
	fill(t, h.Store(), 1)
	wantEpoch(t, h, 1)
	beside := startFollower(t, dir)
	defer beside.stop()
	beside.sees(1)

	var stop atomic.Bool
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			last := millrace.Epoch(1)
			for !stop.Load() {
				err := h.View(context.Background(), func(v *View) error {
					epoch, err := epochOf(v)
					if err == nil && epoch < last {
						err = fmt.Errorf("epoch %v after %v", epoch, last)
					}
					last = epoch
					return err
				})
				if err != nil {
					t.Errorf("a reader beside the switch: %v", err)
					return
				}
			}
		})
	}
	for epoch := millrace.Epoch(2); epoch <= 3; epoch++ {
		fill(t, prepare(t, h, epoch), epoch)
		if got, place := h.Following(); got != epoch || place.Index == 0 {
			t.Errorf("Following is %v at %v, want epoch %v", got, place, epoch)
		}
		switchHome(t, h)
		wantEpoch(t, h, epoch)
		beside.sees(epoch)
		h.leaving.Wait()
		wantFiles(t, dir, currentName, epochDir(epoch))
	}
	stop.Store(true)
	readers.Wait()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, f := range families {
		if f.GetName() == "millrace_edge_index" {
			found = f.GetMetric()[0].GetGauge().GetValue() == float64(h.Place().Index)
		}
	}
	if !found {
		t.Error("the metrics are not those of the store that readers use")
	}
	closeHome(t, h)
	h = openHome(t, dir)
	wantEpoch(t, h, 3)
}

// A view that began before the switch ends on its own store, which stays until
// then.
func TestHomeLetsViewsEnd(t *testing.T) {
	dir := t.TempDir()
	h := openHome(t, dir)
	fill(t, h.Store(), 1)
	fill(t, prepare(t, h, 2), 2)
	old := h.Store()
	err := h.View(context.Background(), func(v *View) error {
		switchHome(t, h)
		wantEpoch(t, h, 2)
		if epoch, err := epochOf(v); err != nil || epoch != 1 {
			return fmt.Errorf("the view that was open sees epoch %v, %w", epoch, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "data.mdb")); err != nil {
			return err
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	h.leaving.Wait()
	wantFiles(t, dir, currentName, "epoch-2")
	if err := old.View(context.Background(), func(*View) error { return nil }); !errors.Is(err, ErrSuperseded) && !errors.Is(err, ErrClosed) {
		t.Errorf("a view of the old store: %v, want ErrSuperseded or ErrClosed", err)
	}
}

// Nothing but a complete copy of a higher epoch of the same stream is gone over
// to.
func TestHomeRefuses(t *testing.T) {
	dir := t.TempDir()
	h := openHome(t, dir)
	fill(t, h.Store(), 3)
	refused := func(when, word string) {
		t.Helper()
		err := h.Switch(context.Background())
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: Switch gives %v, want %q", when, err, word)
		}
		wantEpoch(t, h, 3)
		wantFiles(t, dir, "data.mdb", "epoch-4")
	}
	for _, epoch := range []millrace.Epoch{1, 3} {
		if _, err := h.Next(epoch); err == nil {
			t.Errorf("epoch %v is prepared beside epoch 3", epoch)
		}
	}
	c := newCopy(t, prepare(t, h, 4), 4)
	refused("nothing came", "not ended")
	c.begin()
	refused("loads began", "not ended")
	c.rows()
	refused("rows came", "not ended")
	c.must(c.a.control(millrace.KindLoadEnd, 1))
	refused("one of two loads ended", "not ended")
	c.must(c.b.control(millrace.KindLoadEnd, 2))
	c.w.Close()
	// A store of another epoch than its directory says.
	if err := h.DropNext(); err != nil {
		t.Fatal(err)
	}
	fill(t, prepare(t, h, 4), 2)
	refused("it holds an older epoch", "epoch 2")
	if err := h.DropNext(); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenHome(Options{Dir: dir}); !errors.Is(err, ErrInUse) {
		t.Errorf("a second edge on the home: %v, want ErrInUse", err)
	}
	if err := h.Switch(context.Background()); err == nil {
		t.Error("Switch without a store that was filled succeeds")
	}
}

// A crash at each step of going over leaves a home that is either at the old
// epoch, with the copy going on where it was, or at the new one.
func TestHomeAfterCrash(t *testing.T) {
	for _, one := range []struct {
		name  string
		after func(t *testing.T, dir string) // does what was done before the crash
		want  millrace.Epoch
	}{
		{"copied", func(*testing.T, string) {}, 1},
		{"name written", func(t *testing.T, dir string) {
			if err := writeSynced(filepath.Join(dir, currentName+".new"), "epoch-2\n"); err != nil {
				t.Fatal(err)
			}
		}, 1},
		{"name torn", func(t *testing.T, dir string) {
			if err := writeSynced(filepath.Join(dir, currentName+".new"), "epo"); err != nil {
				t.Fatal(err)
			}
		}, 1},
		{"switched", func(t *testing.T, dir string) { switchByHand(t, dir) }, 2},
		{"marked", func(t *testing.T, dir string) {
			switchByHand(t, dir)
			s, err := Open(Options{Dir: dir, exact: true})
			if err == nil {
				err = errors.Join(s.supersede(), s.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
		}, 2},
		{"partly removed", func(t *testing.T, dir string) {
			switchByHand(t, dir)
			if err := os.Remove(filepath.Join(dir, "data.mdb")); err != nil {
				t.Fatal(err)
			}
		}, 2},
	} {
		t.Run(one.name, func(t *testing.T) {
			dir := t.TempDir()
			h := openHome(t, dir)
			fill(t, h.Store(), 1)
			fill(t, prepare(t, h, 2), 2)
			closeHome(t, h)
			one.after(t, dir)
			h = openHome(t, dir)
			wantEpoch(t, h, one.want)
			if one.want == 2 {
				wantFiles(t, dir, currentName, "epoch-2")
				return
			}
			if s := prepare(t, h, 2); s.Index() == 0 {
				t.Error("the copy begins anew")
			}
			switchHome(t, h)
			wantEpoch(t, h, 2)
		})
	}
}

func switchByHand(t *testing.T, dir string) {
	t.Helper()
	if err := writeCurrent(dir, "epoch-2"); err != nil {
		t.Fatal(err)
	}
}

// An epoch that appears while an older one is being copied takes its place, in
// this process and after a restart.
func TestHomeGivesCopyUp(t *testing.T) {
	dir := t.TempDir()
	h := openHome(t, dir)
	fill(t, h.Store(), 1)
	newCopy(t, prepare(t, h, 2), 2).w.Close()
	fill(t, prepare(t, h, 3), 3)
	wantFiles(t, dir, "data.mdb", "epoch-3")
	closeHome(t, h)
	h = openHome(t, dir)
	wantEpoch(t, h, 1)
	fill(t, prepare(t, h, 5), 5)
	wantFiles(t, dir, "data.mdb", "epoch-5")
	switchHome(t, h)
	wantEpoch(t, h, 5)
	h.leaving.Wait()
	wantFiles(t, dir, currentName, "epoch-5")
}

// told closes written when a line with the word is logged.
type told struct {
	word    string
	once    sync.Once
	written chan struct{}
}

func (w *told) Write(b []byte) (int, error) {
	if strings.Contains(string(b), w.word) {
		w.once.Do(func() { close(w.written) })
	}
	return len(b), nil
}

// An old store that has no room for its mark gets some, so that readers in other
// processes are told.
func TestHomeMarksFullStore(t *testing.T) {
	dir := t.TempDir()
	log := &told{word: "cannot be marked", written: make(chan struct{})}
	h := openHome(t, dir, func(o *Options) {
		o.MapSize, o.Logger = 1<<20, slog.New(slog.NewTextHandler(log, nil))
	})
	fill(t, h.Store(), 1)
	beside := startFollower(t, dir)
	defer beside.stop()
	beside.sees(1)
	// A view keeps the pages of its snapshot from being used again.
	err := h.View(context.Background(), func(*View) error {
		f := newFeed(t, h.Store())
		var err error
		for err == nil {
			err = f.unit()
		}
		f.w.Close()
		if !errors.Is(err, ErrFull) {
			return fmt.Errorf("fill the map: %w", err)
		}
		fill(t, prepare(t, h, 2), 2)
		switchHome(t, h)
		wantEpoch(t, h, 2)
		<-log.written // the mark could not be made, as a view of the store is open
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	h.leaving.Wait()
	beside.sees(2)
	wantFiles(t, dir, currentName, "epoch-2")
}

// What cannot be understood is not guessed at.
func TestHomeDamaged(t *testing.T) {
	for _, text := range []string{"", "epoch-2", "epoch-02\n", "../elsewhere\n", "epoch-2\n\n", "epoch-7\n"} {
		dir := t.TempDir()
		h := openHome(t, dir)
		fill(t, h.Store(), 1)
		closeHome(t, h)
		if err := writeSynced(filepath.Join(dir, currentName), text); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenHome(Options{Dir: dir}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("CURRENT is %q: OpenHome gives %v, want ErrCorrupt", text, err)
		}
		if _, err := Open(Options{Dir: dir, ReadOnly: true}); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNoStore) {
			t.Errorf("CURRENT is %q: Open gives %v", text, err)
		}
		wantFiles(t, dir, currentName, "data.mdb")
	}
}

// Waiting for an index ends when its store is left.
func TestHomeEndsWaits(t *testing.T) {
	dir := t.TempDir()
	h := openHome(t, dir)
	fill(t, h.Store(), 1)
	fill(t, prepare(t, h, 2), 2)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	old := h.Store()
	go func() { ended <- old.WaitIndex(ctx, 1<<40) }()
	switchHome(t, h)
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Errorf("WaitIndex: %v, want ErrClosed", err)
	}
}

// A place of an older epoch is behind readers already, and one of a newer epoch is waited
// for until readers have gone over.
func TestWaitPlaceOfAnotherEpoch(t *testing.T) {
	h := openHome(t, t.TempDir())
	fill(t, h.Store(), 2)
	fill(t, prepare(t, h, 3), 3)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	at := h.Place().Index
	if err := errors.Join(h.WaitPlace(ctx, 1, 1<<40), h.WaitPlace(ctx, 2, at), h.WaitPlace(ctx, 0, at)); err != nil {
		t.Errorf("what is there: %v", err)
	}
	for epoch, index := range map[millrace.Epoch]millrace.Index{0: at + 1, 2: at + 1, 3: 0} {
		short, cancel := context.WithTimeout(ctx, time.Millisecond)
		if err := h.WaitPlace(short, epoch, index); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("index %v of epoch %v, which has not come: %v", index, epoch, err)
		}
		cancel()
	}
	ended := make(chan error, 2)
	go func() { ended <- h.WaitPlace(ctx, 3, at) }()
	go func() { ended <- h.WaitPlace(ctx, 2, 1<<40) }()
	switchHome(t, h)
	if err := errors.Join(<-ended, <-ended); err != nil {
		t.Errorf("after readers have gone over: %v", err)
	}
}
