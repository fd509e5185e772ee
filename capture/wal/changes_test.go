package wal

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// outOfLine is SQL for a value that is stored out of line: long and incompressible.
const outOfLine = "(select string_agg(md5(i::text || random()::text), '') from generate_series(1, 200) i)"

func TestRowChanges(t *testing.T) {
	for _, identity := range []string{"default", "full"} {
		t.Run(identity, func(t *testing.T) {
			db := pgtest.New(t)
			db.Exec(`create table a (id numeric, k text, v text, n int, primary key (k, id));
				alter table a replica identity ` + identity + `;
				insert into a select i, 'k' || i, ` + outOfLine + `, i from generate_series(1, 20) i`)
			r := newRig(t, db, nil, "a")
			r.open()
			r.copied()
			r.equal()

			db.Exec("update a set n = n + 1 where id = 1")
			units := r.sync()
			put := units[0].entries[0]
			var row millrace.Row
			if err := millrace.DecodeRow(put.Row, &row); err != nil {
				t.Fatal(err)
			}
			if want := identity == "default"; row.HasUnchanged() != want || put.From != nil {
				t.Errorf("update beside a value out of line: unchanged columns %v, want %v", row.HasUnchanged(), want)
			}
			r.equal()

			// A moved key takes the value that was not sent along.
			db.Exec("update a set k = 'moved' where id = 2")
			units = r.sync()
			if got, want := units[0].kinds(), "put delete"; got != want {
				t.Errorf("key update: got %s, want %s", got, want)
			}
			if e := units[0].entries; string(e[0].From) != string(e[1].Key) || string(e[0].Key) == string(e[1].Key) {
				t.Errorf("key update: put from %x, delete of %x", e[0].From, e[1].Key)
			}
			r.equal()

			// The same key in another text is the same row.
			db.Exec("update a set id = 3.000 where id = 3")
			units = r.sync()
			if got, want := units[0].kinds(), "put"; got != want {
				t.Errorf("key in another text: got %s, want %s", got, want)
			}
			r.equal()

			// Each step of a shifting update takes the place that the one before left.
			db.Exec("update a set id = -id; delete from a where id < -15; insert into a values (1, 'k1', null, null)")
			r.sync()
			r.equal()

			// A long key is stored out of line itself.
			db.Exec("insert into a values (100, (select left(" + outOfLine + ", 2000)), " + outOfLine + ", 0)")
			r.sync()
			db.Exec("update a set n = 1 where id = 100")
			r.sync()
			r.equal()
			db.Exec("update a set id = 101 where id = 100")
			r.sync()
			r.equal()
		})
	}
}

func TestTruncate(t *testing.T) {
	db := pgtest.New(t)
	db.Exec(`create table a (id int primary key); create table b (id int primary key references a); create table c (id int primary key);
		insert into a values (1), (2); insert into b values (1); insert into c values (1)`)
	r := newRig(t, db, nil, "a", "b", "c")
	r.open()
	r.copied()
	db.Exec("begin; insert into a values (3); truncate a cascade; insert into a values (4); truncate c; commit")
	units := r.sync()
	if got, want := units[0].kinds(), "put truncate truncate put truncate"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	r.equal()
}

func TestTransactionsAreUnits(t *testing.T) {
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v int); create table other (id int)")
	r := newRig(t, db, nil, "a")
	r.open()
	r.copied()
	// Nothing of ours, nothing at all, rolled back, subtransactions.
	db.Exec("insert into other values (1); begin; insert into a values (1, 1); rollback")
	db.Exec("begin; insert into a values (2); savepoint s; insert into a values (3); rollback to s; savepoint s2; insert into a values (4); release s2; commit")
	units := r.sync()
	if len(units) != 1 || units[0].kinds() != "put put" {
		t.Fatalf("got %d units, the first %s", len(units), units[0].kinds())
	}
	r.equal()
	u := units[0]
	end := u.entries[1].End
	if end.XID == 0 || end.Token != uint64(u.position.LSN) {
		t.Errorf("unit's end: %+v", end)
	}
	// Two transactions at once: in the order of commit, not of begin or rows.
	one, err := db.Pool.Begin(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := one.Exec(r.ctx(), "insert into a values (10), (11)"); err != nil {
		t.Fatal(err)
	}
	db.Exec("insert into a values (20)")
	if _, err := one.Exec(r.ctx(), "insert into a values (12)"); err != nil {
		t.Fatal(err)
	}
	if err := one.Commit(r.ctx()); err != nil {
		t.Fatal(err)
	}
	units = r.sync()
	if len(units) != 2 || len(units[0].entries) != 1 || len(units[1].entries) != 3 {
		t.Errorf("interleaved transactions came as %d units", len(units))
	}
	r.equal()
}

