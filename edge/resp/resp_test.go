package resp

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
)

// peer is the other end of a connection: it sends commands, and reads answers into a
// form that tests compare.
type peer struct {
	t testing.TB
	net.Conn
	r *bufio.Reader
}

func newPeer(t testing.TB, c net.Conn) *peer {
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	return &peer{t, c, bufio.NewReader(c)}
}

func encode(args ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	return b.String()
}

func (p *peer) send(args ...string) {
	p.t.Helper()
	if _, err := io.WriteString(p, encode(args...)); err != nil {
		p.t.Fatal(err)
	}
}

// answer reads one answer: errors with their dash, arrays in brackets, maps in
// braces, null as nil.
func (p *peer) answer() string {
	p.t.Helper()
	s, err := p.read()
	if err != nil {
		p.t.Fatalf("read an answer: %v", err)
	}
	return s
}

func (p *peer) read() (string, error) {
	line, err := p.r.ReadString('\n')
	if err != nil {
		return "", err
	}
	line, ok := strings.CutSuffix(line, "\r\n")
	if !ok || line == "" {
		return "", fmt.Errorf("line %q is not ended as the protocol wants", line)
	}
	n, _ := strconv.Atoi(line[1:])
	several := func(n int, open, end string) (string, error) {
		var all []string
		for range n {
			s, err := p.read()
			if err != nil {
				return "", err
			}
			all = append(all, s)
		}
		return open + strings.Join(all, " ") + end, nil
	}
	switch line[0] {
	case '+', ':':
		return line[1:], nil
	case '-':
		return line, nil
	case '_':
		return "nil", nil
	case '$', '=':
		if n < 0 {
			return "nil", nil
		}
		b := make([]byte, n+2)
		if _, err := io.ReadFull(p.r, b); err != nil {
			return "", err
		}
		if !bytes.HasSuffix(b, []byte("\r\n")) {
			return "", fmt.Errorf("bulk %q is not ended as the protocol wants", b)
		}
		return string(b[:n]), nil
	case '*':
		if n < 0 {
			return "nil", nil
		}
		return several(n, "[", "]")
	case '%':
		return several(2*n, "{", "}")
	}
	return "", fmt.Errorf("line %q is of no kind", line)
}

func (p *peer) ask(args ...string) string {
	p.t.Helper()
	p.send(args...)
	return p.answer()
}

// wants asks, and wants an answer; one that begins with a dash has to begin the answer
// only.
func (p *peer) wants(want string, args ...string) {
	p.t.Helper()
	got := p.ask(args...)
	if got != want && (!strings.HasPrefix(want, "-") || !strings.HasPrefix(got, want)) {
		p.t.Errorf("%.200s\n got %.500s\nwant %s", strings.Join(args, " "), got, want)
	}
}

