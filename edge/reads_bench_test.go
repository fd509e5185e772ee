package edge

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/bmatsuo/lmdb-go/lmdb"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/child"
)

//nolint:gochecknoglobals // flags of the test binary
var (
	readRows   = flag.Int("rows", 1_000_000, "rows of the table in BenchmarkReads")
	readRate   = flag.Int("rate", 20_000, "reads a second in BenchmarkReads")
	readTime   = flag.Duration("each", 3*time.Second, "length of each measurement in BenchmarkReads")
	readRounds = flag.Int("rounds", 3, "interleaved rounds in BenchmarkReads")
	readAhead  = flag.Bool("realtime", false, "read with real-time priority in BenchmarkReads, with pauses as long between measurements: for a machine with other work")
	readRedis  = flag.Bool("redis", true, "measure Redis beside it in BenchmarkReads")
)

// readUnit is how many changes a writer commits at once.
const readUnit = 100

// readBench is a table in two stores and in Redis.
type readBench struct {
	b      *testing.B
	stores [2]*Store
	feeds  [2]*feed
	tables [2]tableFeed
	keys   *millrace.KeyCodec
	note   string
	redis  string // its socket, empty for none
	// measured counts the measurements.
	measured uint64
}

// BenchmarkReads reads random rows at a fixed rate, in a view each, beside no writer,
// one and two, which write units of 100 changes to random rows without a pause: each
// to a store of its own, the first one's being read. In the same round the same reads are
// made of LMDB alone, in the same environment under the same writer (renew, get, reset),
// of rows that are absent, and of Redis, under a client that writes transactions of 100
// SETs. What is measured is the time of each read from its start to its end.
func BenchmarkReads(b *testing.B) {
	r := newReadBench(b)
	type measurement struct{ p50, p99, p999 float64 }
	writers := []string{"alone", "one writer", "two writers"}
	got := make(map[string][]measurement)
	for range *readRounds {
		for n, beside := range writers {
			stop := r.write(n)
			for name, read := range r.readers() {
				took := r.measure(read)
				got[name+", "+beside] = append(got[name+", "+beside], measurement{took(0.5), took(0.99), took(0.999)})
			}
			stop()
			if r.redis != "" {
				read, end := r.overRedis()
				stop := r.writeRedis(n)
				took := r.measure(read)
				stop()
				end()
				got["Redis, "+beside] = append(got["Redis, "+beside], measurement{took(0.5), took(0.99), took(0.999)})
			}
		}
	}
	middle := func(of string, value func(measurement) float64) float64 {
		var all []float64
		for _, m := range got[of] {
			all = append(all, value(m))
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	ratio := func(what string, of, to string, value func(measurement) float64) {
		var all []float64
		for i := range got[of] {
			all = append(all, value(got[of][i])/value(got[to][i]))
		}
		slices.Sort(all)
		b.ReportMetric(all[len(all)/2], what)
	}
	p50 := func(m measurement) float64 { return m.p50 }
	p99 := func(m measurement) float64 { return m.p99 }
	p999 := func(m measurement) float64 { return m.p999 }
	for _, name := range []string{"get", "absent", "LMDB", "Redis"} {
		for _, beside := range writers {
			of := name + ", " + beside
			if len(got[of]) == 0 {
				continue
			}
			line, err := json.Marshal(map[string]any{
				"benchmark": b.Name(), "what": of, "rows": *readRows, "rate": *readRate, "cores": runtime.NumCPU(),
				"p50_us": round(middle(of, p50)), "p99_us": round(middle(of, p99)), "p999_us": round(middle(of, p999)),
			})
			if err != nil {
				b.Fatal(err)
			}
			fmt.Println(string(line))
		}
	}
	ratio("get-p50/LMDB", "get, alone", "LMDB, alone", p50)
	ratio("absent-p50/get", "absent, alone", "get, alone", p50)
	for _, beside := range writers[1:] {
		ratio("p99-"+beside[:3]+"/alone", "get, "+beside, "get, alone", p99)
		ratio("LMDB-p99-"+beside[:3]+"/alone", "LMDB, "+beside, "LMDB, alone", p99)
		ratio("p99.9-"+beside[:3]+"/LMDB", "get, "+beside, "LMDB, "+beside, p999)
	}
}

func round(v float64) float64 { return float64(int(v*100+0.5)) / 100 }

func newReadBench(b *testing.B) *readBench {
	r := &readBench{b: b, note: fmt.Sprintf("%060d", 0)}
	for i := range r.stores {
		s, err := Open(Options{Dir: b.TempDir(), Stream: testStream})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = s.Close() }) // its directory goes too
		r.stores[i] = s
		r.feeds[i] = newFeed(b, s)
		schema := testSchema(1, 1, "t", oidInt8, "note")
		r.tables[i] = r.feeds[i].loaded(schema)
		const step = 10_000
		for at := 0; at < *readRows; at += step {
			var entries []*millrace.Entry
			for id := at; id < min(at+step, *readRows); id++ {
				entries = append(entries, r.tables[i].put(strconv.Itoa(2*id), r.note))
			}
			r.feeds[i].must(entries...)
		}
		if r.keys, err = millrace.NewKeyCodec(schema); err != nil {
			b.Fatal(err)
		}
	}
	// The pages are brought into the address space, of which the first to read them would
	// have the cost.
	err := r.stores[0].View(b.Context(), func(v *View) error {
		t, err := v.Table("public.t")
		if err != nil {
			return err
		}
		return t.Scan(nil, nil, 0, func([]byte, *Row) error { return nil })
	})
	if err != nil {
		b.Fatal(err)
	}
	if *readRedis {
		r.startRedis()
	}
	return r
}

