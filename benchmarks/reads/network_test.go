package reads

import (
	"bufio"
	"context"
	"encoding/csv"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-db/millrace/edge/resp"
	"github.com/millrace-db/millrace/edge/serve"
	"github.com/millrace-db/millrace/internal/child"
	"github.com/millrace-db/millrace/internal/loopback"
)

// background runs until the benchmark's end.
func background(b *testing.B, run func(context.Context) error) {
	b.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
}

func listen(b *testing.B, network, address string) net.Listener {
	b.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		b.Fatal(err)
	}
	return l
}

// startRedis starts a redis-server without persistence and returns its port.
func startRedis(b *testing.B, dir string) (port string, pid int) {
	b.Helper()
	free, err := loopback.FreePort()
	if err != nil {
		b.Fatal(err)
	}
	port = strconv.Itoa(free)
	log, err := os.Create(filepath.Join(dir, "redis.log"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = log.Close() }()                                                                             // the server has its own descriptor
	cmd := exec.Command("redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", //nolint:noctx // the benchmark ends it
		"--unixsocket", filepath.Join(dir, "redis.sock"), "--dir", dir)
	cmd.Stdout, cmd.Stderr = log, log
	p, err := child.Start(cmd, syscall.SIGKILL)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = p.Kill() })
	address := net.JoinHostPort("127.0.0.1", port)
	for deadline := time.Now().Add(30 * time.Second); ; {
		c, err := new(net.Dialer).DialContext(b.Context(), "tcp", address)
		if err == nil {
			_ = c.Close()
			return port, p.PID()
		}
		if time.Now().After(deadline) || !p.Running() {
			b.Fatalf("redis-server does not start: %v\n%s", err, child.Tail(log.Name(), 0, 4096))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// fillRedis gives Redis the same keys and values as the edge answers with.
func fillRedis(b *testing.B, port string, n int) {
	b.Helper()
	c, err := new(net.Dialer).DialContext(b.Context(), "tcp", "127.0.0.1:"+port)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	go func() {
		w := bufio.NewWriterSize(c, 1<<20)
		for id := range n {
			key, value := redisKey(id), rowJSON(id)
			_, _ = fmt.Fprintf(w, "*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n", len(key), key, len(value), value)
		}
		_ = w.Flush()
	}()
	if _, err := io.CopyN(io.Discard, c, int64(n*len("+OK\r\n"))); err != nil {
		b.Fatal(err)
	}
}

// redisKey is what redis-benchmark makes of public.t:__rand_int__.
func redisKey(id int) string { return fmt.Sprintf("public.t:%012d", id) }

func rowJSON(id int) string {
	return fmt.Sprintf(`{"id":%d,"balance":%d,"note":"%080d"}`, id, id, id)
}

// rate is what a measurement gave.
type rate struct {
	perSecond float64
	p50, p99  time.Duration
	// requests is how many were made.
	requests float64
}

func run(b *testing.B, name string, args ...string) string {
	b.Helper()
	out, err := exec.Command(name, args...).CombinedOutput() //nolint:noctx // it ends by itself
	if err != nil {
		b.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// redisBenchmark asks for random keys over 50 connections.
func redisBenchmark(b *testing.B, where []string, n, pipeline int) rate {
	b.Helper()
	args := append(append([]string(nil), where...), "-r", strconv.Itoa(*rowsFlag), "-n", strconv.Itoa(n), "-c", "50", "-P", strconv.Itoa(pipeline), "--csv", "GET", "public.t:__rand_int__")
	out := run(b, "redis-benchmark", args...)
	rows, err := csv.NewReader(strings.NewReader(out[strings.Index(out, `"test"`):])).ReadAll()
	if err != nil || len(rows) != 2 {
		b.Fatalf("redis-benchmark says %q: %v", out, err)
	}
	number := func(column string) float64 {
		for i, name := range rows[0] {
			if name == column {
				v, err := strconv.ParseFloat(rows[1][i], 64)
				if err != nil {
					b.Fatal(err)
				}
				return v
			}
		}
		b.Fatalf("redis-benchmark gives no %s: %q", column, out)
		return 0
	}
	ms := func(column string) time.Duration { return time.Duration(number(column) * float64(time.Millisecond)) }
	return rate{number("rps"), ms("p50_latency_ms"), ms("p99_latency_ms"), float64(n)}
}

// wrk asks a URL again and again over 50 connections.
func wrk(b *testing.B, script, url string) rate {
	b.Helper()
	args := []string{"-t1", "-c50", fmt.Sprintf("-d%ds", max(1, int(*secondsFlag))), "--latency"}
	if script != "" {
		args = append(args, "-s", script)
	}
	out := run(b, "wrk", append(args, url)...)
	if strings.Contains(out, "Non-2xx") || strings.Contains(out, "Socket errors") {
		b.Fatalf("wrk %s: %s", url, out)
	}
	find := func(pattern string) string {
		m := regexp.MustCompile(pattern).FindStringSubmatch(out)
		if m == nil {
			b.Fatalf("wrk says %s", out)
		}
		return m[1]
	}
	duration := func(pattern string) time.Duration {
		d, err := time.ParseDuration(find(pattern))
		if err != nil {
			b.Fatal(err)
		}
		return d
	}
	rps, err := strconv.ParseFloat(find(`Requests/sec:\s+([0-9.]+)`), 64)
	if err != nil {
		b.Fatal(err)
	}
	n, err := strconv.ParseFloat(find(`(\d+) requests in`), 64)
	if err != nil {
		b.Fatal(err)
	}
	return rate{rps, duration(`(?m)^ +50% +(\S+)`), duration(`(?m)^ +99% +(\S+)`), n}
}

// contender is one of those that are compared.
type contender struct {
	name    string
	measure func() rate
	// beside names the one whose figure its own is divided by.
	beside string
	// cpu is what the server has used so far.
	cpu func() time.Duration
}

// compare measures all in rounds, and prints medians and ratios.
func compare(b *testing.B, all []contender) {
	got, used := make(map[string][]rate), make(map[string][]float64)
	for round := range *roundsFlag {
		for i := range all {
			c := &all[(i+round)%len(all)]
			before := c.cpu()
			r := c.measure()
			used[c.name] = append(used[c.name], float64((c.cpu()-before).Nanoseconds())/1000/r.requests)
			got[c.name] = append(got[c.name], r)
		}
	}
	for _, c := range all {
		var perSecond, ratios, costs []float64
		var p50, p99 []time.Duration
		for i, r := range got[c.name] {
			perSecond, p50, p99 = append(perSecond, r.perSecond), append(p50, r.p50), append(p99, r.p99)
			if c.beside != "" {
				ratios = append(ratios, r.perSecond/got[c.beside][i].perSecond)
				costs = append(costs, used[c.name][i]/used[c.beside][i])
			}
		}
		values := map[string]any{
			"what": c.name, "requests_per_second": int(median(perSecond)), "p50_us": median(p50).Microseconds(), "p99_us": median(p99).Microseconds(),
			"cpu_us_per_request": fmt.Sprintf("%.1f", median(used[c.name])),
		}
		if c.beside != "" {
			values["beside"], values["ratio"], values["cpu_ratio"] = c.beside, fmt.Sprintf("%.2f", median(ratios)), fmt.Sprintf("%.2f", median(costs))
			b.ReportMetric(median(ratios), strings.ReplaceAll(c.name, " ", "-")+"/ratio")
		}
		figure(b, values)
	}
}

// BenchmarkNetwork reads random rows of one table over RESP and over HTTP, on TCP and
// unix sockets, with 50 connections, beside redis-server and beside a Go HTTP server
// that answers with as many bytes and does nothing.
func BenchmarkNetwork(b *testing.B) {
	store, _ := newStore(b, "store", *rowsFlag)
	dir := b.TempDir()
	redisPort, redisPID := startRedis(b, dir)
	fillRedis(b, redisPort, *rowsFlag)

	respTCP, respUnix := listen(b, "tcp", "127.0.0.1:0"), listen(b, "unix", filepath.Join(dir, "resp.sock"))
	rs, err := resp.New(resp.Config{Streams: []resp.Stream{{Name: "bank", Reader: store}}, Plain: []net.Listener{respTCP, respUnix}})
	if err != nil {
		b.Fatal(err)
	}
	background(b, rs.Run)
	hs, err := serve.New(serve.Config{Streams: map[string]serve.Reader{"bank": store}, Listen: "127.0.0.1:0"})
	if err != nil {
		b.Fatal(err)
	}
	if err := hs.Listen(context.Background()); err != nil {
		b.Fatal(err)
	}
	background(b, hs.Run)

	nothing := listen(b, "tcp", "127.0.0.1:0")
	body := []byte(rowJSON(*rowsFlag-1) + "\n")
	idle := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Type"] = []string{"application/json"}
		_, _ = w.Write(body)
	})}
	background(b, func(ctx context.Context) error {
		context.AfterFunc(ctx, func() { _ = idle.Close() })
		_ = idle.Serve(nothing)
		return nil
	})
	script := filepath.Join(dir, "rows.lua")
	if err := os.WriteFile(script, fmt.Appendf(nil, `
math.randomseed(os.time())
request = function()
  return wrk.format("GET", "/v1/streams/bank/tables/public.t/rows/" .. math.random(0, %d))
end`, *rowsFlag-1), 0o600); err != nil {
		b.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(respTCP.Addr().String())
	n := int(*secondsFlag * 50_000)
	overRESP := func(where ...string) func(pipeline, n int) func() rate {
		return func(pipeline, n int) func() rate {
			return func() rate { return redisBenchmark(b, where, n, pipeline) }
		}
	}
	redis, redisUnix := overRESP("-p", redisPort), overRESP("-s", filepath.Join(dir, "redis.sock"))
	ours, oursUnix := overRESP("-p", port), overRESP("-s", respUnix.Addr().String())
	b.ResetTimer()
	theirs := func() time.Duration { return cpuOf(b, strconv.Itoa(redisPID)) }
	own := func() time.Duration { return cpuOf(b, "self") } // one server at a time is asked
	compare(b, chosen([]contender{
		{"Redis GET", redis(1, n), "", theirs},
		{"RESP GET", ours(1, n), "Redis GET", own},
		{"Redis GET, unix socket", redisUnix(1, n), "", theirs},
		{"RESP GET, unix socket", oursUnix(1, n), "Redis GET, unix socket", own},
		{"Redis GET, 16 at once", redis(16, 4*n), "", theirs},
		{"RESP GET, 16 at once", ours(16, 4*n), "Redis GET, 16 at once", own},
		{"HTTP server that does nothing", func() rate { return wrk(b, script, "http://"+nothing.Addr().String()) }, "", own},
		{"HTTP get", func() rate { return wrk(b, script, "http://"+hs.Addr()) }, "HTTP server that does nothing", own},
	}))
}

// chosen are those that -only chooses.
func chosen(all []contender) []contender {
	return slices.DeleteFunc(all, func(c contender) bool { return !strings.Contains(c.name, *onlyFlag) })
}

// cpuOf is what a process has used of the processors.
func cpuOf(b *testing.B, pid string) time.Duration {
	b.Helper()
	text, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		b.Fatal(err)
	}
	// Behind the name in brackets; the 12th and 13th are ticks of 10 ms in user and
	// system mode.
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	var ticks time.Duration
	for _, f := range fields[11:13] {
		n, err := strconv.Atoi(f)
		if err != nil {
			b.Fatal(err)
		}
		ticks += time.Duration(n)
	}
	return ticks * 10 * time.Millisecond
}