func TestPartitionedTable(t *testing.T) {
	db := pgtest.New(t)
	db.Exec(`create table p (id int, region text, v text, primary key (region, id)) partition by list (region);
		create table p_eu partition of p for values in ('eu');
		create table p_us (v text, id int not null, region text not null);
		alter table p_us add primary key (region, id);
		alter table p attach partition p_us for values in ('us');
		create table p_rest partition of p default partition by range (id);
		create table p_low partition of p_rest for values from (minvalue) to (100);
		create table p_high partition of p_rest for values from (100) to (maxvalue);
		insert into p select i, (array['eu', 'us', 'asia'])[i % 3 + 1], 'v' || i from generate_series(1, 300) i`)
	r := newRig(t, db, nil, "p")
	r.open()
	r.copied()
	r.equal()
	db.Exec("update p set v = 'x' where id < 50; update p set region = 'us' where id = 3; delete from p where id > 290; insert into p_us (id, region) values (1000, 'us')")
	r.sync()
	r.equal()
	db.Exec("truncate p; insert into p values (1, 'eu', 'again')")
	units := r.sync()
	if !units[0].has(millrace.KindTruncate) {
		t.Errorf("truncate of the root: got %s", units[0].kinds())
	}
	r.equal()
	r.restart()
	db.Exec("insert into p values (2, 'us')")
	r.sync()
	r.equal()
}

