package keylog

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// window reads the keys of transactions that are visible now and were not in the
// snapshot before, as the capture does: first the locks, then the snapshot.
func (r *rig) window(ctx context.Context, conn *pgx.Conn, l *Log, before string) (keys []string, snapshot string, err error) {
	err = pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf("lock table %s, %s, %s in access share mode", l.Segment(0), l.Segment(1), l.Segment(2))); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, "select pg_current_snapshot()::text").Scan(&snapshot); err != nil {
			return err
		}
		var parts []string
		for i := range Segments {
			parts = append(parts, "select unnest(k1)::text from "+l.Segment(i)+" where not pg_visible_in_snapshot(txid::text::xid8, $1::text::pg_snapshot)")
		}
		rows, err := tx.Query(ctx, strings.Join(parts, " union all "), before)
		if err != nil {
			return err
		}
		keys, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	return keys, snapshot, err
}

// Segments are emptied under writers, some of them slow, and a reader: it gets every
// key, and the log does not grow.
func TestRotateEmptiesNothingUnpublished(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := newRig(t, "create table a (id bigint generated always as identity primary key)")
	r.cfg.Period = time.Second
	r.capture("a")
	l := r.log("a")
	start := r.String("select pg_current_snapshot()")
	done := make(chan struct{})
	failed := make(chan error, 8)
	const writers = 4
	for n := range writers {
		conn, random := r.connect(r.URL), rand.New(rand.NewPCG(seed, uint64(n)))
		go func() {
			for {
				select {
				case <-done:
					failed <- nil
					return
				default:
				}
				err := pgx.BeginFunc(r.ctx(), conn, func(tx pgx.Tx) error {
					_, err := tx.Exec(r.ctx(), "insert into a select from generate_series(1, $1)", random.IntN(5))
					if err == nil && n == 0 { // this one is slow: longer than two periods at times
						_, err = tx.Exec(r.ctx(), "select pg_sleep($1)", random.Float64()*3)
					}
					if err == nil {
						_, err = tx.Exec(r.ctx(), "insert into a default values")
					}
					return err
				})
				if err != nil {
					failed <- fmt.Errorf("writer: %w", err)
					return
				}
			}
		}()
	}
	confirmed := make(chan string, 1)
	confirmed <- start
	var emptied atomic.Int64
	rotator := r.connect(r.URL)
	go func() {
		for {
			select {
			case <-done:
				failed <- nil
				return
			case snapshot := <-confirmed:
				rotation, err := Rotate(r.ctx(), rotator, "s", snapshot)
				if err != nil {
					failed <- fmt.Errorf("rotate: %w", err)
					return
				}
				emptied.Add(int64(len(rotation.Emptied)))
			}
		}
	}()
	const fewest = 3 // segments that are emptied; a slow writer, or a busy machine, keeps some of them
	seen := make(map[string]bool)
	before := start
	var size int
	for begin := time.Now(); time.Since(begin) < 7*time.Second || emptied.Load() < fewest && time.Since(begin) < limit/2; {
		keys, snapshot, err := r.window(r.ctx(), r.conn, l, before)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range keys {
			if seen[key] {
				t.Fatalf("key %s was seen twice", key)
			}
			seen[key] = true
		}
		// What is published lags behind what was read.
		published := before
		before = snapshot
		select {
		case confirmed <- published:
		default:
		}
		n, err := strconv.Atoi(r.String("select sum(pg_table_size(format('millrace.log_%s_%s', $1::text, n)::regclass)) from generate_series(0, 2) n", strconv.Itoa(l.ID)))
		if err != nil {
			t.Fatal(err)
		}
		size = max(size, n)
	}
	close(done)
	for range writers + 1 {
		if err := <-failed; err != nil {
			t.Fatal(err)
		}
	}
	keys, _, err := r.window(r.ctx(), r.conn, l, before)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		seen[key] = true
	}
	want := r.rows(l)
	for key := range want {
		if !seen[key] {
			t.Fatalf("key %s was never seen", key)
		}
	}
	t.Logf("%d keys, %d segments emptied, %d bytes at most", len(want), emptied.Load(), size)
	if len(want) != len(seen) || emptied.Load() < fewest {
		t.Errorf("%d keys were written, %d seen, %d segments emptied", len(want), len(seen), emptied.Load())
	}
	r.intact()
	if dead := r.String("select coalesce(sum(n_dead_tup), 0) from pg_stat_user_tables where relname like 'log\\_%' and schemaname = 'millrace'"); dead != "0" {
		t.Errorf("dead rows in the log: %s", dead)
	}
}