func TestRows(t *testing.T) {
	store, src := newStore(t)
	dial, _ := start(t, Config{Streams: bank(store)})
	p := newPeer(t, dial())
	const one = `{"id":1,"owner":"owner 1","note":null,"live":true}`
	p.wants(one, "GET", "public.accounts:1")
	p.wants(one, "get", "public.accounts:0001")
	p.wants("nil", "GET", "public.accounts:999")
	p.wants(`{"name":"b,c","zone":7,"data":{"of": "b,c"}}`, "GET", "dns.records:7,b%2Cc")
	p.wants(`{"name":"50%","zone":7,"data":{"of": "50%"}}`, "GET", "dns.records:7,50%25")
	p.wants(`{"name":"x:y","zone":7,"data":{"of": "x:y"}}`, "GET", "dns.records:7,x:y")
	p.wants(`{"name":"*","zone":7,"data":{"of": "*"}}`, "GET", "dns.records:7,*")
	p.wants(`{"id":"k"}`, "GET", "odd.a%3Ab%25:k")
	p.wants("["+one+" nil "+`{"name":"a","zone":8,"data":"quoted"}]`, "MGET", "public.accounts:1", "dns.records:8,zz", "dns.records:8,a")
	p.wants("2", "EXISTS", "public.accounts:1", "public.accounts:1", "public.accounts:0")
	p.wants(strconv.Itoa(len(one)), "STRLEN", "public.accounts:1")
	p.wants("0", "STRLEN", "public.accounts:0")
	p.wants("string", "TYPE", "public.accounts:1")
	p.wants("none", "TYPE", "public.accounts:0")
	p.wants("-1", "TTL", "public.accounts:1")
	p.wants("-2", "PTTL", "public.accounts:0")
	p.wants("t", "HGET", "public.accounts:1", "live")
	p.wants("nil", "HGET", "public.accounts:1", "note")
	p.wants("nil", "HGET", "public.accounts:0", "note")
	p.wants("-ERR table public.accounts has no column 'nope'; there are: id, owner, note, live", "HGET", "public.accounts:1", "nope")
	p.wants("[owner 1 nil 1]", "HMGET", "public.accounts:1", "owner", "note", "id")
	p.wants("[nil nil]", "HMGET", "public.accounts:0", "owner", "note")
	p.wants("[id 1 owner owner 1 live t]", "HGETALL", "public.accounts:1")
	p.wants("[]", "HGETALL", "public.accounts:0")
	p.wants("35", "DBSIZE")

	// What is wrong is said, and the connection goes on.
	p.wants("-ERR key 'foo' names no table", "GET", "foo")
	p.wants("-ERR stream bank has no table public.nope; there are: dns.records, odd.a:b%, public.accounts", "GET", "public.nope:1")
	p.wants("-ERR key 'public.accounts:x': ", "GET", "public.accounts:x")
	p.wants("-ERR key 'dns.records:7': ", "GET", "dns.records:7")
	p.wants("-ERR key 'dns.records:7,%zz'", "GET", "dns.records:7,%zz")
	p.wants("-ERR key 'foo' names no table", "MGET", "public.accounts:1", "foo")
	p.wants("-READONLY ", "SET", "public.accounts:1", "x")
	p.wants("-READONLY ", "del", "public.accounts:1")
	p.wants("-ERR unknown command 'NOPE'", "NOPE")
	p.wants("-ERR wrong number of arguments for 'get' command", "GET")
	p.wants("-ERR wrong number of arguments for 'get' command", "GET", "a", "b")

	// A column that has come later, and one that was renamed.
	s2 := accountsSchema()
	s2.Version = 4
	s2.Columns = append(s2.Columns, column("extra", oidText, 0))
	src.unit(&millrace.Entry{Kind: millrace.KindSchema, Table: s2.Table, Schema: s2})
	p.wants("nil", "HGET", "public.accounts:1", "extra")
	p.wants("owner 1", "HGET", "public.accounts:1", "owner")
	p.wants(strings.TrimSuffix(one, "}")+`,"extra":null}`, "GET", "public.accounts:1")

	// The third version of the protocol.
	p.wants("{server millrace version  proto 3 id 1 mode standalone role replica modules []}", "HELLO", "3")
	p.wants("{id 1 owner owner 1 live t}", "HGETALL", "public.accounts:1")
	p.wants("nil", "GET", "public.accounts:0")
	p.wants("[server millrace version  proto 2 id 1 mode standalone role replica modules []]", "HELLO", "2", "SETNAME", "me")
	p.wants("me", "CLIENT", "GETNAME")
	p.wants("-NOPROTO", "HELLO", "4")
}