func TestColumnsAndTypes(t *testing.T) {
	db := pgtest.New(t)
	db.Exec(`create type mood as enum ('sad', 'ok');
		create domain positive as int check (value > 0);
		create type point3 as (x float8, y float8, m mood);
		create table a (
			id uuid primary key, i2 int2, i8 int8, f4 float4, f8 float8, n numeric(20, 5), b bool, t text, vc varchar(10), c char(5),
			by bytea, d date, ts timestamp, tz timestamptz, tm time, iv interval, j json, jb jsonb, arr int[], tarr text[][], m mood, marr mood[],
			dom positive, comp point3, carr point3[], r int4range, mr int4multirange, ip inet, mac macaddr, bits bit varying, x xml, mon money,
			"Odd ""name" text, dropped int, gen int generated always as (i2 + 1) stored, last text);
		alter table a drop column dropped;
		alter database ` + db.Name + ` set timezone = 'Asia/Tokyo'; alter database ` + db.Name + ` set datestyle = 'SQL, DMY';
		alter database ` + db.Name + ` set extra_float_digits = 0; alter database ` + db.Name + ` set bytea_output = 'escape';
		insert into a (id, i2, f4, f8, n, b, t, c, by, d, ts, tz, iv, j, arr, tarr, m, marr, dom, comp, carr, r, mr, ip, bits, x, mon, "Odd ""name", last)
		values (gen_random_uuid(), 5, 0.1, 1.0/3, 12.5, true, E'a\tb\\c', 'ab', '\x00ff5c', '2026-01-02', '2026-01-02 03:04', '2026-01-02 03:04+02', '1 day 2 hours',
			'{"a": [1, null]}', '{1,null,3}', '{{a,"b c"},{"\"q\"",null}}', 'ok', '{sad,ok}', 7, row(1, 0.1, 'ok'), array[row(1, 2, 'sad')::point3],
			'[1,5)', '{[1,3),[5,8)}', '10.0.0.1/8', B'101', '<a>1</a>', 12.34, 'odd', '');
		insert into a (id) values (gen_random_uuid())`)
	r := newRig(t, db, nil, "a")
	r.open()
	r.copied()
	r.equal()
	// Whatever the server's and the writer's settings are, a value has one text.
	text := func(column string) string {
		for _, row := range r.edge.tables[r.edge.at.Catalog.Schemas[0].Table] {
			if d := row.columns[r.edge.at.Catalog.Schemas[0].ColumnIndex(column)]; d.State == millrace.ColumnValue {
				return string(d.Text)
			}
		}
		return "none"
	}
	texts := func(when string) {
		t.Helper()
		for column, want := range map[string]string{
			"f4": "0.1", "f8": "0.3333333333333333", "tz": "2026-01-02 01:04:00+00", "ts": "2026-01-02 03:04:00", "d": "2026-01-02",
			"iv": "1 day 02:00:00", "by": `\x00ff5c`, "mon": "$12.34", "n": "12.50000", "b": "t", "c": "ab   ", "tarr": `{{a,"b c"},{"\"q\"",NULL}}`,
			"comp": "(1,0.1,ok)", "r": "[1,5)", "t": "a\tb\\c",
		} {
			if got := text(column); got != want {
				t.Errorf("%s: column %s: got %s, want %s", when, column, got, want)
			}
		}
	}
	texts("copy")
	s := r.edge.at.Catalog.Schemas[0]
	if s.ColumnIndex("gen") >= 0 || s.ColumnIndex("dropped") >= 0 || s.ColumnIndex(`Odd "name`) < 0 {
		t.Errorf("columns: %+v", s.Columns)
	}
	kinds := map[millrace.TypeKind]int{}
	for i := range s.Types {
		kinds[s.Types[i].Kind]++
	}
	for kind := millrace.TypeBase; kind <= millrace.TypeMultirange; kind++ {
		if kinds[kind] == 0 {
			t.Errorf("no type of kind %d is described", kind)
		}
	}
	db.Exec("update a set i8 = 1")
	r.sync()
	texts("stream")
	db.Exec("update a set t = 'changed', f8 = 1e-300, tz = tz + interval '1 microsecond'")
	r.sync()
	if got := r.edge.at.Catalog.LastVersion; got != 1 {
		t.Errorf("the schema came again with the first change: version %v", got)
	}
	r.equal()
	db.Exec("insert into a (id, f4, m) values (gen_random_uuid(), 'nan', 'sad'); delete from a where f4 = 0.1::float4")
	r.sync()
	r.equal()
}

func TestMessages(t *testing.T) {
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key)")
	r := newRig(t, db, nil, "a")
	r.open()
	r.copied()
	db.Exec(`begin; insert into a values (1); select pg_logical_emit_message(true, 'app', 'hello'); insert into a values (2); commit;
		select pg_logical_emit_message(false, 'app', 'of no transaction');
		select pg_logical_emit_message(true, 'millrace.heartbeat', 'another stream');
		select pg_logical_emit_message(true, 'millrace.heartbeat', 's')`)
	units := r.sync()
	if len(units) != 2 || units[0].kinds() != "put message put" || units[1].kinds() != "heartbeat" {
		t.Fatalf("got %d units, the first %s", len(units), units[0].kinds())
	}
	if m := units[0].entries[1].Message; m.Prefix != "app" || string(m.Content) != "hello" {
		t.Errorf("message: %+v", m)
	}
	// Anybody may write messages under our names: they stop nothing, and do not
	// pass for ours.
	db.Exec("select pg_logical_emit_message(true, prefix, content) from (values ('millrace.unheard', 'x'), ('millrace.', ''), " +
		"('millrace.ddl', ''), ('millrace.ddl', 'null'), ('millrace.ddl', '[]'), ('millrace.ddl', '{\"tables\": \"x\"}'), ('millrace.ddl', '{\"tables\": [-1]}'), ('millrace.ddl', '{\"tables\": [99], \"doubt\": 1}'), " +
		"('millrace.ddl', '{\"tables\": [99], \"rewritten\": [1, 2], \"types\": [16]}'), ('millrace.ddl', '{\"stream\": \"other\", \"load\": [1]}'), ('millrace.plan', ''), ('millrace.plan', 'x')) m (prefix, content)")
	if units := r.sync(); len(units) != 0 {
		t.Errorf("messages under reserved prefixes came as %s", units[0].kinds())
	}
	id := db.String("select 'a'::regclass::oid::text")
	db.Exec("begin; insert into a values (3); select pg_logical_emit_message(true, 'millrace.ddl', '{\"tag\": \"FORGED\\n\", \"tables\": [" + id + "], \"rewritten\": [" + id + "]}'); insert into a values (4); commit")
	if units := r.sync(); len(units) != 1 || units[0].kinds() != "put load_begin put" {
		t.Errorf("forged message: got %s", units[0].kinds())
	}
	if got := r.load(); len(got) != 1 || got[0] != "a: it was rewritten (FORGED)" {
		t.Errorf("loads were begun because of %q", got)
	}
	r.equal()
}

