package migrations

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/internal/finding"
)

// Report is what Plan finds.
type Report struct {
	Name string `json:"name"`
	Step Step   `json:"step"`
	// Findings are what blocks, with what mends it, and what should be known.
	Findings []finding.Finding `json:"findings"`
	Tables   []PlannedTable    `json:"tables"`
	// Users are who is connected to the source, or has touched the tables.
	Users []User `json:"users"`
	// Bytes is what the tables take at the source, with their indexes; about as
	// much is needed at the target, and at the source for what is written meanwhile.
	Bytes int64 `json:"bytes"`
	// CopySeconds is about how long the copy takes, and CopyBasis from what that was
	// reckoned.
	CopySeconds int64  `json:"copy_seconds"`
	CopyBasis   string `json:"copy_basis"`
	// Bouncers are those of the migration file that answer.
	Bouncers []PlannedBouncer `json:"pgbouncer,omitempty"`
}

// PlannedTable is a table as the plan sees it.
type PlannedTable struct {
	From  string `json:"from"`
	To    string `json:"to"`
	Make  bool   `json:"make"` // prepare makes it
	Rows  int64  `json:"rows"` // as the source's statistics have it
	Bytes int64  `json:"bytes"`
}

// User is a role, and an application, that touches the tables.
type User struct {
	Role        string `json:"role"`
	Application string `json:"application"`
	// Sessions are open now, Locks are how many of them hold a lock on one of the
	// tables, Calls statements that pg_stat_statements has counted.
	Sessions int64 `json:"sessions"`
	Locks    int64 `json:"locks"`
	Calls    int64 `json:"calls"`
}

// copySpeed is what a copy is estimated with, in bytes a second.
const copySpeed = 30e6

// Plan looks at both sides and changes nothing.
func (m *Migration) Plan(ctx context.Context) (*Report, error) {
	src, dst, err := m.both(ctx)
	if behind := new(poolerError); errors.As(err, &behind) {
		return &Report{Name: m.cfg.Name, Findings: capture.Findings([]capture.Problem{behind.problem()}), Tables: []PlannedTable{}, Users: []User{}, CopyBasis: "nothing was looked at"}, nil
	}
	if err != nil {
		return nil, err
	}
	defer capture.Close(src)
	defer capture.Close(dst)
	r, _, err := m.plan(ctx, src, dst)
	return r, err
}

// plan is Plan, and returns the problems as errors too.
func (m *Migration) plan(ctx context.Context, src, dst *pgx.Conn) (*Report, error, error) {
	s, d, err := m.states(ctx, src, dst)
	if err != nil {
		return nil, nil, err
	}
	r := &Report{Name: m.cfg.Name, Findings: []finding.Finding{}, Tables: []PlannedTable{}, Users: []User{}}
	if s != nil && d != nil {
		r.Step = d.Step
	}
	if same, err := sameDatabase(ctx, src, dst); err != nil {
		return nil, nil, err
	} else if same { // what the others would say of rows that are there is not to be followed
		problems := []capture.Problem{capture.Refuse(ErrBlocked, "target.url", "it leads to the database that source.url leads to", "correct one of the two in the migration file")}
		r.CopyBasis = "nothing was looked at"
		r.Findings = capture.Findings(problems)
		return r, capture.FirstError(problems), nil
	}
	var problems []capture.Problem
	for _, check := range []func() ([]capture.Problem, error){
		func() ([]capture.Problem, error) { return m.checkSource(ctx, src) },
		func() ([]capture.Problem, error) { return m.checkTarget(ctx, dst) },
		func() ([]capture.Problem, error) { return m.checkTables(ctx, src, dst, r) },
		func() ([]capture.Problem, error) {
			if m.cfg.LeaveForeignKeys {
				return nil, nil
			}
			_, problems, err := m.references(ctx, src, dst)
			return problems, err
		},
		func() ([]capture.Problem, error) { return m.checkWayBack(ctx, dst) },
		func() ([]capture.Problem, error) { return m.checkComingBack(ctx, src) },
		func() ([]capture.Problem, error) { return m.checkEmergency(ctx, src) },
		func() ([]capture.Problem, error) {
			now, err := readManager(ctx, dst, m.cfg.Name)
			if err != nil {
				return nil, err
			}
			active := source
			if now != nil {
				active = now.Active
			}
			return m.checkBouncers(ctx, active, r), nil
		},
	} {
		found, err := check()
		if err != nil {
			return nil, nil, err
		}
		problems = append(problems, found...)
	}
	if err := m.estimate(ctx, dst, r); err != nil {
		return nil, nil, err
	}
	if r.Users, err = m.users(ctx, src); err != nil {
		return nil, nil, err
	}
	r.Findings = append(r.Findings, capture.Findings(problems)...)
	return r, capture.FirstError(problems), nil
}