func TestSession(t *testing.T) {
	store, _ := newStore(t)
	empty, _ := openStore(t)
	dial, _ := start(t, Config{Streams: []Stream{{"bank", store}, {"dns", empty}}})
	p := newPeer(t, dial())
	p.wants("PONG", "PING")
	p.wants("hello", "PING", "hello")
	p.wants("hello", "ECHO", "hello")
	p.wants("OK", "SELECT", "1")
	p.wants("-LOADING stream dns has not been copied", "GET", "public.accounts:1")
	p.wants("OK", "SELECT", "bank")
	p.wants("1", "EXISTS", "public.accounts:1")
	p.wants("-ERR there is no stream 2; there are: 0 (bank), 1 (dns)", "SELECT", "2")
	p.wants("nil", "CLIENT", "GETNAME")
	p.wants("OK", "CLIENT", "SETNAME", "me")
	p.wants("OK", "CLIENT", "SETINFO", "lib-name", "lib")
	p.wants("-ERR a client's name", "CLIENT", "SETNAME", "a b")
	p.wants("-ERR CLIENT knows", "CLIENT", "KILL", "x")
	p.wants("-ERR AUTH is called", "AUTH", "x")
	if info := p.ask("INFO"); !strings.Contains(info, "db0:keys=35,") || !strings.Contains(info, "stream0:name=bank,epoch=1,index=") {
		t.Errorf("INFO says %s", info)
	}
	if info := p.ask("INFO", "server"); !strings.Contains(info, "redis_version:") || strings.Contains(info, "Keyspace") {
		t.Errorf("INFO server says %s", info)
	}
	if got := p.ask("COMMAND", "INFO", "get", "nope"); got != "[[get 2 [readonly] 1 1 1] nil]" {
		t.Errorf("COMMAND INFO says %s", got)
	}
	if n := p.ask("COMMAND", "COUNT"); strings.Count(p.ask("COMMAND"), "[readonly]") < 10 || n == "0" {
		t.Errorf("COMMAND COUNT says %s", n)
	}
	// As a person types.
	if _, err := io.WriteString(p, "\r\n  get   public.accounts:1 \r\nPING\n"); err != nil {
		t.Fatal(err)
	}
	if got := p.answer() + p.answer(); !strings.HasPrefix(got, `{"id":1,`) || !strings.HasSuffix(got, "PONG") {
		t.Errorf("lines give %s", got)
	}
	p.wants("OK", "QUIT")
	if _, err := p.read(); !errors.Is(err, io.EOF) {
		t.Errorf("after QUIT the connection gives %v", err)
	}
}

func TestScan(t *testing.T) {
	store, src := newStore(t)
	dial, _ := start(t, Config{Streams: bank(store)})
	p := newPeer(t, dial())
	pages := func(args ...string) (keys []string, n int) {
		t.Helper()
		cursor := "0"
		for {
			n++
			got := p.ask(append([]string{"SCAN", cursor}, args...)...)
			rest, ok := strings.CutPrefix(got, "[")
			if !ok {
				t.Fatalf("SCAN %s %v: %s", cursor, args, got)
			}
			var list string
			cursor, list, _ = strings.Cut(strings.TrimSuffix(rest, "]"), " ")
			keys = append(keys, strings.Fields(strings.Trim(list, "[]"))...)
			if cursor == "0" {
				return keys, n
			}
		}
	}
	for _, c := range []struct{ args, want string }{
		{"MATCH public.accounts:*", "25 keys"},
		{"MATCH public.accounts:3", "public.accounts:3"},
		{"MATCH public.accounts:99", ""},
		{"MATCH dns.records:7,a*", "dns.records:7,a dns.records:7,ab dns.records:7,abc"},
		{"MATCH dns.records:7,a", "dns.records:7,a"},
		{"MATCH dns.records:8,*", "dns.records:8,a"},
		{`MATCH dns.records:7,\**`, "dns.records:7,*"},
		{"MATCH dns.records:7,b%2C*", "dns.records:7,b%2Cc"},
		{"MATCH odd.*", "odd.a%3Ab%25:k"},
		{"MATCH odd.a%3Ab%25:*", "odd.a%3Ab%25:k"},
		{"MATCH nope:*", ""},
		{"TYPE list", ""},
		{"TYPE hash COUNT 1000", "35 keys"},
		{"COUNT 1", "35 keys"},
		{"", "35 keys"},
	} {
		keys, n := pages(strings.Fields(c.args)...)
		got := strings.Join(keys, " ")
		if len(keys) > 10 {
			got = fmt.Sprintf("%d keys", len(keys))
		}
		if got != c.want {
			t.Errorf("SCAN 0 %s: got %s, want %s", c.args, got, c.want)
		}
		if c.args == "COUNT 1" && n < 35 {
			t.Errorf("SCAN 0 COUNT 1 took %d pages", n)
		}
		for _, key := range keys {
			if p.ask("EXISTS", key) != "1" {
				t.Errorf("key %s of SCAN is not there", key)
			}
		}
	}
	p.wants("-ERR MATCH has a star before its end", "SCAN", "0", "MATCH", "a*b")
	p.wants("-ERR MATCH has a ?", "SCAN", "0", "MATCH", "a.b:?")
	p.wants("-ERR MATCH 'public.accounts' names no table", "SCAN", "0", "MATCH", "public.accounts")
	p.wants("-ERR MATCH '3': ", "SCAN", "0", "MATCH", "public.accounts:3*")
	p.wants("-ERR invalid cursor", "SCAN", "x")
	p.wants("-ERR cursor 7 is too old", "SCAN", "7")
	p.wants("-ERR COUNT", "SCAN", "0", "COUNT", "0")
	p.wants("-ERR syntax error", "SCAN", "0", "COUNT")
	p.wants("-ERR SCAN knows", "SCAN", "0", "NOPE", "1")

	// A cursor is good on another connection, again, and beside changes.
	first := p.ask("SCAN", "0", "MATCH", "public.accounts:*", "COUNT", "5")
	cursor, _, _ := strings.Cut(strings.TrimPrefix(first, "["), " ")
	src.unit(put(t, accountsSchema(), "26", "new", "NULL", "t"))
	other := newPeer(t, dial())
	second := other.ask("SCAN", cursor, "MATCH", "public.accounts:*", "COUNT", "100")
	if again := p.ask("SCAN", cursor, "MATCH", "public.accounts:*", "COUNT", "100"); again != second || strings.Count(second, "public") != 21 {
		t.Errorf("a cursor gives\n%s, then\n%s", second, again)
	}
	p.wants("-ERR cursor", "SCAN", cursor, "MATCH", "dns.records:*")
}

