// Package wal captures the committed changes of chosen Postgres tables by
// logical decoding (pgoutput) and gives them out as units.
//
// It owns the publication and the replication slot of a stream, the first copy
// of its tables, and the connection that the changes come over. It promises:
//
//   - A unit is one whole transaction of the source, in the order of commit,
//     each exactly once after the Position that Open was given; or one chunk of
//     the first copy. Nothing is streamed before the copy is complete.
//   - The source is told that a position is done only up to what Confirm has
//     been given, so what was not confirmed comes again after a restart.
//   - System, timeline and slot are compared with the Position at every Open. A
//     source that cannot go on exactly there is refused with a named error.
//   - Memory is bounded: what transactions need above the budget, open ones that
//     the source streams and committed ones, goes through files, and a reader
//     that does not call Next holds the source connection back.
//   - What cannot be decoded, described or keyed stops the stream; it is never
//     left out.
//
// Indexes, batches and what was published are left to transfer. So are retries:
// a Source ends with its first error, and the caller opens a new one from what
// it has published (millrace.NeedsOperator tells whether that can help).
//
// The caller holds the stream's exclusive hold while a Source is open. Open
// therefore ends any other connection that uses the slot.
package wal

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture/chunk"
	"github.com/millrace-db/millrace/capture/table"
)

// Defaults of a Config.
const (
	DefaultMemoryBudget = 64 << 20
	DefaultHeartbeat    = time.Second
	DefaultSilence      = time.Minute
	DefaultLoadWorkers  = 2
	DefaultWarnShare    = 0.25
)

const (
	minMemoryBudget = 1 << 20
	maxLoadWorkers  = 16
	// statusInterval is how often the source is told where we stand at least,
	// asked or not: with wal_sender_timeout = 0 it never asks.
	statusInterval = 10 * time.Second
	// confirmDelay gathers confirmations into one status.
	confirmDelay = 100 * time.Millisecond
)

// Config says what to capture, and from where.
type Config struct {
	// URL reaches the source database, directly: a connection pooler does not
	// pass replication or session settings on. The role needs REPLICATION and
	// SELECT on the tables; Install needs to own them too.
	URL string
	// Stream is the stream's name. It marks heartbeats and spool files.
	Stream string
	// Slot and Publication default to millrace_<stream>.
	Slot, Publication string
	// Tables are the captured tables as schema.table, exactly as the catalog
	// writes them.
	Tables []string
	// Columns are the captured columns of tables, and Where conditions for
	// captured rows, as in CREATE PUBLICATION; both are keyed by the tables'
	// names. Tables that are not named have all. Postgres 15 and later.
	Columns map[string][]string
	Where   map[string]string
	// AsSent has a table that was altered described anew no sooner than a row of it is
	// sent, and as that row is, unless stored rows have changed. Otherwise it is described
	// at once, as the catalogs have it by then, which may be ahead of the rows: then it is
	// loaded again.
	AsSent bool
	// Patience is for how long rows may stay in the socket while more of them keep coming,
	// up to 128 KiB: reading them together costs the source less. It is added to the latency
	// of the end of a backlog. Default 2 ms.
	Patience time.Duration
	// MemoryBudget bounds what is held for transactions, in bytes: a quarter of
	// it for all that are still open at the source, a quarter for the one being
	// decoded, half for those that wait for Next. A single row may need up to
	// 16 MiB above it, and an open transaction 16 bytes for each of its
	// subtransactions. Default 64 MiB, at least 1 MiB.
	MemoryBudget int64
	// SpoolDir holds the files of transactions above the budget. While such a
	// one is taken over at its commit, it needs room for it twice. It is made
	// if it is missing. Default: millrace-spool in the system's temporary
	// directory.
	SpoolDir string
	// Heartbeat is the time between heartbeats. Default 1 s.
	Heartbeat time.Duration
	// Silence is how long the source may send nothing at all before the
	// connection is taken for dead. Default 60 s, at least 1 s.
	Silence time.Duration
	// LoadWorkers is how many tables are loaded at once. Default 2.
	LoadWorkers int
	// LoadRate is the most rows that each of them reads in a second; 0 is no
	// limit.
	LoadRate int
	// LoadMaxLag is the replay lag of a physical standby above which loads wait;
	// 0 is no limit.
	LoadMaxLag time.Duration
	// VerifyEvery is the time from one verification of all tables to the next,
	// at least 1 min; 0 is never but on demand. VerifyRate is the most rows that
	// are read for it in a second; 0 is no limit.
	VerifyEvery time.Duration
	VerifyRate  int
	// WarnShare is the share of what the slot may hold that must be left, or a
	// warning is given: of max_slot_wal_keep_size and of RetainLimit. Below 1.
	// Default 0.25; negative for no warning.
	WarnShare float64
	// RetainLimit is how many bytes of WAL the slot may hold at the source
	// before there is an alarm. Default: no limit of ours.
	RetainLimit int64
	// DropAtLimit lets the slot be dropped at RetainLimit. The stream then stops
	// with ErrSlotGivenUp.
	DropAtLimit bool
	// Logger hears of transitions. Default: none.
	Logger *slog.Logger
	// Registerer gets the metrics. Default: none.
	Registerer prometheus.Registerer
}

