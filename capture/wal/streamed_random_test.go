package wal

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// testSeed is that of MILLRACE_TEST_SEED, or a new one.
func testSeed(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("MILLRACE_TEST_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("MILLRACE_TEST_SEED=%d", seed)
	return seed
}

// walker makes random transactions on rows of its own and knows what each must
// leave.
type walker struct {
	number int
	random *rand.Rand
	rows   map[int]string
	// after tells by xid what the walker's rows are after its transaction.
	mu    *sync.Mutex
	after map[uint32]map[int]string
}

// step makes a change of some rows, at the source and in w.rows.
func (w *walker) step() string {
	base := w.number * 100_000
	from := w.random.IntN(800)
	to := from + w.random.IntN([]int{1, 20, 500}[w.random.IntN(3)])
	v := strconv.Itoa(w.random.IntN(1000))
	each := func(fn func(id int)) {
		for i := from; i <= to; i++ {
			fn(base + i)
		}
	}
	where := fmt.Sprintf("where id between %d and %d", base+from, base+to)
	switch w.random.IntN(5) {
	case 0:
		each(func(id int) { delete(w.rows, id) })
		return "delete from a " + where + "; "
	case 1:
		each(func(id int) {
			if old, ok := w.rows[id]; ok {
				w.rows[id] = old + v
			}
		})
		return "update a set v = v || '" + v + "' " + where + "; "
	case 2:
		// Each key moves out of the range and back: the order matters.
		for i := to; i >= from; i-- {
			if old, ok := w.rows[base+i]; ok {
				delete(w.rows, base+i)
				w.rows[base+i+5000] = old
			}
		}
		each(func(id int) {
			if old, ok := w.rows[id+5000]; ok {
				delete(w.rows, id+5000)
				w.rows[id] = old
			}
		})
		return fmt.Sprintf("update a set id = id + 5000 %s; update a set id = id - 5000 where id between %d and %d; ", where, base+from+5000, base+to+5000)
	default:
		each(func(id int) { w.rows[id] = v })
		return fmt.Sprintf("insert into a select i, '%s' from generate_series(%d, %d) i on conflict (id) do update set v = excluded.v; ", v, base+from, base+to)
	}
}

// block makes steps and savepoints, which are released or rolled back.
func (w *walker) block(depth int) string {
	var sql strings.Builder
	for range 1 + w.random.IntN(5) {
		if depth == 0 || w.random.IntN(2) == 0 {
			sql.WriteString(w.step())
			continue
		}
		before := maps.Clone(w.rows)
		name := fmt.Sprintf("s%d", depth)
		sql.WriteString("savepoint " + name + "; " + w.block(depth-1))
		if w.random.IntN(2) == 0 {
			sql.WriteString("rollback to " + name + "; ")
			w.rows = before
			if w.random.IntN(2) == 0 {
				sql.WriteString(w.step()) // goes on inside
			}
		}
		sql.WriteString("release " + name + "; ")
	}
	return sql.String()
}

func (w *walker) transaction(ctx context.Context, c *client) error {
	before := maps.Clone(w.rows)
	if err := c.try(ctx, "begin"); err != nil {
		return err
	}
	xid, err := c.conn.PgConn().Exec(ctx, "select pg_current_xact_id()::xid").ReadAll()
	if err != nil {
		return err
	}
	n, err := strconv.ParseUint(string(xid[0].Rows[0][0]), 10, 32)
	if err != nil {
		return err
	}
	for range 1 + w.random.IntN(3) {
		if err := c.try(ctx, w.block(3)); err != nil {
			return err
		}
	}
	if w.random.IntN(5) == 0 {
		w.rows = before
		return c.try(ctx, "rollback")
	}
	w.mu.Lock()
	w.after[uint32(n)] = maps.Clone(w.rows)
	w.mu.Unlock()
	return c.try(ctx, "commit")
}

func (c *client) try(ctx context.Context, sql string) error {
	if _, err := c.conn.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	return nil
}

// Random transactions with nested savepoints beside each other, most of them
// streamed: after each unit the edge has exactly what its transaction left.
func TestStreamedRandom(t *testing.T) {
	seed := testSeed(t)
	r := streamedRig(t, nil, "create table a (id int primary key, v text)", "a")
	const walkers, each = 4, 15
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		after = make(map[uint32]map[int]string)
	)
	ctx := r.ctx()
	t.Cleanup(wg.Wait)
	for i := range walkers {
		w := &walker{number: i, random: rand.New(rand.NewPCG(seed, uint64(i))), rows: make(map[int]string), mu: &mu, after: after}
		c := r.client()
		wg.Go(func() {
			for range each {
				if err := w.transaction(ctx, c); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	finished := make(chan struct{})
	go func() { wg.Wait(); close(finished) }()
	random := rand.New(rand.NewPCG(seed, 99))
	check := func(a *applied) {
		xid := a.entries[len(a.entries)-1].End.XID
		mu.Lock()
		want := after[xid]
		mu.Unlock()
		if want == nil {
			t.Fatalf("unit of transaction %d, which did not commit", xid)
		}
		base := -1
		for id := range want {
			base = id / 100_000 * 100_000
		}
		if base < 0 {
			return
		}
		got := make(map[int]string)
		table := r.edge.at.Catalog.Schemas[0].Table
		for _, row := range r.edge.tables[table] {
			id, err := strconv.Atoi(string(row.columns[0].Text))
			if err != nil {
				t.Fatal(err)
			}
			if id >= base && id < base+100_000 {
				got[id] = string(row.columns[1].Text)
			}
		}
		if !maps.Equal(got, want) {
			t.Fatalf("after transaction %d: %d rows, want %d, or other values", xid, len(got), len(want))
		}
	}
	for writing := true; writing; {
		select {
		case <-finished:
			writing = false
		default:
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		u, err := r.src.Next(ctx)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		a, err := r.edge.apply(u)
		if err != nil {
			t.Fatal(err)
		}
		check(a)
		if random.IntN(15) == 0 {
			r.restart()
		}
	}
	r.sync()
	r.ended()
}
