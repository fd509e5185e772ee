package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-db/millrace/edge/access"
	"github.com/millrace-db/millrace/internal/certtest"
	"github.com/millrace-db/millrace/internal/loopback"
)

//nolint:gochecknoglobals // flags of the test binary
var (
	upgradesFlag = flag.Int("upgrades", 3, "how often an edge is upgraded under load")
	restartsFlag = flag.Int("restarts", 3, "how often an edge is restarted under load")
	binaryFlag   = flag.String("binary", "", "the program whose edge is upgraded and restarted; default: the test binary")
)

// asker asks an edge for one row again and again, over one connection for as long as
// that is kept open, as a client without a thought of upgrades does.
type asker struct {
	name, network, address string
	// ask asks once, and reports whether the connection is closed afterwards.
	ask func(c net.Conn, r *bufio.Reader) (last bool, err error)
	// retries tells that a failure is tried again, until it has taken a minute.
	retries bool

	answers, connections, retried atomic.Int64
	slowest                       atomic.Int64 // in nanoseconds
}

func (a *asker) run(ctx context.Context) error {
	var c net.Conn
	var r *bufio.Reader
	defer func() {
		if c != nil {
			_ = c.Close()
		}
	}()
	since := time.Now()
	for ctx.Err() == nil {
		var err error
		if c == nil {
			if c, err = new(net.Dialer).DialContext(ctx, a.network, a.address); err == nil {
				r = bufio.NewReader(c)
				a.connections.Add(1)
			}
		}
		last := false
		if err == nil {
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			last, err = a.ask(c, r)
		}
		if c != nil && (err != nil || last) {
			_ = c.Close()
			c = nil
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && a.retries && time.Since(since) < time.Minute:
			a.retried.Add(1)
			<-time.After(time.Millisecond)
			continue
		case err != nil:
			return fmt.Errorf("%s: answer %d over connection %d: %w", a.name, a.answers.Load(), a.connections.Load(), err)
		}
		a.answers.Add(1)
		took := time.Since(since)
		a.slowest.Store(max(a.slowest.Load(), int64(took)))
		since = time.Now()
	}
	return nil
}

// overHTTP asks for a row, and wants it, at an index that does not go back.
func overHTTP() func(net.Conn, *bufio.Reader) (bool, error) {
	index := 0
	return func(c net.Conn, r *bufio.Reader) (bool, error) {
		if _, err := io.WriteString(c, "GET /v1/streams/shop/tables/public.items/rows/s1,1 HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
			return false, err
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return false, err
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		now, _ := strconv.Atoi(resp.Header.Get("X-Millrace-Index"))
		switch {
		case err != nil:
			return false, err
		case resp.StatusCode != http.StatusOK || !strings.Contains(string(body), `"note 1"`):
			return false, fmt.Errorf("the answer is %s: %s", resp.Status, body)
		case now < index:
			return false, fmt.Errorf("index %d after %d", now, index)
		}
		index = now
		return resp.Close, nil
	}
}

// overRESP asks for a row, several at once now and then.
func overRESP() func(net.Conn, *bufio.Reader) (bool, error) {
	n := 0
	return func(c net.Conn, r *bufio.Reader) (bool, error) {
		n++
		size := 1 + n%2*15
		if _, err := io.WriteString(c, strings.Repeat("*2\r\n$3\r\nGET\r\n$17\r\npublic.items:s1,1\r\n", size)); err != nil {
			return false, err
		}
		for range size {
			head, err := r.ReadString('\n')
			if err != nil {
				return false, err
			}
			row, err := r.ReadString('\n')
			if err != nil || !strings.Contains(row, `"note 1"`) {
				return false, fmt.Errorf("the answer is %q, %q, %w", head, row, err)
			}
		}
		return false, nil
	}
}

// edgePID asks the edge which process answers.
func edgePID(t *testing.T, socket string) int {
	t.Helper()
	var pid int
	until(t, "the edge says which process it is", func() error {
		c, err := new(net.Dialer).DialContext(t.Context(), "unix", socket)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.WriteString(c, "INFO server\r\nQUIT\r\n"); err != nil {
			return err
		}
		text, err := io.ReadAll(c)
		if err != nil {
			return err
		}
		_, rest, _ := strings.Cut(string(text), "process_id:")
		rest, _, _ = strings.Cut(rest, "\r")
		pid, err = strconv.Atoi(rest)
		return err
	})
	return pid
}

// otherPID waits until another process answers: one that hands its sockets over may still
// take a connection that is made afterwards.
func otherPID(t *testing.T, socket string, than int) (pid int) {
	t.Helper()
	until(t, "another process answers", func() error {
		if pid = edgePID(t, socket); pid == than {
			return fmt.Errorf("process %d does", pid)
		}
		return nil
	})
	return pid
}

// gone waits until a process has ended that is no child of this one.
func gone(t *testing.T, pid int) {
	t.Helper()
	until(t, fmt.Sprintf("process %d has ended", pid), func() error {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return nil //nolint:nilerr // it was reaped
		}
		// Behind the program's name, in brackets, stands the state.
		if _, state, _ := strings.Cut(string(stat), ") "); strings.HasPrefix(state, "Z") {
			return nil
		}
		return errors.New("it runs")
	})
}