// estimate reckons how long the copy takes: from the chunks that were copied, if any
// were.
func (m *Migration) estimate(ctx context.Context, dst *pgx.Conn, r *Report) error {
	speed := copySpeed
	r.CopyBasis = fmt.Sprintf("%d MB of tables and indexes a second are assumed; how fast these two servers are is not known before something is copied", int64(copySpeed/1e6))
	if version, err := installed(ctx, dst); err != nil {
		return err
	} else if version > 0 {
		var chunks, rows int64
		var seconds float64
		if err := dst.QueryRow(ctx, `
SELECT count(*), coalesce(sum(rows_read), 0)::bigint, coalesce(extract(epoch FROM max(copied_at) - min(copied_at - took)), 0)::float8
FROM millrace.migration_chunk WHERE name = $1 AND copied_at IS NOT NULL`, m.cfg.Name).Scan(&chunks, &rows, &seconds); err != nil {
			return fmt.Errorf("look how fast the copy was: %w", err)
		}
		var all int64
		for _, t := range r.Tables {
			all += t.Rows
		}
		if rows > 0 && seconds > 0 && all > 0 {
			speed = float64(rows) / seconds * float64(r.Bytes) / float64(all)
			r.CopyBasis = fmt.Sprintf("%d chunks that were copied for this migration, %.0f rows a second", chunks, float64(rows)/seconds)
		}
	}
	r.CopySeconds = int64(float64(r.Bytes) / speed)
	return nil
}

// checkTables looks at each table on both sides.
func (m *Migration) checkTables(ctx context.Context, src, dst *pgx.Conn, r *Report) ([]capture.Problem, error) {
	making, problems, err := m.toMake(ctx, src, dst)
	if err != nil {
		return nil, err
	}
	var infos []*table.Info
	for i := range m.cfg.Tables {
		info, err := table.ByName(ctx, src, m.cfg.Tables[i].From)
		if err != nil {
			return nil, err
		}
		if info != nil {
			info.Choice = m.cfg.Tables[i].choice(info)
			infos = append(infos, info)
		}
	}
	for _, info := range infos {
		found, err := table.Fit(ctx, src, m.cfg.Capture, info, infos)
		if err != nil {
			return nil, err
		}
		problems = append(problems, found...)
	}
	for i := range m.cfg.Tables {
		t := &m.cfg.Tables[i]
		p := PlannedTable{From: t.From.String(), To: t.To.String(), Make: making[i] != nil}
		if err := src.QueryRow(ctx, tree+`SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint, coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
FROM tree JOIN pg_class c ON c.oid = tree.oid WHERE c.relkind = 'r'`, m.oid(infos, t)).Scan(&p.Rows, &p.Bytes); err != nil {
			return nil, fmt.Errorf("measure table %v: %w", t.From, err)
		}
		r.Tables = append(r.Tables, p)
		r.Bytes += p.Bytes
		found, err := m.checkRelations(ctx, src, t, m.oid(infos, t))
		if err != nil {
			return nil, err
		}
		problems = append(problems, found...)
		if making[i] != nil {
			continue
		}
		mapping, found, err := readMapping(ctx, src, dst, t, nil)
		if err != nil {
			return nil, err
		}
		problems = append(problems, found...)
		if mapping == nil {
			continue
		}
		if found, err = m.checkWrites(ctx, dst, mapping, r.Step); err != nil {
			return nil, err
		}
		problems = append(problems, found...)
	}
	return problems, nil
}