func TestCursorsAreBounded(t *testing.T) {
	var c cursors
	first := c.put(place{table: "first"})
	for range maxCursors {
		c.put(place{table: "more"})
	}
	if _, ok := c.get(first); ok {
		t.Error("the oldest cursor is still known")
	}
	for range 40 {
		c.put(place{after: make([]byte, 1<<20)})
	}
	if c.bytes > maxCursorBytes || len(c.byID) > 20 || len(c.byID) != c.order.Len() {
		t.Errorf("cursors hold %d bytes in %d places", c.bytes, len(c.byID))
	}
	huge := c.put(place{after: make([]byte, maxCursorBytes)})
	if _, ok := c.get(huge); !ok || len(c.byID) != 1 {
		t.Errorf("a cursor that takes all room is not known, or %d others are", len(c.byID)-1)
	}
}

// What is sent at once is answered in order, whatever the pieces in which it comes, and
// a command that fails does not keep the others from their answers.
func TestPipeline(t *testing.T) {
	store, _ := newStore(t)
	dial, _ := start(t, Config{Streams: bank(store)})
	var all, want strings.Builder
	for i := range 3000 {
		switch i % 5 {
		case 0:
			all.WriteString(encode("GET", fmt.Sprintf("public.accounts:%d", i%25+1)))
			fmt.Fprintf(&want, `{"id":%d,"owner":"owner %[1]d","note":null,"live":true}`+"\n", i%25+1)
		case 1:
			all.WriteString(encode("GET", "nope"))
			want.WriteString("-\n")
		case 2:
			all.WriteString(encode("PING", strconv.Itoa(i)))
			fmt.Fprintln(&want, i)
		case 3:
			all.WriteString(encode("NOPE"))
			want.WriteString("-\n")
		default:
			all.WriteString(encode("EXISTS", "public.accounts:1"))
			want.WriteString("1\n")
		}
	}
	for _, piece := range []int{1 << 20, 4096, 137, 7} {
		p := newPeer(t, dial())
		text := all.String()
		if piece < 100 {
			text = text[:40_000] // ends within a command
		}
		go func() {
			for len(text) > 0 {
				n := min(piece, len(text))
				if _, err := io.WriteString(p, text[:n]); err != nil {
					return
				}
				text = text[n:]
			}
		}()
		for i, line := range strings.Split(strings.TrimSpace(want.String()), "\n") {
			if piece < 100 && i == 1000 {
				break
			}
			got := p.answer()
			if got != line && (line != "-" || !strings.HasPrefix(got, "-ERR")) {
				t.Fatalf("pieces of %d: answer %d is %s, want %s", piece, i, got, line)
			}
		}
	}
}

