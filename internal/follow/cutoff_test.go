package follow

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/millrace-db/millrace/edge/serve"
	"github.com/millrace-db/millrace/internal/config"
)

// cut is a cable that can be cut: nothing comes through then, and nobody is told.
type cut struct {
	mu    sync.Mutex
	isCut bool
	// whole is closed when it is mended.
	whole chan struct{}
}

func (c *cut) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.isCut, c.whole = true, make(chan struct{})
}

func (c *cut) heal() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isCut {
		c.isCut = false
		close(c.whole)
	}
}

// pass returns when something may come through.
func (c *cut) pass() {
	c.mu.Lock()
	isCut, whole := c.isCut, c.whole
	c.mu.Unlock()
	if isCut {
		<-whole
	}
}

// cutListener gives out connections that lie in the cable.
type cutListener struct {
	net.Listener
	cut *cut
}

func (l *cutListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &cutConn{Conn: conn, cut: l.cut}, nil
}

type cutConn struct {
	net.Conn
	cut *cut
	// from and to are what is replaced in what is sent.
	from, to []byte
}

func (c *cutConn) Read(b []byte) (int, error) {
	c.cut.pass()
	n, err := c.Conn.Read(b)
	c.cut.pass()
	return n, err
}

func (c *cutConn) Write(b []byte) (int, error) {
	c.cut.pass()
	if c.from != nil && bytes.Contains(b, c.from) {
		if _, err := c.Conn.Write(bytes.ReplaceAll(b, c.from, c.to)); err != nil {
			return 0, err
		}
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// branchOffice is a broker that is reached under a second address too, over a cable. It
// names itself by the address that it is asked at.
type branchOffice struct {
	net.Listener
	far   net.Listener
	cable cut
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newBranchOffice(t *testing.T) *branchOffice {
	t.Helper()
	far, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return &branchOffice{far: far, conns: make(chan net.Conn), done: make(chan struct{})}
}

// listen is kfake's.
func (o *branchOffice) listen(network, address string) (net.Listener, error) {
	near, err := net.Listen(network, address)
	if err != nil {
		return nil, err
	}
	o.Listener = near
	wire := func(a net.Addr) []byte {
		at := a.(*net.TCPAddr)
		return binary.BigEndian.AppendUint32([]byte(at.IP.String()), uint32(at.Port))
	}
	from, to := wire(near.Addr()), wire(o.far.Addr())
	accept := func(l net.Listener, wrap func(net.Conn) net.Conn) {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			select {
			case o.conns <- wrap(conn):
			case <-o.done:
				_ = conn.Close()
				return
			}
		}
	}
	go accept(near, func(c net.Conn) net.Conn { return c })
	go accept(o.far, func(c net.Conn) net.Conn { return &cutConn{Conn: c, cut: &o.cable, from: from, to: to} })
	return o, nil
}

func (o *branchOffice) Accept() (net.Conn, error) {
	select {
	case c := <-o.conns:
		return c, nil
	case <-o.done:
		return nil, net.ErrClosed
	}
}

func (o *branchOffice) Close() error {
	o.once.Do(func() { close(o.done) })
	o.cable.heal()
	_ = o.far.Close()
	return o.Listener.Close()
}

// An edge that is cut off from everything before it is started answers every read from
// the rows that it has, and says how old they are; when the cable is mended it catches up
// by itself from whatever still reaches: the topic, the log of an edge, or an image.
func TestCutOff(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		// trimmed tells that the topic does not reach back, pruned that the peer's log
		// does not.
		trimmed, pruned bool
		// relay follows the peer, and image names it for images.
		relay, image bool
		took         string
	}{
		"topic":                    {image: true},
		"image":                    {trimmed: true, image: true, took: bootGone},
		"relay":                    {trimmed: true, relay: true},
		"image of what is relayed": {trimmed: true, pruned: true, relay: true, took: bootGone},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			office := newBranchOffice(t)
			b := newBankWith(t, nil, kfake.ListenFn(office.listen))
			peer := b.edgeWith(filepath.Join(t.TempDir(), "peer"), options{config: func(k *config.Config) {
				if c.pruned {
					k.Edge.Log.MaxBytes = 1024
				}
			}})
			o := options{config: func(k *config.Config) {
				k.Streams[0].Kafka.Brokers = []string{office.far.Addr().String()}
				if c.relay {
					k.Streams[0].Kafka.Brokers = nil
					k.Edge.Upstream = []string{peer.url}
				}
				if c.image {
					k.Edge.Images.From = []string{peer.url}
				}
			}}
			dir := b.wentAway(options{})
			for range 20 { // more than the pruned log has room for
				b.unit()
			}
			peer.at(21)
			if c.trimmed {
				b.trim()
			}

			office.cable.cut()
			peer.cut.cut()
			away := b.edgeWith(dir, o)
			reads, lag := 0, 0.0
			for end := time.Now().Add(2 * time.Second); reads < 20 || time.Now().Before(end); reads++ {
				if reads%50 == 0 {
					b.unit() // the world goes on
				}
				if value := away.value(); value != 1 {
					t.Fatalf("it has unit %d", value)
				}
				answer := struct {
					Rows []struct{ V string }
				}{}
				ask(t, away.url+"/v1/streams/bank/tables/public.t/rows?limit=3", &answer)
				if len(answer.Rows) != 3 || answer.Rows[0].V != "1" {
					t.Fatalf("it answers %+v", answer)
				}
				var status serve.Status
				ask(t, away.url+"/v1/streams/bank/status", &status)
				if status.LagSeconds == nil || *status.LagSeconds < lag {
					t.Fatalf("it reports a lag of %v, before it was %v", status.LagSeconds, lag)
				}
				lag = *status.LagSeconds
			}
			if lag < 2 {
				t.Errorf("it reported a lag of %v s at last, in %d reads", lag, reads)
			}
			t.Logf("%d reads of each kind were answered, the lag at last was %.1f s", reads, lag)
			peer.at(b.unitNo)

			office.cable.heal()
			peer.cut.heal()
			away.at(b.unitNo)
			b.unit()
			away.at(b.unitNo)
			boot := away.stream.Bootstrap()
			if got := boot != nil && boot.State == serve.BootstrapDone; got != (c.took != "") || got && boot.Reason != c.took {
				t.Errorf("bootstrap is %+v, want reason %q", boot, c.took)
			}
		})
	}
}

// An upstream that sends nothing any more is taken for gone when the configuration says.
func TestSilenceIsConfigured(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	up := b.edge(filepath.Join(t.TempDir(), "up"))
	b.unit()
	up.at(1)
	child := b.edgeWith(filepath.Join(t.TempDir(), "child"), options{config: func(k *config.Config) {
		k.Streams[0].Kafka.Brokers, k.Edge.Upstream = nil, []string{up.url}
		k.Edge.Follow.Silence = config.Duration(2500 * time.Millisecond)
	}})
	child.at(1)
	child.until("it follows", func() bool { return child.stream.UpstreamStatus().Node == "up" })
	up.cut.cut()
	child.until("its upstream counts as silent", func() bool {
		return strings.Contains(child.log.String(), "nothing has come for 2.5s")
	})
	up.cut.heal()
	b.unit()
	child.at(2)
}

// ask reads an answer of an edge.
func ask(t *testing.T, url string, into any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.DefaultClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	if r.StatusCode != http.StatusOK {
		t.Fatalf("%s answers %s", strings.TrimPrefix(url, "http://"), r.Status)
	}
	if err := json.NewDecoder(r.Body).Decode(into); err != nil {
		t.Fatal(fmt.Errorf("answer of %s: %w", url, err))
	}
}
