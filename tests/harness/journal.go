package harness

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// JournalTable is the table that a Journal writes to.
const JournalTable = "public.journal"

const journalDDL = `CREATE TABLE public.journal (client int NOT NULL, seq bigint NOT NULL, note text, PRIMARY KEY (client, seq))`

// Journal is a client of the source that notes each commit it saw acknowledged
// in a file of its own before it goes on. What stands there must be at the edge,
// whatever was killed; the machine is not, so the file is not synced.
type Journal struct {
	// Every is the least time between two commits of a client.
	Every   time.Duration
	clients int
	dir     string
	url     string
	seq     []int64
	// Acknowledged counts commits so far.
	Acknowledged atomic.Int64
}

// NewJournal makes the table and the files of n clients.
func NewJournal(t testing.TB, s *System, n int) *Journal {
	t.Helper()
	s.DB.Exec(journalDDL)
	return &Journal{clients: n, dir: s.Dir, url: s.DB.URL, seq: make([]int64, n)}
}

// At has later runs go to another server, which has the table.
func (j *Journal) At(url string) { j.url = url }

// Run commits one row after another on every client until ctx ends, each in a
// transaction of its own.
func (j *Journal) Run(ctx context.Context) error {
	errs := make([]error, j.clients)
	var wg sync.WaitGroup
	for i := range j.clients {
		wg.Go(func() { errs[i] = j.client(ctx, i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (j *Journal) path(client int) string {
	return filepath.Join(j.dir, fmt.Sprintf("journal-%d", client))
}

func (j *Journal) client(ctx context.Context, client int) (err error) {
	// The journal's end is no fault of the source: its last commit is waited for.
	live := context.WithoutCancel(ctx)
	conn, err := pgx.Connect(live, j.url)
	if err != nil {
		return fmt.Errorf("journal client %d: %w", client, err)
	}
	defer func() { err = errors.Join(err, conn.Close(live)) }()
	file, err := os.OpenFile(j.path(client), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("journal client %d: %w", client, err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	for ctx.Err() == nil {
		j.seq[client]++
		if _, err := conn.Exec(live, `INSERT INTO public.journal VALUES ($1, $2, $3)`, client, j.seq[client], fmt.Sprintf("note %d", j.seq[client])); err != nil {
			return fmt.Errorf("journal client %d: %w", client, err)
		}
		if _, err := fmt.Fprintln(file, j.seq[client]); err != nil {
			return fmt.Errorf("journal client %d: %w", client, err)
		}
		j.Acknowledged.Add(1)
		Pass(ctx, j.Every)
	}
	return nil
}

// Keys returns the keys of all acknowledged rows, read back from the files, in
// the form in which Rows names them.
func (j *Journal) Keys() ([]string, error) {
	var keys []string
	for client := range j.clients {
		file, err := os.Open(j.path(client))
		if err != nil {
			return nil, err
		}
		for lines := bufio.NewScanner(file); lines.Scan(); {
			seq, err := strconv.ParseInt(strings.TrimSpace(lines.Text()), 10, 64)
			if err != nil {
				return nil, errors.Join(fmt.Errorf("read %s: %w", file.Name(), err), file.Close())
			}
			keys = append(keys, fmt.Sprintf("[%d,%d]", client, seq))
		}
		if err := file.Close(); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// AwaitMore waits until n more commits have been acknowledged.
func (j *Journal) AwaitMore(t testing.TB, n int64, limit time.Duration) {
	t.Helper()
	want := j.Acknowledged.Load() + n
	Until(t, limit, fmt.Sprintf("%d more commits are acknowledged", n), func(context.Context) error {
		if got := j.Acknowledged.Load(); got < want {
			return NotYet("%d of %d", got, want)
		}
		return nil
	})
}
