package resp

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/access"
	"github.com/millrace-db/millrace/internal/certtest"
	"github.com/millrace-db/millrace/internal/edgetest"
	"github.com/millrace-db/millrace/internal/reload"
	"github.com/millrace-db/millrace/internal/tlsfiles"
)

// until waits for a condition.
func until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-deadline.C:
			t.Fatalf("waited in vain until %s", what)
		case <-tick.C:
		}
	}
}

func count(t *testing.T, r *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var sum float64
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// A client that sends and does not read is cut off; what is buffered for it stays
// within the bound meanwhile, no view waits for it, and others are answered.
func TestSlowReaderIsCutOff(t *testing.T) {
	store, src := newStore(t)
	src.unit(put(t, accountsSchema(), "100", strings.Repeat("x", 1<<20), "NULL", "t"))
	registry := prometheus.NewRegistry()
	dial, _ := start(t, Config{Streams: bank(store), WriteTimeout: 200 * time.Millisecond, Registerer: registry})
	slow := dial()
	_ = slow.(*net.TCPConn).SetReadBuffer(4096)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for range 1000 {
			if _, err := io.WriteString(slow, encode("GET", "public.accounts:100")); err != nil {
				return
			}
		}
	}()
	p := newPeer(t, dial())
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	until(t, "the slow client is cut off", func() bool {
		p.wants("1", "EXISTS", "public.accounts:1")
		runtime.ReadMemStats(&now)
		if more := int64(now.HeapAlloc) - int64(before.HeapAlloc); more > 64<<20 {
			t.Fatalf("the heap has grown by %d bytes", more)
		}
		return count(t, registry, "millrace_resp_cut_off_total") == 1
	})
	_ = slow.Close()
	<-sent
	until(t, "it is gone", func() bool { return count(t, registry, "millrace_resp_connections") == 1 })
}

func TestSlowWriterIsCutOff(t *testing.T) {
	store, _ := newStore(t)
	registry := prometheus.NewRegistry()
	dial, _ := start(t, Config{Streams: bank(store), ReadTimeout: 50 * time.Millisecond, Registerer: registry})
	idle := newPeer(t, dial())
	idle.wants("PONG", "PING")
	p := newPeer(t, dial())
	if _, err := io.WriteString(p, "*2\r\n$3\r\nGE"); err != nil {
		t.Fatal(err)
	}
	if s, err := p.read(); err == nil {
		t.Errorf("half a command gives %s", s)
	}
	if n := count(t, registry, "millrace_resp_cut_off_total"); n != 1 {
		t.Errorf("%v clients were cut off, want 1", n)
	}
	idle.wants("PONG", "PING") // who asks for nothing may stay
}

func TestTooMany(t *testing.T) {
	store, src := newStore(t)
	src.unit(put(t, accountsSchema(), "100", strings.Repeat("x", 1<<20), "NULL", "t"),
		put(t, accountsSchema(), "101", strings.Repeat("\x01", 100_000), "NULL", "t"))
	dial, _ := start(t, Config{Streams: bank(store), MaxConns: 2, MaxBuffered: 900_000, MaxAnswer: 100_000})
	p, q := newPeer(t, dial()), newPeer(t, dial())
	p.wants("PONG", "PING")
	q.wants("PONG", "PING")
	third := newPeer(t, dial())
	if got := third.answer(); !strings.HasPrefix(got, "-ERR max number of clients reached") {
		t.Errorf("a third client is told %s", got)
	}
	p.wants("-BUSY", "GET", "public.accounts:100")
	p.wants("-BUSY", "HGET", "public.accounts:100", "owner")
	p.wants("-ERR the first 1 rows have more than 100000 bytes", "MGET", "public.accounts:101", "public.accounts:1")
	if got := p.ask("GET", "public.accounts:101"); len(got) < 600_000 {
		t.Errorf("a row that escapes make large has %d bytes", len(got))
	}
	p.wants("PONG", "PING")
	// A large command is counted too.
	many := append([]string{"EXISTS"}, make([]string, 10_001)...)
	for i := range many[1:] {
		many[i+1] = "public.accounts:1"
	}
	p.wants("-ERR 10001 keys are asked for", many...)
	p.wants("10000", many[:10_001]...)
	// So is what is said of commands, which is many times as long as their names.
	dial, _ = start(t, Config{Streams: bank(store), MaxBuffered: 300_000})
	names := strings.Split("COMMAND INFO"+strings.Repeat(" get", 10_000), " ")
	newPeer(t, dial()).wants("-BUSY too many large answers", names...)
}

