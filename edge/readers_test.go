package edge

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
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

// A snapshot has no age limit, and the store is closed only after it.
func TestSnapshot(t *testing.T) {
	s := openStore(t, t.TempDir())
	f := newFeed(t, s)
	tf := f.loaded(testSchema(1, 1, "t", oidInt8, "note"))
	f.must(tf.put("1", "a"), tf.put("2", "b"))
	closed := make(chan error, 1)
	err := s.Snapshot(t.Context(), func(v *View) error {
		f.must(tf.put("3", "c"))
		f.w.Close()
		go func() { closed <- s.Close() }()
		<-s.closing
		s.readers.expire(time.Now().Add(time.Hour))
		table, err := v.Table("public.t")
		if err != nil {
			return err
		}
		n := 0
		err = table.Scan(nil, nil, 0, func([]byte, *Row) error { n++; return nil })
		if err == nil && n != 2 {
			err = fmt.Errorf("%d rows, want 2", n)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if err := s.Snapshot(t.Context(), func(*View) error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("Snapshot of a closed store: %v", err)
	}
}

// What ends a view that was open for too long, and comes late, does not end the one that has
// begun with its reader since; nor does looking at ages, as metrics do, end any.
func TestExpiryIsOfOneView(t *testing.T) {
	s := openStore(t, t.TempDir())
	f := newFeed(t, s)
	tf := f.loaded(testSchema(1, 1, "t", oidInt8, "note"))
	f.must(tf.put("1", "a"))
	var r *reader
	var since int64
	for i := range 3 {
		err := s.View(t.Context(), func(v *View) error {
			if i == 0 {
				r, since = v.r, v.r.since.Load()
				return nil
			}
			if v.r != r {
				t.Fatal("it has another reader")
			}
			if i == 1 {
				r.expire(since)
			}
			if age := s.readers.oldest(time.Now().Add(time.Hour)); age < time.Hour {
				t.Errorf("it is open for %v", age)
			}
			if err := v.usable(); err != nil {
				t.Errorf("view %d: %v", i, err)
			}
			for _, want := range []int{1, 0} {
				if n := s.readers.expire(time.Now().Add(time.Hour)); n != want {
					t.Errorf("%d views have expired, want %d", n, want)
				}
			}
			return v.usable()
		})
		if want := i > 0; errors.Is(err, ErrExpired) != want {
			t.Errorf("view %d: %v", i, err)
		}
	}
}

// A snapshot that another process holds for too long is told of.
func TestForeignReader(t *testing.T) {
	dir := t.TempDir()
	var log lockedBuffer
	s := openStore(t, dir, func(o *Options) {
		o.MaxViewAge, o.Logger = time.Millisecond, slog.New(slog.NewTextHandler(&log, nil))
	})
	f := newFeed(t, s)
	tf := f.loaded(testSchema(1, 1, "t", oidInt8, "note"))
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"=view", "DIR="+dir)
	pid := startChild(t, cmd, "within a view")
	for i := range 5 {
		f.must(tf.put(strconv.Itoa(i), "x"))
	}
	eventually(t, "a warning and metrics", func() bool {
		return strings.Contains(log.String(), "another process holds an old snapshot") && strings.Contains(log.String(), "pid="+pid) &&
			s.watch.behind.Load() == 5 && s.watch.places.Load() >= 1
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if _, err := s.env.ReaderCheck(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of the snapshot", func() bool { return s.watch.behind.Load() == 0 })
}

// startChild starts a child and waits until it says what it must. It returns the
// child's PID; the child's input ends with the test.
func startChild(t *testing.T, cmd *exec.Cmd, says string) string {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close() })
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != says+"\n" {
		t.Fatalf("child says %q, %v", line, err)
	}
	return strconv.Itoa(cmd.Process.Pid)
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(60 * time.Second)
	for !is() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("no %s within a minute", what)
		}
	}
}

// lockedBuffer takes a log that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
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
