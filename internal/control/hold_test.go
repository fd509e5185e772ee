package control

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/pgtest"
)

const (
	testLease = 600 * time.Millisecond
	// keptLease is one of a holder that must not lose it, however busy the machine is;
	// keptLong is a little longer.
	keptLease = 3 * time.Second
	keptLong  = `interval '3.5 s'`
)

var (
	publisherA = millrace.PublisherID{0xa}
	publisherB = millrace.PublisherID{0xb}
)

func acquire(t *testing.T, url string, p millrace.PublisherID, lease time.Duration) *Hold {
	t.Helper()
	h, err := AcquireHold(testContext(t), url, "bank", p, lease, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close(context.Background()) })
	return h
}

// afterLease looks that the hold was taken when its holder, who renewed it at a time of
// the server's, had been silent for a lease.
func afterLease(t *testing.T, db *pgtest.DB, renewed string) {
	t.Helper()
	if took := db.String(`select extract(epoch from acquired_at - $1::text::timestamptz) * 1000 >= $2::text::int from millrace.hold`,
		renewed, strconv.Itoa(int(testLease.Milliseconds()))); took != "t" {
		t.Errorf("the hold was taken at %s, before the lease of %s was over; it was renewed at %s",
			db.String(`select acquired_at from millrace.hold`), testLease, renewed)
	}
}

func waitLost(t *testing.T, h *Hold) {
	t.Helper()
	select {
	case <-h.Lost():
	case <-time.After(time.Minute):
		t.Fatal("the hold is gone and Lost is not closed")
	}
}

func TestHoldIsExclusiveAndPassesOn(t *testing.T) {
	t.Parallel()
	db, conn, _ := bank(t)
	ctx := testContext(t)
	a := acquire(t, db.URL, publisherA, keptLease)

	// It is renewed for longer than a lease, so a second one keeps waiting.
	got := make(chan error, 1)
	var b *Hold
	go func() {
		var err error
		b, err = AcquireHold(ctx, db.URL, "bank", publisherB, keptLease, nil)
		got <- err
	}()
	renewals := `select count(*) from millrace.hold where renewed_at > acquired_at + ` + keptLong
	for deadline := time.Now().Add(time.Minute); db.String(renewals) != "1"; {
		if time.Now().After(deadline) {
			t.Fatal("the hold is not renewed")
		}
	}
	select {
	case err := <-got:
		t.Fatalf("a second one has the hold while the first renews it: %v", err)
	case <-a.Lost():
		t.Fatal("the first lost the hold while it renewed it")
	default:
	}
	holder, err := LookHolder(ctx, conn, "bank")
	if err != nil || holder == nil || holder.PID != a.pid || holder.Silent > keptLease {
		t.Errorf("holder: got %+v, %v, want process %d", holder, err, a.pid)
	}
	if err := a.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	if err := b.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(ctx); err != nil {
		t.Errorf("close again: %v", err)
	}
	if holder, err := LookHolder(ctx, conn, "bank"); holder != nil || err != nil {
		t.Errorf("holder after both: got %+v, %v, want none", holder, err)
	}
}

func TestHoldOfASilentHolderIsTaken(t *testing.T) {
	db, conn, _ := bank(t)
	ctx := testContext(t)
	// A stopped process: its session has the lock, and nobody renews.
	silent := connect(t, db)
	var locked bool
	if err := silent.QueryRow(ctx, holdLock, "bank").Scan(&locked); err != nil || !locked {
		t.Fatalf("lock: %v, %v", locked, err)
	}
	if _, err := silent.Exec(ctx, holdWrite, "bank", [16]byte(publisherA)); err != nil {
		t.Fatal(err)
	}
	renewed := db.String(`select renewed_at from millrace.hold`)
	b := acquire(t, db.URL, publisherB, testLease)
	afterLease(t, db, renewed)
	if _, err := silent.Exec(ctx, `select 1`); err == nil {
		t.Error("the silent holder's session still answers")
	}
	holder, err := LookHolder(ctx, conn, "bank")
	if err != nil || holder.PID != b.pid {
		t.Errorf("holder: got %+v, %v, want process %d", holder, err, b.pid)
	}
}

func TestHoldLostWithTheSession(t *testing.T) {
	db, conn, _ := bank(t)
	h := acquire(t, db.URL, publisherA, testLease)
	if _, err := conn.Exec(testContext(t), holdEnd, h.pid); err != nil {
		t.Fatal(err)
	}
	waitLost(t, h)
	if err := h.Close(context.Background()); err != nil {
		t.Errorf("close a lost hold: %v", err)
	}
}

func TestHoldLostWithTheLock(t *testing.T) {
	db, _, _ := bank(t)
	h := acquire(t, db.URL, publisherA, testLease)
	// Another session's row: what a successor writes once it has the lock.
	db.Exec(`update millrace.hold set pid = 1`)
	waitLost(t, h)
}

