package image

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
)

var killsFlag = flag.Int("kills", 6, "how often each of the tests that kill a process does so")

// createChild writes images of a store that another process writes to.
func createChild() error {
	fmt.Println("began")
	for {
		s, err := edge.Open(edge.Options{Dir: os.Getenv("DIR"), ReadOnly: true})
		if err != nil {
			return err
		}
		if _, err = Create(context.Background(), s, Options{Dir: os.Getenv("IMAGES"), Keep: 2}); err != nil {
			return err
		}
		if err := s.Close(); err != nil {
			return err
		}
	}
}

// restoreChild restores the newest image into a home again and again.
func restoreChild() error {
	all, err := List(os.Getenv("IMAGES"))
	if err != nil || len(all) == 0 {
		return fmt.Errorf("list images: %v, %w", all, err)
	}
	fmt.Println("began")
	for {
		h, err := edge.OpenHome(options(os.Getenv("DIR")))
		if err != nil {
			return err
		}
		i, err := Open(all[0].Path)
		if err != nil {
			return err
		}
		r, err := Restore(context.Background(), h, i, nil)
		if err == nil {
			err = r.Switch(context.Background())
		}
		if err != nil {
			return err
		}
		if err := i.Close(); err != nil {
			return err
		}
		if err := h.Close(); err != nil {
			return err
		}
	}
}

// kill starts a child and kills it at a random moment; meanwhile, which may
// be nil, is called until then.
func kill(t *testing.T, rnd *rand.Rand, child string, most time.Duration, meanwhile func(), env ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(append(os.Environ(), childVariable+"="+child), env...)
	var diag strings.Builder
	cmd.Stderr = &diag
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if lines := bufio.NewScanner(out); !lines.Scan() {
		t.Fatalf("child says nothing: %s", diag.String())
	}
	killed := make(chan struct{})
	time.AfterFunc(time.Duration(rnd.Int64N(int64(most))), func() {
		_ = cmd.Process.Kill()
		close(killed)
	})
	for meanwhile != nil {
		select {
		case <-killed:
			meanwhile = nil
		default:
			meanwhile()
		}
	}
	<-killed
	_ = cmd.Wait()
	if diag.Len() > 0 {
		t.Fatalf("child failed: %s", diag.String())
	}
}

// Whenever a process that writes images dies, what has the name of an image is one
// of a whole unit; and whenever one dies that restores, the home opens, clean, and
// holds what it held or what the image holds.
func TestKilled(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	store, images, home := filepath.Join(dir, "store"), filepath.Join(dir, "images"), filepath.Join(dir, "home")
	s := newSource(t, openStore(t, options(store)))
	units := 1
	s.unit(units)
	mustCreate(t, s, images, 2)
	var written int
	newest := millrace.Index(0)
	for round := range *killsFlag {
		kill(t, rnd, "create", 250*time.Millisecond, func() { units++; s.unit(units) }, "DIR="+store, "IMAGES="+images)
		all, err := List(images)
		// One more than is kept for each process that died before it removed that.
		if err != nil || len(all) == 0 || len(all) > 3+round || all[0].Index < newest {
			t.Fatalf("images are %v, %v; the newest was of index %v", all, err, newest)
		}
		if all[0].Index > newest {
			newest = all[0].Index
			written++
		}
		for _, e := range all {
			i := openImage(t, e.Path)
			if err := i.Verify(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			_ = i.Close()
		}
	}
	t.Logf("%d images were written in %d rounds, beside %d units", written, *killsFlag, units)

	path := mustCreate(t, s, images, 2).Path
	want, _ := rowsOf(t, s.store)
	restored := 0
	for range *killsFlag {
		kill(t, rnd, "restore", 250*time.Millisecond, nil, "DIR="+home, "IMAGES="+images)
		h := openHome(t, home)
		if got, number := rowsOf(t, h.Store()); len(got) > 0 {
			restored++
			if len(got) != len(want) || number != fmt.Sprint(units) {
				t.Fatalf("home has %d rows of unit %s, want %d of %d", len(got), number, len(want), units)
			}
		}
		closeHome(t, h)
	}
	t.Logf("%d rounds of %d had a restored store", restored, *killsFlag)
	restoreTo(t, home, path)
}
