package wal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/internal/wait"
)

const (
	lockAttempts = 10
	// lockTimeout is how long one attempt to lock a table may hold back those
	// who come after it.
	lockTimeout = time.Second
)

// publicationInfo is a publication as the catalogs have it.
type publicationInfo struct {
	allTables, everything, viaRoot bool
	schemas                        int // that it publishes as a whole
	members                        []publicationMember
}

type publicationMember struct {
	id   millrace.TableID
	name table.Name
	table.Choice
}

// member returns nil if the publication does not have the table.
func (p *publicationInfo) member(id millrace.TableID) *publicationMember {
	i := slices.IndexFunc(p.members, func(m publicationMember) bool { return m.id == id })
	if i < 0 {
		return nil
	}
	return &p.members[i]
}

// lookUpPublication returns nil if there is none.
func (c *Capture) lookUpPublication(ctx context.Context, conn *pgx.Conn, server *serverInfo) (*publicationInfo, error) {
	fail := func(err error) (*publicationInfo, error) {
		return nil, fmt.Errorf("look up publication %s: %w", c.cfg.Publication, err)
	}
	var p publicationInfo
	err := conn.QueryRow(ctx, `
SELECT puballtables, pubinsert AND pubupdate AND pubdelete AND pubtruncate AND coalesce(to_jsonb(p)->>'pubgencols', 'n') = 'n', pubviaroot
FROM pg_publication p WHERE pubname = $1`, c.cfg.Publication).Scan(&p.allTables, &p.everything, &p.viaRoot)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return fail(err)
	}
	choice := "'', NULL::text[]" // column lists and row filters came with Postgres 15
	if server.version >= 150000 {
		choice = `coalesce(pg_get_expr(r.prqual, r.prrelid), ''),
       CASE WHEN r.prattrs IS NOT NULL THEN
           ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs::int2[]) ORDER BY a.attnum) END`
	}
	rows, err := conn.Query(ctx, `
SELECT c.oid::bigint, n.nspname::text, c.relname::text, `+choice+`
FROM pg_publication p
JOIN pg_publication_rel r ON r.prpubid = p.oid
JOIN pg_class c ON c.oid = r.prrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE p.pubname = $1
ORDER BY 2, 3`, c.cfg.Publication)
	if err != nil {
		return fail(err)
	}
	p.members, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (m publicationMember, err error) {
		var id int64
		err = row.Scan(&id, &m.name.Schema, &m.name.Name, &m.Where, &m.Columns)
		m.id = millrace.TableID(id)
		return m, err
	})
	if err != nil {
		return fail(err)
	}
	if server.version >= 150000 {
		err = conn.QueryRow(ctx, `
SELECT count(*)::int FROM pg_publication_namespace s JOIN pg_publication p ON p.oid = s.pnpubid WHERE p.pubname = $1`, c.cfg.Publication).Scan(&p.schemas)
		if err != nil {
			return fail(err)
		}
	}
	return &p, nil
}

// publicationFingerprint is the same as long as nobody alters the publication.
func (c *Capture) publicationFingerprint(ctx context.Context, conn *pgx.Conn) (string, error) {
	var text string
	err := conn.QueryRow(ctx, `
SELECT coalesce((
    SELECT concat_ws(' ', p.oid, p.puballtables, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, p.pubviaroot,
           (SELECT string_agg(concat_ws(' ', r.oid, r.prrelid), ',' ORDER BY r.oid) FROM pg_publication_rel r WHERE r.prpubid = p.oid))
    FROM pg_publication p WHERE p.pubname = $1), '')`, c.cfg.Publication).Scan(&text)
	if err != nil {
		return "", fmt.Errorf("look at publication %s: %w", c.cfg.Publication, err)
	}
	return text, nil
}

// checkPublication compares the publication with the configured tables.
func (c *Capture) checkPublication(ctx context.Context, conn *pgx.Conn, server *serverInfo, tables []*table.Info) ([]capture.Problem, error) {
	p, err := c.lookUpPublication(ctx, conn, server)
	if err != nil {
		return nil, err
	}
	subject := "publication " + c.cfg.Publication
	if p == nil {
		return []capture.Problem{capture.Refuse(ErrPublication, subject, "it does not exist", "millrace init")}, nil
	}
	if found := c.unfitPublication(p); found != nil {
		return []capture.Problem{*found}, nil
	}
	var problems []capture.Problem
	if !p.everything || !p.viaRoot {
		problems = append(problems, capture.Refuse(ErrPublication, subject, "it leaves out some operations, or publishes partitions under their own names", "millrace init"))
	}
	for _, t := range tables {
		m := p.member(t.ID)
		if m == nil {
			problems = append(problems, capture.Refuse(ErrPublication, subject, "it lacks table "+t.Name.String(), "millrace init"))
			continue
		}
		same, err := m.sameAs(ctx, conn, t)
		if err != nil {
			problems = append(problems, capture.Refuse(ErrPublication, subject, fmt.Sprintf("source.where of table %v cannot be read: %v", t.Name, err), "correct source.where"))
		} else if !same {
			problems = append(problems, capture.Refuse(ErrPublication, subject, "it has other columns or rows of table "+t.Name.String()+" than source.columns and source.where choose", "millrace init; transfer then loads the table again"))
		}
	}
	for _, m := range p.members {
		if !slices.ContainsFunc(tables, func(t *table.Info) bool { return t.ID == m.id }) {
			problems = append(problems, capture.Refuse(ErrPublication, subject, "it has table "+m.name.String()+", which is not configured", "millrace init, or add the table to the configuration"))
		}
	}
	return problems, nil
}

