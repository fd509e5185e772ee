package migrations

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
)

// Status says how far a migration has come, for a console.
type Status struct {
	Name   string `json:"name"`
	Step   Step   `json:"step"`   // the last that is done
	Phase  string `json:"phase"`  // what comes or goes on now, for people
	Paused bool   `json:"paused"` // somebody has paused it
	// Running says that a process works on it.
	Running bool `json:"running"`
	// Active is the side that takes writes, Term how often that has changed. Follow and
	// Batches are of the way that leads away from it.
	Active  string        `json:"active"`
	Term    int64         `json:"term"`
	StepAt  *time.Time    `json:"step_at,omitempty"`
	Copy    *CopyStatus   `json:"copy,omitempty"`
	Follow  *FollowStatus `json:"follow,omitempty"`
	Batches []Batch       `json:"batches"` // the newest, newest first
	// Unguarded are tables of the side that takes no writes on which nothing denies them:
	// somebody has made them, or disabled their triggers. The process that follows closes
	// them.
	Unguarded []string `json:"unguarded,omitempty"`
	// Emergency is what stands at the source for clients that still go there; absent
	// where nothing does.
	Emergency *EmergencyStatus `json:"emergency,omitempty"`
}

// CopyStatus is how far the copy has come.
type CopyStatus struct {
	Chunks     int64 `json:"chunks"`
	ChunksDone int64 `json:"chunks_done"`
	Blocks     int64 `json:"blocks"` // of the tables, when their chunks were cut
	BlocksDone int64 `json:"blocks_done"`
	Rows       int64 `json:"rows"`       // as the source sent them
	RowsThere  int64 `json:"rows_there"` // as the target has stored them
	// Keys of tables that prepare has made stand aside while rows are copied; KeysMade
	// are there again, and RowsTwice rows were taken away for them.
	Keys      int   `json:"keys"`
	KeysMade  int   `json:"keys_made"`
	RowsTwice int64 `json:"rows_twice"`
	// RowsPerSecond is of the last minute, ETA when the copy ends at that pace.
	RowsPerSecond float64    `json:"rows_per_second"`
	ETA           *time.Time `json:"eta,omitempty"`
}

// FollowStatus is how far the changes have come.
type FollowStatus struct {
	Index    string `json:"index"`
	Position string `json:"position"`
	// SourceTime is when the source committed the newest change that is at the
	// target, LagSeconds how long ago that is. LagBytes is how much the source has
	// written behind it with capture by WAL, LagKeys how many changes are logged behind
	// it with capture by triggers; the other one is 0.
	SourceTime time.Time `json:"source_time"`
	LagSeconds float64   `json:"lag_seconds"`
	LagBytes   int64     `json:"lag_bytes"`
	LagKeys    int64     `json:"lag_keys"`
	// Converged is since when the target is the source at an index, Missing how
	// many rows wait to be read from it before.
	Converged        *time.Time `json:"converged,omitempty"`
	Missing          int64      `json:"missing"`
	ChangesPerSecond float64    `json:"changes_per_second"` // of the last minute
}

// Batch is a batch of changes with the counts of both sides.
type Batch struct {
	First     string            `json:"first"`
	Last      string            `json:"last"`
	WrittenAt time.Time         `json:"written_at"`
	Captured  map[string]Counts `json:"captured"` // as the source has it; null if it has no record
	Applied   map[string]Counts `json:"applied"`
}

const shownBatches = 10

