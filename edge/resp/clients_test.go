package resp

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/millrace-db/millrace/internal/testdir"
)

// redisPy is where scripts/setup puts redis-py.
const redisPy = "millrace/redis-py-8.1.0"

// startBoth answers on TCP and on a unix socket.
func startBoth(t *testing.T) (port, socket string) {
	t.Helper()
	store, _ := newStore(t)
	other, _ := openStore(t)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(testdir.For(t), "resp.sock")
	unix, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	run(t, Config{Streams: []Stream{{"bank", store}, {"other", other}}, Plain: []net.Listener{tcp, unix}, Version: "test"})
	_, port, _ = net.SplitHostPort(tcp.Addr().String())
	return port, socket
}

// program runs a client to its end.
func program(t *testing.T, input, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v; scripts/setup test installs it\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestRedisCLI(t *testing.T) {
	port, socket := startBoth(t)
	const one = `{"id":1,"owner":"owner 1","note":null,"live":true}`
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"-p", port, "--raw", "GET", "public.accounts:1"}, one + "\n"},
		{[]string{"-s", socket, "--raw", "GET", "public.accounts:1"}, one + "\n"},
		{[]string{"-p", port, "-3", "HGETALL", "public.accounts:1"}, "id 1\nowner owner 1\nlive t\n"},
		{[]string{"-p", port, "-n", "1", "DBSIZE"}, "0\n"},
		{[]string{"-p", port, "SET", "a", "b"}, "READONLY"},
		{[]string{"-p", port, "WAITINDEX", "1", "0"}, "44\n"},
	} {
		if got := program(t, "", "redis-cli", c.args...); !strings.HasPrefix(got, c.want) {
			t.Errorf("redis-cli %s: %q, want %q", strings.Join(c.args, " "), got, c.want)
		}
	}
	if got := program(t, "", "redis-cli", "-p", port, "--scan", "--pattern", "public.accounts:*"); strings.Count(got, "public.accounts:") != 25 {
		t.Errorf("redis-cli --scan shows %s", got)
	}
	// As a person uses it.
	if got := program(t, "SELECT other\nPING\nSELECT bank\nEXISTS public.accounts:1\n", "redis-cli", "-p", port); got != "OK\nPONG\nOK\n1\n" {
		t.Errorf("redis-cli says %q", got)
	}
	if got := program(t, "", "redis-cli", "-p", port, "INFO", "keyspace"); !strings.Contains(got, "db0:keys=35") {
		t.Errorf("redis-cli INFO keyspace says %q", got)
	}
}

func TestRedisBenchmark(t *testing.T) {
	port, _ := startBoth(t)
	for _, pipeline := range []string{"1", "16"} {
		got := program(t, "", "redis-benchmark", "-p", port, "-n", "2000", "-c", "20", "-P", pipeline, "-r", "25", "-e", "-q", "GET", "public.accounts:__rand_int__")
		if !strings.Contains(got, "requests per second") || strings.Contains(strings.ToLower(got), "error from server") {
			t.Errorf("redis-benchmark says %s", got)
		}
	}
	got := program(t, "", "redis-benchmark", "-p", port, "-n", "200", "-t", "ping", "-e", "-q")
	if strings.Count(got, "requests per second") != 2 {
		t.Errorf("redis-benchmark says %s", got)
	}
}