// write writes to the first n stores until it is stopped.
func (r *readBench) write(n int) (stop func()) {
	ended := make(chan struct{})
	var work sync.WaitGroup
	for i := range n {
		// A writer belongs to its thread.
		r.feeds[i].w.Close()
		work.Go(func() {
			w, err := r.stores[i].NewWriter()
			if err != nil {
				r.b.Error(err)
				return
			}
			defer w.Close()
			r.feeds[i].w = w
			rnd := rand.New(rand.NewPCG(uint64(i), 1))
			for {
				select {
				case <-ended:
					return
				default:
				}
				entries := make([]*millrace.Entry, readUnit)
				for k := range entries {
					entries[k] = r.tables[i].put(strconv.Itoa(2*rnd.IntN(*readRows)), r.note)
				}
				if err := r.feeds[i].unit(entries...); err != nil {
					r.b.Error(err)
					return
				}
			}
		})
	}
	return func() {
		close(ended)
		work.Wait()
	}
}

// readers are what reads a row by its number.
func (r *readBench) readers() map[string]func(id int) error {
	s := r.stores[0]
	ctx := context.Background()
	var key []byte
	var text []byte
	encode := func(id int) (err error) {
		text = strconv.AppendInt(text[:0], int64(id), 10)
		key, err = r.keys.Append(key[:0], [][]byte{text})
		return err
	}
	var row Row
	get := func(v *View) error {
		t, err := v.Table("public.t")
		if err != nil {
			return err
		}
		return t.Get(key, &row)
	}
	txn, err := s.env.BeginTxn(nil, lmdb.Readonly)
	if err != nil {
		r.b.Fatal(err)
	}
	txn.RawRead = true
	txn.Reset()
	r.b.Cleanup(txn.Abort)
	dbi := s.catalog.Load().visible["public.t"].live.dbi
	return map[string]func(int) error{
		"get": func(id int) error {
			if err := encode(2 * id); err != nil {
				return err
			}
			return s.View(ctx, get)
		},
		"absent": func(id int) error {
			if err := encode(2*id + 1); err != nil { // between two rows
				return err
			}
			if err := s.View(ctx, get); !errors.Is(err, ErrNotFound) {
				return fmt.Errorf("a row that is absent: %w", err)
			}
			return nil
		},
		"LMDB": func(id int) error {
			if err := encode(2 * id); err != nil {
				return err
			}
			if err := txn.Renew(); err != nil {
				return err
			}
			_, err := txn.Get(dbi, key)
			txn.Reset()
			return err
		},
	}
}

// early is a call, so that the scheduler, which wants the processor of a goroutine that
// waits busily every 10 ms, takes it between two reads.
//
//go:noinline
func early(due time.Time) bool { return time.Now().Before(due) }

// prioritize gives the process's threads real-time priority, or takes it.
func (r *readBench) prioritize(on bool) {
	const normal, roundRobin = 0, 2 // of sched_setscheduler
	policy, priority := uintptr(normal), int32(0)
	if on {
		policy, priority = roundRobin, 1
	}
	for range 2 { // the second time those that began meanwhile
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			r.b.Fatal(err)
		}
		for _, thread := range threads {
			id, _ := strconv.Atoi(thread.Name())
			_, _, errno := syscall.RawSyscall(syscall.SYS_SCHED_SETSCHEDULER, uintptr(id), policy, uintptr(unsafe.Pointer(&priority)))
			if errno != 0 && errno != syscall.ESRCH {
				r.b.Fatalf("real-time priority: %v; mend: run as root", errno)
			}
		}
	}
}

