package resp

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace/edge"
)

// What a loop answers, and hands to a goroutine in between, is byte for byte what a
// goroutine answers that does all of it, in whatever pieces commands come.
func TestLoopAnswersAsAGoroutine(t *testing.T) {
	store, src := newStore(t)
	src.unit(put(t, accountsSchema(), "100", strings.Repeat("x", 200<<10), "NULL", "t"),
		put(t, accountsSchema(), "101", strings.Repeat("\x01", 30<<10), "NULL", "t"))
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	many := append([]string{"EXISTS"}, strings.Split(strings.Repeat("public.accounts:1 ", 200), " ")[:200]...)
	choices := [][]string{
		{"GET", "public.accounts:7"},
		{"GET", "public.accounts:7"},
		{"GET", "public.accounts:999"},
		{"GET", "dns.records:7,a"},
		{"GET", "nothing"},
		{"GET", "public.accounts:100"},
		{"HGET", "public.accounts:100", "owner"},
		{"MGET", "public.accounts:1", "public.accounts:100", "public.accounts:101"},
		{"HGETALL", "public.accounts:3"},
		{"GET"},
		{"SET", "a", "b"},
		{"NONSENSE"},
		{"PING"},
		{"PING", "x"},
		{"ECHO", strings.Repeat("e", 9000)},
		{"SELECT", "1"},
		{"SELECT", "bank"},
		{"HELLO", "3"},
		{"HELLO", "2"},
		{"DBSIZE"},
		{"SCAN", "0", "COUNT", "1000"},
		{"WAITINDEX", "1", "0"},
		many,
		{"CLIENT", "SETNAME", "me"},
		{"CLIENT", "GETNAME"},
		{"COMMAND", "COUNT"},
	}
	streams := []Stream{{"bank", store}, {"dns", store}}
	ours, theirs := prometheus.NewRegistry(), prometheus.NewRegistry()
	dial, _ := start(t, Config{Streams: streams, Registerer: ours})
	alone, err := New(Config{Streams: streams, Registerer: theirs})
	if err != nil {
		t.Fatal(err)
	}
	ids := int64(0)
	for round := range 25 {
		var input []byte
		for range 1 + rnd.IntN(40) {
			input = append(input, encode(choices[rnd.IntN(len(choices))]...)...)
		}
		quits := round%2 == 0
		if quits {
			input = append(input, encode("QUIT")+encode("PING", "not answered")...)
		}
		fake := &fakeConn{in: input, piece: len(input)}
		c := alone.newConn(fake, new(gate))
		if ids++; !alone.add(c) {
			t.Fatal("there is no room")
		}
		c.id = ids
		c.run()

		nc := dial()
		pieces := rand.New(rand.NewPCG(seed, uint64(round+1)))
		go func() {
			for rest := input; len(rest) > 0; {
				n := min(len(rest), 1+pieces.IntN(6000))
				if _, err := nc.Write(rest[:n]); err != nil {
					return // behind QUIT
				}
				rest = rest[n:]
				if pieces.IntN(4) == 0 {
					runtime.Gosched()
				}
			}
			if !quits {
				_ = nc.(*net.TCPConn).CloseWrite() // all of it is answered all the same
			}
		}()
		got, err := io.ReadAll(nc)
		if want := fake.out.Bytes(); !bytes.Equal(got, want) && (!quits || err == nil || !bytes.HasPrefix(want, got)) {
			at := 0
			for at < min(len(got), len(want)) && got[at] == want[at] {
				at++
			}
			t.Fatalf("round %d: %d bytes, %v, want %d; from %d on %.200q, want %.200q", round, len(got), err, len(want), at, got[at:], want[at:])
		}
	}
	if got, want := count(t, ours, "millrace_resp_commands_total"), count(t, theirs, "millrace_resp_commands_total"); got != want {
		t.Errorf("%v commands were counted, want %v", got, want)
	}
}

