package migrations

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/capture/trigger"
	"github.com/millrace-db/millrace/capture/wal"
)

// capturer is what a way needs of the capture at its source. Connections are the
// caller's, to the way's source, and in no transaction.
type capturer interface {
	// Install makes what captures, or makes it whole; Statements writes out what that
	// would run now.
	Install(ctx context.Context) error
	Statements(ctx context.Context) (string, error)
	// Begin makes the place at which changes begin, anew each time, and Open gives the
	// changes behind one.
	Begin(ctx context.Context) (*millrace.Checkpoint, error)
	Open(ctx context.Context, from *millrace.Checkpoint) (changes, error)
	// Ahead is a token: what comes with it, or a higher one, is behind all that has
	// committed by now. Nothing is open meanwhile.
	Ahead(ctx context.Context, src *pgx.Conn) (uint64, error)
	// Behind is how much there is behind a position, in what Lag says, and Nearly how
	// much is nearly nothing.
	Behind(ctx context.Context, src *pgx.Conn, at millrace.Position) (int64, error)
	Nearly() int64
	// Skips says that what is captured before the fence of the way has been written by
	// the other way, and is not to go back.
	Skips() bool
	// Release gives up what is kept for nobody now.
	Release(ctx context.Context) error
	// Uninstall takes all of it away.
	Uninstall(ctx context.Context) error
}

// changes is what Follow needs of a capture that is open.
type changes interface {
	// Next waits for the next unit; it returns nil where until ends first.
	Next(ctx, until context.Context) (*millrace.Unit, error)
	// Ahead is capturer's, while this is open.
	Ahead(ctx context.Context, src *pgx.Conn) (uint64, error)
	// Fence makes a fence behind all that has committed by now, from any goroutine. It
	// returns false where the message of the fence has to be written at the source.
	// Behind reports whether the unit that was taken last is behind it, where none of
	// its entries is the message.
	Fence(f *fence) bool
	Behind(f *fence) bool
	// Hurry has units come as soon as there is anything.
	Hurry()
	// Gathers says that more may have come by the time a unit has been taken. Otherwise
	// a unit is all that there was.
	Gathers() bool
	Confirm(p millrace.Position)
	VerifyRanges(table string, ranges []capture.KeyRange) error
	Passes() []capture.PassStatus
	Close() error
}

// fence is a place behind all that had committed when it was made: a message in the
// changes, or what had been asked of the capture by then.
type fence struct {
	message string
	asked   atomic.Uint64
}

// passedBy reports whether an entry is the message of the fence; a nil fence has none.
func (f *fence) passedBy(h *millrace.Head) (bool, error) {
	if f == nil || f.message == "" {
		return false, nil
	}
	return isFence(h, f.message)
}

// captureName is what the migration file calls a way of capturing.
func captureName(mode millrace.Mode) string { return mode.String() }

// checkCapture refuses to go on with another way of capturing than the one that was
// begun with: what that has made would stay, and what it has kept would be lost.
func (m *Migration) checkCapture(ctx context.Context, src queryer) error {
	var there bool
	if err := src.QueryRow(ctx, "SELECT to_regclass('millrace.stream') IS NOT NULL").Scan(&there); err != nil {
		return fmt.Errorf("look how changes are captured: %w", err)
	}
	if !there {
		return nil
	}
	var name string
	if err := src.QueryRow(ctx, "SELECT coalesce((SELECT capture FROM millrace.stream WHERE name = $1), '')", m.stream()).Scan(&name); err != nil {
		return fmt.Errorf("look how changes are captured: %w", err)
	}
	if name != "" && name != captureName(m.cfg.Capture) {
		return fmt.Errorf("%w: its changes are captured by %s, and the migration file has %s.capture: %s; mend: set it to %s again", ErrOther, name, m.where(source), captureName(m.cfg.Capture), name)
	}
	return nil
}

// where is what the migration file calls a side of the way.
func (m *Migration) where(s side) side {
	if m.base != "" {
		return s.other()
	}
	return s
}

