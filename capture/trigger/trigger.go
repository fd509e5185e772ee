package trigger

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace/capture/chunk"
	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/capture/trigger/keylog"
)

// Defaults of a Config.
const (
	DefaultHeartbeat   = time.Second
	DefaultPollMin     = 2 * time.Millisecond
	DefaultPollMax     = 100 * time.Millisecond
	DefaultRetain      = 24 * time.Hour
	DefaultLoadWorkers = 2
)

const (
	maxPoll        = 10 * time.Second
	minRetain      = time.Minute
	maxLoadWorkers = 16
	// lockTimeout is how long a window waits for its locks: those who come after
	// somebody that it waits for, wait no longer for it.
	lockTimeout = 200 * time.Millisecond
	// stepLimit bounds what the source answers at once: a link may take what is
	// sent and carry nothing.
	stepLimit = time.Minute
	// bodyLimit is how long a window's transaction stays open while nobody takes
	// its rows: it holds up VACUUM and those who alter tables.
	bodyLimit = 2 * time.Minute
	// heldBody is how many bytes of a window are read at once. A window that has
	// no more ends its transaction before it is given out.
	heldBody = 4 << 20
	// tickKeep is how long ticks stay after they were confirmed, for people.
	tickKeep = time.Hour
	// tendInterval is the time from one look at what can be cleared away to the
	// next.
	tendInterval = 30 * time.Second
)

// Roles are roles at the source that Install gives their rights; see keylog. Empty
// names stand for the usual ones.
type Roles struct{ Owner, Capture, Verifier string }

// Config says what to capture, and from where.
type Config struct {
	// URL reaches the source database, directly or through a connection pooler in
	// transaction mode. The role needs SELECT on the tables and the logs of keys,
	// and to write the ticks; Install needs to own the tables.
	URL string
	// Stream is the stream's name.
	Stream string
	// Tables are the captured tables as schema.table, exactly as the catalog
	// writes them.
	Tables []string
	// Columns are the captured columns of tables, and Where conditions for
	// captured rows, as SQL expressions over the table's columns that depend on
	// nothing else; both are keyed by the tables' names. Tables that are not named
	// have all.
	Columns map[string][]string
	Where   map[string]string
	// Key are the columns by which the rows of tables are told apart that have no key
	// of their own, keyed by the tables' names: partitioned ones each partition of
	// which has that key, where somebody sees to it that no two partitions have a row
	// of the same. Two of them stop the stream.
	Key map[string][]string
	// Except are SQL conditions on sessions whose changes are not logged, and Alone
	// has Install make no roles; see keylog.
	Except []string
	Alone  bool
	// Interval is the shortest time from one window to the next, but for those that
	// Soon, loads and verification ask for. Default none.
	Interval time.Duration
	// PollMin and PollMax bound the pause between two looks at the source.
	// Defaults 2 ms and 50 ms; PollMin at least 1 ms, PollMax at most 10 s.
	PollMin, PollMax time.Duration
	// Heartbeat is the time between heartbeats. Default 1 s.
	Heartbeat time.Duration
	// Retain is how long logged keys stay readable after they were published, at
	// least; at most twice that. Default 24 h; 1 min or more.
	Retain time.Duration
	// Roles are for Install, and Login, the role that captures, which is made a
	// member of Roles.Capture; empty for the role that installs.
	Roles Roles
	Login string
	// LoadWorkers is how many tables are loaded at once: they take turns. Default 2.
	LoadWorkers int
	// SpoolDir holds, while they are published, the rows of a load that are too
	// large for memory. It is made if it is missing. Default: the system's
	// temporary directory.
	SpoolDir string
	// LoadRate is the most rows that are read of each of them in a second; 0 is
	// no limit.
	LoadRate int
	// LoadMaxLag is the replay lag of a physical standby above which loads wait;
	// 0 is no limit.
	LoadMaxLag time.Duration
	// VerifyEvery is the time from one verification of all tables to the next,
	// at least 1 min; 0 is never but on demand. VerifyRate is the most rows that
	// are read for it in a second; 0 is no limit.
	VerifyEvery time.Duration
	VerifyRate  int
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
	choices table.Choices
	looker  *keylog.Looker
	log     *slog.Logger
	metrics *metrics

	source    atomic.Pointer[Source] // the one that is open
	suspicion suspicion

	// Set by New; tests shorten the times and change the sizes.
	lockTimeout, bodyLimit, tendInterval, tickKeep, watchInterval time.Duration
	heldBody                                                      int
	// holdLoads makes loads wait from the start until PauseLoads(false).
	holdLoads bool
	// chunks bounds what loads read at once.
	chunks      chunk.Limits
	verifyWhole int
	// inspect is called in the transaction of each window, after its rows.
	inspect func(*window) error
	planted planted
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
	if len(cfg.Tables) == 0 {
		return nil, bad("no tables; name at least one as schema.table")
	}
	c := &Capture{
		chunks: chunkLimits(), verifyWhole: verifyWhole, lockTimeout: lockTimeout, bodyLimit: bodyLimit, tendInterval: tendInterval, tickKeep: tickKeep, watchInterval: watchInterval, heldBody: heldBody,
		choices: table.Choices{Columns: cfg.Columns, Where: cfg.Where, Key: cfg.Key},
	}
	var err error
	if c.tables, err = table.ParseNames(cfg.Tables); err != nil {
		return nil, bad("%v", err)
	}
	if err := c.choices.Check(cfg.Tables); err != nil {
		return nil, bad("%v", err)
	}
	cfg.setDefaults()
	if err := cfg.check(); err != nil {
		return nil, bad("%v", err)
	}
	c.log = cfg.Logger
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.log = c.log.With("stream", cfg.Stream)
	c.cfg = cfg
	if c.looker, err = keylog.NewLooker(cfg.Stream); err != nil {
		return nil, bad("%v", err)
	}
	if c.metrics, err = newMetrics(cfg.Registerer, cfg.Stream); err != nil {
		return nil, bad("register metrics: %v", err)
	}
	return c, nil
}

