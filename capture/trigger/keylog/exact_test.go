package keylog

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// exactCase changes tables in one way.
type exactCase struct {
	name    string
	version int // the first server that knows it
	setup   string
	tables  []string
	change  string
	// passing are keys, as table:key, that come and go within the change, and so
	// are logged without a difference.
	passing []string
	mode    Mode // of all tables; Statement if empty
}

// keysBetween writes keys of numbers.
func keysBetween(format string, from, to int) []string {
	var all []string
	for i := from; i <= to; i++ {
		all = append(all, fmt.Sprintf(format, i))
	}
	return all
}

var exactCases = []exactCase{
	{
		name: "insert on conflict do update", setup: "create table a (id int primary key, v int); insert into a values (1, 1), (2, 2)", tables: []string{"a"},
		change: "insert into a values (1, 10), (3, 30), (4, 4) on conflict (id) do update set v = excluded.v",
	},
	{
		name: "insert on conflict changes the key", setup: "create table a (id int primary key, u int unique); insert into a values (1, 1), (2, 2)", tables: []string{"a"},
		change: "insert into a values (7, 1), (8, 3) on conflict (u) do update set id = excluded.id",
	},
	{
		name: "insert on conflict do nothing", setup: "create table a (id int primary key, v int); insert into a values (1, 1)", tables: []string{"a"},
		change: "insert into a values (1, 10), (3, 30) on conflict do nothing",
	},
	{
		name: "merge", version: 15, setup: "create table a (id int primary key, v int); insert into a select g, g from generate_series(1, 6) g", tables: []string{"a"},
		change: `merge into a using (values (1), (2), (3), (9)) s (id) on a.id = s.id
			when matched and a.id = 1 then delete when matched and a.id = 2 then update set v = 0 when matched then do nothing
			when not matched then insert values (s.id, 5)`,
	},
	{
		name: "update from", setup: "create table a (id int primary key, v int); create table f (id int, v int); insert into a select g, g from generate_series(1, 6) g; insert into f values (1, 5), (2, 6), (2, 7)", tables: []string{"a"},
		change: "update a set v = f.v from f where f.id = a.id; delete from a using f where f.id + 3 = a.id",
	},
	{
		name: "key swaps in one statement", setup: "create table a (id int primary key deferrable, v int); insert into a select g, g from generate_series(1, 5) g", tables: []string{"a"},
		change: "update a set id = 6 - id",
	},
	{
		name: "keys move on", setup: "create table a (x int, y text, v int, primary key (y, x) deferrable initially deferred); insert into a select g, 'k', g from generate_series(1, 5) g", tables: []string{"a"},
		change:  "update a set x = x + 1; insert into a values (2, 'k', 0); update a set x = 100, y = 'z' where v = 0",
		passing: []string{"a:z|100"},
	},
	{
		name: "runs of keys", setup: "create table a (x int, y text, v int, primary key (y, x)); insert into a select g, 'k' || g, 0 from generate_series(1, 100) g", tables: []string{"a"},
		change: `update a set v = 1 where x = 1; update a set v = 1 where x < 0; insert into a select g, 'k' || g, 0 from generate_series(1001, 1199) g;
			insert into a select g, 'k' || g, 0 from generate_series(2001, 2200) g; insert into a select g, 'k' || g, 0 from generate_series(3001, 3201) g;
			insert into a select g, 'k' || g, 0 from generate_series(4001, 6000) g; update a set y = 'l' || x where x between 4100 and 5000; delete from a where x between 10 and 40`,
		passing: keysBetween("a:k%d|%[1]d", 4100, 5000),
	},
	{
		name: "truncate cascade", setup: "create table a (id int primary key); create table b (id int primary key, a int references a); insert into a values (1), (2); insert into b values (5, 1)", tables: []string{"a", "b"},
		change: "insert into a values (3); truncate a cascade; insert into a values (2), (9)", passing: []string{"a:3"},
	},
	{
		name: "foreign keys cascade",
		setup: `create table a (id int primary key, v int);
			create table b (id int primary key, a int references a on delete cascade on update cascade);
			create table c (b int references b on delete cascade on update cascade, n int, primary key (b, n));
			create table d (id int primary key, a int references a on delete set null on update cascade);
			create table e (id int primary key, up int references e on delete cascade);
			insert into a select g, g from generate_series(1, 6) g; insert into b select g * 10, g from generate_series(1, 6) g;
			insert into c select g * 10, n from generate_series(1, 6) g, generate_series(1, 2) n; insert into d select g, g from generate_series(1, 6) g;
			insert into e select g, nullif(g / 2, 0) from generate_series(1, 31) g`, tables: []string{"a", "b", "c", "d", "e"},
		change: "delete from a where id in (1, 2); update a set id = id + 100 where id in (3, 4); update b set id = 77 where id = 50; delete from e where id = 3",
	},
	{
		name: "triggers that write captured tables",
		setup: `create table a (id int primary key, v int, touched int default 0); create table b (id int primary key, sum int);
			insert into a select g, g from generate_series(1, 6) g; insert into b values (0, 0), (1, 0);
			create function ta() returns trigger language plpgsql as $$ begin
				if pg_trigger_depth() > 1 then return null; end if;
				update a set touched = touched + 1 where id = new.id; -- the same row
				update a set touched = touched + 1 where id = new.id % 6 + 1; -- and a sibling
				update b set sum = sum + new.v where id = new.id % 2;
				return null; end $$;
			create trigger aa after insert or update on a for each row execute function ta();
			create function tb() returns trigger language plpgsql as $$ begin new.id := new.id + 1000; return new; end $$;
			create table c (id int primary key, v int); create trigger bb before insert on c for each row execute function tb();
			create function tc() returns trigger language plpgsql as $$ begin if new.id % 2 = 0 then return null; end if; return new; end $$;
			create table d (id int primary key, v int); create trigger cc before insert on d for each row execute function tc();
			create function ts() returns trigger language plpgsql as $$ begin insert into b select id, v from millrace_new on conflict (id) do update set sum = 7; return null; end $$;
			create trigger ss after insert on c referencing new table as millrace_new for each statement execute function ts()`,
		tables: []string{"a", "b", "c", "d"},
		change: "update a set v = v + 1 where id in (2, 5); insert into a values (20, 5); insert into c values (1, 1), (2, 2); insert into d values (1, 1), (2, 2), (3, 3)",
	},
	{
		name: "data-modifying with", setup: "create table a (id int primary key, v int); create table b (id int primary key, v int); insert into a select g, g from generate_series(1, 6) g", tables: []string{"a", "b"},
		change: `with gone as (delete from a where id < 3 returning *), put as (insert into b select * from gone returning *), up as (update a set v = 0 where id = 4 returning *)
			insert into a select id + 100, v from put;
			with gone as (delete from a where id = 5 returning *) insert into a select id, v + 1 from (select * from gone union all select 55, 5) g where id <> 5`,
	},
	{
		name: "deferred constraint triggers",
		setup: `create table a (id int primary key, v int); insert into a values (1, 1), (2, 2);
			create function ta() returns trigger language plpgsql as $$ begin if new.v < 100 then update a set v = v + 100 where id = new.id; insert into a values (new.id + 50, 500); end if; return null; end $$;
			create constraint trigger late after update on a deferrable initially deferred for each row execute function ta()`, tables: []string{"a"},
		change: "update a set v = 5 where id = 2",
	},
	{
		name: "generated and identity columns",
		setup: `create table a (id int generated always as identity primary key, v int, w int generated always as (v * 2) stored);
			create table b (v int, k int generated always as (v * 3) stored, primary key (k)); insert into a (v) values (1), (2); insert into b values (1)`, tables: []string{"a", "b"},
		change: "insert into a (v) values (5); update a set v = 9 where id = 1; insert into b values (4); update b set v = 2 where v = 1",
	},
	{
		name: "savepoints taken back", setup: "create table a (id int primary key, v int); insert into a values (1, 1), (2, 2), (3, 3)", tables: []string{"a"},
		change: `begin; update a set v = 5 where id = 1; savepoint x; delete from a where id = 2; insert into a values (9, 9); rollback to x; update a set v = 6 where id = 3;
			do $$ begin begin delete from a; truncate a; raise exception 'no'; exception when raise_exception then null; end; end $$; commit`,
	},
	{
		name: "replica writers", setup: "create table a (id int primary key, v int); insert into a values (1, 1), (2, 2), (3, 3)", tables: []string{"a"},
		change: "set session_replication_role = replica; update a set v = 5 where id = 1; insert into a values (7, 7); update a set id = 8 where id = 2; delete from a where id = 3; reset session_replication_role",
	},
	{
		name: "copy", setup: "create table a (id int primary key); insert into a values (99)", tables: []string{"a"},
		change: "copy a from program 'seq 1 50'",
	},
	{
		name: "types and collations of keys",
		setup: `create type mood as enum ('sad', 'ok'); create domain strict as text not null check (length(value) < 5); create schema other; create type other.kind as enum ('x', 'y');
			create table a (m mood, s strict, n numeric(10,2), c char(4), t text collate "C", o other.kind, u uuid, "found" int, v int, primary key (m, s, n, c, t, o, u, "found"));
			insert into a values ('sad', 'a', 1.5, 'x', 'é', 'x', '00000000-0000-0000-0000-000000000001', 1, 1)`, tables: []string{"a"},
		change: `alter type mood add value 'glad'; update a set v = 2; update a set n = 1.50, v = 3; update a set c = 'y', o = 'y'; truncate a;
			insert into a values ('ok', 'b', 3, 'z', 't', 'x', '00000000-0000-0000-0000-000000000002', 2, 1)`,
		passing: []string{"a:sad|a|1.50|y|é|y|00000000-0000-0000-0000-000000000001|1"},
	},
	{
		name: "partitions", mode: Row,
		setup: `create table p (id int, at int, v int, primary key (id, at)) partition by range (at);
			create table p1 partition of p for values from (0) to (10); create table p2 (v int, junk int, at int not null, id int not null); alter table p2 drop column junk;
			alter table p attach partition p2 for values from (10) to (20);
			create table p3 partition of p for values from (20) to (40) partition by list (id); create table p3a partition of p3 default;
			insert into p select g, g, g from generate_series(0, 39) g; insert into p values (100, 5, 1)`, tables: []string{"p"},
		change: `insert into p values (200, 11, 1); insert into p1 values (201, 1, 1); update p set v = 0 where id = 3; update p2 set v = 0 where id = 13;
			update p set at = 15 where id = 5; update p set at = 25, id = 77 where id = 100; delete from p3a where id = 21; delete from p where id = 1;
			update p2 set id = 300 where id = 14; insert into p values (6, 6, 5) on conflict (id, at) do update set v = 50`,
	},
	{
		name: "partition that comes later", mode: Row,
		setup: `create table p (id int primary key, v int) partition by range (id); create table p1 partition of p for values from (0) to (10); insert into p values (1)`, tables: []string{"p"},
		change: `create table p2 partition of p for values from (10) to (20); insert into p values (2), (12); insert into p2 values (13);
			create table p3 (v int, id int not null); alter table p attach partition p3 for values from (20) to (30); set session_replication_role = replica; insert into p3 values (1, 22); insert into p values (23, 1); delete from p where id = 1; reset session_replication_role`,
	},
	{
		name: "partition of a table that is not captured", mode: Row,
		setup: `create table p (id int primary key, v int) partition by range (id); create table p1 partition of p for values from (0) to (10); insert into p values (1), (2), (3)`, tables: []string{"p1"},
		change: `insert into p values (5, 5); update p set v = 1 where id = 2; delete from p1 where id = 1; truncate p; insert into p values (7)`, passing: []string{"p1:5"},
	},
	{
		name: "truncate of a partitioned table", mode: Row,
		setup: `create table p (id int primary key, v int) partition by range (id); create table p1 partition of p for values from (0) to (10); insert into p values (1), (2), (3)`, tables: []string{"p"},
		change: `insert into p values (5); truncate p; insert into p values (2)`, passing: []string{"p:5"},
	},
}

