package trigger

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/pgtest"
	"github.com/millrace-db/millrace/internal/wait"
)

var (
	stressFor  = flag.Duration("stress", 10*time.Second, "how long TestStress goes on")
	stressSeed = flag.Uint64("seed", 0, "seed of TestStress; 0 for a new one")
)

// stressTables have a trigger that writes a sibling row and one of another table, a
// deferrable key, and partitions.
const stressTables = `
create table a (id int primary key, v text, n int);
create table b (id int primary key, v text, n int);
create table c (id int primary key deferrable initially deferred, v text);
create table p (id int primary key, v text) partition by range (id);
create table p1 partition of p for values from (minvalue) to (20);
create table p2 partition of p for values from (20) to (maxvalue);
create function nested() returns trigger language plpgsql as $$ begin
	if new.n % 3 = 0 and new.n > 0 then
		update a set v = v || '+', n = -1 where id = (new.id + 1) % 40;
		insert into b values (new.id, 'nested', new.n) on conflict (id) do update set v = b.v || '.', n = 0;
	end if;
	if new.n % 7 = 0 and new.n > 0 then delete from a where id = new.id; insert into a values (new.id, 'again', -2); end if;
	return null; end $$;
create trigger aa_nested after insert or update on a for each row execute function nested();`

// leastWindows is how many windows say something.
const leastWindows = 20

// TestStress has writers do all they can, over a server that is killed now and then,
// and wants each window to make the edge what the tables are in the window's own
// snapshot.
func TestStress(t *testing.T) {
	t.Parallel()
	seed := *stressSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	windows, kills := stress(t, seed, *stressFor)
	t.Logf("%d windows were compared, over %d kills of the server", windows, kills)
	if windows < leastWindows || kills == 0 {
		t.Error("that is too few to mean anything")
	}
}

// stressed is what a stress shares.
type stressed struct {
	*rig
	seed    uint64
	ended   atomic.Bool
	windows int
	want    map[millrace.TableID]map[string]string // as the newest window saw it
}

func stress(t testing.TB, seed uint64, d time.Duration) (windows, kills int) {
	server := pgtest.Cluster(t, pgtest.Options{Settings: map[string]string{
		"max_prepared_transactions": "20", "wal_writer_delay": "5s", "deadlock_timeout": "50ms", "autovacuum_naptime": "1s",
	}})
	db := pgtest.On(t, server)
	db.Exec(stressTables)
	s := &stressed{rig: newRig(t, db, func(c *Config) { c.Heartbeat = 300 * time.Millisecond }, "a", "b", "c", "p"), seed: seed}
	s.c.heldBody = 2 << 10 // most windows stream
	s.c.tendInterval, s.c.tickKeep = time.Second, time.Second
	s.c.inspect = s.inspect
	s.begin() // before the writers: this edge loads nothing
	var writers sync.WaitGroup
	for i := range uint64(4) {
		writers.Go(func() { s.write(rand.New(rand.NewPCG(seed, i))) })
	}
	rng := rand.New(rand.NewPCG(seed, 1000))
	end := time.Now().Add(d)
	nextKill := time.Now().Add(d / 4)
	// On a machine that is busy with other things it takes longer to see enough.
	few := func() bool { return (s.windows < leastWindows || kills == 0) && time.Now().Before(end.Add(limit)) }
	for (time.Now().Before(end) || few()) && !t.Failed() {
		if time.Now().After(nextKill) && (kills == 0 || time.Now().Before(end)) {
			kills++
			nextKill = time.Now().Add(d/4 + time.Duration(rng.Int64N(int64(d/4))))
			if err := server.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := server.Restart(s.ctx()); err != nil {
				t.Fatal(err)
			}
		}
		s.step()
	}
	s.ended.Store(true)
	writers.Wait()
	if !t.Failed() {
		s.finish()
	}
	return s.windows, kills
}

// step takes a window, from another source where one has failed, and compares.
func (s *stressed) step() {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if s.src == nil {
		src, err := s.c.Open(ctx, &s.edge.at)
		if err != nil {
			s.mayFail(err)
			return
		}
		s.src = src
	}
	u, err := s.src.Next(ctx)
	if err == nil {
		_, err = s.edge.apply(u)
	}
	if err != nil {
		s.mayFail(err)
		s.close()
		return
	}
	if p := s.edge.at.Position; p.Tick%3 == 0 {
		s.src.Confirm(p)
	}
	s.windows++
	for _, schema := range s.edge.at.Catalog.Schemas {
		if err := s.edge.differs(schema, s.want[schema.Table]); err != nil {
			s.t.Errorf("seed %d, window %d at %v: %v", s.seed, s.windows, u.Position, err)
		}
	}
}

// mayFail fails the test unless an error is one that passes.
func (s *stressed) mayFail(err error) {
	if millrace.NeedsOperator(err) || errors.Is(err, ErrInexact) {
		s.t.Errorf("seed %d: %v", s.seed, err)
	}
}

// inspect reads the tables in a window's own transaction. The schemas are those that
// the stream will have.
func (s *stressed) inspect(w *window) error {
	s.want = make(map[millrace.TableID]map[string]string)
	for _, t := range w.s.tables {
		rows, err := rowsOf(w.ctx, w.conn, t.schema, "")
		if err != nil {
			return err
		}
		s.want[t.id] = rows
	}
	return nil
}

// finish ends what is prepared, and compares with the source as it is.
func (s *stressed) finish() {
	s.db.Pool.Reset()
	for gid := range strings.FieldsSeq(s.db.String("select string_agg(gid, ' ') from pg_prepared_xacts")) {
		s.db.Exec("commit prepared '" + gid + "'")
	}
	s.db.Exec("insert into b values (1000000, 'end', 0)")
	for range 100 {
		s.step()
		if s.src != nil && s.db.String("select coalesce((select pg_visible_in_snapshot(xmin::text::xid8, $1::pg_snapshot) from b where id = 1000000), false)", s.edge.at.Position.Snapshot) == "t" {
			break
		}
	}
	s.equal()
}

