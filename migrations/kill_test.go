package migrations

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
)

var (
	seedFlag = flag.Uint64("migrate.seed", 0, "seed of TestKilled; 0 for another one each time")
	runsFlag = flag.Int("migrate.runs", 1, "how many migrations TestKilled makes")
)

// childEnv makes the test binary a process that works on a migration, until it is
// killed or its step is done.
const childEnv = "MILLRACE_TEST_MIGRATE_CHILD"

type childOrder struct {
	Config Config
	Step   string
}

func child() int {
	var order childOrder
	if err := json.Unmarshal([]byte(os.Getenv(childEnv)), &order); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	order.Config.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	m, err := New(order.Config)
	if err == nil {
		step, at, _ := strings.Cut(order.Step, ":")
		m.passed = func(step string) { // cutover and rollback go on until they come to a step
			if step == at {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			}
		}
		switch step {
		case "cutover":
			_, err = m.Cutover(context.Background())
		case "rollback":
			_, err = m.Rollback(context.Background())
		case "finish":
			err = m.Finish(context.Background())
		case "back": // until the source has what the target has now
			err = m.Follow(context.Background(), upTo(context.Background()))
		case "client":
			err = client(&order.Config, at)
		case "copy":
			err = m.Copy(context.Background())
		case "converge":
			err = m.Follow(context.Background(), Converged)
		default:
			err = m.Follow(context.Background(), Forever)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// start starts a process that takes a step.
func (r *rig) start(step string) (*exec.Cmd, *bytes.Buffer) {
	r.t.Helper()
	cfg := r.cfg
	cfg.Logger = nil
	text, err := json.Marshal(childOrder{Config: cfg, Step: step})
	if err != nil {
		r.t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0]) //nolint:noctx // the test kills it
	cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out := new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	return cmd, out
}

// maxKills is how often a step is killed at most.
const maxKills = 6

// killed runs a step in processes that are killed at random instants, the first of
// which are the soonest, until one ends by itself; it returns how many were killed.
func (r *rig) killed(random *rand.Rand, step string, first time.Duration) (kills int) {
	r.t.Helper()
	deadline := time.Now().Add(limit)
	for {
		cmd, out := r.start(step)
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		life := first + time.Duration(random.Int64N(int64(first)*int64(kills+1)))
		if kills == maxKills {
			life = limit
		}
		timer := time.NewTimer(life)
		select {
		case err := <-ended:
			timer.Stop()
			if err == nil {
				return kills
			}
			// The server frees the migration a moment after its holder was killed.
			if !strings.Contains(out.String(), ErrRunning.Error()) || time.Now().After(deadline) {
				r.t.Fatalf("%s failed: %v\n%s", step, err, out)
			}
			waitFor(r.t, "the migration to be free", func() bool { return r.dst.String("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == "0" })
		case <-timer.C:
			_ = cmd.Process.Kill() // it may have ended
			err := <-ended
			if err == nil {
				return kills
			}
			kills++
		}
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", limit, what)
		}
		<-tick.C
	}
}

// workload writes at the source in every way that has lost rows somewhere.
const workload = `
CREATE TABLE rows (id bigint PRIMARY KEY, name text, big text, n numeric NOT NULL DEFAULT 0);
ALTER TABLE rows ALTER COLUMN big SET STORAGE EXTERNAL;
CREATE TABLE taken (id int PRIMARY KEY, slot int NOT NULL UNIQUE DEFERRABLE INITIALLY IMMEDIATE, big text);
ALTER TABLE taken ALTER COLUMN big SET STORAGE EXTERNAL;
CREATE TABLE purse (id int PRIMARY KEY, amount int NOT NULL);
CREATE TABLE emptied (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz DEFAULT clock_timestamp());
INSERT INTO rows SELECT n, 'row ' || n, repeat('b' || n, 600), n FROM generate_series(1, 3000) n;
INSERT INTO taken SELECT n, n, repeat('t' || n, 600) FROM generate_series(1, 500) n;
INSERT INTO purse SELECT n, 100 FROM generate_series(1, 200) n;
INSERT INTO emptied (at) SELECT now() FROM generate_series(1, 100);
`

// write runs one random transaction.
func write(ctx context.Context, conn *pgx.Conn, random *rand.Rand) error {
	id := func(n int) int { return 1 + random.IntN(n) }
	var sql string
	switch random.IntN(14) {
	case 0, 1:
		sql = fmt.Sprintf("INSERT INTO rows VALUES (%d, 'new', repeat('n%d', 700)) ON CONFLICT (id) DO UPDATE SET name = 'again'", id(6000), id(1000))
	case 2, 3:
		sql = fmt.Sprintf("UPDATE rows SET n = n + 1 WHERE id BETWEEN %d AND %[1]d + 5", id(6000)) // leaves big alone
	case 4:
		sql = fmt.Sprintf("UPDATE rows SET big = repeat('u%d', 800) WHERE id BETWEEN %d AND %[2]d + %d", id(1000), id(6000), 60*(random.IntN(12)/11)) // now and then more than a batch
	case 5, 6: // a key moves, and its large value with it
		sql = fmt.Sprintf("UPDATE rows SET id = %d WHERE id = %d AND NOT EXISTS (SELECT FROM rows WHERE id = %[1]d)", id(6000), id(6000))
	case 7:
		sql = fmt.Sprintf("DELETE FROM rows WHERE id = %d", id(6000))
	case 8: // a key moves and another row takes it
		a, b := id(3000), 3000+id(3000)
		sql = fmt.Sprintf("DELETE FROM rows WHERE id = %d; UPDATE rows SET id = %[1]d WHERE id = %d; INSERT INTO rows VALUES (%[2]d, 'taker', repeat('k', 2500)) ON CONFLICT DO NOTHING", b, a)
	case 9, 10: // values that are unique are swapped
		a, b := id(500), id(500)
		sql = fmt.Sprintf("UPDATE taken SET slot = (SELECT t.slot FROM taken t WHERE t.id = CASE WHEN taken.id = %d THEN %d ELSE %[1]d END) WHERE id IN (%[1]d, %[2]d) AND (SELECT count(*) FROM taken WHERE id IN (%[1]d, %[2]d)) = 2", a, b)
	case 11: // a value is given up and taken by another row
		a, b := id(500), id(500)
		sql = fmt.Sprintf("DELETE FROM taken WHERE id = %d AND %[1]d <> %d; UPDATE taken SET slot = 1000 + %[2]d WHERE id = %[2]d AND NOT EXISTS (SELECT FROM taken WHERE slot = 1000 + %[2]d); "+
			"INSERT INTO taken SELECT %[1]d, %[2]d, repeat('i', 2500) WHERE NOT EXISTS (SELECT FROM taken WHERE slot = %[2]d OR id = %[1]d)", a, b)
	case 12:
		if random.IntN(10) == 0 {
			sql = "TRUNCATE emptied"
		} else {
			sql = "INSERT INTO emptied (at) VALUES (now()), (now())"
		}
	default: // what the purses hold together never changes
		amount := id(20)
		sql = fmt.Sprintf("UPDATE purse SET amount = amount - %d WHERE id = %d; SAVEPOINT s; UPDATE purse SET amount = 0; ROLLBACK TO s; UPDATE purse SET amount = amount + %[1]d WHERE id = %d", amount, id(200), id(200))
	}
	end := "COMMIT"
	if random.IntN(20) == 0 {
		end = "ROLLBACK"
	}
	_, err := conn.Exec(ctx, "BEGIN; "+sql+"; "+end, pgx.QueryExecModeSimpleProtocol)
	if err == nil {
		return nil
	}
	switch c := code(err); c {
	case "40P01", "23505", "40001": // two writers were in each other's way
		_, err = conn.Exec(ctx, "ROLLBACK")
	}
	return err
}

// writers writes until the function that it returns is called.
func (r *rig) writers(n int, seed uint64) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	var count atomic.Int64
	for i := range n {
		group.Go(func() {
			conn, err := pgx.Connect(r.t.Context(), r.src.URL)
			if err != nil {
				r.t.Error(err)
				return
			}
			defer conn.Close(context.Background()) //nolint:errcheck // nothing is lost with it
			random := rand.New(rand.NewPCG(seed, uint64(i)))
			pace := time.NewTicker(15 * time.Millisecond) // what a busy machine keeps up with
			defer pace.Stop()
			for ctx.Err() == nil {
				<-pace.C
				// A transaction is not broken off, so that what is random stays what the seed says.
				if err := write(context.Background(), conn, random); err != nil {
					r.t.Errorf("write: %v", err)
					return
				}
				count.Add(1)
			}
		})
	}
	var once sync.Once
	return func() {
		once.Do(func() {
			cancel()
			group.Wait()
			r.t.Logf("%d transactions", count.Load())
		})
	}
}

// TestKilled migrates under load in processes that are killed all the time, and wants
// both sides to be equal at the end; and once the target has converged, transactions
// to be whole there at every moment.
func TestKilled(t *testing.T) {
	for run := range *runsFlag {
		seed := *seedFlag
		if seed == 0 {
			seed = rand.Uint64()
		}
		t.Run(fmt.Sprint(run), func(t *testing.T) {
			bothModes(t, func(t *testing.T, mode millrace.Mode) { migrateKilled(t, mode, seed) })
		})
	}
}

func migrateKilled(t *testing.T, mode millrace.Mode, seed uint64) {
	t.Logf("seed %d: again with -run TestKilled -migrate.seed %[1]d", seed)
	random := rand.New(rand.NewPCG(seed, 1<<32))
	version := 15 + 2*random.IntN(2)
	r := newRigBy(t, mode, version, workload, tablesOf("rows", "taken", "purse", "emptied")...)
	r.cfg.BatchBytes = 128 << 10 // some transactions are cut into several pieces
	if random.IntN(2) == 0 {
		r.cfg.Tables[0].PartitionBy, r.cfg.Tables[0].PartitionCount = "mod(n::bigint, 4)", 4
	}
	r.renew()
	r.must("prepare", r.m.Prepare(r.ctx(), nil))
	stop := r.writers(3, seed)
	defer stop()
	copies := r.killed(random, "copy", 400*time.Millisecond)
	follows := r.killed(random, "converge", 500*time.Millisecond)
	t.Logf("target %d: killed %d times while it copied, %d while it converged", version, copies, follows)

	// From here on nobody sees a part of a transaction.
	cmd, out := r.start("follow")
	for range 3 {
		deadline := time.Now().Add(time.Duration(150+random.IntN(300)) * time.Millisecond)
		for time.Now().Before(deadline) {
			if got := r.dst.String("SELECT sum(amount) FROM purse"); got != "20000" {
				t.Fatalf("the purses hold %s together at the target, want 20000", got)
			}
		}
		_ = cmd.Process.Kill()
		if err := cmd.Wait(); err != nil && cmd.ProcessState.ExitCode() >= 0 && !strings.Contains(out.String(), ErrRunning.Error()) {
			t.Fatalf("follow failed: %v\n%s", err, out)
		}
		cmd, out = r.start("follow")
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	waitFor(t, "the migration to be free", func() bool { return r.dst.String("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == "0" })

	certificate, err := r.m.Verify(r.ctx()) // while it is written to
	if err != nil && !errors.Is(err, ErrDiffers) || certificate == nil || !certificate.Equal {
		t.Fatalf("verify under load: %v, %+v", err, certificate)
	}
	stop()
	r.catchUp()
	r.same()
	for _, x := range []string{"SELECT coalesce(sum((v->>'puts')::bigint), 0) || ' ' || coalesce(sum((v->>'deletes')::bigint), 0) FROM millrace.migration_batch, jsonb_each(counts) AS c (k, v)"} {
		if got, want := r.dst.String(x), r.src.String(x); got != want {
			t.Errorf("counts of what went over: %s at the target, %s at the source", got, want)
		}
	}
}
