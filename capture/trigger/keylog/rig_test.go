package keylog

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/control"
	"github.com/millrace-db/millrace/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// limit bounds every wait of a test.
const limit = 2 * time.Minute

// rig is a database with logs of tables of schema public.
type rig struct {
	*pgtest.DB
	t      testing.TB
	conn   *pgx.Conn
	cfg    Config
	looker *Looker
}

// newRig runs the statements in a fresh database and installs the tables.
func newRig(t testing.TB, statements string, tables ...string) *rig {
	t.Helper()
	if t, ok := t.(*testing.T); ok {
		t.Parallel()
	}
	return rigOn(t, pgtest.New(t), statements, tables...)
}

func rigOn(t testing.TB, db *pgtest.DB, statements string, tables ...string) *rig {
	t.Helper()
	r := &rig{DB: db, t: t, cfg: Config{Stream: "s", Period: time.Hour}}
	r.Exec(statements)
	r.conn = r.connect(db.URL)
	if err := control.Migrate(r.ctx(), r.conn); err != nil {
		t.Fatal(err)
	}
	looker, err := NewLooker("s")
	if err != nil {
		t.Fatal(err)
	}
	r.looker = looker
	missing, err := InstallRoles(r.ctx(), r.conn, r.cfg)
	if err != nil || len(missing) > 0 {
		t.Fatalf("roles: %v, missing %q", err, missing)
	}
	r.capture(tables...)
	return r
}

// capture installs these tables and no others.
func (r *rig) capture(tables ...string) {
	r.t.Helper()
	r.cfg.Tables = nil
	for _, name := range tables {
		r.cfg.Tables = append(r.cfg.Tables, r.table(name))
	}
	r.install()
}

func (r *rig) connect(url string) *pgx.Conn {
	r.t.Helper()
	conn, err := pgx.Connect(r.ctx(), url)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	r.t.Cleanup(cancel)
	return ctx
}

// table looks up a table of schema public with its primary key.
func (r *rig) table(name string) Table {
	r.t.Helper()
	id, err := strconv.ParseUint(r.String("select $1::regclass::oid", `public."`+name+`"`), 10, 32)
	if err != nil {
		r.t.Fatalf("table %s: %v", name, err)
	}
	key := r.String(`select string_agg(attname, ',' order by array_position(i.indkey::int2[], attnum))
		from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey::int2[])
		where i.indrelid = $1::oid and i.indisprimary`, fmt.Sprint(id))
	return Table{ID: millrace.TableID(id), Schema: "public", Name: name, Key: strings.Split(key, ",")}
}

func (r *rig) install() {
	r.t.Helper()
	if err := Install(r.ctx(), r.conn, r.cfg); err != nil {
		r.t.Fatal(err)
	}
	r.intact()
}

func (r *rig) look() []Log {
	r.t.Helper()
	logs, err := r.looker.Look(r.ctx(), r.conn)
	if err != nil {
		r.t.Fatal(err)
	}
	return logs
}

// log returns the log of a table.
func (r *rig) log(name string) *Log {
	r.t.Helper()
	logs := r.look()
	i := slices.IndexFunc(logs, func(l Log) bool { return l.Table.Name == name })
	if i < 0 {
		r.t.Fatalf("table %s has no log", name)
	}
	return &logs[i]
}

// intact wants no problem with any log.
func (r *rig) intact() {
	r.t.Helper()
	for _, l := range r.look() {
		if len(l.Problems) > 0 {
			r.t.Errorf("log of %v: %v", &l.Table, l.Problems)
		}
	}
}

// rows returns the rows of a table by key. One that was written again is another,
// also with the same values.
func (r *rig) rows(l *Log) map[string]string {
	r.t.Helper()
	return r.pairs(fmt.Sprintf("select %s, concat(t.tableoid, t.ctid, t.xmin, t) from %s t", keyExpression(l.Table.Key, quote), l.Table.quoted()))
}

// logged returns the keys in a log, each with the actions it was logged with, and
// whether there is a TRUNCATE.
func (r *rig) logged(l *Log) (keys map[string]string, truncated bool) {
	r.t.Helper()
	var columns []string
	for i := range l.Table.Key {
		columns = append(columns, KeyColumn(i))
	}
	var parts []string
	for i := range Segments {
		parts = append(parts, fmt.Sprintf("select action, %s from %s where action <> 'T'", UnnestKeys(len(columns)), l.Segment(i)))
		if odd := r.String(fmt.Sprintf("select count(*) from %s where n not between 1 and %d or n <> any (array[%s])", l.Segment(i), run, "coalesce(cardinality("+strings.Join(columns, "), 1), coalesce(cardinality(")+"), 1)")); odd != "0" {
			r.t.Errorf("%s: %s rows have another number of keys than they say", l.Segment(i), odd)
		}
	}
	all := strings.Join(parts, " union all ")
	key := keyExpression(columns, func(s string) string { return s })
	keys = r.pairs(fmt.Sprintf("select %s, string_agg(distinct action::text, '' order by action::text) from (%s) a group by 1", key, all))
	for i := range Segments {
		truncated = truncated || r.String(fmt.Sprintf("select count(*) > 0 from %s where action = 'T'", l.Segment(i))) == "t"
	}
	return keys, truncated
}

func keyExpression(columns []string, quote func(string) string) string {
	var parts []string
	for _, c := range columns {
		parts = append(parts, "coalesce("+quote(c)+"::text, '∅')")
	}
	return "concat_ws('|', " + strings.Join(parts, ", ") + ")"
}

func (r *rig) pairs(query string) map[string]string {
	r.t.Helper()
	rows, err := r.conn.Query(r.ctx(), query)
	if err != nil {
		r.t.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	all := make(map[string]string)
	for rows.Next() {
		var key, value string
		if err := rows.Scan(&key, &value); err != nil {
			r.t.Fatal(err)
		}
		if old, ok := all[key]; ok {
			r.t.Errorf("key %s twice: %s and %s", key, old, value)
		}
		all[key] = value
	}
	if err := rows.Err(); err != nil {
		r.t.Fatalf("%s: %v", query, err)
	}
	return all
}

// empty empties all segments, as if they had been published and turned over.
func (r *rig) empty() {
	r.t.Helper()
	for _, l := range r.look() {
		for i := range Segments {
			r.Exec("delete from " + l.Segment(i))
		}
	}
}
