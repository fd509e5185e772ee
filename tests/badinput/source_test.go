package badinput

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/internal/loopback"
	"github.com/millrace-db/millrace/internal/pgtest"
	"github.com/millrace-db/millrace/internal/testdir"
	"github.com/millrace-db/millrace/tests/harness"
)

func TestWrongSourceURL(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	right := s.SourceURL
	port, err := loopback.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	nobody := fmt.Sprintf("127.0.0.1:%d", port)
	for _, wrong := range []struct{ name, url, names string }{
		{"nobody listens", fmt.Sprintf("postgres://postgres@%s/%s?sslmode=disable", nobody, s.DB.Name), nobody},
		{"no such database", strings.Replace(right, s.DB.Name, "nosuchdatabase", 1), "nosuchdatabase"},
		{"no such user", strings.Replace(right, "postgres@", "nosuchuser@", 1), "nosuchuser"},
	} {
		t.Run(wrong.name, func(t *testing.T) {
			s.SourceURL = wrong.url
			config, _ := s.TransferConfig()
			for _, command := range []string{"init", "check"} {
				p := s.Run(config, command)
				if p.ExitCode() == 0 {
					t.Errorf("%s succeeds", command)
				}
				harness.WantRefusal(t, p, p.ExitCode(), wrong.names)
			}
		})
	}
	s.SourceURL = right
	r := start(t, s)
	r.judge(t)
	r.stop()
}

func TestWrongPassword(t *testing.T) {
	t.Parallel()
	server := pgtest.Cluster(t, pgtest.Options{})
	db := pgtest.On(t, server)
	db.Exec(`CREATE ROLE keeper LOGIN SUPERUSER PASSWORD 'right'`)
	hba := filepath.Join(server.Dir(), "pg_hba.conf")
	rules, err := os.ReadFile(hba)
	if err != nil {
		t.Fatal(err)
	}
	// Written in place, so that the file stays the server's own.
	if err := os.WriteFile(hba, append([]byte("host all keeper 127.0.0.1/32 scram-sha-256\n"), rules...), 0o600); err != nil {
		t.Fatal(err)
	}
	db.Exec(`SELECT pg_reload_conf(); CREATE TABLE items (id bigint PRIMARY KEY)`)
	s := &harness.System{
		T: t, DB: db, Kafka: kafkatest.Shared(t), Stream: "bank", Topic: kafkatest.Topic(t), Dir: testdir.For(t), Tables: []string{"public.items"},
	}
	url := func(password string) string { return strings.Replace(db.URL, "postgres@", "keeper:"+password+"@", 1) }
	s.SourceURL = url("0p3nsesame")
	config, _ := s.TransferConfig()
	for _, command := range []string{"init", "check"} {
		p := s.Run(config, command)
		if p.ExitCode() == 0 {
			t.Errorf("%s succeeds", command)
		}
		harness.WantRefusal(t, p, p.ExitCode(), "password", "keeper")
		if strings.Contains(p.Stderr()+p.Stdout(), "0p3nsesame") {
			t.Errorf("%s prints the password", command)
		}
	}
	s.SourceURL = url("right")
	s.Init()
}

func TestTableThatCannotBeCaptured(t *testing.T) {
	t.Parallel()
	for _, one := range []struct{ name, ddl, mend string }{
		{"no key", `CREATE TABLE public.bad (id bigint, note text)`, "PRIMARY KEY"},
		{"deferrable key", `CREATE TABLE public.bad (id bigint PRIMARY KEY DEFERRABLE, note text)`, "DEFERRABLE"},
		{"unlogged", `CREATE UNLOGGED TABLE public.bad (id bigint PRIMARY KEY, note text)`, "SET LOGGED"},
		{"not there", `SELECT`, "public.bad"},
	} {
		t.Run(one.name, func(t *testing.T) {
			t.Parallel()
			s := newSystem(t)
			s.DB.Exec(one.ddl)
			good := s.Tables
			s.Tables = append(append([]string{}, good...), "public.bad")
			config, _ := s.TransferConfig()
			harness.WantRefusal(t, s.Run(config, "init"), harness.ExitOperator, "public.bad", one.mend)
			harness.WantRefusal(t, s.Run(config, "check"), harness.ExitOperator, "public.bad")
			if got := s.DB.String(`SELECT count(*) FROM pg_publication`); got != "0" {
				t.Errorf("init left %s publications behind", got)
			}
			// A table without key that was published all the same would make the
			// client's own statement fail.
			if one.name != "not there" {
				s.DB.Exec(`INSERT INTO public.bad VALUES (1, 'a'); UPDATE public.bad SET note = 'b'; DELETE FROM public.bad`)
			}
			s.Tables = good
			r := start(t, s)
			r.judge(t)
			r.stop()
		})
	}
}

func TestWALLevelNotLogical(t *testing.T) {
	t.Parallel()
	server := pgtest.Cluster(t, pgtest.Options{Settings: map[string]string{"wal_level": "replica"}})
	db := pgtest.On(t, server)
	db.Exec(`CREATE TABLE items (id bigint PRIMARY KEY)`)
	s := &harness.System{
		T: t, DB: db, Kafka: kafkatest.Shared(t), Stream: "bank", Topic: kafkatest.Topic(t), Dir: testdir.For(t),
		Tables: []string{"public.items"}, SourceURL: db.URL,
	}
	config, _ := s.TransferConfig()
	harness.WantRefusal(t, s.Run(config, "init"), harness.ExitOperator, "wal_level", "replica", "logical")
	harness.WantRefusal(t, s.Run(config, "check"), harness.ExitOperator, "wal_level")
}

func TestTransferWithoutInit(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	harness.WantRefusal(t, s.StartTransfer().Process, harness.ExitOperator, "millrace init")
}