// Capture captures one stream. Its methods may be called concurrently, but only
// one Source may be open at a time.
type Capture struct {
	cfg     Config
	tables  []table.Name
	choices table.Choices // that the configuration makes
	log     *slog.Logger
	metrics *metrics
	slot    *slotWatch

	// Set by New; tests shorten the times, and measure without gathering.
	statusInterval, confirmDelay, watchInterval, stepLimit time.Duration
	gather                                                 func(net.Conn, time.Duration, int)
	// chosen are the columns and rows of the publication, by table, while a
	// Source is open.
	chosen atomic.Pointer[map[millrace.TableID]table.Choice]
	// chunks bounds what loads read at once and hold.
	chunks chunk.Limits
	// holdLoads makes loads wait from the start until PauseLoads(false).
	holdLoads bool
}

// validSlot reports whether Postgres takes a slot's name: lower-case letters,
// digits and underscores only. (A pattern would be compiled at every start of
// the program, also at that of an edge, for a quarter of a millisecond.)
func validSlot(name string) bool {
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return len(name) > 0 && len(name) <= 63
}

// New checks the configuration and fills in its defaults. It does not connect.
func New(cfg Config) (*Capture, error) {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("configure capture of stream %s: %s", cfg.Stream, fmt.Sprintf(format, args...))
	}
	if cfg.Stream == "" {
		return nil, errors.New("configure capture: the stream has no name")
	}
	if cfg.URL == "" {
		return nil, bad("no source URL; set source.url to one such as postgres://user@host/database")
	}
	if cfg.Slot == "" {
		cfg.Slot = "millrace_" + cfg.Stream
	}
	if cfg.Publication == "" {
		cfg.Publication = "millrace_" + cfg.Stream
	}
	if !validSlot(cfg.Slot) {
		return nil, bad("slot name %q: want up to 63 lower-case letters, digits and underscores", cfg.Slot)
	}
	if len(cfg.Tables) == 0 {
		return nil, bad("no tables; name at least one as schema.table")
	}
	c := &Capture{chunks: chunkLimits(), statusInterval: statusInterval, confirmDelay: confirmDelay, watchInterval: watchInterval, stepLimit: stepLimit, gather: gather}
	var err error
	if c.tables, err = table.ParseNames(cfg.Tables); err != nil {
		return nil, bad("%v", err)
	}
	c.choices = table.Choices{Columns: cfg.Columns, Where: cfg.Where}
	if err := c.choices.Check(cfg.Tables); err != nil {
		return nil, bad("%v", err)
	}
	if cfg.Patience == 0 {
		cfg.Patience = gulpWait
	}
	if cfg.MemoryBudget == 0 {
		cfg.MemoryBudget = DefaultMemoryBudget
	}
	if cfg.MemoryBudget < minMemoryBudget {
		return nil, bad("memory budget of %d bytes: want at least %d", cfg.MemoryBudget, minMemoryBudget)
	}
	if cfg.Heartbeat == 0 {
		cfg.Heartbeat = DefaultHeartbeat
	}
	if cfg.Heartbeat < 0 {
		return nil, bad("heartbeat of %v: want more than 0", cfg.Heartbeat)
	}
	if cfg.Silence == 0 {
		cfg.Silence = DefaultSilence
	}
	if cfg.Silence < time.Second {
		return nil, bad("silence of %v: want at least 1s", cfg.Silence)
	}
	if cfg.LoadWorkers == 0 {
		cfg.LoadWorkers = DefaultLoadWorkers
	}
	if cfg.LoadWorkers < 1 || cfg.LoadWorkers > maxLoadWorkers {
		return nil, bad("%d tables to load at once: want 1 to %d", cfg.LoadWorkers, maxLoadWorkers)
	}
	if cfg.VerifyEvery != 0 && cfg.VerifyEvery < time.Minute || cfg.VerifyRate < 0 {
		return nil, bad("verification every %v at %d rows a second: want 0 or at least 1m, and 0 rows or more", cfg.VerifyEvery, cfg.VerifyRate)
	}
	if cfg.LoadRate < 0 || cfg.LoadMaxLag < 0 {
		return nil, bad("limits of loads of %d rows a second and a lag of %v: want 0 or more", cfg.LoadRate, cfg.LoadMaxLag)
	}
	if cfg.WarnShare == 0 {
		cfg.WarnShare = DefaultWarnShare
	}
	if cfg.WarnShare >= 1 {
		return nil, bad("a warning when %v of the WAL that the slot may hold is left: want less than 1", cfg.WarnShare)
	}
	if cfg.RetainLimit < 0 {
		return nil, bad("limit of %d bytes of WAL: want 0 for none, or more", cfg.RetainLimit)
	}
	if cfg.SpoolDir == "" {
		cfg.SpoolDir = filepath.Join(os.TempDir(), "millrace-spool")
	}
	c.log = cfg.Logger
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.log = c.log.With("stream", cfg.Stream)
	c.cfg = cfg
	if c.metrics, err = newMetrics(cfg.Registerer, cfg.Stream); err != nil {
		return nil, bad("register metrics: %v", err)
	}
	c.slot = &slotWatch{c: c, drop: cfg.DropAtLimit, limits: slotLimits{warn: max(cfg.WarnShare, 0), own: cfg.RetainLimit}}
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(slotCollector{c.slot, newSlotDescs(cfg.Stream)}); err != nil {
			return nil, bad("register metrics: %v", err)
		}
	}
	return c, nil
}
