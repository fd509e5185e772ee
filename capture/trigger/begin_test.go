package trigger

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// A stream whose rows are copied by somebody else begins at a place of its own: it has
// what was changed behind that, and no load. What a session writes that is excepted is
// in none of its windows.
func TestBegin(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text); insert into a select i, 'v' from generate_series(1, 9) i")
	r := newRig(t, db, func(cfg *Config) {
		cfg.Except, cfg.Alone, cfg.Interval = []string{"current_setting('app.who', true) = 'me'", "session_user = 'postgres'"}, true, time.Hour
	}, "a")
	if got := db.String("select count(*) from pg_class where relnamespace = 'millrace'::regnamespace and relname like 'log\\_%' and relowner <> current_user::regrole"); got != "0" {
		t.Errorf("%s segments belong to another role", got)
	}
	db.Exec("update a set v = 'before' where id = 1")
	r.place()
	held, err := db.Pool.Begin(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := held.Exec(r.ctx(), "update a set v = 'open' where id = 2"); err != nil {
		t.Fatal(err)
	}
	r.place() // waits for nobody
	if err := held.Commit(r.ctx()); err != nil {
		t.Fatal(err)
	}
	db.Exec("delete from a where id = 3; insert into a values (10, 'new')")
	db.Exec("begin; set local app.who = 'me'; update a set v = 'excepted'; truncate a; insert into a values (1, 'excepted'); commit")
	db.Exec("begin; set local app.who = 'you'; insert into a values (11, 'new'); commit")
	conn, err := pgx.Connect(r.ctx(), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer capture.Close(conn)
	if n, err := r.c.Behind(r.ctx(), conn, r.edge.at.Position); err != nil || n != 4 {
		t.Errorf("behind the place: %d changes, %v; want 4", n, err)
	}
	r.open()
	if got := r.next().String(); got != "put:1 delete:3" {
		t.Errorf("the first window: %s", got)
	}
	if n, err := r.c.Behind(r.ctx(), conn, r.edge.at.Position); err != nil || n != 0 {
		t.Errorf("behind the first window: %d changes, %v", n, err)
	}
}

// place has the edge stand where changes begin.
func (r *rig) place() {
	r.t.Helper()
	from, err := r.c.Begin(r.ctx())
	if err != nil {
		r.t.Fatal(err)
	}
	from.Epoch = 1
	r.edge.at = *from
	for _, s := range from.Catalog.Schemas {
		r.edge.tables[s.Table] = make(map[string]string)
	}
}

// Whoever waits no longer leaves the source as it is, and who asks for a window gets
// one that was begun behind that, however long the interval is.
func TestSoon(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key)")
	r := newRig(t, db, func(cfg *Config) { cfg.Interval = time.Hour }, "a")
	r.place()
	r.open()
	r.due()
	r.next()
	db.Exec("insert into a values (1)")
	until, cancel := context.WithTimeout(r.ctx(), 20*time.Millisecond)
	defer cancel()
	if u, err := r.src.NextBy(r.ctx(), until); u != nil || err != nil {
		t.Fatalf("within the interval: got %v, %v", u, err)
	}
	asked := make(chan uint64, 1)
	waiting, err := r.asks(asked)
	if err != nil {
		t.Fatal(err)
	}
	if n := <-asked; waiting.String() != "put:1" || r.src.Answered() < n {
		t.Errorf("asked for soon: %v, question %d, answered %d", waiting, n, r.src.Answered())
	}
	db.Exec("insert into a values (2)")
	r.src.Hurry()
	if got := r.next().String(); got != "put:1" {
		t.Errorf("in a hurry: %s", got)
	}
	r.src.Soon()
	if got := r.next().String(); got != "heartbeat:1" {
		t.Errorf("asked for with nothing new: %s", got)
	}
}

// asks asks for a window while the source is being waited for.
func (r *rig) asks(asked chan<- uint64) (*applied, error) {
	go func() {
		for r.src.turn.TryLock() { // until Next has it
			r.src.turn.Unlock()
		}
		asked <- r.src.Soon()
	}()
	return r.tryNext()
}

// A partitioned table without a key of its own is captured by the one that its partitions
// have; two rows of it stop the stream.
func TestChosenKey(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	db.Exec(`create table p (id int not null, zone int) partition by range (zone);
		create table p1 partition of p (primary key (id)) for values from (0) to (10); create table p2 partition of p (primary key (id)) for values from (10) to (20)`)
	r := newRig(t, db, func(cfg *Config) { cfg.Key = map[string][]string{"public.p": {"id"}} }, "p")
	r.begin()
	r.edge.loads()
	r.play(
		step{"insert into p select i, i from generate_series(1, 19) i", "put:19", ""},
		step{"update p set zone = 19 - zone where id < 10", "put:9", ""}, // into the other partition
		step{"delete from p2 where id = 11", "delete:1", ""},
		step{"truncate p; insert into p values (1, 1)", "put:1 truncate:1", ""},
	)
	db.Exec("insert into p values (1, 11)")
	if err := r.fails(capture.ErrTable); !strings.Contains(err.Error(), "two partitions") {
		t.Errorf("two rows of a key: %v", err)
	}
	info := millrace.Position{Mode: millrace.ModeWAL}
	if _, err := r.c.Behind(r.ctx(), nil, info); err == nil {
		t.Error("a position of another capture is counted from")
	}
}