// openData counts how often a process has the file of a store open.
func openData(t *testing.T, pid int) (n int) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && filepath.Base(to) == "data.mdb" {
			n++
		}
	}
	return n
}

// upgrading is a world whose edge is upgraded and restarted while it is asked over
// all that it answers on, and while its source is written to.
type upgrading struct {
	*world
	t        *testing.T
	respTCP  string
	respUnix string
	http     string
	askers   []*asker
}

func newUpgrading(t *testing.T) *upgrading {
	t.Helper()
	w := newWorld(t)
	ports, err := loopback.FreePorts(3)
	if err != nil {
		t.Fatal(err)
	}
	u := &upgrading{
		world: w, t: t, respTCP: fmt.Sprintf("127.0.0.1:%d", ports[0]),
		respUnix: filepath.Join(w.dir, "resp.sock"), http: filepath.Join(w.dir, "edge.sock"),
	}
	ca := certtest.New(t)
	cert, key := ca.Issue("edge", "edge")
	_, shown := access.NewToken()
	list := w.write(t, "access", "reader "+shown+" read:*\n")
	w.file = w.write(t, "millrace.yaml", w.config(w.db.URL, fmt.Sprintf(
		"  resp: {listen: %q, unix: resp.sock}\n  tls: {http: \"127.0.0.1:%d\", resp: \"127.0.0.1:%d\", cert: %q, key: %q, access: %q}\n",
		u.respTCP, ports[1], ports[2], cert, key, list)))
	program(t, w.dir, "init", "-c", w.file)
	spawn(t, w.dir, nil, "transfer", "-c", w.file)
	return u
}

// load asks over everything, and writes to the source, until it is stopped.
func (u *upgrading) load(retries bool) (stop func()) {
	u.askers = nil
	for _, a := range []*asker{
		{name: "HTTP", network: "tcp", address: u.edge, ask: overHTTP()},
		{name: "HTTP over a unix socket", network: "unix", address: u.http, ask: overHTTP()},
		{name: "RESP", network: "tcp", address: u.respTCP, ask: overRESP()},
		{name: "RESP over a unix socket", network: "unix", address: u.respUnix, ask: overRESP()},
	} {
		a.retries = retries
		u.askers = append(u.askers, a)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	for _, a := range u.askers {
		work.Go(func() {
			if err := a.run(ctx); err != nil {
				u.t.Error(err)
			}
		})
	}
	work.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			u.db.Exec(fmt.Sprintf("UPDATE items SET note = 'now %d' WHERE id = 2", n))
			<-time.After(5 * time.Millisecond)
		}
	})
	stop = sync.OnceFunc(func() {
		cancel()
		work.Wait()
		for _, a := range u.askers {
			u.t.Logf("%s: %d answers over %d connections, the slowest after %v, %d tried again", a.name, a.answers.Load(), a.connections.Load(),
				time.Duration(a.slowest.Load()).Round(100*time.Microsecond), a.retried.Load())
			if a.answers.Load() == 0 {
				u.t.Errorf("%s: nothing was answered", a.name)
			}
		}
	})
	u.t.Cleanup(stop)
	return stop
}