// After each way to change tables, the keys in the logs are those of the rows that
// differ.
func TestLoggedKeysAreThoseOfChangedRows(t *testing.T) {
	r := newRig(t, "")
	for _, c := range exactCases {
		t.Run(c.name, func(t *testing.T) {
			if c.version > r.Server.Binaries().Version {
				return // this server has no such statement
			}
			r.t = t
			r.Exec("drop schema public cascade; drop schema if exists other cascade; create schema public; " + c.setup)
			r.capture(c.tables...)
			r.exact(&c, func() { r.Exec(c.change) })
		})
	}
}

// exact runs the change and compares.
func (r *rig) exact(c *exactCase, change func()) {
	r.t.Helper()
	mode := c.mode
	if mode == "" {
		mode = Statement
	}
	before := make(map[string]map[string]string)
	for _, l := range r.look() {
		before[l.Table.Name] = r.rows(&l)
		if c.mode != "any" && l.Mode != mode {
			r.t.Errorf("table %v: mode %s, want %s", &l.Table, l.Mode, mode)
		}
	}
	change()
	r.intact()
	for _, l := range r.look() {
		after := r.rows(&l)
		logged, truncated := r.logged(&l)
		want := make(map[string]bool)
		for _, key := range c.passing {
			if table, key, _ := strings.Cut(key, ":"); table == l.Table.Name {
				want[key] = true
			}
		}
		for key, row := range after {
			if before[l.Table.Name][key] != row {
				want[key] = true
			}
		}
		for key := range before[l.Table.Name] {
			if _, ok := after[key]; !ok && !truncated {
				want[key] = true
			}
		}
		if truncated { // what was there before may be logged or not
			maps.DeleteFunc(logged, func(key, _ string) bool { return !want[key] && before[l.Table.Name][key] != "" })
		}
		got := slices.Sorted(maps.Keys(logged))
		if want := slices.Sorted(maps.Keys(want)); !slices.Equal(got, want) {
			r.t.Errorf("table %v: logged %v\nwant %v\n(actions %v, truncated %v)", &l.Table, got, want, logged, truncated)
		}
		if len(got) == 0 && !truncated {
			r.t.Errorf("table %v: the change has changed nothing", &l.Table)
		}
		if n := r.String(fmt.Sprintf("select count(*) from (select * from %s union all select * from %s union all select * from %s) a where changed_by <> session_user", l.Segment(0), l.Segment(1), l.Segment(2))); n != "0" {
			r.t.Errorf("table %v: %s rows name another role", &l.Table, n)
		}
	}
}
