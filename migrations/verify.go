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
	"github.com/millrace-db/millrace/internal/wait"
)

// Verify compares all rows of both sides while they are written to, each range at an
// index. Ranges that are known to be equal, and that no change has gone into since, are
// carried forward; a call that was cut off is gone on with. It asks the process that follows, or follows
// itself as long as it takes. The error is ErrDiffers where the certificate says so; then
// it is there all the same. Other errors: ErrStep, and those of Follow.
func (m *Migration) Verify(ctx context.Context) (*Certificate, error) {
	return m.verifyInUse(ctx, false)
}

// VerifyFull is Verify, and carries nothing forward that was compared before it was
// called: so it finds what others have written at the target since.
func (m *Migration) VerifyFull(ctx context.Context) (*Certificate, error) {
	return m.verifyInUse(ctx, true)
}

func (m *Migration) verifyInUse(ctx context.Context, full bool) (*Certificate, error) {
	way, err := m.inUse(ctx)
	if err != nil {
		return nil, err
	}
	return way.verify(ctx, full)
}

func (m *Migration) verify(ctx context.Context, full bool) (*Certificate, error) {
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
	if err := install(ctx, dst); err != nil {
		return nil, fmt.Errorf("make the tables of migrations: %w", err)
	}
	var since time.Time
	if err := dst.QueryRow(ctx, `
INSERT INTO millrace.migration_wanted AS w (name, whole) VALUES ($1, $2)
ON CONFLICT (name) DO UPDATE SET (wanted_at, whole) = (SELECT w.wanted_at, w.whole WHERE w.done_at IS NULL AND w.whole >= excluded.whole UNION ALL SELECT clock_timestamp(), excluded.whole LIMIT 1),
    taken_at = NULL, done_at = NULL, problem = NULL, index = NULL, chain = NULL, position = NULL
RETURNING wanted_at`, m.cfg.Name, full).Scan(&since); err != nil {
		return nil, fmt.Errorf("ask for verification: %w", err)
	}
	for {
		err := m.retry(ctx, func() error { return m.follow(ctx, func(f *follower) bool { return f.certify.done }) })
		if err != nil && !errors.Is(err, ErrRunning) {
			return nil, err
		}
		var done bool
		if err := dst.QueryRow(ctx, "SELECT done_at IS NOT NULL FROM millrace.migration_wanted WHERE name = $1", m.cfg.Name).Scan(&done); err != nil {
			return nil, fmt.Errorf("wait for verification: %w", err)
		}
		if done {
			return m.certificate(ctx, dst, since)
		}
		// The process that follows may end before it is done.
		if err := wait.For(ctx, tendInterval/2); err != nil {
			return nil, err
		}
	}
}

// certificate reads what was compared for a pass that was asked for at a time.
func (m *Migration) certificate(ctx context.Context, dst *pgx.Conn, since time.Time) (*Certificate, error) {
	c := &Certificate{Equal: true, CheckedAt: time.Now().UTC()}
	if err := pgx.BeginTxFunc(ctx, dst, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error { return m.readCertificate(ctx, tx, since, c) }); err != nil {
		return nil, err
	}
	if len(c.Tables) != len(m.cfg.Tables) {
		return nil, fmt.Errorf("verify: %d of %d tables were compared; run it again", len(c.Tables), len(m.cfg.Tables))
	}
	var err error
	if c.ForeignKeys, err = m.violated(ctx, dst); err != nil {
		return nil, err
	}
	c.Equal = c.Equal && len(c.ForeignKeys) == 0
	if !c.Equal {
		return c, fmt.Errorf("%w: see the certificate; mend: look who else has written at the target; then millrace migrate abort -f FILE, and begin again", ErrDiffers)
	}
	return c, nil
}

func (m *Migration) readCertificate(ctx context.Context, tx pgx.Tx, since time.Time, c *Certificate) error {
	var problem *string
	var wanted time.Time
	if err := tx.QueryRow(ctx, "SELECT wanted_at, problem, coalesce(index::text, ''), coalesce(encode(chain, 'hex'), ''), coalesce(position, '') FROM millrace.migration_wanted WHERE name = $1", m.cfg.Name).
		Scan(&wanted, &problem, &c.Index, &c.Chain, &c.Position); err != nil {
		return fmt.Errorf("read what verification found: %w", err)
	}
	if !wanted.Equal(since) {
		return errors.New("verify: somebody has asked for another verification meanwhile; run it again")
	}
	if problem != nil {
		return fmt.Errorf("verify: %s", *problem)
	}
	rows, err := tx.Query(ctx, `
SELECT table_name, rows, sum, equal, checked_at < counted, touched IS NOT NULL OR left_out > 0, index::text, coalesce(found::text, '')
FROM millrace.migration_range WHERE name = $1 AND counted = $2 ORDER BY table_name, low`, m.cfg.Name, since)
	if err != nil {
		return fmt.Errorf("read what verification found: %w", err)
	}
	defer rows.Close()
	var t *CertifiedTable
	var sum millrace.VerifySum
	for rows.Next() {
		var name, index, found string
		var n int64
		var hash []byte
		var equal, carried, moved bool
		if err := rows.Scan(&name, &n, &hash, &equal, &carried, &moved, &index, &found); err != nil {
			return fmt.Errorf("read what verification found: %w", err)
		}
		if t == nil || t.Table != name {
			c.Tables, sum = append(c.Tables, CertifiedTable{Table: name, FirstIndex: index, LastIndex: index}), millrace.VerifySum{}
			t = &c.Tables[len(c.Tables)-1]
		}
		if err := t.add(n, hash, index, &sum); err != nil {
			return err
		}
		if !equal {
			t.Differing++
			c.Equal = false
		}
		if carried {
			t.Carried++
		}
		if moved {
			t.Changed++
		}
		if found != "" {
			t.Found = append(t.Found, json.RawMessage(found))
		}
	}
	return rows.Err()
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