// Each listener has its own places: who takes all of one's shuts nobody out of another.
func TestListenersHaveTheirOwnPlaces(t *testing.T) {
	store, _ := newStore(t)
	unix := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", unix)
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	run(t, Config{Streams: bank(store), MaxConns: 2, Plain: []net.Listener{tcp, l}})
	dial := func(network, address string) *peer {
		t.Helper()
		c, err := new(net.Dialer).DialContext(t.Context(), network, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return newPeer(t, c)
	}
	for network, address := range map[string]string{"tcp": tcp.Addr().String(), "unix": unix} {
		first, second := dial(network, address), dial(network, address)
		first.wants("PONG", "PING")
		second.wants("PONG", "PING")
		if got := dial(network, address).answer(); !strings.HasPrefix(got, "-ERR max number of clients reached") {
			t.Errorf("a third client over %s is told %s", network, got)
		}
	}
}

// Clients that wait, and go away or stay, leave nothing behind, and do not hold up the
// end.
func TestWaitersEnd(t *testing.T) {
	store, src := newStore(t)
	registry := prometheus.NewRegistry()
	dial, stop := start(t, Config{Streams: bank(store), Registerer: registry})
	var gone []*peer
	for range 50 {
		p := newPeer(t, dial())
		p.send("WAITINDEX", "1000", "60000")
		gone = append(gone, p)
	}
	stays := newPeer(t, dial())
	stays.send("PING")
	stays.send("WAITINDEX", "1000", "60000")
	if got := stays.answer(); got != "PONG" {
		t.Errorf("what was asked before the wait: %s", got)
	}
	until(t, "all wait", func() bool { return count(t, registry, "millrace_resp_commands_total") == 52 })
	for _, p := range gone {
		_ = p.Close()
	}
	until(t, "those that went are gone", func() bool { return count(t, registry, "millrace_resp_connections") == 1 })
	src.unit(put(t, accountsSchema(), "26", "new", "NULL", "t"))
	stop()
	if got, err := stays.read(); err == nil && !strings.HasPrefix(got, "-CLOSED") {
		t.Errorf("a client that waited at the end is told %s", got)
	}
}

// Connections that come and go while they ask, and an end in the middle of it.
func TestCancelStorm(t *testing.T) {
	store, _ := newStore(t)
	dial, stop := start(t, Config{Streams: bank(store), MaxConns: 20})
	address := dial().RemoteAddr().String()
	ended := make(chan struct{})
	var work sync.WaitGroup
	for range 30 {
		work.Go(func() {
			for {
				select {
				case <-ended:
					return
				default:
				}
				c, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
				if err != nil {
					continue
				}
				for range 20 {
					_, _ = io.WriteString(c, encode("MGET", "public.accounts:1", "public.accounts:2")+encode("SCAN", "0"))
				}
				_ = c.Close()
			}
		})
	}
	p := newPeer(t, dial())
	for range 200 {
		if got, err := p.readOrError("EXISTS", "public.accounts:1"); err == nil && got != "1" && !strings.HasPrefix(got, "-ERR max number") {
			t.Errorf("beside the storm: %s", got)
		}
	}
	stop()
	close(ended)
	work.Wait()
}

func (p *peer) readOrError(args ...string) (string, error) {
	if _, err := io.WriteString(p, encode(args...)); err != nil {
		return "", err
	}
	return p.read()
}

// While a stream is read, a snapshot is never held over a write to a client.
func TestNoViewAcrossAWrite(t *testing.T) {
	store, src := newStore(t)
	src.unit(put(t, accountsSchema(), "100", strings.Repeat("x", 1<<20), "NULL", "t"))
	watched := &watchedReader{Store: store}
	s, err := New(Config{Streams: bank(watched)})
	if err != nil {
		t.Fatal(err)
	}
	here, there := net.Pipe()
	c := s.newConn(&watchedConn{Conn: here, reader: watched, t: t}, new(gate))
	if !s.add(c) {
		t.Fatal("there is no room")
	}
	go func() {
		_, _ = io.WriteString(there, strings.Repeat(encode("GET", "public.accounts:100"), 20)+encode("QUIT"))
	}()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.run()
	}()
	p := newPeer(t, there)
	for range 20 {
		if got := p.answer(); len(got) < 1<<20 {
			t.Fatalf("an answer of %d bytes", len(got))
		}
	}
	if got := p.answer(); got != "OK" {
		t.Errorf("QUIT: %s", got)
	}
	<-done
	if watched.views < 20 {
		t.Errorf("%d views; large answers should each have their own", watched.views)
	}
}

