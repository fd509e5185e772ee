package edge

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
)

// reading reads a home again and again until it is stopped, and returns how often and
// the first error.
func reading(h *Home) (stop func() (int64, error)) {
	var n, end atomic.Int64
	done := make(chan error, 1)
	go func() {
		for end.Load() == 0 {
			if err := h.View(context.Background(), func(v *View) error { _, err := epochOf(v); return err }); err != nil {
				done <- fmt.Errorf("read %d: %w", n.Load(), err)
				return
			}
			n.Add(1)
		}
		done <- nil
	}()
	return func() (int64, error) {
		end.Store(1)
		err := <-done
		return n.Load(), err
	}
}

// succeedChild reads a home beside the process that keeps it, takes it over when it is
// told to, and writes a unit.
func succeedChild() error {
	h, err := OpenHomeStandby(Options{Dir: os.Getenv("DIR"), MapSize: 1 << 24, MaxDBs: 16})
	if err != nil {
		return err
	}
	stop := reading(h)
	fmt.Println("reads")
	in := bufio.NewReader(os.Stdin)
	if _, err := in.ReadString('\n'); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := h.TakeOver(ctx); err != nil {
		return err
	}
	w, err := h.Store().NewWriter()
	if err != nil {
		return err
	}
	var c *millrace.Checkpoint
	err = h.View(ctx, func(v *View) (err error) { c, err = v.Checkpoint(); return err })
	if err == nil {
		err = w.Begin()
	}
	if err == nil {
		err = w.Apply(&millrace.Entry{Kind: millrace.KindHeartbeat}, millrace.ModeWAL)
	}
	if err == nil {
		c.Index++
		err = w.Commit(c)
	}
	w.Close()
	if err != nil {
		return err
	}
	fmt.Println("writes")
	_, _ = in.ReadString('\n') // its end
	_, err = stop()
	return errors.Join(err, h.Close())
}

// Readers of both processes read on while a home goes from one to the other, also
// where readers have gone over to another store while the successor stood by.
func TestHomeIsHandedOver(t *testing.T) {
	for _, goesOver := range []bool{false, true} {
		t.Run(fmt.Sprint("goesOver=", goesOver), func(t *testing.T) {
			h := openHome(t, t.TempDir())
			fill(t, h.Store(), 1)
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), childVariable+"=succeed", "DIR="+h.Dir())
			cmd.Stderr = os.Stderr
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewReader(out)
			says := func(want string) {
				t.Helper()
				if line, err := lines.ReadString('\n'); line != want+"\n" {
					t.Fatalf("the successor says %q, %v; want %s", line, err, want)
				}
			}
			says("reads")
			stop := reading(h)
			if goesOver {
				fill(t, prepare(t, h, 2), 2)
				switchHome(t, h)
			}
			index := h.Place().Index
			if _, err := fmt.Fprintln(in, "take it"); err != nil {
				t.Fatal(err)
			}
			if err := h.Yield(); err != nil {
				t.Fatal(err)
			}
			says("writes")
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := h.WaitIndex(ctx, index+1); err != nil {
				t.Errorf("what the successor has written is not seen: %v", err)
			}
			if _, err := h.Store().NewWriter(); err == nil {
				t.Error("a home that was given up can be written")
			}
			if n, err := stop(); err != nil || n == 0 {
				t.Errorf("the old process has read %d times, %v", n, err)
			}
			if err := in.Close(); err != nil {
				t.Error(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("the successor: %v", err)
			}
		})
	}
}

// Who stands by gives up when it is told to, and makes nothing of its own.
func TestStandbyWaits(t *testing.T) {
	dir := t.TempDir()
	if _, err := OpenHomeStandby(Options{Dir: dir}); !errors.Is(err, ErrNoStore) {
		t.Errorf("standby for what is not there: %v, want ErrNoStore", err)
	}
	h := openHome(t, dir)
	fill(t, h.Store(), 1)
	other := &Home{opts: h.opts, exchangeMu: newMutex()}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := other.TakeOver(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the home was taken from who keeps it: %v", err)
	}
}

// Who reads beside another process that has gone over to another store, and waits for a view
// of the old one that somebody holds, waits for no longer than it wants; the rest are led on
// when that view has ended.
func TestWaitForAnotherStoreEnds(t *testing.T) {
	h := openHome(t, t.TempDir())
	fill(t, h.Store(), 1)
	held, leave, left := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		left <- h.Store().View(t.Context(), func(*View) error { close(held); <-leave; return nil })
	}()
	<-held
	// As the other process does it.
	next := prepare(t, h, 2)
	fill(t, next, 2)
	h.next.Store(nil)
	if err := errors.Join(next.Close(), writeCurrent(h.Dir(), epochDir(2)), h.Store().supersede()); err != nil {
		t.Fatal(err)
	}
	h.foreign.Store(true)
	read := func(ctx context.Context) error {
		return h.View(ctx, func(v *View) error { _, err := epochOf(v); return err })
	}
	ctx, cancel := context.WithCancel(t.Context())
	patient, impatient := make(chan error, 3), make(chan error, 3)
	go func() { impatient <- read(ctx) }()
	eventually(t, "wait for the view that is held", func() bool { return h.exchanging.Load() != nil })
	for range cap(patient) {
		go func() { patient <- read(t.Context()) }()
	}
	for range cap(impatient) - 1 {
		go func() { impatient <- read(ctx) }()
	}
	cancel()
	limit, end := context.WithTimeout(t.Context(), 30*time.Second)
	defer end()
	for range cap(impatient) {
		select {
		case err := <-impatient:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("who waits no longer is answered %v", err)
			}
		case <-limit.Done():
			t.Error("who waits no longer is not answered")
		}
	}
	if err := h.TakeOver(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("the home was taken over: %v", err)
	}
	close(leave)
	for range cap(patient) {
		if err := <-patient; err != nil {
			t.Error(err)
		}
	}
	if err := <-left; err != nil || h.Place().Epoch != 2 {
		t.Errorf("readers are at epoch %v, %v", h.Place().Epoch, err)
	}
}
