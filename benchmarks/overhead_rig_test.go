package benchmarks

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	words "github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture/trigger/keylog"
	"github.com/millrace-db/millrace/internal/control"
	"github.com/millrace-db/millrace/internal/pgserver"
	"github.com/millrace-db/millrace/internal/pgtest"
	"github.com/millrace-db/millrace/internal/testdir"
	"github.com/millrace-db/millrace/tests/harness"
)

// The ways to write.
const (
	wayNone      = "no capture"
	wayWAL       = "WAL"
	wayStatement = "statement triggers"
	wayRow       = "row triggers"
	wayHand      = "keys by hand"
)

// writeLimit bounds one turn.
const writeLimit = 10 * time.Minute

// rig is a database in which a load is written in one way.
type rig struct {
	way    string
	server *pgserver.Server
	db     *pgtest.DB
	dir    string
	script string // "" for pgbench's own
	turns  int
	cost   cost
	reader *exec.Cmd
}

// newRigs makes a database a way, on two servers that differ in wal_level alone:
// who captures no WAL need not write it in full. The servers do nothing by
// themselves that would fall into one turn and not into another.
func newRigs(b *testing.B, l written) []*rig {
	b.Helper()
	start := func(level string) *pgserver.Server {
		return pgtest.Cluster(b, pgtest.Options{FSync: true, Settings: map[string]string{
			"wal_level": level, "max_wal_size": "16GB", "checkpoint_timeout": "1h", "shared_buffers": "512MB", "autovacuum": "off",
		}})
	}
	plain, logical := start("replica"), start("logical")
	var rigs []*rig
	for _, way := range []string{wayNone, wayWAL, wayStatement, wayRow, wayHand} {
		r := &rig{way: way, server: plain, dir: testdir.For(b)}
		if way == wayWAL {
			r.server = logical
		}
		r.db = pgtest.On(b, r.server)
		if way == wayRow {
			r.subscribe(b)
		}
		if l.op == "" {
			harness.NewPgbench(b, r.db, 10, l.clients)
			r.capture(b, harness.PgbenchTables()...)
		} else {
			r.table(l)
			r.capture(b, table)
		}
		if l.op != "" || way == wayHand {
			r.script = r.write(b, l)
		}
		r.attach(b)
		rigs = append(rigs, r)
	}
	return rigs
}

// turn measures a load once more.
func (r *rig) turn(b *testing.B, l written) {
	b.Helper()
	cpu, from := harness.TreeCPUOf(r.server.PID()), r.db.String(`SELECT pg_current_wal_insert_lsn()`)
	r.pgbench(b, l)
	to := r.db.String(`SELECT pg_current_wal_insert_lsn()`)
	r.caughtUp(b, to)
	bytes, err := strconv.ParseFloat(r.db.String(`SELECT pg_wal_lsn_diff($1::text::pg_lsn, $2::text::pg_lsn)`, to, from), 64)
	if err != nil {
		b.Fatal(err)
	}
	r.cost.wal += bytes
	r.cost.cpu += harness.TreeCPUOf(r.server.PID()) - cpu
	r.turns++
}

// table makes the load's table, with the rows that it needs.
func (r *rig) table(l written) {
	r.db.Exec(`CREATE TABLE bench (id bigint PRIMARY KEY, n int NOT NULL, note text NOT NULL)`)
	if l.op != "INSERT" {
		r.db.Exec(fmt.Sprintf(`INSERT INTO bench SELECT c::bigint * %d + i, 0, %s FROM generate_series(0, %d) c, generate_series(0, %d) i`,
			ofClient, note(l.width), l.clients-1, l.slice()-1))
	}
	r.db.Exec(`VACUUM ANALYZE bench`)
}

// ofClient is how far apart the keys of clients are.
const ofClient = 1_000_000_000

// slice is how many rows there are for each client.
func (l written) slice() int {
	if l.op == "DELETE" {
		return turns() * l.statements() * l.rows
	}
	return max(l.rows, 10_000)
}

// note is a text that makes a row of width bytes, with its header and the other
// columns: of those here, none is so large that it would be compressed.
func note(width int) string {
	return fmt.Sprintf(`'%s'`, strings.Repeat("a", width-40))
}

// capture sets up the way for these tables.
func (r *rig) capture(b *testing.B, tables ...string) {
	b.Helper()
	switch r.way {
	case wayWAL:
		r.db.Exec(`CREATE PUBLICATION overhead FOR TABLE ` + strings.Join(tables, ", "))
	case wayHand:
		r.db.Exec(`CREATE TABLE hand (txid bigint NOT NULL, changed_at timestamptz NOT NULL, action "char" NOT NULL, changed_by text NOT NULL, k1 bigint); CREATE INDEX ON hand (txid)`)
	case wayRow:
		for _, name := range tables {
			r.db.Exec(fmt.Sprintf(`INSERT INTO pg_subscription_rel SELECT oid, '%s'::regclass, 'r' FROM pg_subscription WHERE subname = 'overhead'`, name))
		}
		r.triggers(b, tables)
	case wayStatement:
		r.triggers(b, tables)
	}
}

