package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/tests/harness"
)

// ddlRun is a stream whose tables are altered while they are written to.
type ddlRun struct {
	t        *testing.T
	s        *harness.System
	edge     *harness.Edge
	transfer *harness.Transfer
}

const (
	ddlStart = `create type mood as enum ('sad', 'ok', 'glad');
		create type place as (x int, y text);
		create domain score as int default 5 check (value > 0);
		create table a (id int primary key, touched int not null default 0, n int, q numeric(10, 2), m mood, ms mood[], p place, big text, note text);
		insert into a select i, 0, i, i + 0.5, 'ok', '{sad,ok}', row(i, 'y')::place, ` + ddlBig + `, 'note' from generate_series(1, 500) i;
		create table p (id int, region text, v text, touched int not null default 0, primary key (region, id)) partition by list (region);
		create table p_eu partition of p for values in ('eu');
		create table p_us partition of p for values in ('us');
		insert into p select i, (array['eu', 'us'])[i % 2 + 1], repeat('v', 200) from generate_series(1, 1000) i;
		create table later (id int primary key, v text);
		insert into later select i, 'v' from generate_series(1, 100) i`
	// ddlBig is stored out of line.
	ddlBig = "(select string_agg(md5(i::text || j::text), '') from generate_series(1, 150) j)"
	// ddlLimit is how long a step's load may take to reach the edge.
	ddlLimit = 3 * time.Minute
)

// write changes rows until ctx ends, whatever the tables look like.
func (r *ddlRun) write(ctx context.Context) {
	for i := 1; ctx.Err() == nil; i++ {
		id := i*7%500 + 1
		for _, sql := range []string{
			fmt.Sprintf("update a set touched = touched + 1 where id = %d", id),
			fmt.Sprintf("update p set touched = touched + 1 where id = %d", id),
			fmt.Sprintf("delete from p where region = 'eu' and id = %d", 2000+id),
			fmt.Sprintf("insert into p (id, region, v) values (%d, 'eu', 'written') on conflict do nothing", 2000+id%50),
		} {
			// A partition may be away, or a lock in the way of the end.
			_, _ = r.s.DB.Pool.Exec(ctx, sql)
		}
	}
}

// while runs fn beside a writer, then waits until the edge has what the source
// has.
func (r *ddlRun) while(what string, fn func()) {
	r.t.Helper()
	ctx, stop := context.WithCancel(r.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.write(ctx)
	}()
	harness.Pass(r.t.Context(), 50*time.Millisecond)
	fn()
	harness.Pass(r.t.Context(), 100*time.Millisecond)
	stop()
	<-done
	r.equal(what)
}

func (r *ddlRun) equal(what string) {
	r.t.Helper()
	for _, table := range r.s.Tables {
		if strings.HasSuffix(table, "later") && what == "first copy" {
			continue
		}
		harness.Until(r.t, ddlLimit, what+": the edge's rows of "+table+" are the source's", func(ctx context.Context) error {
			want, err := harness.SourceRows(ctx, r.s.DB, table, false)
			if err != nil {
				return err
			}
			key, err := harness.KeyOf(ctx, r.s.DB, table)
			if err != nil {
				return err
			}
			got, err := harness.EdgeRows(ctx, r.edge.Client, table, key, false)
			if err != nil {
				return harness.NotYet("%v", err)
			}
			if d := harness.Diff(want, got); d.Count() > 0 {
				return harness.NotYet("%s", d)
			}
			return nil
		})
	}
	for name, p := range map[string]*harness.Process{"transfer": r.transfer.Process, "edge": r.edge.Process} {
		if !p.Running() {
			r.t.Fatalf("%s: %s has ended: %s", what, name, p.Stderr())
		}
	}
}

// alter runs DDL beside a writer.
func (r *ddlRun) alter(sql string) {
	r.t.Helper()
	r.while(sql, func() { r.s.DB.Exec(sql) })
}

// reconfigure runs init with another configuration and starts transfer anew.
func (r *ddlRun) reconfigure(change func(*harness.System)) {
	r.t.Helper()
	change(r.s)
	r.s.Init()
	r.transfer.Kill() // it may have ended by itself, of the altered publication
	r.transfer = r.s.StartTransfer()
}

// TestDDL alters tables in mid-stream, in every way that the edge has to follow:
// at the end of each its rows equal to_jsonb of the source.
func TestDDL(t *testing.T) {
	t.Parallel()
	s := harness.NewSystem(t, kafkatest.Shared(t), "public.a", "public.p")
	s.Lease = time.Second
	s.DB.Exec(ddlStart)
	s.Init()
	r := &ddlRun{t: t, s: s, edge: s.NewEdge("edge-1")}
	r.transfer = s.StartTransfer()
	r.edge.Start()
	r.while("first copy", func() { r.edge.AwaitRow(copyLimit, "public.a", "1") })

	for _, sql := range []string{
		"alter table a add column plain text",
		"alter table a add column filled text not null default 'x'",
		"alter table a add column sc score",
		"alter table a rename column note to remark",
		"alter table a drop column plain",
		"alter table a drop column q; alter table a add column q text default 'again'",
		"alter table a alter column n type bigint using n * 1000",
		"alter table a alter column n type bigint using n + 1",
		"alter type mood rename value 'ok' to 'fine'",
		"alter type mood add value 'great'",
		"alter type place add attribute z int cascade",
		"alter table p add column w int not null default 7",
		"create table p_af partition of p for values in ('af'); insert into p (id, region) select i, 'af' from generate_series(1, 50) i",
		"create table p_sa (like p including all); insert into p_sa (id, region) select i, 'sa' from generate_series(1, 300) i; alter table p attach partition p_sa for values in ('sa')",
		"alter table p detach partition p_us",
		"drop table p_sa",
		"truncate p_af",
		"truncate p",
	} {
		r.alter(sql)
	}

	// Killed between the alteration and the end of the load.
	r.while("transfer killed after an alteration", func() {
		s.DB.Exec("insert into p (id, region, v) select i, 'eu', 'many' from generate_series(3000, 9000) i; alter table p add column late text default 'late'")
		r.transfer.Kill()
		s.DB.Exec("alter table p rename column late to later_still; truncate p_af")
		r.transfer = s.StartTransfer()
	})

	// A table joins, with some columns and all rows, then leaves and comes back
	// whole.
	r.while("a table joins", func() {
		r.reconfigure(func(s *harness.System) { s.Tables = append(s.Tables, "public.later") })
	})
	s.DB.Exec("update later set v = 'w' where id < 50")
	r.equal("a table that has joined")
	tables := s.Tables
	r.while("a table leaves", func() {
		r.reconfigure(func(s *harness.System) { s.Tables = s.Tables[:2] })
	})
	harness.Until(t, ddlLimit, "the table that left is gone", func(ctx context.Context) error {
		if _, err := r.edge.Row(ctx, "public.later", "1"); err == nil || !strings.Contains(err.Error(), "404") {
			return harness.NotYet("row: %v", err)
		}
		return nil
	})
	s.DB.Exec("delete from later where id > 90; insert into later values (1000, 'while away')")
	r.while("a table comes back", func() {
		r.reconfigure(func(s *harness.System) { s.Tables = tables })
	})
}
