package benchmarks

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/capture/trigger/keylog"
	"github.com/millrace-db/millrace/internal/pgtest"
	"github.com/millrace-db/millrace/tests/harness"
)

// BenchmarkRotation lets -turns segments be written, published and emptied while
// clients write all the time: a day at an hour a segment is 24 of them, here each
// takes a second. The log must hold no dead rows and end no larger than it was.
func BenchmarkRotation(b *testing.B) {
	for b.Loop() {
		rotation(b)
	}
}

func rotation(b *testing.B) {
	const period = time.Second
	server := pgtest.Cluster(b, pgtest.Options{FSync: true, Settings: map[string]string{"shared_buffers": "256MB"}})
	db := pgtest.On(b, server)
	db.Exec(`CREATE EXTENSION pgstattuple; CREATE TABLE bench (id bigint PRIMARY KEY, n int NOT NULL, note text NOT NULL)`)
	t := newTaker(b, db, harness.CaptureTrigger, 50*time.Millisecond, table)
	ctx, cancel := context.WithTimeout(b.Context(), backlogLimit)
	defer cancel()
	stream := db.String(`SELECT stream FROM millrace.key_log`)
	shorten(ctx, b, db, stream, period)
	t.begin()

	// Writers, one key a row of the log and two hundred a row.
	writing, stop := context.WithCancel(ctx)
	wrote := make(chan error, 1)
	go func() { wrote <- writeAlways(writing, db) }()
	type look struct{ size, dead, rows int64 }
	var looks []look
	emptied, busy := 0, 0
	turn := db.String(`SELECT millrace.segment(1)`)
	for len(looks) < *turnsFlag {
		if err := t.note(t.next()); err != nil {
			b.Fatal(err)
		}
		// Not through the pool: what begins the emptying has to end it.
		r, err := keylog.Rotate(ctx, db.Pool, stream, t.at.Position.Snapshot)
		if err != nil {
			b.Fatal(err)
		}
		emptied += len(r.Emptied)
		busy += len(r.Busy)
		if now := db.String(`SELECT millrace.segment(1)`); now != turn {
			turn = now
			var l look
			err := db.Pool.QueryRow(ctx, `SELECT sum(pg_total_relation_size(c.oid))::bigint, sum(s.dead_tuple_count)::bigint, sum(s.tuple_count)::bigint
				FROM pg_class c, pgstattuple(c.oid) s WHERE c.relnamespace = 'millrace'::regnamespace AND c.relname ~ '^log_\d+_\d$'`).Scan(&l.size, &l.dead, &l.rows)
			if err != nil {
				b.Fatal(err)
			}
			looks = append(looks, l)
		}
	}
	stop()
	if err := <-wrote; err != nil {
		b.Fatal(err)
	}
	logged, err := strconv.ParseInt(db.String(`SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 'bench'`), 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	sizes := func(of []look) (all []float64) {
		for _, l := range of {
			all = append(all, float64(l.size))
		}
		return all
	}
	third := len(looks) / 3
	early, late := slices.Max(sizes(looks[third:2*third])), slices.Max(sizes(looks[2*third:]))
	dead := slices.MaxFunc(looks, func(x, y look) int { return int(x.dead - y.dead) }).dead
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(dead), "dead-rows")
	b.ReportMetric(early/(1<<10), "early-KiB")
	b.ReportMetric(late/(1<<10), "late-KiB")
	record(b, map[string]any{
		"what": "segments in turn, a second each", "turns": len(looks), "emptied": emptied, "busy": busy, "dead_rows": dead, "rows_written": logged,
		"middle_third_max_bytes": early, "last_third_max_bytes": late, "sizes": sizes(looks),
	})
	if dead > 0 {
		b.Errorf("the log held %d dead rows", dead)
	}
	if emptied < len(looks)-3 {
		b.Errorf("%d segments were emptied in %d turns", emptied, len(looks))
	}
}

// shorten makes a segment's time shorter than a configuration may have it.
func shorten(ctx context.Context, b *testing.B, db *pgtest.DB, stream string, period time.Duration) {
	b.Helper()
	conn, err := pgx.Connect(ctx, db.URL)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }() // nothing is lost with it
	cfg := keylog.Config{Stream: stream, Period: period, Tables: []keylog.Table{keylogTable(b, db, table)}}
	if err := keylog.Install(ctx, conn, cfg); err != nil {
		b.Fatal(err)
	}
}

// writeAlways writes until ctx ends.
func writeAlways(ctx context.Context, db *pgtest.DB) error {
	for at := 0; ctx.Err() == nil; at += 1000 {
		for i := range 50 {
			if _, err := db.Pool.Exec(ctx, `INSERT INTO bench VALUES ($1, 1, 'one')`, at+i); err != nil && ctx.Err() == nil {
				return fmt.Errorf("write: %w", err)
			}
		}
		if _, err := db.Pool.Exec(ctx, `INSERT INTO bench SELECT i, 1, 'many' FROM generate_series($1::int, $1 + 499) i`, at+500); err != nil && ctx.Err() == nil {
			return fmt.Errorf("write: %w", err)
		}
		if _, err := db.Pool.Exec(ctx, `DELETE FROM bench WHERE id < $1`, at-5000); err != nil && ctx.Err() == nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	return nil
}