// measure reads at the rate and returns the quantiles of the times in microseconds.
func (r *readBench) measure(read func(id int) error) func(q float64) float64 {
	if *readAhead {
		r.prioritize(true)
		defer func() {
			r.prioritize(false)
			time.Sleep(*readTime)
		}()
	}
	// Other rows each time, or those who come later would find them in the caches.
	r.measured++
	rnd := rand.New(rand.NewPCG(7, r.measured))
	interval := time.Second / time.Duration(*readRate)
	n := int(*readTime / interval)
	took := make([]float64, 0, n)
	due := time.Now()
	for range n {
		due = due.Add(interval)
		for early(due) {
		}
		id := rnd.IntN(*readRows)
		now := time.Now()
		if now.Sub(due) > 100*time.Millisecond {
			due = now // it was held up; what was missed is not made up for
		}
		if err := read(id); err != nil {
			r.b.Fatal(err)
		}
		took = append(took, float64(time.Since(now).Nanoseconds())/1000)
	}
	slices.Sort(took)
	return func(q float64) float64 { return took[int(q*float64(len(took)-1))] }
}

// startRedis starts a redis-server without persistence, with the same rows.
func (r *readBench) startRedis() {
	dir := r.b.TempDir()
	socket := filepath.Join(dir, "s")
	cmd := exec.Command("redis-server", "--port", "0", "--save", "", "--appendonly", "no", "--unixsocket", socket, "--dir", dir) //nolint:noctx // the benchmark ends it
	p, err := child.Start(cmd, syscall.SIGKILL)
	if err != nil {
		r.b.Fatalf("%v; scripts/setup reads installs it", err)
	}
	r.b.Cleanup(func() { _ = p.Kill() })
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		if time.Now().After(deadline) {
			r.b.Fatal("redis-server does not start")
		}
	}
	r.redis = socket
	c, end := r.dialRedis()
	defer end()
	go func() {
		w := bufio.NewWriterSize(c, 1<<20)
		for id := range *readRows {
			r.appendSet(w, id)
		}
		_ = w.Flush()
	}()
	if _, err := io.CopyN(io.Discard, c, int64(*readRows*len("+OK\r\n"))); err != nil {
		r.b.Fatal(err)
	}
}

func (r *readBench) dialRedis() (net.Conn, func()) {
	c, err := new(net.Dialer).DialContext(r.b.Context(), "unix", r.redis)
	if err != nil {
		r.b.Fatal(err)
	}
	return c, func() { _ = c.Close() }
}

func (r *readBench) appendSet(w io.Writer, id int) {
	key := strconv.Itoa(id)
	_, _ = fmt.Fprintf(w, "*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n", len(key), key, len(r.note), r.note)
}

// overRedis reads a row with one request over a connection of its own.
func (r *readBench) overRedis() (read func(id int) error, end func()) {
	c, end := r.dialRedis()
	in := bufio.NewReader(c)
	var request []byte
	return func(id int) error {
		key := strconv.Itoa(id)
		request = fmt.Appendf(request[:0], "*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n", len(key), key)
		if _, err := c.Write(request); err != nil {
			return err
		}
		if _, err := in.ReadSlice('\n'); err != nil {
			return err
		}
		_, err := in.ReadSlice('\n')
		return err
	}, end
}

// writeRedis writes transactions over n connections until it is stopped.
func (r *readBench) writeRedis(n int) (stop func()) {
	ended := make(chan struct{})
	var work sync.WaitGroup
	for i := range n {
		c, end := r.dialRedis()
		work.Go(func() {
			defer end()
			rnd := rand.New(rand.NewPCG(uint64(i), 1))
			w, in := bufio.NewWriter(c), bufio.NewReader(c)
			for {
				select {
				case <-ended:
					return
				default:
				}
				_, _ = io.WriteString(w, "MULTI\r\n")
				for range readUnit {
					r.appendSet(w, rnd.IntN(*readRows))
				}
				_, _ = io.WriteString(w, "EXEC\r\n")
				if err := w.Flush(); err != nil {
					r.b.Error(err)
					return
				}
				// OK, QUEUED for each, and an array of OKs.
				for range 1 + readUnit + 1 + readUnit {
					if _, err := in.ReadSlice('\n'); err != nil {
						r.b.Error(err)
						return
					}
				}
			}
		})
	}
	return func() {
		close(ended)
		work.Wait()
	}
}