type watchedReader struct {
	*edge.Store
	mu    sync.Mutex
	open  int
	views int
}

func (w *watchedReader) View(ctx context.Context, fn func(*edge.View) error) error {
	w.add(1)
	defer w.add(-1)
	return w.Store.View(ctx, fn)
}

func (w *watchedReader) add(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open += n
	w.views += max(n, 0)
}

type watchedConn struct {
	net.Conn
	reader *watchedReader
	t      *testing.T
}

func (c *watchedConn) Write(b []byte) (int, error) {
	c.reader.mu.Lock()
	open := c.reader.open
	c.reader.mu.Unlock()
	if open > 0 {
		c.t.Error("a view is open while the client is written to")
	}
	return c.Conn.Write(b)
}

// Other hosts show a token or a certificate, see what they may, and lose what is taken
// away while they are connected.
func TestOtherHosts(t *testing.T) {
	store, _ := newStore(t)
	ca := certtest.New(t)
	cert, key := ca.Issue("server", "edge")
	config, err := tlsfiles.NewServer(tlsfiles.ServerFiles{Cert: cert, Key: key, ClientCA: ca.File}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, shown := access.NewToken()
	listFile := filepath.Join(t.TempDir(), "access")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(listFile+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(listFile+".new", listFile); err != nil {
			t.Fatal(err)
		}
	}
	write("billing " + shown + " read:bank/public.accounts\npeer cert:edge-2 read:*\n")
	list, err := reload.New(func() (*access.List, error) {
		text, err := os.ReadFile(listFile)
		if err != nil {
			return nil, err
		}
		return access.Parse(text)
	}, nil, listFile)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	run(t, Config{Streams: []Stream{{"bank", store}, {"dns", store}}, Secure: l, TLS: config, Access: list.Get})
	dial := func(files tlsfiles.ClientFiles) *peer {
		t.Helper()
		files.CA = ca.File
		c, err := tlsfiles.NewClient(files, nil)
		if err != nil {
			t.Fatal(err)
		}
		nc, err := (&tls.Dialer{Config: c.TLS()}).DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = nc.Close() })
		return newPeer(t, nc)
	}

	p := dial(tlsfiles.ClientFiles{})
	p.wants("-NOAUTH", "GET", "public.accounts:1")
	p.wants("-NOAUTH", "PING")
	p.wants("-NOAUTH", "NOPE")
	p.wants("-NOAUTH", "HELLO", "3")
	p.wants("-WRONGPASS", "AUTH", "nobody's")
	p.wants("-WRONGPASS", "AUTH", "billing", shown)
	p.wants("OK", "AUTH", "whoever", token)
	p.wants("1", "EXISTS", "public.accounts:1")
	p.wants("-NOPERM billing may not read table dns.records of stream bank", "GET", "dns.records:7,a")
	p.wants("-NOPERM billing may not read table public.nope", "GET", "public.nope:1")
	p.wants("-NOPERM billing may not see stream dns", "SELECT", "dns")
	if got := p.ask("SELECT", "nope"); !strings.Contains(got, "(bank)") || strings.Contains(got, "dns") {
		t.Errorf("SELECT of no stream says %s", got)
	}
	p.wants("25", "DBSIZE")
	p.wants("-NOPERM", "GET", "public.accounts2:1")
	if got := p.ask("SCAN", "0", "COUNT", "1000"); strings.Contains(got, "dns.records") || strings.Count(got, "public.accounts") != 25 {
		t.Errorf("SCAN shows %s", got)
	}
	if got := p.ask("INFO"); !strings.Contains(got, "db0:keys=25,") || strings.Contains(got, "name=dns") {
		t.Errorf("INFO shows %s", got)
	}

	q := dial(tlsfiles.ClientFiles{})
	if got := q.ask("HELLO", "3", "AUTH", "billing", token); !strings.HasPrefix(got, "{server millrace") {
		t.Errorf("HELLO with a token: %s", got)
	}
	clientCert, clientKey := ca.Issue("client", "edge-2")
	peer := dial(tlsfiles.ClientFiles{Cert: clientCert, Key: clientKey})
	peer.wants("1", "EXISTS", "dns.records:7,a")
	peer.wants("OK", "SELECT", "dns")
	unknownCert, unknownKey := ca.Issue("unknown", "edge-3")
	dial(tlsfiles.ClientFiles{Cert: unknownCert, Key: unknownKey}).wants("-NOAUTH", "PING")

	// More than a little is not taken from who has not shown who it is.
	stranger := dial(tlsfiles.ClientFiles{})
	stranger.wants("-ERR Protocol error: the command has 11 arguments, the limit is 10", "AUTH", "a", "a", "a", "a", "a", "a", "a", "a", "a", "a")

	// Rights that are taken away are gone for those who are connected.
	write("billing " + shown + " read:bank/dns.records\n")
	until(t, "the token's rights have changed", func() bool {
		return strings.HasPrefix(p.ask("GET", "public.accounts:1"), "-NOPERM")
	})
	p.wants("1", "EXISTS", "dns.records:7,a")
	until(t, "the certificate is nobody's", func() bool {
		got, err := peer.readOrError("EXISTS", "dns.records:7,a")
		return err != nil || strings.HasPrefix(got, "-NOAUTH")
	})
	if got, err := peer.readOrError("PING"); err == nil {
		t.Errorf("a client whose rights are gone is answered %s", got)
	}
	// Who shows nothing is not kept.
	l, err = net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	run(t, Config{Streams: bank(store), Secure: l, TLS: config, Access: list.Get, LoginTimeout: 100 * time.Millisecond})
	silent, err := new(net.Dialer).DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	_ = silent.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := silent.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("a client that shows nothing gets %v, want to be cut off", err)
	}
}

