package sockets_test

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace-db/millrace/internal/sockets"
	"github.com/millrace-db/millrace/internal/testdir"
)

// asSuccessor makes the test binary take over the sockets that it is given, and
// answer one connection on each.
const asSuccessor = "MILLRACE_TEST_SOCKETS_SUCCESSOR"

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
	kind, rest, _ := strings.Cut(how, " ")
	address, path, _ := strings.Cut(rest, " ")
	var set *sockets.Set
	var err error
	if kind == "handover" {
		set, err = sockets.Given([]string{"tcp", "unix"})
	} else {
		set, err = sockets.Activated([]string{fmt.Sprintf("LISTEN_PID=%d", os.Getpid()), "LISTEN_FDS=2"})
	}
	if err != nil {
		return err
	}
	ctx := context.Background()
	tcp, err := set.TCP(ctx, "tcp", address, true)
	if err != nil {
		return err
	}
	unix, err := set.Unix(ctx, "unix", path)
	if err != nil {
		return err
	}
	if spare := set.Spare(); len(spare) > 0 {
		return fmt.Errorf("sockets are left: %v", spare)
	}
	fmt.Println("ready")
	for _, l := range []net.Listener{tcp, unix} {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(c, "successor"); err != nil {
			return err
		}
		_ = c.Close()
		_ = l.Close()
	}
	return nil
}

// A successor is given the sockets, and answers who has connected to them before.
func TestSuccessorTakesSockets(t *testing.T) {
	for _, kind := range []string{"handover", "activated"} {
		t.Run(kind, func(t *testing.T) {
			path := filepath.Join(testdir.For(t), "s")
			set := new(sockets.Set)
			tcp, err := set.TCP(t.Context(), "tcp", "127.0.0.1:0", true)
			if err != nil {
				t.Fatal(err)
			}
			unix, err := set.Unix(t.Context(), "unix", path)
			if err != nil {
				t.Fatal(err)
			}
			var waiting []net.Conn
			for _, l := range []net.Listener{tcp, unix} {
				c, err := new(net.Dialer).DialContext(t.Context(), l.Addr().Network(), l.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				waiting = append(waiting, c)
			}
			_, files, err := set.Files()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), asSuccessor+"="+kind+" "+tcp.Addr().String()+" "+path)
			cmd.ExtraFiles = files
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line := make([]byte, 6)
			if _, err := out.Read(line); err != nil {
				t.Fatal(err)
			}
			set.Yield()
			for _, f := range files {
				_ = f.Close()
			}
			if err := tcp.Close(); err != nil {
				t.Error(err)
			}
			if err := unix.Close(); err != nil {
				t.Error(err)
			}
			for _, c := range waiting {
				text := make([]byte, 9)
				if _, err := c.Read(text); err != nil || string(text) != "successor" {
					t.Errorf("who had connected to %v before was answered %q, %v", c.RemoteAddr(), text, err)
				}
				_ = c.Close()
			}
			if err := cmd.Wait(); err != nil {
				t.Fatal(err)
			}
			// The service manager's socket stays for the next start.
			if _, err := os.Stat(path); (kind == "activated") != (err == nil) {
				t.Errorf("after the end the socket's file: %v", err)
			}
		})
	}
}

func TestGivenSockets(t *testing.T) {
	if set, err := sockets.Activated([]string{"LISTEN_PID=1", "LISTEN_FDS=x"}); err != nil || len(set.Spare()) != 0 {
		t.Errorf("what another process is given was taken: %v", err)
	}
	for _, fds := range []string{"x", "-1", "1000"} {
		if _, err := sockets.Activated([]string{fmt.Sprintf("LISTEN_PID=%d", os.Getpid()), "LISTEN_FDS=" + fds}); err == nil {
			t.Errorf("LISTEN_FDS=%s was taken", fds)
		}
	}
	var none *sockets.Set
	l, err := none.TCP(t.Context(), "x", "127.0.0.1:0", true)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if _, err := none.TCP(t.Context(), "x", "0.0.0.0:0", true); err == nil {
		t.Error("all interfaces are taken for loopback")
	}
	if _, err := none.Unix(t.Context(), "x", filepath.Join(t.TempDir(), "nope", "s")); err == nil {
		t.Errorf("a socket without a directory: %v", fs.ErrNotExist)
	}
}
