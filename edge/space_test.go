package edge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestSpaceAlarm(t *testing.T) {
	start := time.Unix(0, 0)
	const gib = 1 << 30
	for _, c := range []struct {
		name               string
		file, mapped, disk int64
		growth             int64 // a second
		says               string
	}{
		{"still", 10 * gib, 64 * gib, 100 * gib, 0, ""},
		{"first copy into an empty store", 1 * gib, 64 * gib, 100 * gib, 50 << 20, ""},
		{"slow growth", 40 * gib, 64 * gib, 100 * gib, 1000, ""},
		{"full in hours", 40 * gib, 64 * gib, 100 * gib, 1 << 20, "is full in"},
		{"disk full in hours", 10 * gib, 64 * gib, 5 * gib, 1 << 20, "free on the disk"},
		{"map nearly full", 60 * gib, 64 * gib, 100 * gib, 0, "raise edge.map_size"},
		{"disk nearly full", 1 * gib, 64 * gib, 100 << 20, 0, "free space on the disk"},
	} {
		var w spaceWatch
		var now Space
		news := 0
		for i := range int64(400) {
			at := start.Add(time.Duration(i) * spaceEvery)
			var n bool
			if now, n = w.look(at, c.file+(i-399)*c.growth*10, c.mapped, c.disk); n {
				news++
			}
		}
		if (now.Alarm == "") != (c.says == "") || !strings.Contains(now.Alarm, c.says) || now.Growth != float64(c.growth) {
			t.Errorf("%s: %+v, want an alarm that says %q and growth %d", c.name, now, c.says, c.growth)
		}
		if now.Alarm != "" && (news != 1 || !strings.Contains(now.Alarm, "mend:")) {
			t.Errorf("%s: the alarm %q was news %d times", c.name, now.Alarm, news)
		}
		if len(w.samples) != spaceSamples {
			t.Errorf("%s: %d samples are kept", c.name, len(w.samples))
		}
	}
}

// fillDisk writes until there is no room, sees that reads go on and that nothing
// is half written, and goes on in the same store after relieve has made room.
func fillDisk(dir string, relieve func() error) error {
	t := fatalT{}
	s, err := Open(Options{
		Dir: dir, Stream: testStream, MapSize: 1 << 30, MaxDBs: 64,
		Indexes: map[string][][]string{"public.t": {{"note"}}},
	})
	if err != nil {
		return err
	}
	f := newFeed(t, s)
	tf := f.loaded(testSchema(1, 1, "t", oidInt8, "note"))
	rows := 0
	for ; rows < 10_000; rows++ {
		if err = f.unit(tf.put(strconv.Itoa(rows), strings.Repeat("x", 10_000))); err != nil {
			break
		}
	}
	if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "free space") {
		return fmt.Errorf("after %d rows: %w, want ErrFull that says what to do", rows, err)
	}
	f.index--
	read := func(want int) error {
		n := 0
		err := s.View(context.Background(), func(v *View) error {
			table, err := v.Table("public.t")
			if err != nil {
				return err
			}
			return table.Scan(nil, nil, 0, func([]byte, *Row) error { n++; return nil })
		})
		if err == nil && n != want {
			err = fmt.Errorf("%d rows, want %d", n, want)
		}
		return errors.Join(err, s.Check(context.Background()))
	}
	if err := read(rows); err != nil {
		return fmt.Errorf("while it is full: %w", err)
	}
	s.lookAtSpace(time.Now())
	if !strings.Contains(s.Space().Alarm, "nearly full") {
		return fmt.Errorf("no alarm is raised: %+v", s.Space())
	}
	for range 3 { // it stays full, and whole
		if err := f.unit(tf.put("20000", strings.Repeat("x", 100_000))); !errors.Is(err, ErrFull) {
			return fmt.Errorf("again: %w", err)
		}
		f.index--
	}
	if err := relieve(); err != nil {
		return err
	}
	for i := range 100 {
		if err := f.unit(tf.put(strconv.Itoa(rows+i), strings.Repeat("x", 10_000))); err != nil {
			return fmt.Errorf("with room again: %w", err)
		}
	}
	if err := read(rows + 100); err != nil {
		return fmt.Errorf("with room again: %w", err)
	}
	f.w.Close()
	return s.Close()
}

// fullChild fills a store under a limit on the size of files, and lifts it.
func fullChild() error {
	signal.Ignore(syscall.SIGXFSZ)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	set := func(to uint64) error {
		return syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: to, Max: limit.Max})
	}
	if err := set(3<<20 + 5000); err != nil {
		return err
	}
	if err := fillDisk(os.Getenv("DIR"), func() error { return set(limit.Cur) }); err != nil {
		return err
	}
	fmt.Println("done")
	return nil
}

// A file that may not grow stops applying and nothing else, and applying goes on
// when it may.
func TestFullDisk(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"=full", "DIR="+t.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "done\n" {
		t.Errorf("%v, %s", err, out)
	}
}

// The same on a small file system, where the machine allows to make one:
// TestFullDisk shows it everywhere.
func TestFullFileSystem(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=12m"); err != nil {
		t.Logf("file systems cannot be made here: %v", err)
		return
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 6<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := fillDisk(filepath.Join(dir, "store"), func() error { return os.Remove(ballast) }); err != nil {
		t.Error(err)
	}
}