func TestAlteredTables(t *testing.T) {
	db := pgtest.New(t)
	for _, c := range []struct {
		name, sql string
		loads     string // part of the reason; empty where the rows stay right
		stops     error
	}{
		{"add column", "alter table a add column w text", "", nil},
		{"add column with default", "alter table a add column w text default 'x'", "came with a value", nil},
		{"add column with the default of a domain", "create domain dd as int default 5 check (value > 0); alter table a add column w dd", "came with a value", nil},
		{"add identity column", "alter table a add column w int generated always as identity", "came with a value", nil},
		{"drop column", "alter table a drop column v", "v was dropped", nil},
		{"column dropped and made again", "alter table a drop column e; alter table a add column e e", "dropped and made again", nil},
		{"column dropped and made again while nobody looked", "alter table a drop column e; alter table a add column e e", "dropped and made again", nil},
		{"rename column", "alter table a rename column v to w", "v was renamed to w", nil},
		{"rename key column", "alter table a rename column id to ident; alter table a add column id int", "id was renamed to ident", nil},
		{"columns swap their names", "alter table a rename column v to t; alter table a rename column c to v; alter table a rename column t to c", "renamed", nil},
		{"widen varchar", "alter table a alter column c type varchar(20)", "", nil},
		{"varchar to text", "alter table a alter column c type text", "", nil},
		{"int to bigint", "alter table a alter column n type bigint", "n has another type", nil},
		{"enum to text, and its type dropped", "alter table a alter column e type text; drop type e; create type e as enum ('y')", "e has another type", nil},
		{"numeric scale", "alter table a alter column q type numeric(10, 4)", "q has another type", nil},
		{"other key", "alter table a drop constraint a_pkey, add primary key (n)", "", capture.ErrKeyChanged},
		{"other type of the key", "alter table a alter column id type bigint", "", capture.ErrKeyChanged},
		{"no key", "alter table a drop constraint a_pkey; alter table a replica identity full", "", capture.ErrKeyChanged},
		{"not null", "alter table a alter column n set not null", "", nil},
		{"enum label added", "alter type e add value 'c'", "", nil},
		{"enum label renamed", "alter type e rename value 'a' to 'z'; alter table a alter column n set not null", "enum e was renamed", nil},
		{"attribute of a composite renamed", "alter type p rename attribute x to xx cascade; alter table a alter column n set not null", "type p was altered", nil},
		{"attribute added to a composite", "alter type p add attribute z int cascade; alter table a alter column n set not null", "type p was altered", nil},
		{"renamed", "alter table a rename to a2; alter table a2 rename to a", "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			db.Exec("create type e as enum ('a', 'b'); create type p as (x int, y text); create table a (id int primary key, v text, c varchar(10), n int not null default 1, q numeric(10, 2), e e, p p)")
			db.Exec("insert into a select i, 'v', 'c', i, 1.5, 'a', row(i, 'y')::p from generate_series(1, 3) i; alter table a alter column n drop not null; alter table a alter column n drop default")
			r := newRig(t, db, func(c *Config) { c.Heartbeat = 20 * time.Millisecond }, "a")
			r.c.watchInterval = time.Hour
			changes := func() []*applied {
				return slices.DeleteFunc(r.sync(), func(a *applied) bool { return a.has(millrace.KindHeartbeat) })
			}
			defer func() {
				r.close()
				if err := r.c.Uninstall(r.ctx()); err != nil {
					t.Error(err)
				}
				db.Exec("drop table a; drop type e; drop type p; drop domain if exists dd")
			}()
			r.open()
			// A look between a new heap and the change that tells of it would have the table loaded too. The only look comes
			// before the first heartbeat.
			for looked, copied := false, false; !looked || !copied; {
				a := r.next()
				looked, copied = looked || a.has(millrace.KindHeartbeat), copied || a.has(millrace.KindLoadEnd)
			}
			r.src.PauseLoads(true)
			db.Exec("insert into a (id, n) values (4, 4)")
			r.sync()
			if strings.HasSuffix(c.name, "while nobody looked") {
				r.close()
				db.Exec(c.sql)
				r.open()
			} else {
				db.Exec(c.sql)
			}
			id := "id"
			if c.name == "rename key column" {
				id = "ident"
			}
			db.Exec("insert into a (" + id + ", n) values (5, 5)")
			if c.stops != nil {
				r.mark++
				err := r.fails(c.stops)
				if !millrace.NeedsOperator(err) || !strings.Contains(err.Error(), "public.a") || !strings.Contains(err.Error(), "mend: ") {
					t.Errorf("error: %v", err)
				}
				return
			}
			units := changes()
			if got := units[len(units)-1].kinds(); c.loads != "" && got != "schema load_begin put" {
				t.Errorf("got %s, want the schema, then the load's begin, then the change", got)
			}
			reasons := r.load()
			if (len(reasons) == 1) != (c.loads != "") || c.loads != "" && !strings.Contains(reasons[0], c.loads) {
				t.Errorf("loads were begun because of %q, want %q", reasons, c.loads)
			}
			r.equal()
			r.restart()
			db.Exec("insert into a (" + id + ", n) values (6, 6)")
			units = changes()
			// A new label of an enum reaches us with the next description only.
			if got, want := units[0].has(millrace.KindSchema), c.name == "enum label added"; got != want {
				t.Errorf("schema with the first change after a restart: %v, want %v", got, want)
			}
			if reasons := r.load(); len(reasons) > 0 {
				t.Errorf("after a restart, loads were begun because of %q", reasons)
			}
			r.equal()
		})
	}
}