// oid is that of a table at the source, 0 if it is not there.
func (m *Migration) oid(infos []*table.Info, t *Table) int64 {
	for _, info := range infos {
		if info.Name == t.From {
			return int64(info.ID)
		}
	}
	return 0
}

// users lists who touches the tables at the source.
func (m *Migration) users(ctx context.Context, src *pgx.Conn) ([]User, error) {
	var names []string
	for i := range m.cfg.Tables {
		names = append(names, m.cfg.Tables[i].From.Quoted())
	}
	query := `
WITH wanted AS (SELECT to_regclass(n)::oid AS oid FROM unnest($1::text[]) n), held AS (
    SELECT DISTINCT l.pid FROM pg_locks l WHERE l.locktype = 'relation' AND l.relation IN (SELECT oid FROM wanted)
)
SELECT coalesce(a.usename::text, ''), coalesce(a.application_name, ''), count(*), count(*) FILTER (WHERE a.pid IN (SELECT pid FROM held)), 0::bigint
FROM pg_stat_activity a
WHERE a.datname = current_database() AND a.backend_type = 'client backend' AND a.pid <> pg_backend_pid() AND a.application_name NOT LIKE 'millrace%'
GROUP BY 1, 2 ORDER BY 1, 2`
	collect := func(row pgx.CollectableRow) (u User, err error) {
		return u, row.Scan(&u.Role, &u.Application, &u.Sessions, &u.Locks, &u.Calls)
	}
	rows, err := src.Query(ctx, query, names)
	if err != nil {
		return nil, fmt.Errorf("look up who uses the source: %w", err)
	}
	users, err := pgx.CollectRows(rows, collect)
	if err != nil {
		return nil, fmt.Errorf("look up who uses the source: %w", err)
	}
	var view string
	if err := src.QueryRow(ctx, `SELECT coalesce((SELECT quote_ident(n.nspname) || '.pg_stat_statements' FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = 'pg_stat_statements' AND c.relkind = 'v' AND has_table_privilege(c.oid, 'SELECT')), '')`).Scan(&view); err != nil {
		return nil, fmt.Errorf("look for pg_stat_statements: %w", err)
	}
	if view == "" {
		return users, nil
	}
	var words []string
	for i := range m.cfg.Tables {
		words = append(words, m.cfg.Tables[i].From.Name)
	}
	rows, err = src.Query(ctx, `
SELECT coalesce(pg_get_userbyid(s.userid)::text, ''), '', 0::bigint, 0::bigint, sum(s.calls)::bigint
FROM `+view+` s JOIN pg_database d ON d.oid = s.dbid
WHERE d.datname = current_database() AND EXISTS (SELECT FROM unnest($1::text[]) w WHERE strpos(s.query, w) > 0)
GROUP BY 1 ORDER BY 1`, words)
	if err != nil {
		return nil, fmt.Errorf("read pg_stat_statements: %w", err)
	}
	calls, err := pgx.CollectRows(rows, collect)
	if code(err) == "55000" { // the library is not loaded
		return users, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read pg_stat_statements: %w", err)
	}
	return append(users, calls...), nil
}

// Duration is the estimate as a time.Duration.
func (r *Report) Duration() time.Duration { return time.Duration(r.CopySeconds) * time.Second }

// Blocked reports whether something has to be mended first.
func (r *Report) Blocked() bool { return finding.Error(r.Findings) != nil }
