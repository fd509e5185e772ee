package benchmarks

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/internal/pgtest"
	"github.com/millrace-db/millrace/internal/testdir"
	"github.com/millrace-db/millrace/tests/harness"
)

const (
	table     = "public.bench"
	stopLimit = time.Minute
	copyLimit = 5 * time.Minute
)

// newSystem makes a stream of one table with the given number of rows, over a
// Postgres of its own that syncs its files, and a real broker. Checkpoints and
// autovacuum stay away, so that every round finds the same server.
func newSystem(b *testing.B, rows int) (*harness.System, *harness.Edge) {
	b.Helper()
	return newSystemOf(b, rows, "")
}

// newSystemOf is newSystem with a way to capture: "" is what -capture says.
func newSystemOf(b *testing.B, rows int, mode string) (*harness.System, *harness.Edge) {
	b.Helper()
	server := pgtest.Cluster(b, pgtest.Options{FSync: true, Settings: map[string]string{
		"max_wal_size": "8GB", "checkpoint_timeout": "1h", "shared_buffers": "256MB", "autovacuum": "off",
	}})
	db := pgtest.On(b, server)
	s := &harness.System{
		T: b, DB: db, Kafka: kafkatest.Shared(b), Stream: "bench", Topic: kafkatest.Topic(b), Dir: testdir.For(b),
		Tables: []string{table}, SourceURL: db.URL, Capture: mode,
	}
	db.Exec(`CREATE TABLE bench (id bigint PRIMARY KEY, n int NOT NULL, note text NOT NULL)`)
	db.Exec(fmt.Sprintf(`INSERT INTO bench SELECT i, i %% 1000, 'note of row ' || i || ' and some more text to make it a row of about 100 bytes' FROM generate_series(1, %d) i`, rows))
	db.Exec(`ANALYZE bench; CHECKPOINT`)
	s.Init()
	return s, s.NewEdge("edge-1")
}

// awaitRow waits until the row is at the edge, looking as often as a reader in
// a loop does.
func awaitRow(ctx context.Context, e *harness.Edge, id int, limit time.Duration) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	key := fmt.Sprint(id)
	for {
		_, err := e.Row(ctx, table, key)
		if err == nil {
			return time.Now(), nil
		}
		if ctx.Err() != nil {
			return time.Time{}, fmt.Errorf("wait for row %d at the edge: %w", id, err)
		}
		harness.Pass(ctx, 200*time.Microsecond)
	}
}