// TestUpgradeUnderLoad lets an edge start its successor again and again while clients
// ask over each of its sockets without a second try. No request fails, what is written
// at the source goes on arriving, and the old process ends.
func TestUpgradeUnderLoad(t *testing.T) {
	u := newUpgrading(t)
	first := u.spawnEdge()
	pid := first.process.PID()
	t.Cleanup(func() {
		if pid != first.process.PID() {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it has ended, where the test went well
		}
	})
	u.ready(t)
	told := u.told()
	stop := u.load(false)
	for n := range *upgradesFlag {
		before := u.answers()
		began := time.Now()
		if err := syscall.Kill(pid, syscall.SIGUSR2); err != nil {
			t.Fatal(err)
		}
		next := otherPID(t, u.respUnix, pid)
		answers := time.Since(began)
		old := pid
		pid = next
		if n == 0 {
			if !first.process.EndsWithin(waitLimit) {
				_ = first.process.Signal(syscall.SIGQUIT) // what it is at is in its output
			}
			if code := first.wait(); code != 0 {
				t.Errorf("the first process ended with exit code %d", code)
			}
		} else {
			gone(t, old)
		}
		u.t.Logf("upgrade %d: process %d answers after %v, process %d has ended after %v", n+1, next, answers.Round(time.Millisecond), old, time.Since(began).Round(time.Millisecond))
		u.arrives(fmt.Sprintf("upgrade %d", n+1))
		u.progress(before)
		if t.Failed() {
			break
		}
	}
	stop()
	told()
	if n := openData(t, pid); n > 2 {
		t.Errorf("after %d upgrades the process has the data file open %d times", *upgradesFlag, n)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	gone(t, pid)
	// Everything is there and whole, and nobody holds it.
	if got := program(t, u.dir, "check", "-c", u.file); !strings.Contains(got, "no problems") {
		t.Errorf("check: %s", got)
	}
	last := u.spawnEdge()
	u.ready(t)
	u.arrives("the end")
	last.stop(syscall.SIGTERM)
}

// TestUpgradeThatFails lets a successor fail: the old process goes on, and can be
// upgraded when the mistake is mended, also twice in a row.
func TestUpgradeThatFails(t *testing.T) {
	u := newUpgrading(t)
	p := u.spawnEdge()
	u.ready(t)
	right, err := os.ReadFile(u.file)
	if err != nil {
		t.Fatal(err)
	}
	u.write(t, "millrace.yaml", string(right)+"nonsense: true\n")
	if err := p.process.Signal(syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	until(t, "the failure is logged", func() error {
		if !strings.Contains(p.err(), "the upgrade has failed; this process goes on") {
			return errors.New(p.err())
		}
		return nil
	})
	if pid := edgePID(t, u.respUnix); pid != p.process.PID() {
		t.Errorf("process %d answers, want %d", pid, p.process.PID())
	}
	u.write(t, "millrace.yaml", string(right))
	u.arrives("after the failure")
	u.upgradeTwice(p)
}

// upgradeTwice asks an edge for an upgrade, and asks the same process for another one while
// it still lets its connections go: the successor is told, which lets the process before it
// come to its end and then begins.
func (u *upgrading) upgradeTwice(p *process) {
	t := u.t
	t.Helper()
	open, err := new(net.Dialer).DialContext(t.Context(), "tcp", u.edge)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = open.Close() }()
	if _, err := overHTTP()(open, bufio.NewReader(open)); err != nil {
		t.Fatal(err)
	}
	pids := []int{p.process.PID()}
	t.Cleanup(func() {
		for _, pid := range pids[1:] {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it has ended, where the test went well
		}
	})
	started := strings.Count(p.err(), "a successor is started")
	for _, says := range []string{"the streams were taken over", "the process that has taken over is told"} {
		if err := p.process.Signal(syscall.SIGUSR2); err != nil {
			t.Fatal(err)
		}
		until(t, "the log says that "+says, func() error {
			if !strings.Contains(p.err(), says) {
				return errors.New(p.err())
			}
			return nil
		})
	}
	pids = append(pids, otherPID(t, u.respUnix, pids[0]))
	until(t, "the successor waits", func() error {
		if !strings.Contains(p.err(), "it begins when this process has the streams and the one before has ended") {
			return errors.New(p.err())
		}
		return nil
	})
	if n := strings.Count(p.err(), "a successor is started") - started; n != 1 {
		t.Errorf("%d successors were started while the first process had a connection", n)
	}
	_ = open.Close()
	if code := p.wait(); code != 0 {
		t.Errorf("the first process ended with exit code %d", code)
	}
	gone(t, pids[1])
	pids = append(pids, edgePID(t, u.respUnix))
	if n := strings.Count(p.err(), "a successor is started") - started; n != 2 || pids[0] == pids[1] || pids[1] == pids[2] {
		t.Errorf("%d successors were started, processes %v", n, pids)
	}
	if err := syscall.Kill(pids[2], syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	gone(t, pids[2])
}

// TestRestartUnderLoad stops and starts an edge while clients ask that try again.
func TestRestartUnderLoad(t *testing.T) {
	u := newUpgrading(t)
	p := u.spawnEdge()
	u.ready(t)
	stop := u.load(true)
	var took []time.Duration
	for n := range *restartsFlag {
		before := u.answers()
		p.stop(syscall.SIGTERM)
		began := time.Now()
		p = u.spawnEdge()
		first := &asker{name: "first", network: "tcp", address: u.edge, ask: overHTTP(), retries: true}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- first.run(ctx) }()
		for first.answers.Load() == 0 && time.Since(began) < time.Minute {
			<-time.After(50 * time.Microsecond)
		}
		took = append(took, time.Since(began))
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		u.progress(before)
		u.arrives(fmt.Sprintf("restart %d", n+1))
	}
	stop()
	p.stop(syscall.SIGTERM)
	slices.Sort(took)
	t.Logf("%d restarts: first answer %v after the start, median %v, at most %v", len(took), took[0], took[len(took)/2], took[len(took)-1])
}

func (u *upgrading) spawnEdge() *process {
	if *binaryFlag == "" {
		return spawn(u.t, u.dir, nil, "edge", "-c", u.file)
	}
	return spawnProgram(u.t, *binaryFlag, u.dir, nil, "edge", "-c", u.file)
}

func (u *upgrading) answers() (n []int64) {
	for _, a := range u.askers {
		n = append(n, a.answers.Load())
	}
	return n
}

// progress waits until everybody was answered again.
func (u *upgrading) progress(before []int64) {
	u.t.Helper()
	until(u.t, "everybody is answered again", func() error {
		for i, a := range u.askers {
			if u.t.Failed() {
				return nil
			}
			if a.answers.Load() < before[i]+20 {
				return fmt.Errorf("%s: %d answers", a.name, a.answers.Load()-before[i])
			}
		}
		return nil
	})
}

// arrives waits until what is written now at the source can be read at the edge.
func (u *upgrading) arrives(what string) {
	u.t.Helper()
	u.db.Exec(fmt.Sprintf("UPDATE items SET note = '%s' WHERE id = 3", what))
	until(u.t, what+" arrives", func() error {
		got := program(u.t, u.dir, "get", "public.items", "s0,3", "-c", u.file)
		if !strings.Contains(got, what) {
			return fmt.Errorf("it reads %s", got)
		}
		return nil
	})
}
