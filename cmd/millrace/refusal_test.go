package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace-db/millrace/internal/loopback"
	"github.com/millrace-db/millrace/internal/pgtest"
	"github.com/millrace-db/millrace/internal/testdir"
)

// TestCommandLine: what is wrong before anything is reached.
func TestCommandLine(t *testing.T) {
	dir := testdir.For(t)
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	plain := file("plain.yaml", "streams:\n- name: a\n  kafka: {brokers: ['127.0.0.1:1']}\n- name: b\n  kafka: {brokers: ['127.0.0.1:1']}\n")
	unknown := file("unknown.yaml", "streams:\n- name: a\n  kafka: {brokres: ['127.0.0.1:1']}\n")
	nokafka := file("nokafka.yaml", "streams:\n- name: a\n")
	open := file("open.yaml", "streams:\n- name: a\n  kafka: {brokers: ['127.0.0.1:1']}\nedge: {http: {listen: '0.0.0.0:7480'}}\n")
	for _, c := range []struct {
		name  string
		args  []string
		env   []string
		code  int
		words []string
	}{
		{"unknown command", []string{"statsu"}, nil, exitUsage, []string{`"statsu"`, `"status"`}},
		{"unknown flag", []string{"status", "--jsno"}, nil, exitUsage, []string{"--jsno", "--help"}},
		{"too many arguments", []string{"status", "shop"}, nil, exitUsage, []string{`"shop"`}},
		{"too few arguments", []string{"get", "public.items"}, nil, exitUsage, []string{"key"}},
		{"no file", []string{"status", "-c", "nothere.yaml"}, nil, exitUsage, []string{"nothere.yaml", "-c FILE"}},
		{"file by environment", []string{"status"}, []string{"MILLRACE_CONFIG=nothere2.yaml"}, exitUsage, []string{"nothere2.yaml"}},
		{"unknown key", []string{"edge", "-c", unknown}, nil, exitUsage, []string{unknown + ":3", "brokres", `"brokers"`}},
		{"unknown variable", []string{"edge", "-c", plain}, []string{"MILLRACE_EDGE_DATADIR=x"}, exitUsage, []string{"MILLRACE_EDGE_DATADIR", "MILLRACE_EDGE_DATA_DIR"}},
		{"no source", []string{"transfer", "-c", plain}, nil, exitUsage, []string{"source.url", "MILLRACE_STREAMS_<NAME>_SOURCE_URL"}},
		{"no brokers", []string{"edge", "-c", nokafka}, nil, exitUsage, []string{"streams.a.kafka.brokers"}},
		{"address of other hosts", []string{"edge", "-c", open}, nil, exitUsage, []string{"0.0.0.0:7480", "loopback"}},
		{"unknown stream", []string{"status", "-c", plain, "--stream", "c"}, nil, exitUsage, []string{"c", "a, b"}},
		{"one of several streams", []string{"tail", "-c", plain}, nil, exitUsage, []string{"--stream"}},
		{"bad key", []string{"get", "-c", plain, "--stream", "a", "public.items", "100%"}, nil, exitUsage, []string{"%25"}},
		{"dev's flags", []string{"dev", "--workload", "wrk"}, nil, exitUsage, []string{"wrk", "pgbench"}},
		{"dev's data directory", []string{"dev", "--data-dir", filepath.Join(plain, "x")}, nil, exitOperator, []string{plain, "--data-dir"}},
	} {
		t.Run(c.name, func(t *testing.T) { refusal(t, dir, c.env, c.code, c.words, c.args...) })
	}
}

// TestUnreachable: each thing that has to be there and is not.
func TestUnreachable(t *testing.T) {
	w := newWorld(t)
	closed := closedPort(t)
	const password = "hushhush"
	nobody := w.write(t, "nobody.yaml", w.config("postgres://u:"+password+"@"+closed+"/db?sslmode=disable", ""))
	database := w.write(t, "database.yaml", w.config(strings.Replace(w.db.URL, w.db.Name, "nosuchdb", 1), ""))
	broker := w.write(t, "broker.yaml", strings.Replace(w.config(w.db.URL, ""), w.broker, closed, 1))
	for _, c := range []struct {
		name  string
		args  []string
		code  int
		words []string
	}{
		{"source", []string{"init", "-c", nobody}, exitFailure, []string{closed, "streams.shop.source.url"}},
		{"source of transfer", []string{"transfer", "-c", nobody}, exitFailure, []string{closed, "streams.shop.source.url"}},
		{"database", []string{"init", "-c", database}, exitOperator, []string{"nosuchdb", "streams.shop.source.url"}},
		{"broker", []string{"init", "-c", broker}, exitFailure, []string{closed, "streams.shop.kafka.brokers"}},
		{"registry", []string{"transfer", "-c", w.file}, exitOperator, []string{"shop", "millrace init"}},
		{"topic", []string{"tail", "-c", w.file}, exitFailure, []string{"millrace.shop", "millrace init"}},
		{"edge", []string{"get", "-c", w.file, "public.items", "a,1"}, exitFailure, []string{w.edge, "running"}},
		{"anybody", []string{"status", "-c", w.file}, exitOperator, []string{"shop", "millrace init"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			refusal(t, w.dir, nil, c.code, c.words, c.args...)
			out, err := filepath.Glob(filepath.Join(w.dir, "run-*"))
			if err != nil {
				t.Fatal(err)
			}
			for _, path := range out {
				if text, err := os.ReadFile(path); err != nil || strings.Contains(string(text), password) {
					t.Errorf("%s: %v, or a password is printed", path, err)
				}
			}
		})
	}
}

// closedPort returns a loopback address where nobody listens.
func closedPort(t *testing.T) string {
	t.Helper()
	port, err := loopback.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", port)
}

// TestPoolerInTheWay: a source URL that leads to a PgBouncer, as it is installed
// and as one is set up that swallows what it does not know.
func TestPoolerInTheWay(t *testing.T) {
	w := newWorld(t)
	swallowed := "application_name,statement_timeout,lock_timeout,idle_in_transaction_session_timeout,idle_session_timeout,search_path,extra_float_digits,bytea_output,IntervalStyle,lc_monetary,xmloption,row_security,jit,client_min_messages,synchronous_commit,tcp_keepalives_idle,tcp_keepalives_interval,tcp_keepalives_count"
	for name, ignored := range map[string]string{"plain": "", "swallows": swallowed} {
		file := w.write(t, name+".yaml", w.config(pgtest.Bouncer(t, w.db.Server, w.db.Name, ignored), ""))
		for _, command := range []string{"init", "check"} {
			t.Run(name+" "+command, func(t *testing.T) {
				refusal(t, w.dir, nil, exitOperator, []string{"pooler", "mend: ", "the server's own address in the source URL"}, command, "-c", file)
			})
		}
	}
	if got := w.db.String(`SELECT (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_namespace WHERE nspname = 'millrace')`); got != "0" {
		t.Error("init has made something through a pooler")
	}
	program(t, w.dir, "init", "-c", w.file)
	for _, name := range []string{"plain", "swallows"} {
		t.Run(name+" transfer", func(t *testing.T) {
			refusal(t, w.dir, nil, exitOperator, []string{"pooler", "address"}, "transfer", "-c", filepath.Join(w.dir, name+".yaml"))
		})
	}
	if got := w.db.String(`SELECT count(*) FROM pg_replication_slots WHERE database = current_database()`); got != "0" {
		t.Error("transfer has made a slot through a pooler")
	}
}
