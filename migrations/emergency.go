package migrations

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/internal/wait"
)

// Emergency access is for the client that nobody knew of and that still goes to the
// source when writers have gone over. The table there gets another name, and under its
// own one stands a view of a foreign table, which is the target's. The way back goes on
// under the other name; writers do not come back before the names are as they were.

// EmergencyOptions say what Emergency makes.
type EmergencyOptions struct {
	// URL is how the source's server reaches the target, as postgres://…; empty for
	// the target's own.
	URL string
	// Writes has rows written there too.
	Writes bool
	// Dry gets the statements, and none is run; nil to run them.
	Dry io.Writer
}

// EmergencyTable is a table of the source whose name leads to the target.
type EmergencyTable struct {
	Table string `json:"table"`
	Aside string `json:"aside"` // what the table itself is called meanwhile
	// Lacks is what clients have to do without, for people.
	Lacks []string `json:"lacks,omitempty"`
}

// EmergencyStatus says what stands at the source, and who has used it in the last 7
// days.
type EmergencyStatus struct {
	Since  time.Time        `json:"since"`
	Writes bool             `json:"writes"`
	Tables []EmergencyTable `json:"tables"`
	Uses   []Use            `json:"uses"`
}

// Use is somebody who uses emergency access.
type Use struct {
	Table       string `json:"table"`
	Kind        string `json:"kind"` // READ, INSERT, UPDATE, DELETE
	Role        string `json:"role"`
	Application string `json:"application"`
	Address     string `json:"address"`
	// Minutes counts, for each session, the minutes in which it did so.
	Minutes int64     `json:"minutes"`
	Last    time.Time `json:"last"`
}

// asideSuffix is behind the name of a table whose name leads to the target.
const asideSuffix = "_millrace_aside"

// maxName is how many bytes Postgres has for a name.
const maxName = 63

func asideName(name string) string {
	if len(name)+len(asideSuffix) > maxName {
		cut := maxName - len(asideSuffix)
		for cut > 0 && name[cut]&0xC0 == 0x80 { // within a character
			cut--
		}
		name = name[:cut]
	}
	return name + asideSuffix
}

// standing returns what was made of emergency access, by the table's name; empty for
// nothing.
func (m *Migration) standing(ctx context.Context, src queryer) (asides map[table.Name]table.Name, writes bool, since time.Time, err error) {
	version, err := installed(ctx, src)
	if err != nil || version < 3 {
		return nil, false, since, err
	}
	rows, err := src.Query(ctx, "SELECT table_name, aside, writes, made_at FROM millrace.migration_emergency WHERE name = $1 ORDER BY 1", m.known())
	if err == nil {
		asides = make(map[table.Name]table.Name)
		var name, aside string
		_, err = pgx.ForEachRow(rows, []any{&name, &aside, &writes, &since}, func() error {
			var is table.Name
			is.Schema, is.Name, _ = strings.Cut(name, ".")
			asides[is] = table.Name{Schema: is.Schema, Name: aside}
			return nil
		})
	}
	if err != nil {
		return nil, false, since, fmt.Errorf("look for emergency access: %w", err)
	}
	return asides, writes, since, nil
}

// aside returns the migration with the names that its tables have at the source now:
// itself, where no name leads to the target.
func (m *Migration) aside(ctx context.Context, src queryer) (*Migration, error) {
	asides, _, _, err := m.standing(ctx, src)
	if err != nil || len(asides) == 0 {
		return m, err
	}
	now := *m
	now.written = make(map[table.Name]table.Name)
	now.cfg.Tables = slices.Clone(m.cfg.Tables)
	for i := range now.cfg.Tables {
		t := &now.cfg.Tables[i]
		if name, ok := asides[t.From]; ok {
			now.written[name] = t.From
			t.From = name
		}
	}
	return &now, nil
}

// inFile returns tables under the names that the migration file has for them.
func (m *Migration) inFile() []Table {
	if len(m.written) == 0 {
		return m.cfg.Tables
	}
	all := slices.Clone(m.cfg.Tables)
	for i := range all {
		for _, name := range []*table.Name{&all[i].From, &all[i].To} {
			if was, ok := m.written[*name]; ok {
				*name = was
			}
		}
	}
	return all
}

// refuseEmergency refuses to let writers come back while names lead to the target.
func (m *Migration) refuseEmergency() error {
	if len(m.written) == 0 {
		return nil
	}
	return fmt.Errorf("%w: emergency access stands at the source, where names of tables lead to the target; mend: millrace migrate emergency --remove -f FILE", ErrStep)
}