// Who waits for nothing but the next command costs no goroutine.
func TestIdleConnectionsHaveNoGoroutine(t *testing.T) {
	store, _ := newStore(t)
	dial, _ := start(t, Config{Streams: bank(store)})
	before := runtime.NumGoroutine()
	var all []*peer
	for range 200 {
		p := newPeer(t, dial())
		p.wants("PONG", "PING")
		all = append(all, p)
	}
	until(t, "the loop waits for all", func() bool { return runtime.NumGoroutine() < before+20 })
	all[7].wants("-TIMEOUT", "WAITINDEX", "1000", "1")
	for _, p := range all {
		p.wants("1", "EXISTS", "public.accounts:1")
	}
}

// heldReader holds the first snapshot that is taken until it is let go.
type heldReader struct {
	*edge.Store
	views atomic.Int64
	held  chan struct{}
	leave chan struct{}
}

func (h *heldReader) View(ctx context.Context, fn func(*edge.View) error) error {
	return h.Store.View(ctx, func(v *edge.View) error {
		if h.views.Add(1) == 1 {
			close(h.held)
			<-h.leave
		}
		return fn(v)
	})
}

// Commands of many clients that have come meanwhile are answered from one snapshot, and
// none from one that was taken before the command came.
func TestClientsShareASnapshot(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2)) // one loop
	store, src := newStore(t)
	reader := &heldReader{Store: store, held: make(chan struct{}), leave: make(chan struct{})}
	s, dial, end, ended := running(t, Config{Streams: []Stream{{"bank", reader}}})
	defer func() { end(); endsWithin(t, time.Minute, ended) }()
	all := make([]*peer, 60)
	for i := range all {
		all[i] = newPeer(t, dial())
		all[i].wants("PONG", "PING")
	}
	// Who has just been answered may still be its own goroutine's.
	until(t, "the loop waits for all", func() bool {
		l := s.loops.of(&conn{s: s})
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.parked) == len(all)
	})
	all[0].send("EXISTS", "public.accounts:26")
	<-reader.held
	src.unit(put(t, accountsSchema(), "26", "new", "NULL", "t"))
	for _, p := range all[1:] {
		p.send("EXISTS", "public.accounts:26")
	}
	close(reader.leave)
	if got := all[0].answer(); got != "0" {
		t.Errorf("a command that came before the change is answered with %s", got)
	}
	for _, p := range all[1:] {
		if got := p.answer(); got != "1" {
			t.Errorf("a command that came behind the change is answered with %s", got)
		}
	}
	if n := reader.views.Load(); n > 10 {
		t.Errorf("%d snapshots for %d commands, most of which had come before the second one", n, len(all))
	}
}

// While some clients wait, scan, send halves of commands or take nothing, others are
// answered; and at the end nothing is left of any.
func TestLoopIsNotHeldUp(t *testing.T) {
	store, src := newStore(t)
	src.unit(put(t, accountsSchema(), "100", strings.Repeat("x", 4<<20), "NULL", "t"))
	dial, stop := start(t, Config{Streams: bank(store), ShutdownTimeout: 300 * time.Millisecond})
	for i := range 30 {
		p := newPeer(t, dial())
		switch i % 3 {
		case 0:
			p.send("WAITINDEX", "1000", "60000")
		case 1:
			_, _ = io.WriteString(p, "*2\r\n$3\r\nGET\r\n$10\r\npub")
		case 2:
			go func() { // takes nothing of what it is sent
				_, _ = io.WriteString(p, strings.Repeat(encode("GET", "public.accounts:100"), 20))
			}()
		}
	}
	var work sync.WaitGroup
	for i := range 8 {
		p := newPeer(t, dial())
		work.Go(func() {
			for n := range 300 {
				args, want := []string{"EXISTS", "public.accounts:1"}, "1"
				if n%50 == i {
					args, want = []string{"ECHO", fmt.Sprint(n)}, fmt.Sprint(n)
				}
				if got, err := p.readOrError(args...); err != nil || got != want {
					t.Errorf("client %d, command %d: %s, %v", i, n, got, err)
					return
				}
			}
		})
	}
	work.Wait()
	began := time.Now()
	stop()
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("the end took %v", took)
	}
}