// The catalog that is asked is newer than the change: rows written before a
// table was altered, twice, are read after.
func TestCatalogAheadOfChanges(t *testing.T) {
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text); insert into a values (1, 'x')")
	r := newRig(t, db, nil, "a")
	r.open()
	r.copied()
	r.close()
	db.Exec("insert into a values (2, 'y')")
	db.Exec("alter table a add column w int")
	db.Exec("insert into a values (3, 'z', 3)")
	db.Exec("alter table a add column u int")
	db.Exec("insert into a values (4, 'z', 4, 4)")
	r.open()
	units := r.sync()
	var kinds []string
	for _, u := range units {
		kinds = append(kinds, u.kinds())
	}
	if got, want := strings.Join(kinds, "; "), "put; schema put; schema put"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	r.equal()
	if got := len(r.edge.at.Catalog.Schemas[0].Columns); got != 4 {
		t.Errorf("newest schema has %d columns, want 4", got)
	}
	// Dropped meanwhile: the last changes can still be described.
	db.Exec("insert into a values (5, 'last')")
	db.Exec("drop table a")
	units = r.sync()
	if len(units) != 1 || units[0].kinds() != "put" {
		t.Errorf("changes of a dropped table: %d units", len(units))
	}
	r.close()
	_ = r.openFails(capture.ErrTables)
}