// unfitPublication says what makes a publication one that Install does not
// alter.
func (c *Capture) unfitPublication(p *publicationInfo) *capture.Problem {
	mend := "DROP PUBLICATION " + table.Quote(c.cfg.Publication) + " if nothing else uses it, then millrace init; or configure another name"
	var text string
	switch {
	case p.allTables:
		text = "it is FOR ALL TABLES, and would publish the control schema too"
	case p.schemas > 0:
		text = "it is FOR TABLES IN SCHEMA, and would publish tables that are not configured"
	}
	if text == "" {
		return nil
	}
	found := capture.Refuse(ErrPublication, "publication "+c.cfg.Publication, text, mend)
	return &found
}

// Install makes the publication of exactly the configured tables, or alters the
// one that is there, and the event triggers that tell of DDL, where the role may.
// A table whose updates would fail once it is published is
// refused before. The slot is made by the first Open.
//
// A table is added under a SHARE ROW EXCLUSIVE lock, which waits for the writers
// that are at work and holds new ones back for a second at most, several times
// if need be: a transaction that wrote to the table before it was published, and
// commits after, would otherwise be left out.
func (c *Capture) Install(ctx context.Context) error {
	conn, err := c.connect(ctx, nil)
	if err != nil {
		return err
	}
	defer capture.Close(conn)
	server, problems, err := checkServer(ctx, conn)
	if err != nil {
		return err
	}
	if err := capture.FirstError(problems); err != nil {
		return err
	}
	tables, problems, err := c.checkTables(ctx, conn)
	if err != nil {
		return err
	}
	more, err := checkUpdates(ctx, conn, server, tables)
	if err != nil {
		return err
	}
	if err := capture.FirstError(append(problems, more...)); err != nil {
		return err
	}
	p, err := c.lookUpPublication(ctx, conn, server)
	if err != nil {
		return err
	}
	if err := capture.FirstError(c.checkChoices(server)); err != nil {
		return err
	}
	if p == nil {
		err = c.createPublication(ctx, conn, server, tables)
	} else if found := c.unfitPublication(p); found != nil {
		err = capture.FirstError([]capture.Problem{*found})
	} else {
		err = c.alterPublication(ctx, conn, server, p, tables)
	}
	if err != nil {
		return err
	}
	if err := c.installTriggers(ctx, conn, tables); err != nil {
		return err
	}
	problems, err = checkTriggers(ctx, conn, server, tables)
	if err != nil {
		return err
	}
	return capture.FirstError(problems)
}

// checkChoices refuses column lists and row filters where the server has none.
func (c *Capture) checkChoices(server *serverInfo) []capture.Problem {
	if server.version >= 150000 || len(c.cfg.Columns) == 0 && len(c.cfg.Where) == 0 {
		return nil
	}
	return []capture.Problem{capture.Refuse(capture.ErrVersion, "source.columns and source.where", fmt.Sprintf("column lists and row filters came with Postgres 15, the source is %d", server.version/10000),
		"remove both from the configuration, or upgrade the source")}
}

func publicationOptions(server *serverInfo) string {
	text := "publish = 'insert, update, delete, truncate', publish_via_partition_root = true"
	if server.version >= 180000 {
		text += ", publish_generated_columns = none"
	}
	return "(" + text + ")"
}

// PublicationSQL returns the statement that makes the publication, for people.
func (c *Capture) PublicationSQL() string {
	var members []string
	for _, name := range c.tables {
		members = append(members, c.member(name))
	}
	return "CREATE PUBLICATION " + table.Quote(c.cfg.Publication) + " FOR TABLE " + strings.Join(members, ", ") + "\n    WITH " + publicationOptions(&serverInfo{})
}

// sameAs reports whether a member has the columns and rows that are configured
// for its table.
func (m *publicationMember) sameAs(ctx context.Context, conn *pgx.Conn, t *table.Info) (bool, error) {
	if (m.Columns == nil) != (t.Choice.Columns == nil) || len(m.Columns) != len(t.Choice.Columns) {
		return false, nil
	}
	for _, column := range t.Choice.Columns {
		if !slices.Contains(m.Columns, column) {
			return false, nil
		}
	}
	return sameWhere(ctx, conn, t.Name, m.Where, t.Choice.Where)
}