// Status looks at both sides and changes nothing.
func (m *Migration) Status(ctx context.Context) (*Status, error) {
	src, dst, err := m.both(ctx)
	if err != nil {
		return nil, err
	}
	defer capture.Close(src)
	defer capture.Close(dst)
	d, err := m.at(ctx, src, dst)
	if err != nil {
		return nil, err
	}
	s := &Status{Name: m.cfg.Name, Step: d.Step, Paused: d.Paused, Active: string(source), Batches: []Batch{}}
	if m.base == "" {
		if s.Emergency, err = m.emergencyStatus(ctx, src); err != nil {
			return nil, err
		}
		if m, err = m.aside(ctx, src); err != nil {
			return nil, err
		}
	}
	if d.Step == StepNone && d.ID == "" {
		s.Phase = "not begun"
		term, err := m.finished(ctx, dst)
		if err != nil {
			return nil, err
		}
		if term > 0 {
			s.Phase, s.Active, s.Term = "finished; writers are at the target", string(target), term
		}
		return s, nil
	}
	s.StepAt = &d.StepAt
	for _, conn := range []*pgx.Conn{src, dst} {
		now, err := readManager(ctx, conn, m.cfg.Name)
		if err != nil {
			return nil, err
		}
		if now != nil && now.Term >= s.Term {
			s.Active, s.Term = string(now.Active), now.Term
		}
	}
	if s.Active == string(target) && m.base == "" {
		back, err := m.backward(ctx, src, dst)
		if err != nil {
			return nil, err
		}
		return back.awayStatus(ctx, s)
	}
	if err := dst.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
AND ((classid::bigint << 32) | objid::bigint) = hashtextextended('millrace.migration.' || $1, 0))`, m.cfg.Name).Scan(&s.Running); err != nil {
		return nil, fmt.Errorf("look whether a process works on migration %s: %w", m.cfg.Name, err)
	}
	if s.Copy, err = m.copyStatus(ctx, dst); err != nil {
		return nil, err
	}
	if s.Follow, err = m.followStatus(ctx, src, dst); err != nil {
		return nil, err
	}
	if s.Batches, err = m.batches(ctx, src, dst); err != nil {
		return nil, err
	}
	if s.Unguarded, err = (&gate{conn: dst, where: target, name: m.known()}).unguarded(ctx, m.tables(target)); err != nil {
		return nil, err
	}
	s.Phase = s.phase()
	return s, nil
}

// awayStatus fills in what is of the way back.
func (m *Migration) awayStatus(ctx context.Context, s *Status) (*Status, error) {
	away, err := m.Status(ctx)
	if err != nil {
		return nil, err
	}
	s.Step, s.StepAt, s.Paused, s.Running, s.Follow, s.Batches, s.Unguarded = away.Step, away.StepAt, away.Paused, away.Running, away.Follow, away.Batches, away.Unguarded
	s.Phase = "writers are at the target; the way back is " + away.Phase
	return s, nil
}

func (s *Status) phase() string {
	if s.Paused {
		return "paused"
	}
	waits := ", and no process works on it"
	if s.Running {
		waits = ""
	}
	switch {
	case s.Step == StepNone:
		return "preparing" + waits
	case s.Step == StepPrepared && s.Copy == nil:
		return "prepared"
	case s.Step == StepPrepared && s.Copy.ChunksDone == s.Copy.Chunks:
		return "making keys and indexes"
	case s.Step == StepPrepared:
		return "copying" + waits
	case s.Step == StepCopied:
		return "catching up" + waits
	case s.Step == StepArmed:
		return "armed" + waits
	}
	return "following" + waits
}

func (m *Migration) copyStatus(ctx context.Context, dst *pgx.Conn) (*CopyStatus, error) {
	c := new(CopyStatus)
	var recent int64
	var blocks, seconds float64
	version, err := installed(ctx, dst)
	if err != nil {
		return nil, err
	}
	length := "h.blocks"
	if version < 9 {
		length = "NULL"
	}
	err = dst.QueryRow(ctx, `
SELECT count(*), count(rows_read), coalesce(sum(blocks), 0)::bigint, coalesce(sum(blocks) FILTER (WHERE rows_read IS NOT NULL), 0)::bigint,
       coalesce(sum(rows_read), 0)::bigint, coalesce(sum(rows_there), 0)::bigint,
       coalesce(sum(rows_read) FILTER (WHERE copied_at > now() - interval '1 minute'), 0)::bigint,
       coalesce(sum(blocks) FILTER (WHERE copied_at > now() - interval '1 minute'), 0)::float8,
       coalesce(extract(epoch FROM now() - min(copied_at - took) FILTER (WHERE copied_at > now() - interval '1 minute')), 0)::float8
