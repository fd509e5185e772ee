package control

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/internal/pgtest"
	"github.com/millrace-db/millrace/sql"
)

// catalogs describes everything that is in the database and is not the server's
// own, without what differs from one creation to the next.
const catalogs = `
SELECT coalesce(string_agg(line, E'\n' ORDER BY line), '') FROM (
    SELECT format('schema %s owner %s acl %s', nspname, nspowner::regrole, nspacl) FROM pg_namespace WHERE nspname !~ '^pg_|^information_schema$'
  UNION ALL
    SELECT format('relation %s kind %s owner %s acl %s options %s comment %s', c.oid::regclass, relkind, relowner::regrole, relacl, reloptions, obj_description(c.oid, 'pg_class'))
    FROM pg_class c WHERE relnamespace::regnamespace::text !~ '^pg_|^information_schema$'
  UNION ALL
    SELECT format('column %s.%s %s %s not null %s default %s', attrelid::regclass, attname, attnum, format_type(atttypid, atttypmod), attnotnull,
        (SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef d WHERE d.adrelid = attrelid AND d.adnum = attnum))
    FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
    WHERE attnum > 0 AND NOT attisdropped AND relnamespace::regnamespace::text !~ '^pg_|^information_schema$'
  UNION ALL
    SELECT format('index %s', pg_get_indexdef(indexrelid)) FROM pg_index JOIN pg_class c ON c.oid = indexrelid
    WHERE relnamespace::regnamespace::text !~ '^pg_|^information_schema$'
  UNION ALL
    SELECT format('constraint %s on %s: %s', conname, conrelid::regclass, pg_get_constraintdef(oid)) FROM pg_constraint
    WHERE connamespace::regnamespace::text !~ '^pg_|^information_schema$'
  UNION ALL
    SELECT format('function %s owner %s acl %s: %s', oid::regprocedure, proowner::regrole, proacl, CASE WHEN prokind IN ('f', 'p') THEN pg_get_functiondef(oid) END) FROM pg_proc
    WHERE pronamespace::regnamespace::text !~ '^pg_|^information_schema$'
  UNION ALL
    SELECT format('trigger %s', pg_get_triggerdef(oid)) FROM pg_trigger WHERE NOT tgisinternal
  UNION ALL
    SELECT format('type %s owner %s', oid::regtype, typowner::regrole) FROM pg_type WHERE typnamespace::regnamespace::text !~ '^pg_|^information_schema$'
  UNION ALL
    SELECT format('event trigger %s %s', evtname, evtenabled) FROM pg_event_trigger
  UNION ALL
    SELECT format('publication %s', pubname) FROM pg_publication
  UNION ALL
    SELECT format('rule %s', pg_get_ruledef(r.oid)) FROM pg_rewrite r JOIN pg_class c ON c.oid = ev_class
    WHERE relnamespace::regnamespace::text !~ '^pg_|^information_schema$'
) AS all_of_it (line)`

// migrateTo runs the files up to a version.
func migrateTo(t *testing.T, conn *pgx.Conn, to int) {
	t.Helper()
	all, err := Migrations()
	if err != nil {
		t.Fatal(err)
	}
	for done := false; !done; {
		if done, err = migrateOnce(testContext(t), conn, all[:to]); err != nil {
			t.Fatal(err)
		}
	}
}

// Each file and the one that takes it back are each other's opposite: up, down, up
// leaves the same catalogs, file by file and all at once.
func TestMigrationsThereAndBack(t *testing.T) {
	db := pgtest.New(t)
	conn := connect(t, db)
	ctx := testContext(t)
	all, err := Migrations()
	if err != nil {
		t.Fatal(err)
	}
	states := []string{db.String(catalogs)}
	compare := func(version int, how string) {
		t.Helper()
		got := db.String(catalogs)
		if got == states[version] {
			return
		}
		t.Errorf("version %d %s is another than before:%s", version, how, difference(states[version], got))
	}
	for n := 1; n <= len(all); n++ {
		migrateTo(t, conn, n)
		states = append(states, db.String(catalogs))
		if states[n] == states[n-1] {
			t.Errorf("version %d: the catalogs do not show it, so nothing is compared", n)
		}
		undone, err := Downgrade(ctx, conn, n-1)
		if err != nil {
			t.Fatal(err)
		}
		if len(undone) != 1 || undone[0].Number != n {
			t.Errorf("downgrade from %d: took back %v", n, undone)
		}
		compare(n-1, "after a downgrade")
		migrateTo(t, conn, n)
		compare(n, "after down and up")
	}
	applied, err := Applied(ctx, conn, 0)
	if err != nil || len(applied) != len(all) || applied[0].Number != len(all) {
		t.Errorf("applied: got %v, %v", applied, err)
	}
	for range 2 { // the second has nothing to do
		if _, err := Downgrade(ctx, conn, 0); err != nil {
			t.Fatal(err)
		}
		compare(0, "after all were taken back")
	}
	migrateTo(t, conn, len(all))
	compare(len(all), "after all came again")
	for _, to := range []int{-1, len(all) + 1} {
		if _, err := Downgrade(ctx, conn, to); err == nil {
			t.Errorf("downgrade to %d: want an error", to)
		}
	}
}