func TestHoldRefusals(t *testing.T) {
	db, _, _ := bank(t)
	ctx := testContext(t)
	if _, err := AcquireHold(ctx, db.URL, "none", publisherA, testLease, nil); !errors.Is(err, ErrNoStream) {
		t.Errorf("hold of no stream: got %v, want ErrNoStream", err)
	}
	if _, err := AcquireHold(ctx, db.URL, "bank", publisherA, time.Millisecond, nil); err == nil {
		t.Error("hold with a lease of 1 ms: want an error")
	}
	if _, err := AcquireHold(ctx, pgtest.New(t).URL, "bank", publisherA, testLease, nil); !errors.Is(err, ErrNotInitialised) {
		t.Errorf("hold without a control schema: got %v, want ErrNotInitialised", err)
	}
	if _, err := AcquireHold(ctx, behindPooler(t, db.URL), "bank", publisherA, testLease, nil); !errors.Is(err, ErrPooler) {
		t.Errorf("hold through a pooler: got %v, want ErrPooler", err)
	}
	acquire(t, db.URL, publisherA, keptLease)
	short, cancel := context.WithTimeout(ctx, testLease/2)
	defer cancel()
	if _, err := AcquireHold(short, db.URL, "bank", publisherB, keptLease, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("hold that another has, context ended: got %v", err)
	}
}

// behindPooler passes one connection on to url's server and does what a pooler
// does to the handshake: the process ID in it is the pooler's own invention.
func behindPooler(t *testing.T, server string) string {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	upstream := u.Host
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go poolOne(client, upstream)
		}
	}()
	u.Host = listener.Addr().String()
	if !strings.Contains(u.RawQuery, "sslmode") {
		q := u.Query()
		q.Set("sslmode", "disable")
		u.RawQuery = q.Encode()
	}
	return u.String()
}

func poolOne(client net.Conn, upstream string) {
	defer func() { _ = client.Close() }()
	server, err := new(net.Dialer).DialContext(context.Background(), "tcp", upstream)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	go func() {
		_, _ = io.Copy(server, client)
		_ = server.Close()
	}()
	frontend := pgproto3.NewFrontend(server, io.Discard)
	for {
		message, err := frontend.Receive()
		if err != nil {
			return
		}
		if key, ok := message.(*pgproto3.BackendKeyData); ok {
			key.ProcessID ^= 0x5a5a5a
		}
		encoded, err := message.Encode(nil)
		if err != nil {
			return
		}
		if _, err := client.Write(encoded); err != nil {
			return
		}
	}
}

// TestWaiterNoticesADeadServer: the connection of one who waits goes silent, as
// when a host or a firewall vanishes. It must not wait for what never comes.
func TestWaiterNoticesADeadServer(t *testing.T) {
	t.Parallel()
	db, _, _ := bank(t)
	acquire(t, db.URL, publisherA, keptLease)
	address, swallow := silentProxy(t, db.URL)
	got := make(chan error, 1)
	go func() {
		_, err := AcquireHold(testContext(t), address, "bank", publisherB, keptLease, nil)
		got <- err
	}()
	waiting := `select count(*) from pg_stat_activity where datname = current_database() and application_name = 'millrace hold bank' and query like '%pg_try_advisory_lock%'`
	for deadline := time.Now().Add(time.Minute); db.String(waiting) != "1"; {
		if time.Now().After(deadline) {
			t.Fatal("nobody waits for the hold")
		}
	}
	close(swallow)
	select {
	case err := <-got:
		if err == nil || !strings.Contains(err.Error(), "has not answered") {
			t.Errorf("got %v, want that the server does not answer", err)
		}
	case <-time.After(time.Minute):
		t.Error("still waits for a server that is gone")
	}
}

// silentProxy passes a connection on until swallow is closed; then nothing goes
// through any more, and the connection stays open.
func silentProxy(t *testing.T, server string) (address string, swallow chan struct{}) {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	swallow = make(chan struct{})
	upstream := u.Host
	var connections []net.Conn
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			back, err := new(net.Dialer).DialContext(context.Background(), "tcp", upstream)
			if err != nil {
				_ = client.Close()
				continue
			}
			connections = append(connections, client, back)
			for _, way := range [][2]net.Conn{{client, back}, {back, client}} {
				go func() {
					buf := make([]byte, 4<<10)
					for {
						n, err := way[0].Read(buf)
						if err != nil {
							return
						}
						select {
						case <-swallow:
							continue
						default:
						}
						if _, err := way[1].Write(buf[:n]); err != nil {
							return
						}
					}
				}()
			}
		}
	}()
	t.Cleanup(func() {
		_ = listener.Close()
		<-ended
		for _, c := range connections {
			_ = c.Close()
		}
	})
	u.Host = listener.Addr().String()
	return u.String(), swallow
}
