package growth

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// load returns the load averages of the machine.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(b))[:3], " ")
}

// diskOf returns the kind of the file system that a directory is in, and its device.
func diskOf(dir string) (kind, device string, err error) {
	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil {
		return "", "", err
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", "", err
	}
	// 36 35 98:0 / /mnt rw,noatime master:1 - ext4 /dev/root rw
	want := fmt.Sprintf("%d:%d", st.Dev>>8&0xfff, st.Dev&0xff|st.Dev>>12&0xfff00)
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		for i := range f {
			if f[i] == "-" && len(f) > i+2 && f[2] == want {
				return f[i+1], f[i+2], nil
			}
		}
	}
	return "", "", fmt.Errorf("%s lies on device %s, which is mounted nowhere", dir, want)
}

// procNumber returns a number that a file of /proc gives after a name.
func procNumber(file, name string) int64 {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), name+":"); ok {
			n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n
		}
	}
	return 0
}

// cost is what a piece of work took.
type cost struct {
	wall, cpu time.Duration
	written   int64 // bytes, by system calls
	// minor and major are page faults, major those that waited for the disk.
	minor, major int64
}

// spend returns what work costs; who is syscall.RUSAGE_SELF, or 1 for the thread alone,
// to which the goroutine must be locked.
func spend(who int, work func()) cost {
	var before, after syscall.Rusage
	written := procNumber("/proc/self/io", "wchar")
	_ = syscall.Getrusage(who, &before)
	began := time.Now()
	work()
	c := cost{wall: time.Since(began)}
	_ = syscall.Getrusage(who, &after)
	c.written = procNumber("/proc/self/io", "wchar") - written
	c.cpu = time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
	c.minor, c.major = after.Minflt-before.Minflt, after.Majflt-before.Majflt
	return c
}

// interrupted returns how many times in a second of its own a thread that does nothing but
// look at the clock is kept from it for 8 µs and more. If a read takes t, the share t times
// that of all reads says what the machine does.
func interrupted() float64 {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	n := 0
	c := spend(rusageThread, func() {
		began := time.Now()
		for last := began; last.Sub(began) < 500*time.Millisecond; {
			now := time.Now()
			if now.Sub(last) >= 8*time.Microsecond {
				n++
			}
			last = now
		}
	})
	return float64(n) / max(c.cpu, time.Millisecond).Seconds()
}

// runFirst lets the thread run before those of all processes that have no such priority.
func runFirst() error {
	const roundRobin = 2
	priority := int32(1)
	if _, _, errno := syscall.Syscall(syscall.SYS_SCHED_SETSCHEDULER, 0, roundRobin, uintptr(unsafe.Pointer(&priority))); errno != 0 {
		return fmt.Errorf("run before all others: %w; mend: leave -first out, or do it as root", errno)
	}
	return nil
}

// memory watches what the process holds. Pages of the store's file that are mapped are
// the kernel's to take, so they are counted apart.
type memory struct {
	stop chan struct{}
	done sync.WaitGroup
	// anonymous and file are the most that was seen of each, in bytes; peak is the
	// kernel's own figure of both.
	anonymous, file, peak int64
}

func watchMemory(b *testing.B) *memory {
	b.Helper()
	// The peak begins anew.
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0o200); err != nil {
		b.Logf("the peak is of the whole process: %v", err)
	}
	m := &memory{stop: make(chan struct{})}
	m.done.Go(func() {
		t := time.NewTicker(20 * time.Millisecond)
		defer t.Stop()
		for {
			m.anonymous = max(m.anonymous, procNumber("/proc/self/status", "RssAnon")<<10)
			m.file = max(m.file, procNumber("/proc/self/status", "RssFile")<<10)
			select {
			case <-t.C:
			case <-m.stop:
				return
			}
		}
	})
	return m
}

func (m *memory) end() {
	close(m.stop)
	m.done.Wait()
	m.peak = procNumber("/proc/self/status", "VmHWM") << 10
}
