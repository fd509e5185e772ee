package edge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
)

// mirrorChild reads one row and says what it found.
func mirrorChild() error {
	r, err := OpenReadOnly(Options{Dir: os.Getenv("DIR")})
	if err != nil {
		return err
	}
	err = r.View(context.Background(), func(v *View) error {
		epoch, err := epochOf(v)
		fmt.Println("epoch", uint64(epoch))
		return err
	})
	return errors.Join(err, r.Close())
}

func openReadOnly(t *testing.T, dir string) *ReadOnly {
	t.Helper()
	r, err := OpenReadOnly(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func sees(t *testing.T, r *ReadOnly, want millrace.Epoch) {
	t.Helper()
	err := r.View(t.Context(), func(v *View) error {
		epoch, err := epochOf(v)
		if err == nil && epoch != want {
			err = fmt.Errorf("epoch %v", epoch)
		}
		return err
	})
	if err != nil {
		t.Fatalf("want epoch %v: %v", want, err)
	}
}

// The edge need not run.
func TestReadOnlyOfAStoppedEdge(t *testing.T) {
	dir := t.TempDir()
	if _, err := OpenReadOnly(Options{Dir: dir}); !errors.Is(err, ErrNoStore) {
		t.Fatalf("of nothing: %v", err)
	}
	h := openHome(t, dir)
	fill(t, h.Store(), 1)
	closeHome(t, h)
	r := openReadOnly(t, dir)
	sees(t, r, 1)
	if _, err := OpenReadOnly(Options{Dir: dir}); !errors.Is(err, ErrInUse) {
		t.Errorf("a second one in the process: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	at := r.Place()
	if err := errors.Join(r.WaitIndex(t.Context(), 0, at.Index), r.WaitIndex(t.Context(), 1, at.Index)); err != nil {
		t.Errorf("wait for what is there: %v", err)
	}
	for epoch, index := range map[millrace.Epoch]millrace.Index{1: at.Index + 1, 2: 1, 0: at.Index + 1} {
		if err := r.WaitIndex(ctx, epoch, index); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("wait for what is not there: %v", err)
		}
	}
}

// An edge whose files were moved away and that has begun anew is followed to the new ones,
// in views that overlap.
func TestReadOnlyFollowsReplacedFiles(t *testing.T) {
	dir, fresh := t.TempDir(), t.TempDir()
	for at, epoch := range map[string]millrace.Epoch{dir: 1, fresh: 2} {
		h := openHome(t, at)
		fill(t, h.Store(), epoch)
		closeHome(t, h)
	}
	r := openReadOnly(t, dir)
	sees(t, r, 1)
	for _, file := range []string{"data.mdb", "lock.mdb"} {
		if err := os.Rename(filepath.Join(fresh, file), filepath.Join(dir, file)); err != nil {
			t.Fatal(err)
		}
	}
	r.looked.Store(0)
	var work sync.WaitGroup
	for range 4 {
		work.Go(func() {
			for range 50 {
				if err := r.View(t.Context(), func(*View) error { return nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
	sees(t, r, 2)
}

// A view within another one, which waits for the files to be gone over to that the other one
// keeps from it, is refused by name; when both have ended reading goes on.
func TestReadOnlyNested(t *testing.T) {
	dir, fresh := t.TempDir(), t.TempDir()
	for at, epoch := range map[string]millrace.Epoch{dir: 1, fresh: 2} {
		h := openHome(t, at)
		fill(t, h.Store(), epoch)
		closeHome(t, h)
	}
	r, err := OpenReadOnly(Options{Dir: dir, MaxViewAge: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- r.View(t.Context(), func(*View) error {
			for _, file := range []string{"data.mdb", "lock.mdb"} {
				if err := os.Rename(filepath.Join(fresh, file), filepath.Join(dir, file)); err != nil {
					return err
				}
			}
			r.looked.Store(0)
			canceled, cancel := context.WithCancel(t.Context())
			cancel()
			if err := r.View(canceled, func(*View) error { return nil }); !errors.Is(err, context.Canceled) {
				return fmt.Errorf("a view whose context has ended: %w", err)
			}
			var err error
			for err == nil { // until the old store is being closed
				err = r.View(t.Context(), func(*View) error { return nil })
			}
			if !errors.Is(err, ErrViewsOpen) {
				return fmt.Errorf("a view within another one: %w", err)
			}
			return nil
		})
	}()
	select {
	case err := <-ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("a view within another one waits for ever")
	}
	sees(t, r, 2)
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// What must not read beside an edge is told so.
func TestReadOnlyRefuses(t *testing.T) {
	dir := t.TempDir()
	h := openHome(t, dir)
	fill(t, h.Store(), 1)
	child := func(contained bool) (string, error) {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childVariable+"=mirror", "DIR="+dir)
		if contained {
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
		}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := child(false); err != nil || out != "epoch 1\n" {
		t.Errorf("a process beside the edge: %s, %v", out, err)
	}
	if out, err := child(true); os.Getuid() == 0 && (err == nil || !strings.Contains(out, ErrForbidden.Error()) || !strings.Contains(out, "PID namespace")) {
		t.Errorf("a process in a namespace of its own: %s, %v", out, err)
	}
	closeHome(t, h)
	if os.Getuid() != 0 {
		return // it cannot give files away
	}
	if err := os.Chown(filepath.Join(dir, "data.mdb"), 65534, -1); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenReadOnly(Options{Dir: dir}); !errors.Is(err, ErrForbidden) || !strings.Contains(err.Error(), "65534") {
		t.Errorf("files of another user: %v", err)
	}
}
