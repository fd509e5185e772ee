package trigger

import (
	"bytes"
	"io"
	"net"
	"net/url"
	"sync/atomic"
	"testing"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture/chunk"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// What was read of a load and noted is given out, or the source ends: the savepoint's
// release fails, as it does where somebody cancels it.
func TestLoadGivesOutWhatItHasRead(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text); insert into a select i, repeat('x', 300) from generate_series(1, 600) i")
	r := newLoadRig(t, db, nil, "a")
	u, err := url.Parse(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	var armed atomic.Bool
	u.Host = misspelling(t, u.Host, []byte("RELEASE SAVEPOINT millrace_read"), &armed)
	r.at(u.String())
	r.c.chunks, r.c.holdLoads = chunk.Limits{Blocks: 4}, false
	r.open()
	for r.take().loads[r.table("a")] == 0 {
	}
	armed.Store(true)
	for len(r.store.at.Catalog.Loads) > 0 {
		r.late()
		u, err := r.src.Next(r.ctx())
		if err != nil {
			if millrace.NeedsOperator(err) {
				t.Errorf("it needs an operator: %v", err)
			}
			t.Log(err)
			r.open()
			continue
		}
		if _, err := r.store.apply(u); err != nil {
			t.Fatal(err)
		}
	}
	if armed.Load() {
		t.Error("no release failed")
	}
	r.settle()
}

// misspelling passes connections on to a server, and while it is armed makes another text
// of the same length of one that comes by, once. It returns its address.
func misspelling(t *testing.T, server string, text []byte, armed *atomic.Bool) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	wrong := bytes.Clone(text)
	wrong[len(wrong)-1]++
	pass := func(client net.Conn) {
		defer func() { _ = client.Close() }()
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", server)
		if err != nil {
			return
		}
		go func() {
			_, _ = io.Copy(client, conn)
			_ = client.Close()
		}()
		defer func() { _ = conn.Close() }()
		buf := make([]byte, 64<<10)
		for {
			n, err := client.Read(buf)
			if i := bytes.Index(buf[:n], text); i >= 0 && armed.CompareAndSwap(true, false) {
				copy(buf[i:], wrong)
			}
			if _, writeErr := conn.Write(buf[:n]); err != nil || writeErr != nil {
				return
			}
		}
	}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go pass(client)
		}
	}()
	return listener.Addr().String()
}
