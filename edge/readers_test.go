package edge

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bmatsuo/lmdb-go/lmdb"
)

// viewChild opens the store for reading and stays within a view.
func viewChild() error {
	s, err := Open(Options{Dir: os.Getenv("DIR"), ReadOnly: true})
	if err != nil {
		return err
	}
	return s.View(context.Background(), func(*View) error {
		fmt.Println("within a view")
		_, err := io.Copy(io.Discard, os.Stdin)
		return err
	})
}

// TestReaderOfADeadProcess: what a process that was killed within a view holds
// back is free again soon, without a restart of the one that writes.
func TestReaderOfADeadProcess(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"=view", "DIR="+dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "within a view\n" {
		t.Fatalf("child says %q, %v", line, err)
	}
	pid := strconv.Itoa(cmd.Process.Pid)
	listed := func() bool {
		found := false
		err := s.env.ReaderList(func(line string) error {
			fields := strings.Fields(line)
			found = found || len(fields) > 0 && fields[0] == pid
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	if !listed() {
		t.Fatalf("process %s is within a view and not among the readers", pid)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for listed() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("process %s was killed and is still among the readers", pid)
		}
	}
}

// TestEnvironment: commits reach the disk before they count, stray writes cannot
// reach the map, and there are places for many readers.
func TestEnvironment(t *testing.T) {
	s := openStore(t, t.TempDir())
	flags, err := s.env.Flags()
	if err != nil {
		t.Fatal(err)
	}
	if bad := flags & (lmdb.NoSync | lmdb.NoMetaSync | lmdb.MapAsync | lmdb.WriteMap | lmdb.NoLock); bad != 0 {
		t.Errorf("the environment was opened with flags %#x", bad)
	}
	info, err := s.env.Info()
	if err != nil {
		t.Fatal(err)
	}
	if info.MaxReaders != maxReaders {
		t.Errorf("places for readers: %d, want %d", info.MaxReaders, maxReaders)
	}
}