// subscribe makes a subscription that does nothing, because what a subscription
// writes gets triggers by row.
func (r *rig) subscribe(b *testing.B) {
	r.db.Exec(`CREATE SUBSCRIPTION overhead CONNECTION 'dbname=nowhere' PUBLICATION nothing WITH (connect = false, slot_name = NONE, enabled = false, create_slot = false)`)
	b.Cleanup(func() { r.db.Exec(`DROP SUBSCRIPTION overhead`) })
}

// triggers installs the triggers that millrace init installs.
func (r *rig) triggers(b *testing.B, tables []string) {
	b.Helper()
	ctx := b.Context()
	conn, err := pgx.Connect(ctx, r.db.URL)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }() // nothing is lost with it
	if err := control.Migrate(ctx, conn); err != nil {
		b.Fatal(err)
	}
	cfg := keylog.Config{Stream: "overhead", Period: 24 * time.Hour}
	for _, name := range tables {
		cfg.Tables = append(cfg.Tables, keylogTable(b, r.db, name))
	}
	if err := keylog.Install(ctx, conn, cfg); err != nil {
		b.Fatal(err)
	}
}

// keylogTable describes a table with a key of one column.
func keylogTable(b *testing.B, db *pgtest.DB, name string) keylog.Table {
	b.Helper()
	id, err := strconv.ParseUint(db.String(`SELECT $1::text::regclass::oid`, name), 10, 32)
	if err != nil {
		b.Fatal(err)
	}
	schema, table, _ := strings.Cut(name, ".")
	key := db.String(`SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
		WHERE i.indrelid = $1::text::regclass AND i.indisprimary`, name)
	return keylog.Table{ID: words.TableID(id), Schema: schema, Name: table, Key: []string{key}}
}

// write writes what each client runs, again and again, for pgbench.
func (r *rig) write(b *testing.B, l written) string {
	b.Helper()
	hand := func(action, keys string) string {
		return fmt.Sprintf(`INSERT INTO hand SELECT txid_current(), transaction_timestamp(), '%s', session_user, %s;`, action, keys)
	}
	var lines []string
	if l.op == "" {
		lines = []string{
			`\set aid random(1, 100000 * :scale)`, `\set bid random(1, 1 * :scale)`, `\set tid random(1, 10 * :scale)`, `\set delta random(-5000, 5000)`,
			`BEGIN;`,
			`UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;`, hand("U", ":aid"),
			`SELECT abalance FROM pgbench_accounts WHERE aid = :aid;`,
			`UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;`, hand("U", ":tid"),
			`UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;`, hand("U", ":bid"),
			`INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);`, hand("I", ":aid"),
			`END;`,
		}
	} else {
		first, last := "(:first)::bigint", fmt.Sprintf("(:first)::bigint + %d", l.rows-1)
		where := fmt.Sprintf("id BETWEEN %s AND %s", first, last)
		rows, keys := fmt.Sprintf("SELECT i, 0, %s FROM generate_series(%s, %s) i", note(l.width), first, last), fmt.Sprintf("i FROM generate_series(%s, %s) i", first, last)
		if l.rows == 1 {
			where, rows, keys = "id = "+first, fmt.Sprintf("VALUES (%s, 0, %s)", first, note(l.width)), first
		}
		wrap := ""
		if l.op == "UPDATE" {
			wrap = fmt.Sprintf(" %% %d", l.slice())
		}
		statement := map[string]string{
			"INSERT": "INSERT INTO bench " + rows + ";", "UPDATE": "UPDATE bench SET n = n + 1 WHERE " + where + ";", "DELETE": "DELETE FROM bench WHERE " + where + ";",
		}[l.op]
		lines = []string{fmt.Sprintf(`\set first :client_id * %d + :at`, ofClient), fmt.Sprintf(`\set at (:at + %d)%s`, l.rows, wrap), statement}
		if r.way == wayHand { // in one transaction, and one way to the server and back
			lines = []string{lines[0], lines[1], `\startpipeline`, statement, hand(l.op[:1], keys), `\endpipeline`}
		}
	}
	path := filepath.Join(r.dir, "script.sql")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	return path
}