// Emergency has the names of the tables at the source lead to the target, for reading
// and, where that is wanted, writing. It may be called again, and with other options.
// Errors: ErrStep, while the source takes writes; ErrBlocked.
func (m *Migration) Emergency(ctx context.Context, o EmergencyOptions) (*EmergencyStatus, error) {
	src, dst, err := m.both(ctx)
	if err != nil {
		return nil, err
	}
	defer capture.Close(src)
	defer capture.Close(dst)
	letGo, err := m.forEmergency(ctx, src, dst, o.Dry == nil)
	if err != nil {
		return nil, err
	}
	defer letGo()
	asides, writes, _, err := m.standing(ctx, src)
	if err != nil {
		return nil, err
	}
	f := &foreign{m: m, src: src, dst: dst, options: o}
	if len(asides) > 0 && (writes != o.Writes || len(asides) != len(m.cfg.Tables)) {
		// Another one is made of it: for a moment the names are as they were.
		if err := f.remove(ctx, asides); err != nil {
			return nil, err
		}
		asides = nil
	}
	tables, err := f.describe(ctx, asides)
	if err != nil {
		return nil, err
	}
	if len(asides) == 0 {
		if err := f.make(ctx, tables); err != nil {
			return nil, err
		}
	}
	s := &EmergencyStatus{Writes: o.Writes, Tables: tables.status(), Uses: []Use{}}
	if o.Dry == nil {
		got, err := m.emergencyStatus(ctx, src)
		if err != nil {
			return nil, err
		}
		if got != nil {
			s.Since, s.Uses = got.Since, got.Uses
		}
	}
	return s, nil
}

// RemoveEmergency has the names at the source lead to its own tables again. Where none
// leads elsewhere it does nothing. What it has written of who used them stays.
func (m *Migration) RemoveEmergency(ctx context.Context, dry io.Writer) error {
	src, dst, err := m.both(ctx)
	if err != nil {
		return err
	}
	defer capture.Close(src)
	defer capture.Close(dst)
	asides, _, _, err := m.standing(ctx, src)
	if err != nil || len(asides) == 0 {
		return err
	}
	letGo, err := m.forEmergency(ctx, src, dst, dry == nil)
	if err != nil {
		return err
	}
	defer letGo()
	if asides, _, _, err = m.standing(ctx, src); err != nil || len(asides) == 0 {
		return err
	}
	return (&foreign{m: m, src: src, dst: dst, options: EmergencyOptions{Dry: dry}}).remove(ctx, asides)
}

// forEmergency checks that writers have gone over, and takes the migration for itself
// until letGo is called: the process that follows opens the tables anew behind that.
func (m *Migration) forEmergency(ctx context.Context, src, dst *pgx.Conn, take bool) (letGo func(), err error) {
	letGo = func() {}
	if take { // before anything is looked at: it may wait
		if err := m.takeOver(ctx, dst); err != nil {
			return nil, err
		}
	}
	for _, x := range []struct {
		conn  *pgx.Conn
		where side
	}{{src, source}, {dst, target}} {
		now, err := readManager(ctx, x.conn, m.cfg.Name)
		if err != nil {
			return nil, err
		}
		if now == nil || now.Active != target {
			return nil, fmt.Errorf("%w: writers have not gone over, as the %s knows; mend: millrace migrate cutover -f FILE first", ErrStep, x.where)
		}
		if !take {
			continue
		}
		if err := install(ctx, x.conn); err != nil {
			return nil, fmt.Errorf("make the tables of migrations: %w", err)
		}
	}
	if !take {
		return letGo, nil
	}
	// The way back is followed by the lock at its own target, the source here.
	back := &Migration{cfg: m.cfg, log: m.log, base: m.cfg.Name}
	back.cfg.Name += backSuffix
	return back.takeFromFollower(ctx, src)
}

// emergencyStatus returns nil where no name leads to the target, and none ever did.
func (m *Migration) emergencyStatus(ctx context.Context, src queryer) (*EmergencyStatus, error) {
	asides, writes, since, err := m.standing(ctx, src)
	if err != nil || len(asides) == 0 {
		return nil, err
	}
	s := &EmergencyStatus{Since: since.UTC(), Writes: writes}
	for name, aside := range asides {
		s.Tables = append(s.Tables, EmergencyTable{Table: name.String(), Aside: aside.String()})
	}
	slices.SortFunc(s.Tables, func(a, b EmergencyTable) int { return strings.Compare(a.Table, b.Table) })
	rows, err := src.Query(ctx, `
SELECT table_name, kind, role, application, coalesce(host(address), ''), count(*), max(at) FROM millrace.migration_use
WHERE name = $1 AND at > now() - interval '7 days' GROUP BY 1, 2, 3, 4, 5 ORDER BY 7 DESC LIMIT 200`, m.known())
	if err == nil {
		s.Uses, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Use])
	}
	if err != nil {
		return nil, fmt.Errorf("read who uses emergency access: %w", err)
	}
	return s, nil
}

// patiently runs statements in one transaction that waits for locks no longer than
// guardWait at a time: whoever comes behind it waits as long.
func patiently(ctx context.Context, conn *pgx.Conn, statements []string) error {
	for attempt := 0; ; attempt++ {
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			for _, sql := range append([]string{"SET LOCAL lock_timeout = '" + guardWait + "'"}, statements...) {
				if _, err := tx.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
					return fmt.Errorf("%s: %w", sql, err)
				}
			}
			return nil
		})
		if code(err) != "55P03" {
			return err
		}
		if attempt == guardAttempts {
			return fmt.Errorf("%w: long transactions keep it locked: %w; mend: end them (pg_stat_activity, pg_locks), and try again", ErrBlocked, err)
		}
		if again := wait.For(ctx, lockPause); again != nil {
			return errors.Join(err, again)
		}
	}
}
