package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/child"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// PgbenchTables are the tables of pgbench's TPC-B-like workload.
func PgbenchTables() []string {
	return []string{"public.pgbench_accounts", "public.pgbench_branches", "public.pgbench_history", "public.pgbench_tellers"}
}

// Pgbench runs pgbench against a database.
type Pgbench struct {
	Scale   int
	Clients int
	// Rate bounds the transactions a second; 0 means as many as will go.
	Rate int
	db   *pgtest.DB
	path string
	// Transactions counts those that its runs report.
	Transactions atomic.Int64
	// Bulks counts the transactions of Bulk.
	Bulks atomic.Int64
}

// At has later runs go to another server, which has the tables.
func (b *Pgbench) At(db *pgtest.DB) { b.db = db }

const pgbenchInitLimit = 3 * time.Minute

// NewPgbench makes pgbench's tables, with a key for pgbench_history.
func NewPgbench(t testing.TB, db *pgtest.DB, scale, clients int) *Pgbench {
	t.Helper()
	path, err := db.Server.Binaries().Program("pgbench")
	must(t, "find pgbench", err)
	b := &Pgbench{Scale: scale, Clients: clients, db: db, path: path}
	ctx, cancel := context.WithTimeout(t.Context(), pgbenchInitLimit)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "-i", "-q", "-s", strconv.Itoa(scale), db.URL).CombinedOutput()
	if err != nil {
		t.Fatalf("pgbench -i: %v: %s", err, out)
	}
	db.Exec(`ALTER TABLE pgbench_history ADD COLUMN id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY`)
	return b
}

// Run runs the workload, one run of some seconds after another, until ctx ends
// and the last run with it.
func (b *Pgbench) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := b.once(); err != nil {
			return err
		}
	}
	return nil
}

// Bulk updates many accounts in one transaction, again and again, until ctx
// ends: units that need several batches. It changes nothing that the books
// count. A machine that takes long for one gets a longer pause: what it cannot
// keep up with would only pile up.
func (b *Pgbench) Bulk(ctx context.Context, rows int, every time.Duration) error {
	live := context.WithoutCancel(ctx)
	for i := 0; ctx.Err() == nil; i++ {
		from, began := i*rows%(b.Scale*100_000), time.Now()
		if _, err := b.db.Pool.Exec(live, `UPDATE pgbench_accounts SET filler = repeat(md5(random()::text), 2) WHERE aid > $1 AND aid <= $2`, from, from+rows); err != nil {
			return fmt.Errorf("bulk update: %w", err)
		}
		b.Bulks.Add(1)
		Pass(ctx, max(every, bulkShare*time.Since(began)))
	}
	return nil
}

// bulkShare is how many times as long as a bulk update the pause after it is at least.
const bulkShare = 5

// once runs for 3 s. A transaction that is cut off would be fine as well, but
// only a run that ends by itself says how many it has made.
func (b *Pgbench) once() error {
	// No context: a run ends by itself.
	args := []string{"-n", "-T", "3", "-c", strconv.Itoa(b.Clients), "-j", "1"}
	if b.Rate > 0 {
		args = append(args, "-R", strconv.Itoa(b.Rate))
	}
	cmd := exec.Command(b.path, append(args, b.db.URL)...) //nolint:noctx // see above
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := child.Run(cmd, syscall.SIGKILL); err != nil {
		return fmt.Errorf("pgbench: %w: %s", err, out.Bytes())
	}
	const label = "number of transactions actually processed: "
	_, rest, ok := bytes.Cut(out.Bytes(), []byte(label))
	if !ok {
		return errors.New("pgbench does not say how many transactions it has made: " + out.String())
	}
	var n int64
	if _, err := fmt.Sscanf(string(rest), "%d", &n); err != nil {
		return fmt.Errorf("read pgbench's count: %w", err)
	}
	b.Transactions.Add(n)
	return nil
}