func (cfg *Config) setDefaults() {
	def := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	def(&cfg.PollMin, DefaultPollMin)
	def(&cfg.PollMax, max(DefaultPollMax, cfg.PollMin))
	def(&cfg.Heartbeat, DefaultHeartbeat)
	def(&cfg.Retain, DefaultRetain)
	if cfg.LoadWorkers == 0 {
		cfg.LoadWorkers = DefaultLoadWorkers
	}
	if cfg.SpoolDir == "" {
		cfg.SpoolDir = os.TempDir()
	}
}

func (cfg *Config) check() error {
	switch {
	case cfg.PollMin < time.Millisecond || cfg.PollMax < cfg.PollMin || cfg.PollMax > maxPoll:
		return fmt.Errorf("pauses of %v to %v between two looks: want 1ms to %v", cfg.PollMin, cfg.PollMax, maxPoll)
	case cfg.Interval < 0:
		return fmt.Errorf("%v from one window to the next: want 0 or more", cfg.Interval)
	case cfg.Heartbeat < 0:
		return fmt.Errorf("heartbeat of %v: want more than 0", cfg.Heartbeat)
	case cfg.Retain < minRetain:
		return fmt.Errorf("logged keys kept for %v: want at least %v", cfg.Retain, minRetain)
	case cfg.LoadWorkers < 1 || cfg.LoadWorkers > maxLoadWorkers:
		return fmt.Errorf("%d tables to load at once: want 1 to %d", cfg.LoadWorkers, maxLoadWorkers)
	case cfg.LoadRate < 0 || cfg.LoadMaxLag < 0:
		return fmt.Errorf("limits of loads of %d rows a second and a lag of %v: want 0 or more", cfg.LoadRate, cfg.LoadMaxLag)
	case cfg.VerifyEvery != 0 && cfg.VerifyEvery < time.Minute || cfg.VerifyRate < 0:
		return fmt.Errorf("verification every %v at %d rows a second: want 0 or at least 1m, and 0 rows or more", cfg.VerifyEvery, cfg.VerifyRate)
	}
	return nil
}