func TestProtocolErrors(t *testing.T) {
	store, _ := newStore(t)
	dial, _ := start(t, Config{Streams: bank(store), MaxRequest: 10_000})
	for text, want := range map[string]string{
		"*1\r\n:1\r\n":       "expected '$'",
		"*x\r\n":             "invalid multibulk length",
		"*1\n":               "invalid multibulk length",
		"*99999999999\r\n":   "invalid multibulk length",
		"*20000\r\n":         "20000 arguments",
		"*1\r\n$-1\r\n":      "invalid bulk length",
		"*1\r\n$9999999\r\n": "more than 10000 bytes",
		"*2\r\n$9000\r\n" + strings.Repeat("a", 9000) + "\r\n$9000\r\n": "more than 10000 bytes",
		"*1\r\n$4\r\nPINGxx":          "longer than it was announced",
		strings.Repeat("a", 11_000):   "too big inline request",
		"*" + strings.Repeat("1", 50): "invalid multibulk length",
	} {
		p := newPeer(t, dial())
		if _, err := io.WriteString(p, text); err != nil {
			t.Fatal(err)
		}
		if got := p.answer(); !strings.HasPrefix(got, "-ERR Protocol error: ") || !strings.Contains(got, want) {
			t.Errorf("%.30q: %s, want %s", text, got, want)
		}
		if _, err := p.r.ReadByte(); err == nil {
			t.Errorf("%.30q: the connection goes on", text)
		}
	}
	p := newPeer(t, dial())
	if _, err := io.WriteString(p, "*0\r\n*-1\r\n"); err != nil {
		t.Fatal(err)
	}
	p.wants("PONG", "PING")
}

func TestWaitIndex(t *testing.T) {
	store, src := newStore(t)
	dial, _ := start(t, Config{Streams: bank(store), MaxWait: 30 * time.Second})
	p := newPeer(t, dial())
	now := strconv.Itoa(int(src.index))
	p.wants(now, "WAITINDEX", now, "0")
	p.wants(now, "WAITINDEX", "1", "10000")
	p.wants("-TIMEOUT stream bank is at index "+now, "WAITINDEX", "1000", "0")
	p.wants("-TIMEOUT", "WAITINDEX", "1000", "20")
	p.wants("-ERR 'x' is not an index", "WAITINDEX", "x", "20")
	p.wants("-ERR '0-1' is not an index", "WAITINDEX", "0-1", "20")
	p.wants(now, "WAITINDEX", "1-"+now, "0")
	p.wants("-TIMEOUT stream bank is at index "+now+" of epoch 1, not at 1-1000 yet", "WAITINDEX", "1-1000", "1")
	p.wants("-TIMEOUT stream bank is at index "+now+" of epoch 1, not at 2-0 yet", "WAITINDEX", "2-0", "1")
	p.wants("-ERR '30001' is not a number of milliseconds", "WAITINDEX", "1", "30001")
	// What comes before and behind a wait is answered in order.
	next := strconv.Itoa(int(src.index) + 1)
	p.send("PING", "before")
	p.send("WAITINDEX", "1-"+next, "30000")
	p.send("EXISTS", "public.accounts:26")
	if got := p.answer(); got != "before" {
		t.Errorf("before the wait: %s", got)
	}
	src.unit(put(t, accountsSchema(), "26", "new", "NULL", "t"))
	if got := p.answer(); got != next {
		t.Errorf("the wait gave %s, want %s", got, next)
	}
	if got := p.answer(); got != "1" {
		t.Errorf("what was waited for is not there: %s", got)
	}
}
