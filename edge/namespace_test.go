package edge

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// pidChild holds the lock that LMDB takes for a reader with the process ID PID.
func pidChild() error {
	f, err := os.OpenFile(filepath.Join(os.Getenv("DIR"), "lock.mdb"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	pid, err := strconv.ParseInt(os.Getenv("PID"), 10, 64)
	if err != nil {
		return err
	}
	lock := syscall.Flock_t{Type: syscall.F_WRLCK, Whence: io.SeekStart, Start: pid, Len: 1}
	if err := syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &lock); err != nil {
		return err
	}
	fmt.Println("locked")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// A process of another PID namespace that has this one's ID collides with it in
// LMDB's lock file. The store says so; nothing is read or written.
func TestSameProcessID(t *testing.T) {
	dir := t.TempDir()
	closeStore(t, openStore(t, dir))
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"=pid", "DIR="+dir, "PID="+strconv.Itoa(os.Getpid()))
	startChild(t, cmd, "locked")
	for _, readOnly := range []bool{true, false} {
		s, err := Open(Options{Dir: dir, ReadOnly: readOnly})
		if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "PID namespace") || !strings.Contains(err.Error(), "mend:") {
			t.Errorf("Open beside a process of the same ID (read-only %t): %v", readOnly, err)
		}
		if err == nil {
			_ = s.Close()
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	openStore(t, dir)
}

// Two processes that both are PID 1, in namespaces of their own, cannot write the
// same store, nor can one read it beside the other. Where the machine does not
// allow namespaces, TestSameProcessID and TestSecondWriterIsRefused show the two
// halves of it.
func TestTwoContainers(t *testing.T) {
	dir := t.TempDir()
	closeStore(t, openStore(t, dir))
	contained := func(child string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childVariable+"="+child, "DIR="+dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
		if os.Getuid() != 0 {
			cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		}
		return cmd
	}
	if err := contained("nothing").Run(); err != nil {
		t.Logf("namespaces are not allowed here: %v", err)
		return
	}
	first := contained("hold")
	startChild(t, first, "open")
	for child, says := range map[string]string{
		"hold": `store is in use by process 1 on`,
		"view": "has the process ID 1 too",
	} {
		out, err := contained(child).CombinedOutput()
		if err == nil || !strings.Contains(string(out), says) || !strings.Contains(string(out), "mend:") {
			t.Errorf("%s in a second container: %v, %s; want one that says %q", child, err, out, says)
		}
	}
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()
	openStore(t, dir)
}