func (c *Capture) createPublication(ctx context.Context, conn *pgx.Conn, server *serverInfo, tables []*table.Info) error {
	var members []string
	for _, t := range tables {
		members = append(members, c.member(t.Name))
	}
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if err := c.fitFilters(ctx, tx, tables); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "CREATE PUBLICATION "+table.Quote(c.cfg.Publication)+" FOR TABLE "+strings.Join(members, ", ")+" WITH "+publicationOptions(server))
		return err
	})
	if err != nil {
		return c.publicationError("create", err)
	}
	c.log.Info("publication created", "publication", c.cfg.Publication, "tables", len(tables))
	return nil
}

func (c *Capture) publicationError(verb string, err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42501" {
		return fmt.Errorf("%w: %s publication %s: %w; mend: run it as a role that owns the tables and has CREATE on the database", ErrPublication, verb, c.cfg.Publication, err)
	}
	return fmt.Errorf("%s publication %s: %w", verb, c.cfg.Publication, err)
}

func (c *Capture) alterPublication(ctx context.Context, conn *pgx.Conn, server *serverInfo, p *publicationInfo, tables []*table.Info) error {
	alter := "ALTER PUBLICATION " + table.Quote(c.cfg.Publication)
	if !p.everything || !p.viaRoot {
		if _, err := conn.Exec(ctx, alter+" SET "+publicationOptions(server)); err != nil {
			return c.publicationError("alter", err)
		}
	}
	for _, t := range tables {
		m := p.member(t.ID)
		if m != nil {
			if same, err := m.sameAs(ctx, conn, t); err != nil {
				return fmt.Errorf("%w: table %v: source.where: %w", capture.ErrTable, t.Name, err)
			} else if same {
				continue
			}
		}
		if err := c.addTable(ctx, conn, t, m != nil); err != nil {
			return err
		}
		c.log.Info("table added to publication", "publication", c.cfg.Publication, "table", t.Name.String(), "again", m != nil)
	}
	for _, m := range p.members {
		if slices.ContainsFunc(tables, func(t *table.Info) bool { return t.ID == m.id }) {
			continue
		}
		if _, err := conn.Exec(ctx, alter+" DROP TABLE "+m.name.Quoted()); err != nil {
			return c.publicationError("alter", err)
		}
		c.log.Info("table removed from publication", "publication", c.cfg.Publication, "table", m.name.String())
	}
	return nil
}

// addTable puts a table into the publication; again says that it is there, with
// other columns or rows.
func (c *Capture) addTable(ctx context.Context, conn *pgx.Conn, t *table.Info, again bool) error {
	name := t.Name
	alter := "ALTER PUBLICATION " + table.Quote(c.cfg.Publication)
	for attempt := 1; ; attempt++ {
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			statements := []string{
				fmt.Sprintf("SET LOCAL lock_timeout = %d", lockTimeout.Milliseconds()),
				"LOCK TABLE " + name.Quoted() + " IN SHARE ROW EXCLUSIVE MODE",
			}
			if again {
				statements = append(statements, alter+" DROP TABLE "+name.Quoted())
			}
			for _, sql := range append(statements, alter+" ADD TABLE "+c.member(name)) {
				if _, err := tx.Exec(ctx, sql); err != nil {
					return err
				}
			}
			return c.fitFilters(ctx, tx, []*table.Info{t})
		})
		var pg *pgconn.PgError
		if err == nil {
			return nil
		}
		if !errors.As(err, &pg) || pg.Code != "55P03" { // lock_not_available
			return c.publicationError("alter", err)
		}
		if attempt == lockAttempts {
			return fmt.Errorf("add table %v to publication %s: long transactions keep it locked (%d attempts); end them (pg_stat_activity) and run init again: %w",
				name, c.cfg.Publication, attempt, err)
		}
		if err := wait.For(ctx, time.Duration(attempt)*lockTimeout/2); err != nil {
			return fmt.Errorf("add table %v to publication %s: %w", name, c.cfg.Publication, err)
		}
	}
}

// Uninstall ends whoever reads from the slot and drops slot and publication.
// What is not there is no error.
func (c *Capture) Uninstall(ctx context.Context) error {
	conn, server, slot, err := c.slotNow(ctx)
	if err != nil {
		return err
	}
	defer capture.Close(conn)
	if slot != nil {
		if err := c.ownSlot(slot, server); err != nil {
			return err
		}
		if err := c.dropSlot(ctx, conn); err != nil {
			return err
		}
	}
	if _, err := conn.Exec(ctx, "DROP PUBLICATION IF EXISTS "+table.Quote(c.cfg.Publication)); err != nil {
		return c.publicationError("drop", err)
	}
	return nil
}
