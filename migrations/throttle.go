package migrations

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/wait"
)

// throttle holds the copy back. All workers share it.
type throttle struct {
	m  *Migration
	mu sync.Mutex
	// free is when the next chunk may begin, by the rows that were copied.
	free time.Time
	// looked is when the servers were looked at, held why the copy waits.
	looked time.Time
	held   string

	// Of this process: chunks that there are and were copied, and their rows.
	chunks, done int
	rows         int64
	began, told  time.Time
}

// How often the servers are looked at, and how long a held copy waits before it asks
// again.
const (
	lookInterval = time.Second
	heldInterval = 500 * time.Millisecond
	tellInterval = 10 * time.Second
)

func newThrottle(m *Migration, chunks int) *throttle {
	now := time.Now()
	return &throttle{m: m, free: now, chunks: chunks, began: now, told: now}
}

// copied notes a chunk that was copied.
func (t *throttle) copied(rows int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done, t.rows = t.done+1, t.rows+rows
	if time.Since(t.told) >= tellInterval || t.done == t.chunks {
		t.told = time.Now()
		took := time.Since(t.began)
		t.m.log.Info("copying", "chunks", t.done, "of", t.chunks, "rows", t.rows, "rows_per_second", int64(float64(t.rows)/took.Seconds()),
			"eta", time.Duration(float64(took)/float64(t.done)*float64(t.chunks-t.done)).Round(time.Second))
	}
	if t.m.cfg.RowsPerSecond == 0 {
		return
	}
	if now := time.Now(); t.free.Before(now) {
		t.free = now
	}
	t.free = t.free.Add(time.Duration(float64(rows) / float64(t.m.cfg.RowsPerSecond) * float64(time.Second)))
}

// wait waits until a chunk may be copied.
func (t *throttle) wait(ctx context.Context, src, dst *pgx.Conn) error {
	for {
		pause, err := t.look(ctx, src, dst)
		if err != nil || pause <= 0 {
			return err
		}
		if err := wait.For(ctx, pause); err != nil {
			return err
		}
	}
}

// look says how long to wait, 0 for not at all.
func (t *throttle) look(ctx context.Context, src, dst *pgx.Conn) (time.Duration, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if pause := time.Until(t.free); pause > 0 {
		return min(pause, heldInterval), nil
	}
	if time.Since(t.looked) < lookInterval && t.held == "" {
		return 0, nil
	}
	t.looked = time.Now()
	held, err := t.reason(ctx, src, dst)
	if err != nil {
		return 0, err
	}
	if held != t.held {
		t.held = held
		if held != "" {
			t.m.log.Info("the copy waits", "reason", held)
		} else {
			t.m.log.Info("the copy goes on")
		}
	}
	if held != "" {
		return heldInterval, nil
	}
	return 0, nil
}

// reason says why the copy has to wait, or "".
func (t *throttle) reason(ctx context.Context, src, dst *pgx.Conn) (string, error) {
	paused, err := t.m.paused(ctx, dst)
	if err != nil {
		return "", err
	}
	if paused {
		return "it is paused", nil
	}
	if t.m.cfg.MaxReplicaLag == 0 && t.m.cfg.MaxActive == 0 {
		return "", nil
	}
	for _, x := range []struct {
		conn  *pgx.Conn
		where side
	}{{src, source}, {dst, target}} {
		var lag float64
		var active int
		err := x.conn.QueryRow(ctx, `
SELECT coalesce((SELECT max(extract(epoch FROM replay_lag)) FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid AND s.slot_type = 'physical'), 0)::float8,
       (SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND backend_type = 'client backend' AND application_name <> $1)::int`, "millrace migrate "+t.m.cfg.Name).Scan(&lag, &active)
		if err != nil {
			return "", fmt.Errorf("look how busy the %s is: %w", x.where, err)
		}
		if limit := t.m.cfg.MaxReplicaLag; limit > 0 && lag > limit.Seconds() {
			return fmt.Sprintf("a standby of the %s replays later than %v", x.where, limit), nil
		}
		if limit := t.m.cfg.MaxActive; limit > 0 && active > limit {
			return fmt.Sprintf("more than %d sessions are at work at the %s", limit, x.where), nil
		}
	}
	return "", nil
}

// paused reports whether somebody has paused the migration.
func (m *Migration) paused(ctx context.Context, dst queryer) (paused bool, err error) {
	if err := dst.QueryRow(ctx, "SELECT paused FROM millrace.migration WHERE name = $1", m.cfg.Name).Scan(&paused); err != nil {
		return false, fmt.Errorf("look whether migration %s is paused: %w", m.cfg.Name, err)
	}
	return paused, nil
}

// Pause has copy and follow wait, whichever process they are in, until it is called
// with false.
func (m *Migration) Pause(ctx context.Context, pause bool) error {
	src, dst, err := m.both(ctx)
	if err != nil {
		return err
	}
	defer capture.Close(src)
	defer capture.Close(dst)
	d, err := m.at(ctx, src, dst)
	if err != nil {
		return err
	}
	if d.Step == StepNone {
		return m.notBegun(ctx, dst)
	}
	for _, conn := range []*pgx.Conn{src, dst} {
		if _, err := conn.Exec(ctx, "UPDATE millrace.migration SET paused = $3 WHERE name IN ($1, $2)", m.cfg.Name, m.cfg.Name+backSuffix, pause); err != nil {
			return fmt.Errorf("pause migration %s: %w", m.cfg.Name, err)
		}
	}
	return nil
}
