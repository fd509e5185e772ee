package keylog

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
)

// tampered has a table and a partitioned one.
const tampered = `create table a (id int primary key, v int); insert into a values (1, 1);
	create table r (id int primary key, v int) partition by range (id);
	create table r1 partition of r for values from (0) to (10); create table r2 partition of r for values from (10) to (20);`

// numbered puts the numbers of the logs of a and r where _N_ and _M_ are.
func (r *rig) numbered(statements string) string {
	logs := r.look()
	return strings.NewReplacer("_N_", fmt.Sprintf("_%d_", logs[0].ID), "_M_", fmt.Sprintf("_%d_", logs[1].ID)).Replace(statements)
}

// Whatever keeps a change out of a log is seen for good, and init makes it whole.
func TestTamperingIsSeen(t *testing.T) {
	r, reset := newRig(t, ""), true
	next := map[string]int{"a": 1, "r": 1} // keys
	for _, c := range []struct {
		name, change string
		want         []Kind
		lost         bool // init cannot mend it
	}{
		{"disabled and enabled", "alter table a disable trigger millrace_N_i; alter table a enable always trigger millrace_N_i", []Kind{TriggerReplaced}, false},
		{"disabled", "alter table a disable trigger millrace_N_k", []Kind{TriggerDisabled}, false},
		{"all disabled, enabled as usual", "alter table a disable trigger all; alter table a enable trigger all", []Kind{TriggerDisabled, TriggerDisabled, TriggerDisabled, TriggerDisabled, TriggerDisabled}, false},
		{"all disabled, enabled always", "alter table a disable trigger all; alter table a enable always trigger millrace_N_d", []Kind{TriggerReplaced, TriggerDisabled, TriggerDisabled, TriggerDisabled, TriggerDisabled}, false},
		{"dropped", "drop trigger millrace_N_t on a", []Kind{TriggerMissing}, false},
		{"made again", "drop trigger millrace_N_d on a; create trigger millrace_N_d after delete on a referencing old table as millrace_rows for each statement execute function millrace.log_N_d(); alter table a enable always trigger millrace_N_d", []Kind{TriggerReplaced}, false},
		{"renamed trigger", "alter trigger millrace_N_u on a rename to mine", []Kind{TriggerMissing}, false},
		{"function replaced by the same", "do $$ begin execute pg_get_functiondef('millrace.log_N_u'::regproc); end $$", []Kind{FunctionReplaced}, false},
		{"function dropped", "drop function millrace.log_N_i() cascade", []Kind{TriggerMissing, FunctionMissing}, false},
		{"function's owner", "alter function millrace.log_N_i() owner to postgres", []Kind{FunctionReplaced}, false},
		{"segment truncated", "truncate millrace.log_N_1", []Kind{SegmentEmptied}, false},
		{"segment dropped", "drop table millrace.log_N_2", []Kind{SegmentMissing}, false},
		{"table dropped", "drop table a", []Kind{TableDropped}, true},
		{"dropped and made again", "drop table a; create table a (id int primary key, v int)", []Kind{TableDropped}, true},
		{"key column renamed", "alter table a rename id to key", []Kind{KeyChanged}, false},
		{"key column dropped", "alter table a drop column id cascade", []Kind{TriggerMissing, KeyChanged}, true},
		{"becomes a partition", "create table p (id int not null, v int) partition by range (id); alter table p attach partition a default", []Kind{WrittenElsewhere}, false},
		{"gets a child", "create table child () inherits (a)", []Kind{WrittenElsewhere}, true},
		{"a partition's trigger disabled", "alter table r1 disable trigger millrace_M_u", []Kind{PartitionTriggers}, false},
		{"a partition's trigger enabled as usual", "alter table r2 enable trigger millrace_M_k", []Kind{PartitionTriggers}, false},
		{"a partition's trigger disabled and enabled", "alter table r1 disable trigger millrace_M_i; alter table r1 enable always trigger millrace_M_i", []Kind{PartitionTriggers}, false},
		{"a later partition's trigger disabled and enabled", "begin; create table r3 partition of r for values from (20) to (30); commit; alter table r3 disable trigger millrace_M_i; alter table r3 enable always trigger millrace_M_i", []Kind{PartitionTriggers}, false},
		{"a trigger of the root disabled for its partitions", "alter table r disable trigger millrace_M_d", []Kind{TriggerDisabled, PartitionTriggers, PartitionTriggers}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r.t = t
			if reset {
				r.Exec("drop schema public cascade; create schema public; " + tampered)
				r.capture("a", "r")
			}
			reset = c.lost || slices.Contains([]string{"renamed trigger", "key column renamed", "becomes a partition", "a later partition's trigger disabled and enabled"}, c.name)
			before := map[string]*Log{"a": r.log("a"), "r": r.log("r")}
			_, err := r.Pool.Exec(r.ctx(), r.numbered(c.change), pgx.QueryExecModeSimpleProtocol)
			if code(err) == "0A000" && c.want[0] == WrittenElsewhere {
				return // some servers refuse that by themselves
			}
			if err != nil {
				t.Fatal(err)
			}
			var (
				got     []Kind
				stop    error
				changed *Log
			)
			for _, l := range r.look() {
				for _, p := range l.Problems {
					got = append(got, p.Kind)
					changed = &l
				}
				stop = errors.Join(stop, l.Err(nil))
			}
			if !slices.Equal(got, c.want) {
				t.Fatalf("got %v, want %v", got, c.want)
			}
			if !errors.Is(stop, ErrTriggers) || !millrace.NeedsOperator(stop) || !strings.Contains(stop.Error(), "mend: millrace init") {
				t.Errorf("error: %v", stop)
			}
			if c.lost {
				return
			}
			// init makes it whole, and says since when it is.
			r.capture("a", "r")
			name := changed.Table.Name
			after := r.log(name)
			if after.CompleteSince <= before[name].CompleteSince || after.Reason == "" {
				t.Errorf("after init: complete since %d because of %q, before it %d", after.CompleteSince, after.Reason, before[name].CompleteSince)
			}
			if other := map[string]string{"a": "r", "r": "a"}[name]; r.log(other).CompleteSince != before[other].CompleteSince {
				t.Errorf("after init: table %s is to be loaded too", other)
			}
			r.empty()
			next[name]++
			key := fmt.Sprint(next[name])
			r.Exec("insert into " + name + " values (" + key + ", 7)")
			if keys, _ := r.logged(after); keys[key] != "I" {
				t.Errorf("after init: logged %v", keys)
			}
		})
	}
}