func TestDamageIsTold(t *testing.T) {
	store, _ := newStore(t)
	failing := &failingReader{Store: store}
	dial, _ := start(t, Config{Streams: bank(failing)})
	p := newPeer(t, dial())
	p.wants("-CORRUPT ", "GET", "public.accounts:1")
	p.wants("PONG", "PING")
	failing.err = fmt.Errorf("view: %w", edge.ErrExpired)
	p.wants("-BUSY ", "GET", "public.accounts:1")
	failing.err = fmt.Errorf("%w: table public.accounts", edge.ErrNotHeld)
	p.wants("-NOTHELD ", "GET", "public.accounts:1")
	failing.err = edge.ErrClosed
	p.wants("-CLOSED ", "GET", "public.accounts:1")
	failing.late = true
	// An error behind what was answered is that of the last command.
	if _, err := io.WriteString(p, encode("EXISTS", "public.accounts:1")+encode("GET", "public.accounts:1")); err != nil {
		t.Fatal(err)
	}
	if first, second := p.answer(), p.answer(); first != "1" || !strings.HasPrefix(second, "-CLOSED") {
		t.Errorf("a snapshot that fails in its midst gives %s and %s", first, second)
	}
}

type failingReader struct {
	*edge.Store
	err  error
	late bool
}

func (f *failingReader) View(ctx context.Context, fn func(*edge.View) error) error {
	if f.late {
		if err := f.Store.View(ctx, fn); err != nil {
			return err
		}
	}
	if f.err == nil {
		return &edge.CorruptError{Dir: "dir", Table: "public.accounts", Text: "CRC"}
	}
	return f.err
}

func TestRefusedConfigurations(t *testing.T) {
	store, _ := newStore(t)
	for _, c := range []Config{{}, {Streams: bank(store), MaxConns: -1}, {Streams: bank(store), WriteTimeout: -1}, {Streams: bank(store), Secure: &net.TCPListener{}}} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v makes a server", c)
		}
	}
	registry := prometheus.NewRegistry()
	for range 2 {
		s, err := New(Config{Streams: bank(store), Registerer: registry})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	}
	if left, err := registry.Gather(); err != nil || len(left) != 0 {
		t.Errorf("metrics are left: %v, %v", left, err)
	}
}

// A place that has come is told without a wait, also while another process writes the store
// and nobody has read it since.
func TestWaitIndexOfAStoreThatAnotherProcessWrites(t *testing.T) {
	store, src := newStore(t)
	dial, _ := start(t, Config{Streams: bank(&edgetest.LateReader{Store: store})})
	newPeer(t, dial()).wants(src.index.String(), "WAITINDEX", src.index.String(), "0")
}