// capture makes the capture of the source's changes, of the columns that move.
func (m *Migration) capture(ctx context.Context, src queryer) (capturer, error) {
	columns := make(map[string][]string)
	for i := range m.cfg.Tables {
		t := &m.cfg.Tables[i]
		if len(t.Omit) == 0 {
			continue
		}
		info, err := table.ByName(ctx, src, t.From)
		if err != nil {
			return nil, err
		}
		if info == nil {
			return nil, fmt.Errorf("%w: table %v is gone from the source; mend: millrace migrate abort -f FILE, and begin again", ErrChanged, t.From)
		}
		columns[t.From.String()] = t.choice(info).Columns
	}
	return m.captureOf(columns)
}

// captureOf makes the capture of given columns, or of all.
func (m *Migration) captureOf(columns map[string][]string) (capturer, error) {
	var names []string
	keys := make(map[string][]string)
	for i := range m.cfg.Tables {
		t := &m.cfg.Tables[i]
		names = append(names, t.From.String())
		if t.key != nil {
			keys[t.From.String()] = t.key
		}
	}
	if m.cfg.Capture == millrace.ModeTrigger {
		c, err := trigger.New(trigger.Config{
			URL: m.cfg.SourceURL, Stream: m.stream(), Tables: names, Columns: columns, Key: keys,
			Except: m.appliers(), Alone: true, Interval: m.cfg.BatchInterval, Retain: keepKeys,
			Heartbeat: m.cfg.Heartbeat, SpoolDir: m.cfg.SpoolDir, Logger: m.log,
		})
		return &byTriggers{m: m, Capture: c}, err
	}
	c, err := wal.New(wal.Config{
		URL: m.cfg.SourceURL, Stream: m.stream(), Slot: m.slot(), Publication: m.slot(), Tables: names, Columns: columns, AsSent: true, Patience: patience,
		MemoryBudget: m.cfg.Memory, SpoolDir: m.cfg.SpoolDir, Heartbeat: m.cfg.Heartbeat, Logger: m.log,
	})
	return &byWAL{c}, err
}

// patience is for how long rows may lie in the socket: a batch takes far longer.
const patience = 10 * time.Millisecond

// byWAL captures by logical decoding.
type byWAL struct{ *wal.Capture }

func (c *byWAL) Statements(context.Context) (string, error) { return c.PublicationSQL() + ";\n", nil }

func (c *byWAL) Open(ctx context.Context, from *millrace.Checkpoint) (changes, error) {
	s, err := c.Capture.Open(ctx, from)
	if err != nil {
		return nil, err
	}
	return &walChanges{s}, nil
}

func (c *byWAL) Ahead(ctx context.Context, src *pgx.Conn) (uint64, error) { return endOfWAL(ctx, src) }

func endOfWAL(ctx context.Context, src *pgx.Conn) (uint64, error) {
	var text string
	if err := src.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text").Scan(&text); err != nil {
		return 0, fmt.Errorf("ask the source how far it is: %w", err)
	}
	lsn, err := millrace.ParseLSN(text)
	return uint64(lsn), err
}

// Behind is in bytes of WAL, of the whole server.
func (c *byWAL) Behind(ctx context.Context, src *pgx.Conn, at millrace.Position) (int64, error) {
	end, err := c.Ahead(ctx, src)
	return max(0, int64(end)-int64(at.Token())), err //nolint:gosec // places in the WAL are far below
}

func (c *byWAL) Nearly() int64 { return 256 << 10 }

func (c *byWAL) Skips() bool { return true }

// Release drops the slot, which keeps WAL.
func (c *byWAL) Release(ctx context.Context) error {
	_, err := c.DropSlot(ctx)
	return err
}

type walChanges struct{ *wal.Source }

func (s *walChanges) Next(ctx, until context.Context) (*millrace.Unit, error) {
	u, err := s.Source.Next(until)
	if err != nil && ctx.Err() == nil && until.Err() != nil {
		return nil, nil //nolint:nilerr // the time is up
	}
	return u, err
}