FROM (SELECT c.*, CASE WHEN end_block > 0 THEN end_block ELSE greatest(`+length+`, first_block) END - first_block AS blocks
      FROM millrace.migration_chunk c JOIN millrace.migration_heap h USING (name, heap)) x WHERE name = $1`, m.cfg.Name).
		Scan(&c.Chunks, &c.ChunksDone, &c.Blocks, &c.BlocksDone, &c.Rows, &c.RowsThere, &recent, &blocks, &seconds)
	if err != nil {
		return nil, fmt.Errorf("read how far the copy is: %w", err)
	}
	if c.Chunks == 0 {
		return nil, nil
	}
	if version < 6 {
		return c, nil
	}
	if err := dst.QueryRow(ctx, "SELECT count(*), count(made_at), coalesce(sum(removed), 0)::bigint FROM millrace.migration_key WHERE name = $1", m.cfg.Name).Scan(&c.Keys, &c.KeysMade, &c.RowsTwice); err != nil {
		return nil, fmt.Errorf("read which keys stand aside: %w", err)
	}
	if seconds > 0 && c.ChunksDone < c.Chunks {
		c.RowsPerSecond = float64(recent) / seconds
		if blocks > 0 {
			eta := time.Now().Add(time.Duration(float64(c.Blocks-c.BlocksDone) / blocks * seconds * float64(time.Second))).UTC()
			c.ETA = &eta
		}
	}
	return c, nil
}

func (m *Migration) followStatus(ctx context.Context, src, dst *pgx.Conn) (*FollowStatus, error) {
	f := new(FollowStatus)
	var checkpoint []byte
	err := dst.QueryRow(ctx, `
SELECT p.index::text, p.position, p.checkpoint, p.source_time, p.converged_at,
       (SELECT count(*) FROM millrace.migration_missing x WHERE x.name = p.name),
       (SELECT coalesce(sum((t.v->>'puts')::float8), 0) + coalesce(sum((t.v->>'deletes')::float8), 0) FROM millrace.migration_batch b, jsonb_each(b.counts) t (k, v)
        WHERE b.name = p.name AND b.written_at > now() - interval '1 minute') / 60
FROM millrace.migration_place p WHERE p.name = $1`, m.cfg.Name).
		Scan(&f.Index, &f.Position, &checkpoint, &f.SourceTime, &f.Converged, &f.Missing, &f.ChangesPerSecond)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read how far the changes are: %w", err)
	}
	f.LagSeconds = max(0, time.Since(f.SourceTime).Seconds())
	at, err := millrace.DecodeCheckpoint(checkpoint)
	if err != nil {
		return nil, err
	}
	c, err := m.captureOf(nil) // tables may be gone
	if err != nil {
		return nil, err
	}
	behind, err := c.Behind(ctx, src, at.Position)
	if err != nil {
		return nil, err
	}
	if f.LagBytes = behind; m.cfg.Capture == millrace.ModeTrigger {
		f.LagBytes, f.LagKeys = 0, behind
	}
	return f, nil
}

// batches returns the newest batches with the counts of both sides.
func (m *Migration) batches(ctx context.Context, src, dst *pgx.Conn) ([]Batch, error) {
	read := func(conn *pgx.Conn, where side) ([]Batch, error) {
		rows, err := conn.Query(ctx, "SELECT first_index::text, last_index::text, written_at, counts::text FROM millrace.migration_batch WHERE name = $1 ORDER BY migration_batch.last_index DESC LIMIT $2", m.cfg.Name, 2*shownBatches)
		if err != nil {
			return nil, fmt.Errorf("read batches at the %s: %w", where, err)
		}
		all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (b Batch, err error) {
			var counts string
			if err := row.Scan(&b.First, &b.Last, &b.WrittenAt, &counts); err != nil {
				return b, err
			}
			return b, json.Unmarshal([]byte(counts), &b.Applied)
		})
		if err != nil {
			return nil, fmt.Errorf("read batches at the %s: %w", where, err)
		}
		return all, nil
	}
	there, err := read(dst, target)
	if err != nil {
		return nil, err
	}
	here, err := read(src, source)
	if err != nil {
		return nil, err
	}
	captured := make(map[string]map[string]Counts)
	for _, b := range here {
		captured[b.Last] = b.Applied
	}
	all := there[:min(len(there), shownBatches)]
	for i := range all {
		all[i].Captured = captured[all[i].Last]
	}
	return all, nil
}
