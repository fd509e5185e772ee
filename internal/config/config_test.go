package config

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write docs/CONFIGURATION.md")

const example = `
streams:
  - name: bank
    source: {url: "postgres://u:hushhush@db.internal:5433/bank", capture: wal, tables: [public.pgbench_accounts, public.pgbench_tellers]}
    kafka:  {brokers: ["127.0.0.1:9092"], topic: millrace.bank}
transfer: {admin: "127.0.0.1:7470"}
edge:
  id: edge-1
  streams: [bank]
  data_dir: ./data/edge
  http: {listen: "127.0.0.1:7480", unix: ./data/edge.sock}
`

func TestExample(t *testing.T) {
	c, err := Parse("m.yaml", []byte(example), []string{"PATH=/bin", "MILLRACE_TEST_PG_VERSION=17", "MILLRACE_PLANT=x"})
	if err != nil {
		t.Fatal(err)
	}
	s := c.Stream("bank")
	want := Stream{
		Name: "bank",
		Source: Source{
			URL: "postgres://u:hushhush@db.internal:5433/bank", Capture: "wal",
			Tables:    []string{"public.pgbench_accounts", "public.pgbench_tellers"},
			Heartbeat: Duration(time.Second), Memory: 64 << 20, SpoolDir: "./data/spool",
			Load: Loading{Workers: 2}, Verify: Verifying{Every: Duration(24 * time.Hour), RowsPerSecond: 20000},
			WAL:  WAL{Warn: 25, OnLimit: OnLimitAlarm},
			Poll: Poll{Min: Duration(2 * time.Millisecond), Max: Duration(100 * time.Millisecond)}, Audit: Audit{Retain: Duration(24 * time.Hour)},
			Roles: Roles{Owner: "millrace_owner", Capture: "millrace_capture", Verifier: "millrace_verifier"},
		},
		Kafka: Kafka{Brokers: []string{"127.0.0.1:9092"}, Topic: "millrace.bank", Replicas: 3},
	}
	if !reflect.DeepEqual(*s, want) {
		t.Errorf("stream: got %+v, want %+v", *s, want)
	}
	if c.Edge.ID != "edge-1" || c.Edge.HTTP.Unix != "./data/edge.sock" || c.Edge.MapSize != 64<<30 || c.Transfer.Lease != Duration(10*time.Second) {
		t.Errorf("got %+v, %+v", c.Edge, c.Transfer)
	}
	if got := c.Transfer.Streams; len(got) != 1 || got[0] != "bank" {
		t.Errorf("transfer.streams: got %v", got)
	}
	if err := errors.Join(c.NeedSource(c.Transfer.Streams), c.NeedKafka(c.Edge.Streams)); err != nil {
		t.Error(err)
	}
	// What it writes, it reads.
	text, err := c.YAML()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse("again.yaml", text, nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	again.File, again.lines, again.set = c.File, c.lines, c.set
	if !reflect.DeepEqual(again, c) {
		t.Errorf("written and read again: got %+v, want %+v", again, c)
	}
	printed, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	all := fmt.Sprintf("%s %v %+v %#v", printed, *c, *c, *c)
	if strings.Contains(all, "hushhush") {
		t.Error("a password is printed")
	}
	if !strings.Contains(all, "postgres://u@db.internal:5433/bank") {
		t.Error("the source is not printed")
	}
}

// A stream captured by triggers sets what belongs to it, and is written without
// the keys of the other capture.
func TestTriggerExample(t *testing.T) {
	text := "streams:\n- name: bank\n  kafka: {brokers: [k:1]}\n  source: {url: 'postgres://u@p:6432/bank', setup_url: 'postgres://o:hushhush@h/bank', capture: trigger, " +
		"tables: [public.a], poll: {max: 100ms}, audit: {retain: 2h}, roles: {owner: o, capture: u, verifier: v}}\n"
	for range 2 {
		c, err := Parse("m.yaml", []byte(text), nil)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		s := c.Streams[0].Source
		if s.Capture != CaptureTrigger || s.SetupURL.Reveal() != "postgres://o:hushhush@h/bank" || s.Poll != (Poll{Min: Duration(2 * time.Millisecond), Max: Duration(100 * time.Millisecond)}) ||
			s.Audit.Retain != Duration(2*time.Hour) || s.Roles != (Roles{Owner: "o", Capture: "u", Verifier: "v"}) {
			t.Errorf("got %+v", s)
		}
		if printed := fmt.Sprintf("%v %+v", *c, *c); strings.Contains(printed, "hushhush") {
			t.Error("a password is printed")
		}
		written, err := c.YAML()
		if err != nil {
			t.Fatal(err)
		}
		text = string(written)
	}
}

// Columns and rows are chosen by names of tables, which are no keys of ours.
func TestChoices(t *testing.T) {
	source := func(text string) string {
		return "streams:\n  - name: bank\n    kafka: {brokers: [\"127.0.0.1:9092\"]}\n    source:\n      tables: [public.a, public.b]\n" + text
	}
	c, err := Parse("m.yaml", []byte(source("      columns: {public.a: [id, v], public.b: [id]}\n      where:\n        public.a: \"region = 'eu'\"\n")), nil)
	if err != nil {
		t.Fatal(err)
	}
	check := func(c *Config) {
		t.Helper()
		s := c.Streams[0].Source
		if !reflect.DeepEqual(s.Columns, map[string][]string{"public.a": {"id", "v"}, "public.b": {"id"}}) || !reflect.DeepEqual(s.Where, map[string]string{"public.a": "region = 'eu'"}) {
			t.Errorf("got %v, %v", s.Columns, s.Where)
		}
	}
	check(c)
	text, err := c.YAML()
	if err != nil {
		t.Fatal(err)
	}
	if c, err = Parse("m.yaml", text, nil); err != nil {
		t.Fatal(err)
	}
	check(c)
	for text, want := range map[string]string{
		"      columns: {public.c: [id]}\n":           `m.yaml:6: streams.bank.source.columns.public.c: did you mean "public.`,
		"      columns: {public.a: []}\n":             "m.yaml:6: streams.bank.source.columns.public.a: names no column",
		"      columns: {public.a: [id, id]}\n":       `"id" stands there twice`,
		"      columns: {public.a: id}\n":             "want a list",
		"      columns: [a]\n":                        "want names and values",
		"      where: {public.a: \"\"}\n":             "is empty",
		"      where: {public.a: [x]}\n":              "want a single value",
		"      where: {elsewhere.at_all: \"true\"}\n": "no table of this name",
	} {
		if _, err := Parse("m.yaml", []byte(source(text)), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
	if _, err := Parse("m.yaml", []byte(source("")), []string{"MILLRACE_STREAMS_BANK_SOURCE_WHERE=x"}); err == nil || !strings.Contains(err.Error(), "unknown environment variable") {
		t.Errorf("variable: %v", err)
	}
}

// Indexes are declared by stream and table.
func TestIndexes(t *testing.T) {
	edge := func(text string) string {
		return "streams:\n  - name: dns\n    kafka: {brokers: [\"127.0.0.1:9092\"]}\nedge:\n" + text
	}
	c, err := Parse("m.yaml", []byte(edge("  indexes: {dns: {public.dns_records: [[zone_id, name], [name]]}}\n")), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := Indexes{"dns": {"public.dns_records": {{"zone_id", "name"}, {"name"}}}}
	if !reflect.DeepEqual(c.Edge.Indexes, want) {
		t.Errorf("got %v", c.Edge.Indexes)
	}
	text, err := c.YAML()
	if err != nil {
		t.Fatal(err)
	}
	if c, err = Parse("m.yaml", text, nil); err != nil || !reflect.DeepEqual(c.Edge.Indexes, want) {
		t.Errorf("written and read again: %v, %v", c.Edge.Indexes, err)
	}
	for text, want := range map[string]string{
		"  indexes: {dnss: {public.a: [[id]]}}\n":        `m.yaml:5: edge.indexes.dnss: there is no stream "dnss"; did you mean "dns"?`,
		"  indexes: {dns: {a: [[id]]}}\n":                "edge.indexes.dns.a: want schema.table",
		"  indexes: {dns: {public.a: [id]}}\n":           "want a list",
		"  indexes: {dns: {public.a: [[]]}}\n":           "names no column",
		"  indexes: {dns: {public.a: [[id, id]]}}\n":     "stands twice in one index",
		"  indexes: {dns: {public.a: [[id], [id]]}}\n":   "the index over id stands there twice",
		"  indexes: {dns: [public.a]}\n":                 "want names and values",
		"  indexes: {dns: {public.a: [[{id: name}]]}}\n": "want a list of single values",
	} {
		if _, err := Parse("m.yaml", []byte(edge(text)), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}

func TestDefaultsOfAnEdge(t *testing.T) {
	c, err := Parse("m.yaml", []byte("streams:\n- name: a\n  kafka:\n    brokers:\n    - k:9092\n"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Stream("a").Kafka.Topic; got != "millrace.a" {
		t.Errorf("topic: got %q", got)
	}
	if c.Has("edge") || !c.Has("streams") {
		t.Error("edge is set, or streams is not")
	}
	if c.Edge.ID == "" || len(c.Edge.Streams) != 1 || len(c.Transfer.Streams) != 0 {
		t.Errorf("edge %+v, transfer %+v", c.Edge, c.Transfer)
	}
	// Images lie on the disk of the stores, wherever these are.
	away, err := Parse("m.yaml", []byte("streams:\n- name: a\n  kafka: {brokers: [k:9092]}\nedge: {data_dir: /mnt/edge}\n"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := []string{c.Edge.Images.Dir, away.Edge.Images.Dir}, []string{"data/edge/_images", "/mnt/edge/_images"}; !reflect.DeepEqual(got, want) {
		t.Errorf("images are in %q, want %q", got, want)
	}
	if err := c.NeedKafka(c.Edge.Streams); err != nil {
		t.Error(err)
	}
	if err := c.NeedSource(c.Transfer.Streams); err == nil {
		t.Error("transfer without a source: want an error")
	}
	if err := c.NeedSource([]string{"a"}); err == nil || !strings.Contains(err.Error(), "m.yaml:2: streams.a.source.url") || !strings.Contains(err.Error(), "MILLRACE_STREAMS_A_SOURCE_URL") {
		t.Errorf("source of a: got %v", err)
	}
}

// The times of the choice of an upstream have bounds, and defaults.
func TestFollow(t *testing.T) {
	edge := func(text string) (*Config, error) {
		return Parse("m.yaml", []byte("streams:\n  - name: a\nedge:\n  upstream: [\"http://up:1\"]\n"+text), nil)
	}
	s := func(n int) Duration { return Duration(time.Duration(n) * time.Second) }
	for text, want := range map[string]Follow{
		"":                                   {Silence: s(5), Stale: s(10), Margin: s(5), Probe: s(10), Ban: s(600)},
		"  follow: {silence: 1m, ban: 1h}\n": {Silence: s(60), Stale: s(10), Margin: s(5), Probe: s(10), Ban: s(3600)},
	} {
		if c, err := edge(text); err != nil || c.Edge.Follow != want {
			t.Errorf("%q: got %+v, %v", text, c.Edge.Follow, err)
		}
	}
	for _, wrong := range []string{"silence: 1s", "stale: 0s", "margin: 2h", "probe: 2m", "ban: 1s"} {
		name, _, _ := strings.Cut(wrong, ":")
		if _, err := edge("  follow: {" + wrong + "}\n"); err == nil || !strings.Contains(err.Error(), "edge.follow."+name+": ") {
			t.Errorf("%s: %v", wrong, err)
		}
	}
}

func TestEnvironmentWins(t *testing.T) {
	c, err := Parse("m.yaml", []byte(example), []string{
		"MILLRACE_STREAMS_BANK_SOURCE_URL=postgres://other/db",
		"MILLRACE_STREAMS_BANK_SOURCE_HEARTBEAT=2s",
		"MILLRACE_STREAMS_BANK_KAFKA_BROKERS=a:1, b:2",
		"MILLRACE_STREAMS_BANK_KAFKA_REPLICAS=1",
		"MILLRACE_EDGE_DATA_DIR=/var/edge",
		"MILLRACE_EDGE_HTTP_LISTEN=off",
		"MILLRACE_EDGE_MAP_SIZE=1GiB",
	})
	if err != nil {
		t.Fatal(err)
	}
	if !c.Has("edge.map_size") || !c.Has("edge") || c.Has("log") {
		t.Error("what the environment sets is not known as set, or something else is")
	}
	s := c.Stream("bank")
	if s.Source.URL.Reveal() != "postgres://other/db" || s.Source.Heartbeat != Duration(2*time.Second) || s.Kafka.Replicas != 1 ||
		!reflect.DeepEqual(s.Kafka.Brokers, []string{"a:1", "b:2"}) || c.Edge.DataDir != "/var/edge" || c.Edge.HTTP.Listen != Off || c.Edge.MapSize != 1<<30 {
		t.Errorf("got %+v %+v", s, c.Edge)
	}
}

// Each case gives exactly these lines.
func TestProblems(t *testing.T) {
	const kafka = "\n  kafka: {brokers: [k:1]}\n"
	cases := []struct {
		name, text string
		env        []string
		want       []string
	}{
		{"empty", "", nil, []string{`m.yaml: streams: no stream is configured; add one with name, source and kafka`}},
		{
			"unknown key", "streams:\n- name: a\n  source:\n    tabels: [a.b]" + kafka, nil,
			[]string{`m.yaml:4: unknown key "streams.a.source.tabels"; did you mean "tables"?`},
		},
		{
			"unknown key, elsewhere known", "data_dir: x\nstreams:\n- name: a" + kafka, nil,
			[]string{`m.yaml:1: unknown key "data_dir"; there is a key "edge.data_dir"`},
		},
		{
			"unknown key, nothing near", "streams:\n- name: a" + kafka + "log: {colour: red}\n", nil,
			[]string{`m.yaml:4: unknown key "log.colour"; known here: level, format`},
		},
		{
			"several", "streams:\n- name: a" + kafka + "edge:\n  map_size: huge\n  data_dir: [x]\ntransfer: 7\n", nil,
			[]string{
				`m.yaml:5: edge.map_size: "huge" is not a size; write bytes, or for instance 512KiB, 64MiB or 64GiB`,
				`m.yaml:6: edge.data_dir: want a single value`,
				`m.yaml:7: transfer: want keys and values, as in {streams: …}`,
			},
		},
		{
			"values", "streams:\n- name: A" + kafka + "- name: b\n  source: {url: 'postgres://u:hushhush@h:port/d', tables: [x, s.t, s.t], capture: wall, heartbeat: 1h, memory: 1KiB}\n  kafka: {brokers: [k], topic: 'a b', replicas: 0}\n", nil,
			[]string{
				`m.yaml:2: streams.A.name: stream name "A": want a lower-case letter and then at most 39 lower-case letters, digits or underscores`,
				`m.yaml:5: streams.b.source.url: not a connection string; write postgres://user@host:5432/database`,
				`m.yaml:5: streams.b.source.capture: "wall": did you mean "wal"?`,
				`m.yaml:5: streams.b.source.tables: "x": want schema.table, as in public.accounts`,
				`m.yaml:5: streams.b.source.tables: "s.t" stands there twice`,
				`m.yaml:5: streams.b.source.heartbeat: 1h: want 10ms to 1m`,
				`m.yaml:5: streams.b.source.memory: 1KiB: want at least 1MiB`,
				`m.yaml:6: streams.b.kafka.brokers: "k": want host:port, as in 127.0.0.1:9092`,
				`m.yaml:6: streams.b.kafka.topic: "a b" is not a topic's name; use at most 240 letters, digits, dots, dashes or underscores`,
				`m.yaml:6: streams.b.kafka.replicas: 0: want 1 to 100`,
			},
		},
		{
			"limits of WAL", "streams:\n- name: a" + kafka + "  source: {wal: {warn: 100, limit: 1MiB, on_limit: dorp}}\n- name: b\n  source: {wal: {on_limit: drop}}\n  kafka: {topic: x}\n", nil,
			[]string{
				`m.yaml:4: streams.a.source.wal.warn: 100: want 0 to 99`,
				`m.yaml:4: streams.a.source.wal.limit: 1MiB: want at least 64MiB`,
				`m.yaml:4: streams.a.source.wal.on_limit: "dorp": did you mean "drop"?`,
				`m.yaml:6: streams.b.source.wal.on_limit: drop without a limit; set limit`,
			},
		},
		{
			"images", "streams:\n- name: a" + kafka + "edge: {images: {every: 1s, from: [edge-7, 'ftp://h/x', 'http:///x', 'https://u:hushhush@h', 'file://far/x', 'file:///mnt/x']}}\n", nil,
			[]string{
				`m.yaml:4: edge.images.every: 1s: want 1m to 8760h`,
				`m.yaml:4: edge.images.from: edge-7: want http://, https:// or file://`,
				`m.yaml:4: edge.images.from: ftp://h/x: want http://, https:// or file://`,
				`m.yaml:4: edge.images.from: http:///x names no host; write http://host:port`,
				`m.yaml:4: edge.images.from: file://far/x: want the path of a directory, as in file:///mnt/images`,
			},
		},
		{
			"retention", "streams:\n- name: a\n  kafka: {brokers: ['k:1'], retain: {time: 1m, bytes: 1MiB, absent: 1s}}\n- name: b\n  kafka: {topic: x, retain: {absent: 24h}}\n", nil,
			[]string{
				`m.yaml:3: streams.a.kafka.retain.time: 1m: want 10m to 876000h`,
				`m.yaml:3: streams.a.kafka.retain.bytes: 1MiB: want at least 64MiB`,
				`m.yaml:3: streams.a.kafka.retain.absent: 1s: want 10m to 876000h`,
				`m.yaml:5: streams.b.kafka.retain.absent: means nothing while all records are kept; set time or bytes too`,
			},
		},
		{
			"keys of the other capture", "streams:\n- name: a" + kafka + "  source:\n    capture: trigger\n    memory: 64MiB\n    wal: {warn: 10}\n- name: b\n  source: {poll: {max: 1s}, roles: {owner: x}}\n  kafka: {topic: x}\n",
			[]string{"MILLRACE_STREAMS_B_SOURCE_AUDIT_RETAIN=1h"},
			[]string{
				`m.yaml:6: streams.a.source.memory: means nothing with capture trigger, it belongs to capture wal; remove it, or set source.capture to wal`,
				`m.yaml:7: streams.a.source.wal: means nothing with capture trigger, it belongs to capture wal; remove it, or set source.capture to wal`,
				`m.yaml:9: streams.b.source.poll: means nothing with capture wal, it belongs to capture trigger; remove it, or set source.capture to trigger`,
				`m.yaml:9: streams.b.source.audit: means nothing with capture wal, it belongs to capture trigger; remove it, or set source.capture to trigger`,
				`m.yaml:9: streams.b.source.roles: means nothing with capture wal, it belongs to capture trigger; remove it, or set source.capture to trigger`,
			},
		},
		{
			"capture trigger", "streams:\n- name: a" + kafka + "  source: {capture: trigger, setup_url: 'postgres://u:hushhush@h:port/d', poll: {min: 0s, max: 1m}, audit: {retain: 1s}, roles: {owner: pg_x, capture: c, verifier: c}}\n", nil,
			[]string{
				`m.yaml:4: streams.a.source.setup_url: not a connection string; write postgres://owner@host:5432/database`,
				`m.yaml:4: streams.a.source.poll.min: 0s: want 1ms to 10s`,
				`m.yaml:4: streams.a.source.poll.max: 1m: want 1ms to 10s`,
				`m.yaml:4: streams.a.source.audit.retain: 1s: want 1m to 720h`,
				`m.yaml:4: streams.a.source.roles.owner: "pg_x" is not the name of a role that can be made; want at most 63 bytes, not pg_…, public or none`,
				`m.yaml:4: streams.a.source.roles: owner pg_x, capture c, verifier c: two of them are the same role, which would have the rights of both; give each its own`,
			},
		},
		{
			"names", "streams:\n- name: bank" + kafka + "- name: bank\n  kafka: {topic: x}\n- kafka: {topic: y}\nedge: {streams: [bnak]}\n", nil,
			[]string{
				`m.yaml:4: streams.bank: a second stream of this name; give each its own`,
				`m.yaml:6: streams.3: a stream without a name; add name`,
				`m.yaml:7: edge.streams: there is no stream "bnak"; did you mean "bank"?`,
			},
		},
		{
			"same topic", "streams:\n- name: a\n  kafka: {topic: x}\n- name: b\n  kafka: {topic: x}\n", nil,
			[]string{`m.yaml:5: streams.b.kafka.topic: x is the topic of stream a too; give each stream its own`},
		},
		{
			"topic of reports", "streams:\n- name: a\n  kafka: {topic: x}\n- name: b\n  kafka: {topic: x.status}\nedge: {report: 100ms}\n", nil,
			[]string{
				`m.yaml:5: streams.b.kafka.topic: x.status is the topic that edges of stream a report to; name another`,
				`m.yaml:6: edge.report: 100ms: want 1s to 1h`,
			},
		},
		{
			"bounds of reads", "streams:\n- name: a" + kafka + "edge: {serve: {max_scan: 0, max_waiters: 2000000}}\n", nil,
			[]string{
				`m.yaml:4: edge.serve.max_scan: 0: want 1 to 10000000`,
				`m.yaml:4: edge.serve.max_waiters: 2000000: want 1 to 1000000`,
			},
		},
		{
			"addresses", "streams:\n- name: a" + kafka + "edge: {http: {listen: '0.0.0.0:7480'}}\ntransfer: {admin: 'here'}\n", nil,
			[]string{
				`m.yaml:5: transfer.admin: "here": want host:port, as in 127.0.0.1:9092`,
				`m.yaml:4: edge.http.listen: 0.0.0.0:7480 is not a loopback address; without encryption millrace serves on loopback only, so use 127.0.0.1, [::1] or localhost, or edge.tls.http for other hosts`,
			},
		},
		{
			"same port", "streams:\n- name: a" + kafka + "edge: {http: {listen: '127.0.0.1:7470'}}\n", nil,
			[]string{`m.yaml:4: edge.http.listen: 127.0.0.1:7470 is the address of transfer.admin too; give each its own port`},
		},
		{
			"variables", "streams:\n- name: a" + kafka,
			[]string{"MILLRACE_EDGE_DATADIR=x", "MILLRACE_NOTHING_LIKE_IT=x", "MILLRACE_EDGE_MAP_SIZE=x"},
			[]string{
				`environment variable MILLRACE_EDGE_MAP_SIZE: "x" is not a size; write bytes, or for instance 512KiB, 64MiB or 64GiB`,
				`unknown environment variable MILLRACE_EDGE_DATADIR; did you mean MILLRACE_EDGE_DATA_DIR?`,
				`unknown environment variable MILLRACE_NOTHING_LIKE_IT: no key of the configuration has this name; unset it`,
			},
		},
		{"not YAML", "streams: [\n  url: 'hushhush", nil, nil},
		{"twice", "edge: {id: a}\nedge: {id: b}\n", nil, []string{`m.yaml:2: not valid YAML: mapping key "edge" already defined at [1:1]`}},
		{"two documents", "streams:\n- name: a" + kafka + "---\nedge: {}\n", nil, []string{`m.yaml:5: a second YAML document: put everything into one`}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse("m.yaml", []byte(c.text), c.env)
			if err == nil {
				t.Fatal("want an error")
			}
			if strings.Contains(err.Error(), "hushhush") {
				t.Errorf("a password is printed: %v", err)
			}
			if got := strings.Split(err.Error(), "\n"); c.want != nil && !reflect.DeepEqual(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", err, strings.Join(c.want, "\n"))
			}
			var e *Error
			if !errors.As(err, &e) {
				t.Errorf("got a %T, want an *Error", err)
			}
		})
	}
}

func TestLoadWithoutAFile(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "none.yaml"), nil)
	if err == nil || !strings.Contains(err.Error(), "no such configuration file; name one with -c FILE") {
		t.Errorf("got %v", err)
	}
}

// Every key has a meaning, and a unit unless it holds keys itself.
func TestReference(t *testing.T) {
	var walk func(rt reflect.Type)
	walk = func(rt reflect.Type) {
		for _, k := range keysOf(rt) {
			f := rt.Field(k.index).Type
			if k.doc == "" {
				t.Errorf("key %s has no doc", k.name)
			}
			switch {
			case isSection(f):
				walk(f)
			case isSectionList(f):
				walk(f.Elem())
			case k.unit == "":
				t.Errorf("key %s has no unit", k.name)
			}
		}
	}
	walk(reflect.TypeFor[Config]())

	file := filepath.Join("..", "..", "docs", "CONFIGURATION.md")
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(Reference()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != Reference() {
		t.Error("docs/CONFIGURATION.md is not what the keys say; run go test ./internal/config -update")
	}
}

func TestSizeAndDuration(t *testing.T) {
	for text, want := range map[string]string{"64MiB": "64MiB", "1024": "1KiB", "1 GiB": "1GiB", "3B": "3", "0": "0", "1536KiB": "1536KiB"} {
		var s Size
		if err := s.parse(text); err != nil || s.String() != want {
			t.Errorf("size %q: got %v, %v, want %s", text, s, err, want)
		}
	}
	for _, text := range []string{"", "-1", "1MB", "9999999TiB", "1.5GiB"} {
		var s Size
		if err := s.parse(text); err == nil {
			t.Errorf("size %q: got %v, want an error", text, s)
		}
	}
	for text, want := range map[string]string{"168h": "168h", "1m": "1m", "90s": "1m30s", "500ms": "500ms", "10s": "10s", "1h10m": "1h10m"} {
		var d Duration
		if err := d.parse(text); err != nil || d.String() != want {
			t.Errorf("duration %q: got %v, %v, want %s", text, d, err, want)
		}
	}
}

// What is held is declared by stream and table.
func TestTables(t *testing.T) {
	edge := func(text string) string {
		return "streams:\n  - name: dns\n    kafka: {brokers: [\"127.0.0.1:9092\"]}\nedge:\n" + text
	}
	c, err := Parse("m.yaml", []byte(edge("  tables: {dns: {public.zones: [], public.dns_records: [[7], [8, \"a b\"]]}}\n")), nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := c.YAML()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse("m.yaml", text, nil)
	if err != nil {
		t.Fatalf("written and read again: %v\n%s", err, text)
	}
	for _, c := range []*Config{c, again} {
		f, err := c.Edge.Tables.Filter("dns")
		if want := "public.dns_records (keys under 7; 8,a%20b), public.zones"; err != nil || f.String() != want {
			t.Errorf("it holds %v, %v, want %s", f, err, want)
		}
	}
	if f, err := c.Edge.Tables.Filter("other"); err != nil || !f.All() {
		t.Errorf("of a stream that is not named: %v, %v", f, err)
	}
	for text, want := range map[string]string{
		"  tables: {dnss: {public.a: []}}\n":  `edge.tables.dnss: there is no stream "dnss"; did you mean "dns"?`,
		"  tables: {dns: {}}\n":               "edge.tables.dns: names no table",
		"  tables: {dns: {a: []}}\n":          "edge.tables.dns.a: want schema.table",
		"  tables: {dns: {public.a: [7]}}\n":  "want a list",
		"  tables: {dns: {public.a: [[]]}}\n": "a prefix has no values",
		"  tables: {dns: [public.a]}\n":       "want names and values",
	} {
		if _, err := Parse("m.yaml", []byte(edge(text)), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}