// A segment that an open or a prepared transaction wrote to, or that holds what is
// not published, or that somebody has touched, is left alone, soon.
func TestRotateLeavesWhatIsInUse(t *testing.T) {
	r := newRig(t, "create table a (id int primary key)", "a")
	r.cfg.Period = time.Second
	r.capture("a")
	l := r.log("a")
	now := func() string { return r.String("select pg_current_snapshot()") }
	// oldest returns the segment that is written to next, once it is that one.
	await := func(segment string) {
		t.Helper()
		for deadline := time.Now().Add(limit); ; {
			if r.String("select (millrace.segment(1) + 1) % 3") == segment {
				return
			}
			if time.Now().After(deadline) {
				t.Fatal("time stands still")
			}
			r.String("select pg_sleep(0.02)")
		}
	}
	// rotate wants that, while it is the turn of the segment; and never that it is
	// emptied otherwise. Others may be, whose turn has come meanwhile.
	rotate := func(segment, snapshot string, want Rotation) {
		t.Helper()
		name := "millrace." + fmt.Sprintf("log_%d_%s", l.ID, segment)
		for deadline := time.Now().Add(limit); ; {
			await(segment)
			got, err := Rotate(r.ctx(), r.conn, "s", snapshot)
			if err != nil {
				t.Fatal(err)
			}
			if fmt.Sprint(got) == fmt.Sprint(want) {
				return
			}
			if slices.Contains(got.Emptied, name) && !slices.Contains(want.Emptied, name) || time.Now().After(deadline) {
				t.Fatalf("rotate: got %+v, want %+v", got, want)
			}
		}
	}
	before := now()
	tx, err := r.connect(r.URL).Begin(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(r.ctx(), "insert into a values (1)"); err != nil {
		t.Fatal(err)
	}
	segment := ""
	for i := range Segments { // time may have moved on since
		var written bool
		if err := tx.QueryRow(r.ctx(), "select exists (select from "+l.Segment(i)+")").Scan(&written); err != nil {
			t.Fatal(err)
		}
		if written {
			segment = strconv.Itoa(i)
		}
	}
	name := "millrace." + fmt.Sprintf("log_%d_%s", l.ID, segment)
	rotate(segment, now(), Rotation{Busy: []string{name}})
	if err := tx.Commit(r.ctx()); err != nil {
		t.Fatal(err)
	}
	rotate(segment, before, Rotation{Kept: []string{name}})
	rotate(segment, now(), Rotation{Emptied: []string{name}})
	r.intact()
	rotate(segment, now(), Rotation{})

	for { // until the segment is another one's turn, and back
		r.Exec("insert into a select coalesce(max(id), 0) + 1 from a")
		if n := r.String("select count(*) from " + name); n != "0" {
			break
		}
	}
	r.Exec("vacuum full " + name)
	rotate(segment, now(), Rotation{Kept: []string{name}})
	if got := r.log("a").Problems; !slices.Contains(got, Problem{SegmentEmptied, "table " + name + " was truncated or rewritten by somebody else"}) {
		t.Errorf("after somebody rewrote the segment: %v", got)
	}
}

func TestPrune(t *testing.T) {
	r := newRig(t, "create table a (id int primary key)", "a")
	r.Exec(`insert into millrace.tick (stream, epoch, tick, before, snapshot, counts, taken_at)
		select stream, epoch, tick, '', '1:1:', '{}', now() - case when tick < 8 then interval '2 hours' else interval '0' end
		from unnest('{s,other}'::text[]) stream, generate_series(1, 2) epoch, generate_series(1, 10) tick;
		insert into millrace.ddl_event (txid, happened_at, who, application, tag, command, table_id, object, rewritten)
		select 1, now() - n * interval '40 minutes', '', '', '', '', 0, '', false from generate_series(0, 3) n;
		update millrace.tick set snapshot = case stream when 's' then '5:5:' else '4:4:' end where stream = 'other' or tick > 4;
		insert into millrace.key_log select 9, 'other', 9, '', mode, '{}', 1, '', 1, '', '{}' from millrace.key_log;
		insert into millrace.ddl_event (txid, happened_at, who, application, tag, command, table_id, object, rewritten)
		select n, now() - interval '3 hours', '', '', 'unseen', '', 0, '', true from generate_series(4, 5) n`) // 4 is not seen where the other stream may begin, 5 by none
	// Ticks 1…7 of epoch 1, 1…4 of epoch 2; two events, when all ticks are gone that do
	// not see them.
	for _, want := range []int64{2, 2 + 2, 2, 2, 2, 1, 0} {
		if got, err := Prune(r.ctx(), r.conn, "s", 2, 5, time.Hour, 2); err != nil || got != want {
			t.Errorf("prune: got %d, %v, want %d", got, err, want)
		}
	}
	for query, want := range map[string]string{
		"select string_agg(epoch || '.' || tick, ' ' order by epoch, tick) from millrace.tick where stream = 's'": "1.8 1.9 1.10 2.5 2.6 2.7 2.8 2.9 2.10",
		"select count(*) from millrace.tick where stream = 'other'":                                               "20",
		"select string_agg(tag || txid, ' ' order by id) from millrace.ddl_event":                                 "1 1 unseen4 unseen5",
	} {
		if got := r.String(query); got != want {
			t.Errorf("%s: got %s, want %s", query, got, want)
		}
	}
}
