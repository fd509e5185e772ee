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
	id       millrace.TableID
	name     tableName
	filtered bool // has a column list or row filter
}

func (p *publicationInfo) has(id millrace.TableID) bool {
	return slices.ContainsFunc(p.members, func(m publicationMember) bool { return m.id == id })
}

// lookUpPublication returns nil if there is none.
func (c *Capture) lookUpPublication(ctx context.Context, conn *pgx.Conn, server *serverInfo) (*publicationInfo, error) {
	fail := func(err error) (*publicationInfo, error) {
		return nil, fmt.Errorf("look up publication %s: %w", c.cfg.Publication, err)
	}
	var p publicationInfo
	err := conn.QueryRow(ctx, `
SELECT puballtables, pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot
FROM pg_publication WHERE pubname = $1`, c.cfg.Publication).Scan(&p.allTables, &p.everything, &p.viaRoot)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return fail(err)
	}
	// Column lists and row filters came with Postgres 15; through jsonb the
	// query suits 14 too.
	rows, err := conn.Query(ctx, `
SELECT c.oid::bigint, n.nspname::text, c.relname::text, to_jsonb(r)->>'prqual' IS NOT NULL OR to_jsonb(r)->>'prattrs' IS NOT NULL
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
		err = row.Scan(&id, &m.name.schema, &m.name.name, &m.filtered)
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
func (c *Capture) checkPublication(ctx context.Context, conn *pgx.Conn, server *serverInfo, tables []*tableInfo) ([]problem, error) {
	p, err := c.lookUpPublication(ctx, conn, server)
	if err != nil {
		return nil, err
	}
	subject := "publication " + c.cfg.Publication
	if p == nil {
		return []problem{refuse(ErrPublication, subject, "it does not exist", "millrace init")}, nil
	}
	if found := c.unfitPublication(p); found != nil {
		return []problem{*found}, nil
	}
	var problems []problem
	if !p.everything || !p.viaRoot {
		problems = append(problems, refuse(ErrPublication, subject, "it leaves out some operations, or publishes partitions under their own names", "millrace init"))
	}
	for _, t := range tables {
		if !p.has(t.id) {
			problems = append(problems, refuse(ErrPublication, subject, "it lacks table "+t.name.String(), "millrace init"))
		}
	}
	for _, m := range p.members {
		if !slices.ContainsFunc(tables, func(t *tableInfo) bool { return t.id == m.id }) {
			problems = append(problems, refuse(ErrPublication, subject, "it has table "+m.name.String()+", which is not configured", "millrace init, or add the table to the configuration"))
		}
	}
	return problems, nil
}

// unfitPublication says what makes a publication one that Install does not
// alter.
func (c *Capture) unfitPublication(p *publicationInfo) *problem {
	mend := "DROP PUBLICATION " + quote(c.cfg.Publication) + " if nothing else uses it, then millrace init; or configure another name"
	var text string
	switch {
	case p.allTables:
		text = "it is FOR ALL TABLES, and would publish the control schema too"
	case p.schemas > 0:
		text = "it is FOR TABLES IN SCHEMA, and would publish tables that are not configured"
	default:
		for _, m := range p.members {
			if m.filtered {
				text = "it has a row filter or column list for table " + m.name.String()
			}
		}
	}
	if text == "" {
		return nil
	}
	found := refuse(ErrPublication, "publication "+c.cfg.Publication, text, mend)
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
	defer closeConn(conn)
	server, problems, err := checkServer(ctx, conn)
	if err != nil {
		return err
	}
	if err := firstError(problems); err != nil {
		return err
	}
	tables, problems, err := c.checkTables(ctx, conn)
	if err != nil {
		return err
	}
	if err := firstError(problems); err != nil {
		return err
	}
	p, err := c.lookUpPublication(ctx, conn, server)
	if err != nil {
		return err
	}
	if p == nil {
		err = c.createPublication(ctx, conn, tables)
	} else if found := c.unfitPublication(p); found != nil {
		err = firstError([]problem{*found})
	} else {
		err = c.alterPublication(ctx, conn, p, tables)
	}
	if err != nil {
		return err
	}
	return c.installTriggers(ctx, conn, tables)
}

const publicationOptions = "(publish = 'insert, update, delete, truncate', publish_via_partition_root = true)"

func (c *Capture) createPublication(ctx context.Context, conn *pgx.Conn, tables []*tableInfo) error {
	var names []string
	for _, t := range tables {
		names = append(names, t.name.quoted())
	}
	_, err := conn.Exec(ctx, "CREATE PUBLICATION "+quote(c.cfg.Publication)+" FOR TABLE "+strings.Join(names, ", ")+" WITH "+publicationOptions)
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

func (c *Capture) alterPublication(ctx context.Context, conn *pgx.Conn, p *publicationInfo, tables []*tableInfo) error {
	alter := "ALTER PUBLICATION " + quote(c.cfg.Publication)
	if !p.everything || !p.viaRoot {
		if _, err := conn.Exec(ctx, alter+" SET "+publicationOptions); err != nil {
			return c.publicationError("alter", err)
		}
	}
	for _, t := range tables {
		if p.has(t.id) {
			continue
		}
		if err := c.addTable(ctx, conn, t.name); err != nil {
			return err
		}
		c.log.Info("table added to publication", "publication", c.cfg.Publication, "table", t.name.String())
	}
	for _, m := range p.members {
		if slices.ContainsFunc(tables, func(t *tableInfo) bool { return t.id == m.id }) {
			continue
		}
		if _, err := conn.Exec(ctx, alter+" DROP TABLE "+m.name.quoted()); err != nil {
			return c.publicationError("alter", err)
		}
		c.log.Info("table removed from publication", "publication", c.cfg.Publication, "table", m.name.String())
	}
	return nil
}

func (c *Capture) addTable(ctx context.Context, conn *pgx.Conn, name tableName) error {
	for attempt := 1; ; attempt++ {
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			for _, sql := range []string{
				fmt.Sprintf("SET LOCAL lock_timeout = %d", lockTimeout.Milliseconds()),
				"LOCK TABLE " + name.quoted() + " IN SHARE ROW EXCLUSIVE MODE",
				"ALTER PUBLICATION " + quote(c.cfg.Publication) + " ADD TABLE " + name.quoted(),
			} {
				if _, err := tx.Exec(ctx, sql); err != nil {
					return err
				}
			}
			return nil
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
		if err := wait(ctx, time.Duration(attempt)*lockTimeout/2); err != nil {
			return fmt.Errorf("add table %v to publication %s: %w", name, c.cfg.Publication, err)
		}
	}
}

// wait sleeps unless ctx ends first.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// Uninstall ends whoever reads from the slot and drops slot and publication.
// What is not there is no error.
func (c *Capture) Uninstall(ctx context.Context) error {
	conn, err := c.connect(ctx, nil)
	if err != nil {
		return err
	}
	defer closeConn(conn)
	server, _, err := checkServer(ctx, conn)
	if err != nil {
		return err
	}
	slot, err := c.lookUpSlot(ctx, conn)
	if err != nil {
		return err
	}
	if slot != nil {
		if err := c.ownSlot(slot, server); err != nil {
			return err
		}
		if err := c.dropSlot(ctx, conn); err != nil {
			return err
		}
	}
	if _, err := conn.Exec(ctx, "DROP PUBLICATION IF EXISTS "+quote(c.cfg.Publication)); err != nil {
		return c.publicationError("drop", err)
	}
	return nil
}
