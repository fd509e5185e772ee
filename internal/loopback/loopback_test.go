package loopback

import (
	"net"
	"runtime"
	"strconv"
	"testing"
)

func TestFreePorts(t *testing.T) {
	ports, err := FreePorts(8)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for _, port := range ports {
		if seen[port] {
			t.Errorf("FreePorts handed out %d twice", port)
		}
		seen[port] = true
		if port < lowestPort || port >= ephemeralStart() {
			t.Errorf("FreePorts handed out %d, want %d to %d", port, lowestPort, ephemeralStart()-1)
		}
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			t.Errorf("listen on a free port: %v", err)
			continue
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestHeld restarts a server at a port that was handed out: nobody else is given it
// before, meanwhile and in between.
func TestHeld(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Log("ports are held on Linux only")
		return
	}
	port, err := FreePort()
	if err != nil {
		t.Fatal(err)
	}
	wantHeld := func(when string) {
		t.Helper()
		if err := hold(port); err == nil {
			t.Fatalf("%s the port is there for another", when)
		}
	}
	wantHeld("before its server listens")
	for range 2 {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			t.Fatalf("listen on a port that is held: %v", err)
		}
		wantHeld("while its server listens")
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		wantHeld("while its server is away")
	}
}
