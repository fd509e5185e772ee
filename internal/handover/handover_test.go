package handover_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/handover"
	"github.com/millrace-db/millrace/internal/sockets"
	"github.com/millrace-db/millrace/internal/testdir"
)

// asSuccessor makes the test binary a successor: echo sends each connection what came
// with it, fail ends at once, mute says nothing; quit ends when it answers, and idle takes
// nothing over. older is of a version that says that it answers and no more, and refuses what
// it does not know; wrapper leaves the channel to a process of its own, held, and ends; late
// is echo of a predecessor of an earlier version, and receives nothing before that has ended.
const asSuccessor = "MILLRACE_TEST_HANDOVER_SUCCESSOR"

func TestMain(m *testing.M) {
	if how := os.Getenv(asSuccessor); how != "" {
		if err := succeed(how); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func succeed(how string) error {
	switch how {
	case "older":
		if os.Getenv(handover.VariableBefore) == "" {
			return errors.New("unknown environment variable")
		}
	case "held":
		_, err := io.Copy(io.Discard, os.NewFile(3, "channel"))
		return err
	case "wrapper":
		held := exec.Command(os.Args[0]) //nolint:noctx // it ends with the channel
		held.Env = append(os.Environ(), asSuccessor+"=held")
		held.ExtraFiles = []*os.File{os.NewFile(3, "channel")}
		if err := held.Start(); err != nil {
			return err
		}
		return errors.New("as the test wants")
	}
	environ := os.Environ()
	if how == "late" {
		for i := range environ {
			environ[i] = strings.Replace(environ[i], handover.Variable+"=", handover.VariableBefore+"=", 1)
		}
	}
	p, err := handover.Inherit(environ)
	if err != nil || p == nil {
		return fmt.Errorf("inherit: %v, %w", p, err)
	}
	switch how {
	case "older":
		if err := p.Ready(); err != nil {
			return err
		}
		<-time.After(time.Minute)
	case "fail":
		return fmt.Errorf("as the test wants")
	case "mute":
		_, err := io.Copy(io.Discard, os.Stdin)
		<-time.After(time.Minute)
		return err
	}
	ctx := context.Background()
	l, err := p.Sockets.TCP(ctx, "listener", os.Getenv("ADDRESS"), true)
	if err != nil {
		return err
	}
	if err := p.Ready(); err != nil || how == "quit" {
		return err
	}
	if how == "idle" {
		<-time.After(time.Minute)
		return nil
	}
	if err := p.Took(); err != nil {
		return err
	}
	c, err := l.Accept()
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintln(c, "accepted")
	if how == "late" {
		_, _ = io.Copy(io.Discard, c) // until the predecessor has ended
	}
	_ = c.Close()
	return p.Receive(ctx, func(c net.Conn, state []byte) error {
		defer func() { _ = c.Close() }()
		_, err := c.Write(state)
		return err
	})
}

func TestHandover(t *testing.T) {
	t.Run("waits", func(t *testing.T) { handsOver(t, "echo") })
	// What one of an earlier version has sent arrives where it has ended meanwhile.
	t.Run("does not wait for Took", func(t *testing.T) { handsOver(t, "late") })
}

func handsOver(t *testing.T, how string) {
	set := new(sockets.Set)
	l, err := set.TCP(t.Context(), "listener", "127.0.0.1:0", true)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(asSuccessor, how)
	t.Setenv("ADDRESS", l.Addr().String())
	dial := func() net.Conn {
		t.Helper()
		c, err := new(net.Dialer).DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		return c
	}
	// Connections of this process, which the successor is to go on with.
	states := [][]byte{nil, []byte("state"), bytes.Repeat([]byte("long "), 50_000)}
	if how == "late" {
		states = states[:2] // the channel has no room for the last one before it is read
	}
	var theirs, ours []net.Conn
	for range states {
		theirs = append(theirs, dial())
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		ours = append(ours, c)
	}
	s, err := handover.Start(set)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	if how == "echo" {
		if err := s.Took(ctx); err != nil {
			t.Fatal(err)
		}
	}
	late := dial()
	if err := l.Close(); err != nil { // the successor accepts on it
		t.Error(err)
	}
	if text, err := bufio.NewReader(late).ReadString('\n'); err != nil || text != "accepted\n" {
		t.Errorf("a new connection is answered %q, %v", text, err)
	}
	for i, state := range states {
		if err := s.Send(ours[i], state); err != nil {
			t.Fatal(err)
		}
		_ = ours[i].Close()
	}
	if err := errors.Join(s.Close(), late.Close()); err != nil {
		t.Error(err)
	}
	for i, state := range states {
		if got, err := io.ReadAll(theirs[i]); err != nil || !bytes.Equal(got, state) {
			t.Errorf("connection %d came with %d bytes, %v; want %d", i, len(got), err, len(state))
		}
	}
}

func TestSuccessorsThatDoNotAnswer(t *testing.T) {
	for _, how := range []string{"fail", "mute", "older", "wrapper"} {
		t.Setenv(asSuccessor, how)
		s, err := handover.Start(new(sockets.Set))
		if err != nil {
			t.Fatal(err)
		}
		limit := time.Minute
		if how == "mute" {
			limit = 200 * time.Millisecond
		}
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		err = s.Ready(ctx)
		cancel()
		if err == nil || how != "mute" && !strings.Contains(err.Error(), "exit status 1") {
			t.Errorf("%s: %v", how, err)
		}
	}
	set := new(sockets.Set)
	l, err := set.TCP(t.Context(), "listener", "127.0.0.1:0", true)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("ADDRESS", l.Addr().String())
	for how, limit := range map[string]time.Duration{"quit": time.Minute, "idle": 200 * time.Millisecond} {
		t.Setenv(asSuccessor, how)
		s, err := handover.Start(set)
		if err != nil {
			t.Fatal(err)
		}
		ready, end := context.WithTimeout(t.Context(), time.Minute)
		if err := s.Ready(ready); err != nil {
			t.Fatal(err)
		}
		end()
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		if err := s.Took(ctx); err == nil || !strings.Contains(err.Error(), "has not taken over") {
			t.Errorf("%s: %v", how, err)
		}
		cancel()
		if err := syscall.Kill(s.PID(), 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("%s: the successor is not gone: %v", how, err)
		}
	}
	// Whoever asks for what is not there any more is not told of a fault.
	t.Setenv(asSuccessor, "fail")
	ended, err := handover.Start(new(sockets.Set))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(ended.End(), ended.Upgrade()); err != nil {
		t.Error(err)
	}
	if p, err := handover.Inherit([]string{"OTHER=1"}); p != nil || err != nil {
		t.Errorf("without a predecessor: %v, %v", p, err)
	}
}

func TestNotify(t *testing.T) {
	path := filepath.Join(testdir.For(t), "n")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if err := handover.Notify([]string{"NOTIFY_SOCKET=" + path}); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	_ = l.SetReadDeadline(time.Now().Add(time.Minute))
	n, err := l.Read(b)
	if want := fmt.Sprintf("READY=1\nMAINPID=%d\n", os.Getpid()); err != nil || string(b[:n]) != want {
		t.Errorf("the service manager is told %q, %v; want %q", b[:n], err, want)
	}
	if err := handover.Notify(nil); err != nil {
		t.Error(err)
	}
	if err := handover.Notify([]string{"NOTIFY_SOCKET=" + path + ".nobody"}); err == nil {
		t.Error("nobody was told, and no error")
	}
}
