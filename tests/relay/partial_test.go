package relay

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/tests/harness"
)

// TestPartial runs Kafka → root → near → far, where near holds a table and some keys of
// another one and far less than that, and an edge that holds as much as near and follows
// Kafka. All come to the root's chain and answer what they hold as it does, over a
// restart; what they do not hold they say they do not. Who wants more than near holds is
// refused by it.
func TestPartial(t *testing.T) {
	s := harness.NewSystem(t, kafkatest.Shared(t), "public.zones", "public.records", "public.bulk")
	s.DB.Exec(`CREATE TABLE zones (id int PRIMARY KEY, v text);
		CREATE TABLE records (zone int, id int, v text, PRIMARY KEY (zone, id));
		CREATE TABLE bulk (id int PRIMARY KEY, v text)`)
	write := func(v string) {
		t.Helper()
		s.DB.Exec(fmt.Sprintf(`BEGIN;
			INSERT INTO bulk SELECT i, repeat('%s', 200) FROM generate_series(1, 4000) i ON CONFLICT (id) DO UPDATE SET v = excluded.v;
			INSERT INTO records SELECT z, i, '%[1]s' || z || i FROM generate_series(1, 4) z, generate_series(1, 20) i ON CONFLICT (zone, id) DO UPDATE SET v = excluded.v;
			UPDATE bulk SET v = v || 'x' WHERE id < 10;
			COMMIT;
			INSERT INTO zones SELECT i, '%[1]s' || i FROM generate_series(1, 30) i ON CONFLICT (id) DO UPDATE SET v = excluded.v`, v))
	}
	write("a")
	s.Init()
	s.StartTransfer()
	stream := func(tables string) string { return fmt.Sprintf("  tables: {%s: {%s}}\n", s.Stream, tables) }
	edge := func(id, tables string, upstream *harness.Edge) *harness.Edge {
		e := s.NewEdge(id)
		if upstream != nil {
			e.Upstream = []string{"http://" + upstream.Address}
		}
		if tables != "" {
			e.More = stream(tables)
		}
		e.WriteConfig()
		e.Start()
		return e
	}
	const some = "public.zones: [], public.records: [[1], [3]]"
	root := edge("root", "", nil)
	// Then near begins with an image, which it has for others too, also for those that it refuses.
	harness.Until(t, copyLimit, "root has the tables", func(ctx context.Context) error {
		st, err := root.Status(ctx)
		if err == nil && (st.Index == 0 || len(st.Loading) > 0) {
			err = harness.NotYet("it stands at %d", st.Index)
		}
		return err
	})
	direct := edge("direct", some, nil)
	near := edge("near", some, root)
	far := edge("far", "public.records: [[3]]", near)
	// agree waits until an edge stands where the root does, and compares what it holds.
	agree := func(e *harness.Edge, zones ...string) {
		t.Helper()
		harness.Until(t, copyLimit, fmt.Sprintf("%s has the chain of root, and its rows", e.ID), func(ctx context.Context) error {
			a, err := e.Status(ctx)
			if err != nil {
				return err
			}
			b, err := root.Status(ctx)
			if err != nil {
				return err
			}
			if a.Index != b.Index || a.Index == 0 || len(a.Loading) > 0 {
				return harness.NotYet("it stands at %d, root at %d; fault %s", a.Index, b.Index, a.Fault)
			}
			if a.Chain != b.Chain {
				t.Fatalf("at index %d %s has chain %s, root has %s", a.Index, e.ID, a.Chain, b.Chain)
			}
			for _, zone := range zones {
				mine, err := e.Scan(ctx, "public.records", zone, 100, "")
				if err != nil {
					return err
				}
				its, err := root.Scan(ctx, "public.records", zone, 100, "")
				if err != nil {
					return err
				}
				if mine.Index != its.Index {
					return harness.NotYet("it was read at %d, root at %d", mine.Index, its.Index)
				}
				if got, want := fmt.Sprintf("%s", mine.Rows), fmt.Sprintf("%s", its.Rows); got != want || len(its.Rows) != 20 {
					t.Fatalf("%s has under %s %.200s, root %.200s", e.ID, zone, got, want)
				}
			}
			return nil
		})
	}
	all := func() {
		t.Helper()
		agree(direct, "1", "3")
		agree(near, "1", "3")
		agree(far, "3")
	}
	all()
	write("b")
	all()
	near.Kill()
	write("c")
	near.Start()
	all()
	for _, c := range []struct {
		e     *harness.Edge
		table string
		key   []string
	}{
		{direct, "public.bulk", []string{"1"}},
		{near, "public.bulk", []string{"1"}},
		{far, "public.zones", []string{"1"}},
		{near, "public.records", []string{"2", "1"}},
		{far, "public.records", []string{"1", "1"}},
		{direct, "public.records", []string{"4", "99"}},
	} {
		_, err := c.e.Row(t.Context(), c.table, c.key...)
		if err == nil || errors.Is(err, harness.ErrNotFound) || !strings.Contains(err.Error(), "421") || !strings.Contains(err.Error(), "not_held") {
			t.Errorf("%s, %s %v: %v", c.e.ID, c.table, c.key, err)
		}
	}
	for _, greedy := range []*harness.Edge{edge("greedy", "public.records: [[2]]", near), edge("greedier", "", near)} {
		harness.Until(t, moveLimit, greedy.ID+" is refused", func(ctx context.Context) error {
			st, err := greedy.Status(ctx)
			if err == nil && (st.Upstream == nil || !strings.Contains(st.Upstream.Upstreams[0].Problem, "this edge holds public.records (keys under 1; 3), public.zones")) {
				err = harness.NotYet("its status is %+v", st.Upstream)
			}
			return err
		})
	}
}
