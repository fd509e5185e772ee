package migrations

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture/table"
)

// Defaults of a Config.
const (
	DefaultMemory        = 64 << 20
	DefaultWorkers       = 4
	DefaultChunk         = 32 << 20
	DefaultBatchInterval = 500 * time.Millisecond
	DefaultBatchBytes    = 16 << 20
	DefaultPauseBudget   = 2 * time.Second
)

// Config says what moves, from where and how.
type Config struct {
	// Name is the migration's.
	Name string
	// SourceURL and TargetURL reach the two databases: the servers themselves, as
	// roles that own the tables.
	SourceURL, TargetURL string
	// Capture is how changes are captured at the source, TargetCapture at the target
	// when writers are there. Defaults millrace.ModeWAL, and the source's.
	Capture, TargetCapture millrace.Mode
	Tables                 []Table
	// Memory bounds what capture by WAL holds of transactions, in bytes; the rest goes
	// through files in SpoolDir. Default 64 MiB, and a directory in the system's
	// temporary one.
	Memory   int64
	SpoolDir string
	// Workers is how many chunks are copied at once. Default 4.
	Workers int
	// Chunk is how many bytes of a heap are one chunk. Default 32 MiB.
	Chunk int64
	// RowsPerSecond is the most rows that all workers copy in a second; 0 is no
	// limit.
	RowsPerSecond int
	// MaxReplicaLag is the replay lag of a physical standby of either side above
	// which the copy waits, MaxActive the number of sessions at work there; 0 is no
	// limit.
	MaxReplicaLag time.Duration
	MaxActive     int
	// NoChecksums leaves out reading the rows of a chunk back. They are counted all
	// the same.
	NoChecksums bool
	// BatchInterval is how long changes are gathered, unless the target is still at work
	// on those before, BatchBytes how many at most. Two batches are held at most.
	// Defaults 500 ms and 16 MiB.
	BatchInterval time.Duration
	BatchBytes    int64
	// LeaveForeignKeys leaves it to others to make foreign keys at the target.
	LeaveForeignKeys bool
	// PauseBudget is how long writers may be held when they go over. Default 2 s.
	PauseBudget time.Duration
	// Bouncers are what clients reach the side through that takes writes.
	Bouncers []Bouncer
	// Heartbeat is the time between heartbeats at the source. Default 1 s.
	Heartbeat time.Duration
	// Logger hears of transitions. Default: none.
	Logger *slog.Logger
}

// Table is one table that moves.
type Table struct {
	From, To table.Name
	// Columns are columns of the target that have another name at the source, by
	// their name at the target; Expressions those that are computed from the
	// source's columns of the same row; Omit columns of the source that do not move.
	Columns     map[string]string
	Expressions map[string]string
	Omit        []string
	// PartitionBy is the SQL expression by whose values, 0 to PartitionCount-1,
	// Prepare partitions the table where it makes it; empty for not.
	PartitionBy    string
	PartitionCount int
	// part is the constraint of the partition that From is, of a way back; empty where
	// From is a table.
	part string
	// mode is how the table is captured. key are the columns of its key, of a way back
	// by triggers, where no index of From is over all of its partitions.
	mode millrace.Mode
	key  []string
}

// mapped reports whether the target's columns are to be others than the source's.
func (t *Table) mapped() bool { return len(t.Columns)+len(t.Expressions)+len(t.Omit) > 0 }

// Migration is one migration. Its methods may be called by several processes: those
// that change anything take the migration for themselves.
type Migration struct {
	cfg Config
	// base is the name that people know, of a way back; empty for the migration
	// itself.
	base string
	// written are the names that the migration file has for tables of the source that
	// stand aside, by those that they have now.
	written map[table.Name]table.Name
	log     *slog.Logger
	// copied is called behind each chunk, for tests.
	copied func()
	// planted alters the session of a copier, for a test.
	planted func(context.Context, *pgx.Conn) error
	// passed is called at each step of going over, for tests.
	passed func(step string)
}

// New checks the configuration and fills in its defaults. It does not connect.
func New(cfg Config) (*Migration, error) {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("configure migration %s: %s", cfg.Name, fmt.Sprintf(format, args...))
	}
	switch {
	case cfg.Name == "":
		return nil, errors.New("configure migration: it has no name")
	case cfg.SourceURL == "" || cfg.TargetURL == "":
		return nil, bad("source and target need a URL each")
	case len(cfg.Tables) == 0:
		return nil, bad("no table is to move")
	}
	var names []string
	for i := range cfg.Tables {
		names = append(names, cfg.Tables[i].From.String())
	}
	if _, err := table.ParseNames(names); err != nil {
		return nil, bad("%v", err)
	}
	if cfg.Capture == millrace.ModeNone {
		cfg.Capture = millrace.ModeWAL
	}
	if cfg.TargetCapture == millrace.ModeNone {
		cfg.TargetCapture = cfg.Capture
	}
	for _, mode := range []millrace.Mode{cfg.Capture, cfg.TargetCapture} {
		if mode != millrace.ModeWAL && mode != millrace.ModeTrigger {
			return nil, bad("changes cannot be captured by %v", mode)
		}
	}
	cfg.Tables = slices.Clone(cfg.Tables)
	for i := range cfg.Tables {
		cfg.Tables[i].mode = cfg.Capture
	}
	if cfg.Memory == 0 {
		cfg.Memory = DefaultMemory
	}
	if cfg.SpoolDir == "" {
		cfg.SpoolDir = filepath.Join(os.TempDir(), "millrace-spool")
	}
	if cfg.Workers == 0 {
		cfg.Workers = DefaultWorkers
	}
	if cfg.Chunk == 0 {
		cfg.Chunk = DefaultChunk
	}
	if cfg.BatchInterval == 0 {
		cfg.BatchInterval = DefaultBatchInterval
	}
	if cfg.BatchBytes == 0 {
		cfg.BatchBytes = DefaultBatchBytes
	}
	if cfg.PauseBudget == 0 {
		cfg.PauseBudget = DefaultPauseBudget
	}
	if cfg.Heartbeat == 0 {
		cfg.Heartbeat = time.Second
	}
	if cfg.Workers < 0 || cfg.Chunk < 0 || cfg.RowsPerSecond < 0 || cfg.MaxReplicaLag < 0 || cfg.MaxActive < 0 || cfg.BatchInterval < 0 || cfg.BatchBytes < 0 {
		return nil, bad("a limit is negative")
	}
	m := &Migration{cfg: cfg, log: cfg.Logger}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	m.log = m.log.With("migration", cfg.Name)
	return m, nil
}

// stream is the name by which capture knows the migration, publication and slot.
func (m *Migration) stream() string { return "migrate_" + m.cfg.Name }

func (m *Migration) slot() string { return "millrace_" + m.stream() }

// known is the name that people know.
func (m *Migration) known() string {
	if m.base != "" {
		return m.base
	}
	return m.cfg.Name
}