// What takes no change away is no problem.
func TestHarmlessChangesAreNoTampering(t *testing.T) {
	r := newRig(t, tampered, "a", "r")
	for _, c := range []struct{ name, change string }{
		{"catalogs rewritten", "vacuum full pg_trigger"},
		{"catalogs rewritten 2", "vacuum full pg_proc"},
		{"catalogs rewritten 3", "vacuum full pg_class"},
		{"catalogs rewritten 4", "vacuum freeze pg_trigger"},
		{"reindexed", "reindex table pg_trigger"},
		{"reindexed 2", "reindex table a"},
		{"table rewritten", "vacuum full a"},
		{"clustered", "cluster a using a_pkey"},
		{"analyzed", "vacuum analyze a; vacuum analyze millrace.log_N_0"},
		{"columns added and dropped", "alter table a add c int default 5; alter table a drop column v; alter table a alter c type text"},
		{"other triggers and constraints", "create table f (id int references a); create function f() returns trigger language plpgsql as 'begin return new; end'; create trigger f before insert on a for each row execute function f(); alter table a disable trigger f; drop trigger f on a"},
		{"another key beside", "alter table a add unique (c)"},
		{"truncated", "truncate a cascade"},
		{"rights", "grant select on a to public; grant select on all tables in schema millrace to public"},
		{"a partition comes", "create table r3 partition of r for values from (20) to (30); create table r4 (id int not null, v int); alter table r attach partition r4 for values from (30) to (40); alter table r detach partition r1; create table r5 (id int not null, v int) partition by list (id); create table r5a partition of r5 default; alter table r attach partition r5 for values from (50) to (60); create table r5b partition of r5 for values in (51)"},
		{"taken back", "begin; alter table a disable trigger all; drop function millrace.log_N_i() cascade; rollback"},
		{"renamed", "alter table a rename to b"},
		{"moved", "create schema if not exists other; alter table b set schema other"},
	} {
		// VACUUM is no part of a transaction.
		change := []string{r.numbered(c.change)}
		if strings.HasPrefix(c.change, "vacuum") {
			change = strings.Split(change[0], "; ")
		}
		for _, statement := range change {
			r.Exec(statement)
		}
		for _, l := range r.look() {
			if len(l.Problems) > 0 || l.Err(nil) != nil {
				t.Fatalf("%s: table %v: %v", c.name, &l.Table, l.Problems)
			}
		}
	}
	for _, l := range r.look() {
		if want := l.InstalledName != l.Table.String(); l.Renamed() != want {
			t.Errorf("table %v, installed as %s: renamed is %v", &l.Table, l.InstalledName, l.Renamed())
		}
	}
	if got := r.String("select table_name from millrace.key_log where table_id = 'other.b'::regclass"); got != "public.a" {
		t.Errorf("the table that was renamed and moved is entered as %q", got)
	}
}
