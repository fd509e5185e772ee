package keylog

import (
	"fmt"
	"strings"
	"testing"

	"github.com/millrace-db/millrace/internal/pgtest"
)

// Who owns a partitioned table goes on adding partitions to it, without any right in
// schema millrace: each gets copies of the triggers, whose functions he must be
// allowed to use.
func TestPartitionsAreAddedByTheOwner(t *testing.T) {
	db := pgtest.New(t)
	owner := "owner_" + strings.SplitN(db.Name, "_", 2)[0]
	db.Exec("create role " + owner + "; grant create on schema public to " + owner)
	t.Cleanup(func() { db.Exec("drop owned by " + owner + "; drop role " + owner) })
	r := rigOn(t, db, "set role "+owner+"; create table p (id int primary key, v int) partition by range (id); create table p1 partition of p for values from (0) to (10); reset role", "p")
	r.Exec("set role " + owner + `; create table p2 partition of p for values from (10) to (20);
		create table p3 (id int not null, v int); alter table p attach partition p3 for values from (20) to (30);
		insert into p select g, g from generate_series(5, 25, 10) g; reset role`)
	r.intact()
	if got := r.String(fmt.Sprintf("select string_agg(right(proname, 1), '' order by proname) from pg_proc where proname like 'log\\_%%' and has_function_privilege('%s', oid, 'execute')", owner)); got != "diku" {
		t.Errorf("the owner may make triggers of the functions %q, want all but that of TRUNCATE", got)
	}
	if keys, _ := r.logged(r.log("p")); len(keys) != 3 {
		t.Errorf("logged %v, want 5, 15 and 25", keys)
	}
}
