package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-db/millrace/edge"
)

// swapChild restores the newest image into a home beside the store that readers use, and
// leads them over: what it is at it says in lines.
func swapChild() error {
	all, err := List(os.Getenv("IMAGES"))
	if err != nil || len(all) == 0 {
		return fmt.Errorf("list images: %v, %w", all, err)
	}
	h, err := edge.OpenHome(options(os.Getenv("DIR")))
	if err != nil {
		return err
	}
	i, err := Open(all[0].Path)
	if err != nil {
		return err
	}
	fmt.Println("restore")
	r, err := Restore(context.Background(), h, i, nil)
	if err != nil {
		return err
	}
	fmt.Println("swap")
	if err := r.Switch(context.Background()); err != nil {
		return err
	}
	fmt.Println("close")
	if err := errors.Join(i.Close(), h.Close()); err != nil {
		return err
	}
	fmt.Println("closed")
	return nil
}

// openReader opens a home's store beside its edge. What the edge has not made again yet
// after a kill is not there.
func openReader(dir string) (*edge.Store, error) {
	o := options(dir)
	o.ReadOnly = true
	return edge.Open(o)
}

// reading reads a home's store, as a program beside the edge does, until it is told to
// stop. Each view is of one unit, and none is older than the one before.
func reading(dir string, newest *atomic.Int64, stop <-chan struct{}) (views int, err error) {
	var s *edge.Store
	for {
		select {
		case <-stop:
			if s != nil {
				err = s.Close()
			}
			return views, err
		default:
		}
		if s == nil {
			if s, err = openReader(dir); err != nil {
				return views, fmt.Errorf("open: %w", err)
			}
		}
		err := s.View(context.Background(), func(v *edge.View) error {
			n, err := unitOf(v)
			if err == nil && n < newest.Load() {
				err = fmt.Errorf("rows of unit %d after those of %d", n, newest.Load())
			}
			newest.Store(n)
			return err
		})
		if errors.Is(err, edge.ErrSuperseded) {
			if err := s.Close(); err != nil {
				return views, err
			}
			s = nil
			continue
		}
		if err != nil {
			return views, err
		}
		views++
	}
}

// unitOf is the number that all rows have which a view shows.
func unitOf(v *edge.View) (number int64, err error) {
	number = -1
	rows := 0
	for _, name := range []string{"public.a", "public.b"} {
		table, err := v.Table(name)
		if err != nil {
			return number, err
		}
		err = table.Scan(nil, nil, 0, func(_ []byte, row *edge.Row) error {
			var n int64
			if _, err := fmt.Sscanf(string(row.Columns[1].Text), "%d:", &n); err != nil {
				return err
			}
			if rows > 0 && n != number {
				return fmt.Errorf("%s has rows of units %d and %d", name, number, n)
			}
			number = n
			rows++
			return nil
		})
		if err != nil {
			return number, err
		}
	}
	if rows != 2*sourceRows {
		return number, fmt.Errorf("%d rows", rows)
	}
	return number, nil
}

// A process that restores an image beside a store in use, and leads readers over, is
// killed at random in each of the three: readers in another process see the one or the
// other, whole, and never go back; what is there afterwards is whole, and the next start
// comes to the image.
func TestKilledSwap(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	images, home := filepath.Join(dir, "images"), filepath.Join(dir, "home")
	s := newSource(t, openStore(t, options(filepath.Join(dir, "store"))))
	s.unit(1)
	restoreTo(t, home, mustCreate(t, s, images, 2).Path)
	var newest atomic.Int64
	newest.Store(1)
	killed := make(map[string]int)
	over, views := 0, 0
	for round := range *killsFlag {
		number := int64(round + 2)
		s.unit(int(number))
		mustCreate(t, s, images, 2)

		stop := make(chan struct{})
		type outcome struct {
			views int
			err   error
		}
		done := make(chan outcome)
		go func() {
			n, err := reading(home, &newest, stop)
			done <- outcome{n, err}
		}()
		// In which of its parts it is killed, and how far in.
		part := []string{"restore", "swap", "close"}[round%3]
		most := map[string]time.Duration{"restore": 60 * time.Millisecond, "swap": 6 * time.Millisecond, "close": 20 * time.Millisecond}[part]
		at := killIn(t, part, time.Duration(rnd.Int64N(int64(most))), "DIR="+home, "IMAGES="+images)
		killed[at]++
		close(stop)
		read := <-done
		if read.err != nil {
			t.Fatalf("round %d, killed in %s: wrong answer: %v", round, at, read.err)
		}
		views += read.views
		h := openHome(t, home)
		got, is := rowsOf(t, h.Store())
		if len(got) != 2*sourceRows || is != fmt.Sprint(number) && is != fmt.Sprint(newest.Load()) {
			t.Fatalf("round %d, killed in %s: %d rows of unit %s, want unit %d, or %d as readers have seen", round, at, len(got), is, number, newest.Load())
		}
		if is == fmt.Sprint(number) {
			over++
		}
		newest.Store(max(newest.Load(), int64(atoi(t, is))))
		closeHome(t, h) // and checks it
	}
	t.Logf("killed in %v; in %d rounds of %d readers had gone over; they saw %d views", killed, over, *killsFlag, views)
	all, err := List(images)
	if err != nil || len(all) == 0 {
		t.Fatal(all, err)
	}
	h := openHome(t, home)
	here := h.Place()
	closeHome(t, h)
	if here.Index < all[0].Index {
		restoreTo(t, home, all[0].Path)
	}
	if _, is := rowsOf(t, openStore(t, options(home))); is != fmt.Sprint(*killsFlag+1) {
		t.Errorf("in the end the home has unit %s, want %d", is, *killsFlag+1)
	}
}

func atoi(t *testing.T, text string) (n int) {
	t.Helper()
	if _, err := fmt.Sscan(text, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// killIn starts the child that swaps and kills it a while after it has begun a part. It
// returns the last part that it has begun.
func killIn(t *testing.T, part string, after time.Duration, env ...string) (last string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(append(os.Environ(), childVariable+"=swap"), env...)
	var diag strings.Builder
	cmd.Stderr = &diag
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var timer *time.Timer
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if last = lines.Text(); last == part {
			timer = time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		}
	}
	_ = cmd.Wait()
	if timer != nil {
		timer.Stop()
	}
	if diag.Len() > 0 {
		t.Fatalf("child failed: %s", diag.String())
	}
	return last
}