// difference lists the lines that only one of two texts has.
func difference(before, after string) string {
	var b strings.Builder
	for _, side := range []struct{ mark, in, notIn string }{{"- ", before, after}, {"+ ", after, before}} {
		for line := range strings.Lines(side.in) {
			if line = strings.TrimSpace(line); !strings.Contains("\n"+side.notIn+"\n", "\n"+line+"\n") {
				b.WriteString("\n" + side.mark + line)
			}
		}
	}
	return b.String()
}

// A downgrade is refused where it would lose what somebody needs, and then has
// changed nothing.
func TestDowngradeRefusals(t *testing.T) {
	db, conn, _ := bank(t)
	ctx := testContext(t)
	all, err := Migrations()
	if err != nil {
		t.Fatal(err)
	}
	before := db.String(catalogs)
	for _, to := range []int{0, 1} {
		_, err := Downgrade(ctx, conn, to)
		if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "bank") || !strings.Contains(err.Error(), "mend: millrace uninstall") {
			t.Errorf("downgrade to %d with a stream: got %v, want ErrInUse, its name and the mend", to, err)
		}
		if after := db.String(catalogs); after != before {
			t.Errorf("a refused downgrade has changed:%s", difference(before, after))
		}
	}
	db.Exec(`create table millrace.guest (id int)`)
	if _, err := DropStream(ctx, conn, "bank"); !errors.Is(err, ErrForeignObjects) || !strings.Contains(err.Error(), "guest") {
		t.Errorf("drop the schema with a foreign table in it: got %v, want ErrForeignObjects and its name", err)
	}
	if got := db.String(`select count(*) from millrace.stream`); got != "1" {
		t.Errorf("a refused drop has left %s streams, want 1", got)
	}
	db.Exec(`drop table millrace.guest`)
	db.Exec(`insert into millrace.version (number) values (9999)`)
	if _, err := Downgrade(ctx, conn, len(all)); !errors.Is(err, ErrNewer) {
		t.Errorf("downgrade of a newer schema: got %v, want ErrNewer", err)
	}
}

// What a superuser's init made goes with the schema of an owner who is none.
func TestDowngradeByAnOwner(t *testing.T) {
	db := pgtest.New(t)
	ctx := testContext(t)
	role := "owner_" + db.Name[:2]
	db.Exec("create role " + role + " login; grant create on database " + pgx.Identifier{db.Name}.Sanitize() + " to " + role)
	t.Cleanup(func() { db.Exec("drop owned by " + role + "; drop role " + role) })
	before := db.String(catalogs)
	u, err := url.Parse(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(role)
	owner, err := pgx.Connect(ctx, u.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = owner.Close(context.Background()) })
	if err := Migrate(ctx, owner); err != nil {
		t.Fatal(err)
	}
	other, err := url.Parse(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	db.Exec("create role stranger_of_" + role + " login")
	t.Cleanup(func() { db.Exec("drop role stranger_of_" + role) })
	other.User = url.User("stranger_of_" + role)
	stranger, err := pgx.Connect(ctx, other.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stranger.Close(context.Background()) })
	if _, err := LoadStream(ctx, stranger, "bank"); !errors.Is(err, ErrRights) || !strings.Contains(err.Error(), "mend: ") {
		t.Errorf("load as a role without rights: got %v, want ErrRights and its mend", err)
	}
	db.Exec(sql.EventTriggers)
	if got := db.String(`select count(*) from pg_event_trigger`); got != "3" {
		t.Fatalf("there are %s event triggers, want 3", got)
	}
	if dropped, err := DropStream(ctx, owner, "none"); err != nil || !dropped {
		t.Fatalf("drop as the owner: got %v, %v", dropped, err)
	}
	if after := db.String(catalogs); after != before {
		t.Errorf("something is left:%s", difference(before, after))
	}
}
