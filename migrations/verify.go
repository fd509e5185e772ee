package migrations

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/wait"
)

// Verify compares all rows of both sides while they are written to, each range at an
// index. It asks the process that follows, or follows itself as long as it takes. The
// error is ErrDiffers where the certificate says so; then it is there all the same.
// Other errors: ErrStep, and those of Follow.
func (m *Migration) Verify(ctx context.Context) (*Certificate, error) {
	way, err := m.inUse(ctx)
	if err != nil {
		return nil, err
	}
	return way.verify(ctx)
}

func (m *Migration) verify(ctx context.Context) (*Certificate, error) {
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
	if run, err := d.Step.Next(StepFollowing); err != nil {
		return nil, err
	} else if run {
		return nil, fmt.Errorf("%w: the target has not converged, so it is not the source at any index; mend: millrace migrate follow -f FILE", ErrStep)
	}
	var since time.Time
	if err := dst.QueryRow(ctx, `
INSERT INTO millrace.migration_wanted (name) VALUES ($1)
ON CONFLICT (name) DO UPDATE SET wanted_at = clock_timestamp(), taken_at = NULL, done_at = NULL, problem = NULL RETURNING wanted_at`, m.cfg.Name).Scan(&since); err != nil {
		return nil, fmt.Errorf("ask for verification: %w", err)
	}
	err = m.retry(ctx, func() error { return m.follow(ctx, func(f *follower) bool { return f.certify.done }) })
	if errors.Is(err, ErrRunning) {
		err = m.await(ctx, dst)
	}
	if err != nil {
		return nil, err
	}
	return m.certificate(ctx, dst, since)
}

// await waits until the process that follows has done what was wanted.
func (m *Migration) await(ctx context.Context, dst *pgx.Conn) error {
	for {
		var done bool
		if err := dst.QueryRow(ctx, "SELECT done_at IS NOT NULL FROM millrace.migration_wanted WHERE name = $1", m.cfg.Name).Scan(&done); err != nil {
			return fmt.Errorf("wait for verification: %w", err)
		}
		if done {
			return nil
		}
		if err := wait.For(ctx, tendInterval/4); err != nil {
			return err
		}
	}
}

// certificate reads what was compared since a time.
func (m *Migration) certificate(ctx context.Context, dst *pgx.Conn, since time.Time) (*Certificate, error) {
	var problem *string
	if err := dst.QueryRow(ctx, "SELECT problem FROM millrace.migration_wanted WHERE name = $1", m.cfg.Name).Scan(&problem); err != nil {
		return nil, fmt.Errorf("read what verification found: %w", err)
	}
	if problem != nil {
		return nil, fmt.Errorf("verify: %s", *problem)
	}
	rows, err := dst.Query(ctx, `
SELECT table_name, count(*), sum(rows)::bigint, count(*) FILTER (WHERE NOT equal), min(index)::text, max(index)::text,
       coalesce((jsonb_agg(found) FILTER (WHERE found IS NOT NULL))::text, '')
FROM millrace.migration_range WHERE name = $1 AND checked_at >= $2 GROUP BY 1 ORDER BY 1`, m.cfg.Name, since)
	if err != nil {
		return nil, fmt.Errorf("read what verification found: %w", err)
	}
	c := &Certificate{Equal: true, CheckedAt: time.Now().UTC()}
	c.Tables, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (t CertifiedTable, err error) {
		var found string
		err = row.Scan(&t.Table, &t.Ranges, &t.Rows, &t.Differing, &t.FirstIndex, &t.LastIndex, &found)
		if found != "" {
			t.Found = json.RawMessage(found)
		}
		c.Equal = c.Equal && t.Differing == 0
		return t, err
	})
	if err != nil {
		return nil, fmt.Errorf("read what verification found: %w", err)
	}
	if len(c.Tables) != len(m.cfg.Tables) {
		return nil, fmt.Errorf("verify: %d of %d tables were compared; run it again", len(c.Tables), len(m.cfg.Tables))
	}
	if c.ForeignKeys, err = m.violated(ctx, dst); err != nil {
		return nil, err
	}
	c.Equal = c.Equal && len(c.ForeignKeys) == 0
	if !c.Equal {
		return c, fmt.Errorf("%w: see the certificate; mend: look who else has written at the target; then millrace migrate abort -f FILE, and begin again", ErrDiffers)
	}
	return c, nil
}

// violated returns the foreign keys of the target's tables that rows violate:
// changes go in while they are silent.
func (m *Migration) violated(ctx context.Context, dst *pgx.Conn) ([]string, error) {
	var names []string
	for i := range m.cfg.Tables {
		names = append(names, m.cfg.Tables[i].To.Quoted())
	}
	rows, err := dst.Query(ctx, `
SELECT k.conname::text || ' of ' || k.conrelid::regclass, format('SELECT EXISTS (SELECT FROM %s c WHERE %s AND NOT EXISTS (SELECT FROM %s p WHERE %s))', k.conrelid::regclass,
    (SELECT string_agg(format('c.%I IS NOT NULL', a.attname), ' AND ') FROM pg_attribute a WHERE a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey)),
    k.confrelid::regclass,
    (SELECT string_agg(format('p.%I = c.%I', p.attname, c.attname), ' AND ') FROM unnest(k.conkey, k.confkey) AS n (c, p)
     JOIN pg_attribute c ON c.attrelid = k.conrelid AND c.attnum = n.c JOIN pg_attribute p ON p.attrelid = k.confrelid AND p.attnum = n.p))
FROM pg_constraint k
WHERE k.contype = 'f' AND k.conparentid = 0 AND k.conrelid IN (SELECT to_regclass(n)::oid FROM unnest($1::text[]) n) ORDER BY 1`, names)
	if err != nil {
		return nil, fmt.Errorf("look up foreign keys at the target: %w", err)
	}
	type foreign struct{ name, query string }
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (f foreign, err error) {
		return f, row.Scan(&f.name, &f.query)
	})
	if err != nil {
		return nil, fmt.Errorf("look up foreign keys at the target: %w", err)
	}
	var found []string
	for _, f := range all {
		var violated bool
		if err := dst.QueryRow(ctx, f.query).Scan(&violated); err != nil {
			return nil, fmt.Errorf("look whether foreign key %s holds: %w", f.name, err)
		}
		if violated {
			found = append(found, f.name)
		}
	}
	return found, nil
}