// attach starts what reads the changes all along.
func (r *rig) attach(b *testing.B) {
	b.Helper()
	if r.way != wayWAL {
		return
	}
	path, err := r.server.Binaries().Program("pg_recvlogical")
	if err != nil {
		b.Fatal(err)
	}
	r.db.Exec(`SELECT pg_create_logical_replication_slot('overhead', 'pgoutput')`)
	r.reader = exec.CommandContext(b.Context(), path, "-d", r.db.URL, "--slot", "overhead", "--start", "-f", "/dev/null", "--fsync-interval=0", "--status-interval=1",
		"-o", "proto_version=2", "-o", "streaming=on", "-o", "publication_names=overhead")
	if err := r.reader.Start(); err != nil {
		b.Fatal(err)
	}
	harness.Until(b, stopLimit, "the slot is read", func(context.Context) error {
		if r.db.String(`SELECT active FROM pg_replication_slots WHERE slot_name = 'overhead'`) != "t" {
			return harness.NotYet("nobody reads the slot")
		}
		return nil
	})
}

// caughtUp waits until the reader, if there is one, has read up to a place in the
// write-ahead log: what that costs belongs to the turn.
func (r *rig) caughtUp(b *testing.B, to string) {
	b.Helper()
	if r.reader == nil {
		return
	}
	// One thing more, or the reader would not hear how far the server is.
	r.db.Exec(`SELECT pg_logical_emit_message(false, 'overhead', '')`)
	harness.Until(b, writeLimit, "the slot is read to its end", func(context.Context) error {
		if r.db.String(`SELECT bool_or(sent_lsn >= $1::text::pg_lsn) FROM pg_stat_replication`, to) != "t" {
			return harness.NotYet("the slot is behind")
		}
		return nil
	})
}

// detach ends the reader.
func (r *rig) detach() {
	if r.reader != nil {
		_ = r.reader.Process.Kill()
		_ = r.reader.Wait() // killed, it says so
	}
}

var throughputLine = regexp.MustCompile(`tps = ([0-9.]+)`)

// pgbench runs a load: the script, or the program's own TPC-B-like one.
func (r *rig) pgbench(b *testing.B, l written) {
	b.Helper()
	path, err := r.server.Binaries().Program("pgbench")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.Context(), writeLimit)
	defer cancel()
	logs := filepath.Join(r.dir, fmt.Sprint("turn", r.turns))
	at := r.turns * l.statements() * l.rows // behind the turn before
	if l.op == "UPDATE" {
		at %= l.slice()
	}
	args := []string{
		"-n", "-M", "prepared", "-c", strconv.Itoa(l.clients), "-j", strconv.Itoa(min(2, l.clients)), "-t", strconv.Itoa(l.statements()),
		"-D", fmt.Sprint("at=", at), "-l", "--log-prefix=" + logs,
	}
	if r.script == "" {
		args = append(args, "-b", "tpcb-like")
	} else {
		args = append(args, "-D", "scale=10", "-f", r.script)
	}
	cmd := exec.CommandContext(ctx, path, append(args, r.db.URL)...)
	if !l.flushed {
		cmd.Env = append(os.Environ(), "PGOPTIONS=-c synchronous_commit=off")
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		b.Fatalf("pgbench: %v: %s", err, out)
	}
	match := throughputLine.FindSubmatch(out)
	if match == nil {
		b.Fatalf("pgbench told no throughput: %s", out)
	}
	perSecond, err := strconv.ParseFloat(string(match[1]), 64)
	if err != nil {
		b.Fatal(err)
	}
	times := pgbenchTimes(b, logs)
	if len(times) != l.statements()*l.clients {
		b.Fatalf("pgbench noted %d times, want %d: %s", len(times), l.statements()*l.clients, out)
	}
	var sum time.Duration
	for _, t := range times {
		sum += t
	}
	c := &r.cost
	c.perSecond, c.mean, c.times = append(c.perSecond, perSecond), append(c.mean, milliseconds(sum)/float64(len(times))), append(c.times, times...)
}

// pgbenchTimes reads how long each transaction took, and removes the logs.
func pgbenchTimes(b *testing.B, prefix string) []time.Duration {
	b.Helper()
	paths, err := filepath.Glob(prefix + ".*")
	if err != nil {
		b.Fatal(err)
	}
	var times []time.Duration
	for _, path := range paths {
		f, err := os.Open(path) //nolint:gosec // made here
		if err != nil {
			b.Fatal(err)
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			fields := strings.Fields(lines.Text())
			if len(fields) < 3 {
				b.Fatalf("read %s: %q", path, lines.Text())
			}
			us, err := strconv.ParseInt(fields[2], 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			times = append(times, time.Duration(us)*time.Microsecond)
		}
		if err := lines.Err(); err != nil {
			b.Fatal(err)
		}
		_ = f.Close() // it was only read
		if err := os.Remove(path); err != nil {
			b.Fatal(err)
		}
	}
	return times
}
