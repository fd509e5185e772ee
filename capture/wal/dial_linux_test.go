package wal

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// What the kernel is asked for stands on the sockets of all connections. (That a
// packet is dropped without a word cannot be had on loopback.)
func TestSocketsAreBounded(t *testing.T) {
	db := pgtest.New(t)
	c := mustNew(t, Config{URL: db.URL, Stream: "s", Tables: []string{"public.a"}})
	conn, err := c.connect(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer capture.Close(conn)
	repl, err := c.connectReplication(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer capture.Close(repl)
	for name, nc := range map[string]net.Conn{"connection": conn.PgConn().Conn(), "replication": repl.gulp.Conn} {
		tcp, ok := nc.(*net.TCPConn)
		if !ok {
			t.Fatalf("%s is a %T", name, nc)
		}
		raw, err := tcp.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		option := func(level, option, want int) {
			t.Helper()
			var got int
			var optErr error
			if err := raw.Control(func(fd uintptr) { got, optErr = unix.GetsockoptInt(int(fd), level, option) }); err != nil || optErr != nil || got != want {
				t.Errorf("%s: option %d is %d, want %d: %v, %v", name, option, got, want, err, optErr)
			}
		}
		option(unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(capture.Unanswered.Milliseconds()))
		option(unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		option(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(capture.KeepAlive.Seconds()))
	}
}