// write runs transactions, several at once, until the end. What they fail with is
// their own affair: deadlocks, keys that are there, a server that is gone.
func (s *stressed) write(rng *rand.Rand) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	conns := make([]*pgx.Conn, 3)
	defer func() {
		for _, conn := range conns {
			if conn != nil {
				capture.Close(conn)
			}
		}
	}()
	for n := 0; !s.ended.Load() && ctx.Err() == nil; n++ {
		i := rng.IntN(len(conns))
		if conns[i] == nil || conns[i].IsClosed() {
			conn, err := pgx.Connect(ctx, s.db.URL)
			if err != nil {
				_ = wait.For(ctx, 20*time.Millisecond)
				continue
			}
			conns[i] = conn
			if rng.IntN(2) == 0 {
				s.run(ctx, conn, "set synchronous_commit = off")
			}
			s.run(ctx, conn, "set lock_timeout = 100")
		}
		s.act(ctx, conns[i], rng, fmt.Sprintf("g%d_%d", rng.Uint32(), n))
	}
}

// act does one step of a session: it begins a transaction, goes on with it, or ends
// it, or does something that is a transaction of its own.
func (s *stressed) act(ctx context.Context, conn *pgx.Conn, rng *rand.Rand, name string) {
	switch conn.PgConn().TxStatus() {
	case 'E':
		if rng.IntN(2) == 0 && s.run(ctx, conn, "rollback to s") {
			return
		}
		s.run(ctx, conn, "rollback")
	case 'T':
		switch k := rng.IntN(20); {
		case k < 10:
			s.run(ctx, conn, change(rng))
		case k < 12:
			s.run(ctx, conn, "savepoint s")
		case k < 13:
			s.run(ctx, conn, "rollback to s")
		case k < 14:
			s.run(ctx, conn, "rollback")
		case k < 15:
			s.run(ctx, conn, "prepare transaction '"+name+"'")
		default:
			s.run(ctx, conn, "commit")
		}
	default:
		switch k := rng.IntN(40); {
		case k < 20:
			s.run(ctx, conn, "begin")
			s.run(ctx, conn, change(rng))
		case k < 33:
			s.run(ctx, conn, change(rng))
		case k < 37:
			s.endPrepared(ctx, conn, rng)
		case k < 38:
			s.run(ctx, conn, "vacuum full "+[]string{"a", "b", "c"}[rng.IntN(3)])
		case k < 39:
			s.run(ctx, conn, fmt.Sprintf("alter table b alter column n type %s", []string{"int", "bigint"}[rng.IntN(2)]))
		default:
			s.run(ctx, conn, "truncate "+[]string{"a", "b", "c", "p", "a, b"}[rng.IntN(5)])
		}
	}
}

func (s *stressed) endPrepared(ctx context.Context, conn *pgx.Conn, rng *rand.Rand) {
	var gid string
	if conn.QueryRow(ctx, "select gid from pg_prepared_xacts order by random() limit 1", pgx.QueryExecModeSimpleProtocol).Scan(&gid) != nil {
		return // there is none
	}
	s.run(ctx, conn, []string{"commit", "rollback"}[rng.IntN(2)]+" prepared '"+gid+"'")
}

// change is a statement that changes rows.
func change(rng *rand.Rand) string {
	id := func() int { return rng.IntN(40) }
	table := []string{"a", "b"}[rng.IntN(2)]
	switch rng.IntN(12) {
	case 0:
		return fmt.Sprintf("insert into %s select i, 'i', %d from generate_series(%d, %d) i on conflict (id) do update set v = excluded.v || '^', n = excluded.n", table, rng.IntN(20), id(), id())
	case 1:
		return fmt.Sprintf("update %s set v = 'u%d', n = %d where id between %d and %d", table, rng.IntN(100), rng.IntN(20), id(), id())
	case 2:
		return fmt.Sprintf("delete from %s where id = %d", table, id())
	case 3:
		return fmt.Sprintf("with d as (delete from %s where id in (%d, %d) returning id) insert into %[1]s select id, 'with', %d from d", table, id(), id(), rng.IntN(20))
	case 4:
		return fmt.Sprintf("update %s set id = id + 1000 where id = %d", table, id())
	case 5:
		return fmt.Sprintf("delete from %s where id > 999", table)
	case 6:
		return fmt.Sprintf("insert into c select i, 'c' || %d from generate_series(%d, %d) i", rng.IntN(100), id(), id())
	case 7:
		return fmt.Sprintf("update c set id = 39 - id where id between %d and %d", id(), id())
	case 8:
		return fmt.Sprintf("with d as (delete from c where id < %d returning id, v) insert into c select id, v || '!' from d where id %% 3 > 0", id())
	case 9:
		return fmt.Sprintf("insert into p values (%d, 'p'), (%d, 'q') on conflict (id) do update set v = excluded.v || 'r'", id(), 40+id())
	case 10:
		return fmt.Sprintf("update p set id = id + %d where id = %d", 1+id(), id())
	}
	return fmt.Sprintf("delete from p where id %% 7 = %d", rng.IntN(7))
}

// run runs a statement and reports whether it went well; its errors are its own affair.
func (s *stressed) run(ctx context.Context, conn *pgx.Conn, sql string) bool {
	_, err := conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol)
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42601" { // syntax_error
		s.t.Errorf("%s: %v", sql, err)
	}
	return err == nil
}