func TestGoRedis(t *testing.T) {
	port, socket := startBoth(t)
	for _, options := range []*redis.Options{
		{Addr: "127.0.0.1:" + port, Protocol: 2},
		{Addr: "127.0.0.1:" + port, Protocol: 3, ClientName: "test"},
		{Network: "unix", Addr: socket},
	} {
		c := redis.NewClient(options)
		ctx := t.Context()
		wants := func(what string, got any, err error, want string) {
			t.Helper()
			if s := fmt.Sprint(got); err != nil || s != want {
				t.Errorf("protocol %d: %s: %s, %v; want %s", options.Protocol, what, s, err, want)
			}
		}
		text, err := c.Get(ctx, "public.accounts:2").Result()
		wants("Get", text, err, `{"id":2,"owner":"owner 2","note":null,"live":true}`)
		if _, err := c.Get(ctx, "public.accounts:99").Result(); err != redis.Nil { //nolint:errorlint // it is never wrapped
			t.Errorf("Get of what is absent: %v, want redis.Nil", err)
		}
		n, err := c.Exists(ctx, "public.accounts:1", "public.accounts:99").Result()
		wants("Exists", n, err, "1")
		all, err := c.MGet(ctx, "public.accounts:99", "odd.a%3Ab%25:k").Result()
		wants("MGet", all, err, `[<nil> {"id":"k"}]`)
		var row struct {
			ID    int    `redis:"id"`
			Owner string `redis:"owner"`
		}
		err = c.HGetAll(ctx, "public.accounts:3").Scan(&row)
		wants("HGetAll", row, err, "{3 owner 3}")
		columns, err := c.HMGet(ctx, "public.accounts:3", "owner", "note").Result()
		wants("HMGet", columns, err, "[owner 3 <nil>]")
		ttl, err := c.TTL(ctx, "public.accounts:3").Result()
		wants("TTL", int(ttl), err, "-1")
		kind, err := c.Type(ctx, "public.accounts:3").Result()
		wants("Type", kind, err, "string")
		size, err := c.StrLen(ctx, "public.accounts:3").Result()
		wants("StrLen", size, err, strconv.Itoa(len(text)))
		count := 0
		it := c.Scan(ctx, 0, "dns.records:7,a*", 2).Iterator()
		for it.Next(ctx) {
			count++
		}
		wants("Scan", count, it.Err(), "3")
		answers, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i := range 100 {
				p.Get(ctx, fmt.Sprintf("public.accounts:%d", i%25+1))
			}
			return nil
		})
		wants("Pipelined", len(answers), err, "100")
		index, err := c.Do(ctx, "WAITINDEX", 1, 100).Int()
		wants("WAITINDEX", index, err, "44")
		if err := c.Set(ctx, "public.accounts:1", "x", 0).Err(); err == nil || !strings.HasPrefix(err.Error(), "READONLY") {
			t.Errorf("Set: %v", err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

const redisPyScript = `
import redis, sys
for options in ({"protocol": 2}, {"protocol": 3}):
    c = redis.Redis(host="127.0.0.1", port=int(sys.argv[1]), decode_responses=True, client_name="test", **options)
    assert c.ping()
    assert c.get("public.accounts:2") == '{"id":2,"owner":"owner 2","note":null,"live":true}', c.get("public.accounts:2")
    assert c.get("public.accounts:99") is None
    assert c.mget("public.accounts:99", "odd.a%3Ab%25:k") == [None, '{"id":"k"}']
    assert c.exists("public.accounts:1", "public.accounts:99") == 1
    assert c.hgetall("public.accounts:3") == {"id": "3", "owner": "owner 3", "live": "t"}, c.hgetall("public.accounts:3")
    assert c.hmget("public.accounts:3", "owner", "note") == ["owner 3", None]
    assert c.hget("public.accounts:3", "id") == "3"
    assert c.ttl("public.accounts:3") == -1 and c.ttl("public.accounts:99") == -2
    assert c.type("public.accounts:3") == "string" and c.strlen("public.accounts:99") == 0
    assert sorted(c.scan_iter("dns.records:7,a*", count=2)) == ["dns.records:7,a", "dns.records:7,ab", "dns.records:7,abc"]
    assert len(list(c.scan_iter(count=7))) == 35
    assert c.dbsize() == 35 and c.info("keyspace")["db0"]["keys"] == 35
    with c.pipeline(transaction=False) as p:
        for i in range(100):
            p.get("public.accounts:%d" % (i % 25 + 1))
        assert len([v for v in p.execute() if v]) == 100
    try:
        c.set("public.accounts:1", "x")
        raise SystemExit("a write was taken")
    except redis.exceptions.ReadOnlyError:
        pass
    assert c.execute_command("WAITINDEX", 1, 100) == 44
    c.close()
c = redis.Redis(unix_socket_path=sys.argv[2], db=1)
assert c.dbsize() == 0
print("all is well")
`

func TestRedisPy(t *testing.T) {
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PYTHONPATH", filepath.Join(cache, redisPy))
	port, socket := startBoth(t)
	if got := program(t, redisPyScript, "python3", "-", port, socket); got != "all is well\n" {
		t.Errorf("redis-py says %s", got)
	}
}