func (s *walChanges) Ahead(ctx context.Context, src *pgx.Conn) (uint64, error) {
	return endOfWAL(ctx, src)
}

func (s *walChanges) Fence(*fence) bool { return false }

func (s *walChanges) Behind(*fence) bool { return false }

func (s *walChanges) Hurry() {} // it holds nothing back

func (s *walChanges) Gathers() bool { return true }

// keepKeys is how long keys stay in a log that have been applied, for people.
const keepKeys = 10 * time.Minute

// byTriggers captures by a log of keys that triggers write. They leave out what is
// carried over, so nothing comes back to where it came from, and there is nothing to
// skip; and they may stay where nobody else writes.
type byTriggers struct {
	*trigger.Capture
	m *Migration
}

// appliers are the conditions on sessions that the triggers leave out: those that show
// the token by which the gate lets them write. A role, or session_replication_role,
// would not do: whoever else has them writes rows that have to go over.
func (m *Migration) appliers() []string {
	return []string{
		"coalesce(current_setting('millrace.applier', true), '') <> ''",
		fmt.Sprintf("EXISTS (SELECT FROM millrace.migration_applier a WHERE a.name = %s AND a.token = current_setting('millrace.applier', true))", literal(m.known())),
	}
}

func (c *byTriggers) Statements(ctx context.Context) (string, error) { return c.InstallSQL(ctx) }

func (c *byTriggers) Install(ctx context.Context) error { return c.mend(c.Capture.Install(ctx)) }

func (c *byTriggers) Begin(ctx context.Context) (*millrace.Checkpoint, error) {
	from, err := c.Capture.Begin(ctx)
	return from, c.mend(err)
}

func (c *byTriggers) Open(ctx context.Context, from *millrace.Checkpoint) (changes, error) {
	s, err := c.Capture.Open(ctx, from)
	if err != nil {
		return nil, c.mend(err)
	}
	return &triggerChanges{s, c}, nil
}

// Nearly is in keys, as Behind is.
func (c *byTriggers) Nearly() int64 { return 1_000 }

func (c *byTriggers) Skips() bool { return false }

func (c *byTriggers) Release(context.Context) error { return nil }

// mend says what mends it in a migration, where an error of the capture says what mends
// a stream.
func (c *byTriggers) mend(err error) error {
	if err == nil || !millrace.NeedsOperator(err) {
		return err
	}
	text, mend, _ := strings.Cut(err.Error(), "; mend: ")
	if mend != "" && !strings.Contains(mend, "millrace ") && !strings.Contains(mend, "epoch") {
		return err
	}
	again := "millrace migrate abort -f FILE, and begin again"
	if c.m.base != "" {
		again = "millrace migrate finish -f FILE, to give the way back up"
	}
	return fmt.Errorf("%w: %s; mend: %s", ErrChanged, strings.TrimPrefix(text, millrace.ErrStop.Error()+": "), again)
}

type triggerChanges struct {
	*trigger.Source
	c *byTriggers
}

func (s *triggerChanges) Next(ctx, until context.Context) (*millrace.Unit, error) {
	u, err := s.NextBy(ctx, until)
	if u != nil {
		u.Body = &triggerBody{u.Body, s.c}
	}
	return u, s.c.mend(err)
}

// triggerBody reads the source while it is read itself.
type triggerBody struct {
	millrace.Body
	c *byTriggers
}

func (b *triggerBody) Next(max int) ([]byte, error) {
	run, err := b.Body.Next(max)
	return run, b.c.mend(err)
}

func (s *triggerChanges) Ahead(context.Context, *pgx.Conn) (uint64, error) {
	return s.Newest() + 1, nil
}

// Fence writes nothing: the next window is behind it.
func (s *triggerChanges) Fence(f *fence) bool {
	f.asked.Store(s.Soon())
	return true
}

func (s *triggerChanges) Behind(f *fence) bool {
	asked := f.asked.Load()
	return asked > 0 && s.Answered() >= asked
}

func (s *triggerChanges) Gathers() bool { return false }
