package pgtest

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestMain(m *testing.M) { Main(m) }

func TestNewGivesEachTestItsOwnDatabase(t *testing.T) {
	a, b := New(t), New(t)
	if a.Server != b.Server {
		t.Error("two databases of one test binary are on two servers")
	}
	a.Exec("create table t (id int primary key); insert into t values (1), (2)")
	if got := a.String("select count(*) from t where id < $1", 2); got != "1" {
		t.Errorf("count: got %s, want 1", got)
	}
	if got := b.String("select to_regclass('t')"); got != "" {
		t.Errorf("the other database has table %s too", got)
	}
}

// A slot that a replication connection still holds goes away with the database.
func TestDropTakesHeldSlots(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var name string
	t.Run("slot", func(t *testing.T) {
		db := New(t)
		name = db.Name
		conn, err := pgconn.Connect(ctx, db.URL+"&replication=database")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(ctx) }) // ended from the other side before
		for _, sql := range []string{
			"CREATE_REPLICATION_SLOT held LOGICAL pgoutput",
			"CREATE_REPLICATION_SLOT temp TEMPORARY LOGICAL pgoutput",
		} {
			if _, err := conn.Exec(ctx, sql).ReadAll(); err != nil {
				t.Fatalf("%s: %v", sql, err)
			}
		}
	})
	db := New(t)
	if got := db.String("select count(*) from pg_replication_slots where database = $1", name); got != "0" {
		t.Errorf("slots left: %s, want 0", got)
	}
	if got := db.String("select count(*) from pg_database where datname = $1", name); got != "0" {
		t.Errorf("database %s is left", name)
	}
}

func TestClusterMayBeKilled(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	server := Cluster(t, Options{Settings: map[string]string{"wal_level": "replica"}})
	if server == Server(t) {
		t.Fatal("a private cluster is the shared one")
	}
	db := On(t, server)
	if got := db.String("show wal_level"); got != "replica" {
		t.Errorf("wal_level: got %s, want replica", got)
	}
	db.Exec("create table t (id int primary key); insert into t values (1)")
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := server.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	db.Pool.Reset()
	if got := db.String("select count(*) from t"); got != "1" {
		t.Errorf("rows after a crash: got %s, want 1", got)
	}
}
