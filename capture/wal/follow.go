package wal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture/table"
)

// mark is how a captured table looked at one time, so far as its rows can come or
// go without being sent.
type mark struct {
	// Published identifies the table's place in the publication, with the columns
	// and rows that are chosen: taken out and put back, it is another one.
	Published string `json:"published"`
	// Triggers identifies the event triggers, or is empty where there are none.
	Triggers string `json:"triggers,omitempty"`
	// Generated are the numbers of columns that are generated, and so left out.
	Generated []int16 `json:"generated,omitempty"`
	// Leaves are the partitions that hold rows, by OID; nil for a plain table.
	Leaves map[string]leafMark `json:"leaves"`
	// Columns are the numbers of all columns, and File is the relfilenode of a plain
	// table.
	Columns []int16 `json:"columns,omitempty"`
	File    uint32  `json:"file,omitempty"`
	// noted are the files that partitions had when the event triggers told of
	// them.
	noted map[string]uint32
	// filled are the numbers of columns for which rows that were there before them may
	// have a value, so long as the table is not rewritten: then it cannot be told any more.
	filled []int16
}

type leafMark struct {
	// Since identifies the act by which it became a partition: detached and
	// attached again, it is another one.
	Since string `json:"since"`
	// File is its relfilenode, which TRUNCATE and rewrites replace.
	File uint32 `json:"file"`
}

// differs says why a table whose newest load began at seen is to be loaded again
// now, or "". seen is nil if nothing is known.
//
// Partitions that came or went while the event triggers were there have been told
// of, and noted. TRUNCATE of one fires no event trigger.
func (now *mark) differs(seen *mark) string {
	switch {
	case seen == nil:
		return "what it looked like when it was loaded is not known"
	case seen.Published != now.Published:
		return "it was taken out of the publication and put back, or other columns or rows of it were chosen"
	}
	for _, n := range seen.Generated {
		if !slices.Contains(now.Generated, n) && slices.Contains(now.Columns, n) {
			return fmt.Sprintf("column number %d was generated, and is not any more", n)
		}
	}
	if now.File != seen.File {
		for _, n := range now.came(seen) {
			if !slices.Contains(now.Generated, n) {
				return fmt.Sprintf("column number %d came, and the table was rewritten", n)
			}
		}
	}
	told := now.told(seen)
	for oid, leaf := range now.Leaves {
		before, known := seen.Leaves[oid]
		if !known || before.Since != leaf.Since {
			if before.File, known = now.noted[oid]; !known || !told {
				return "a partition came, with OID " + oid
			}
		}
		if before.File != leaf.File {
			return "the partition with OID " + oid + " was truncated or rewritten"
		}
	}
	for oid := range seen.Leaves {
		if _, still := now.Leaves[oid]; !still && !told {
			return "the partition with OID " + oid + " is gone"
		}
	}
	return ""
}

// told reports whether the event triggers have been there since seen.
func (now *mark) told(seen *mark) bool {
	return now.Triggers != "" && now.Triggers == seen.Triggers
}

// came are the numbers of columns that have come since seen, and nobody has told of.
func (now *mark) came(seen *mark) (numbers []int16) {
	if seen.Columns == nil || now.told(seen) {
		return nil
	}
	for _, n := range now.Columns {
		if !slices.Contains(seen.Columns, n) {
			numbers = append(numbers, n)
		}
	}
	return numbers
}

// doubt leaves out columns that have come with values. These are in the rows that a load
// brings which the stream begins by itself at the next change of the table; but if the
// table is rewritten before, that cannot tell any more that there are any.
func (now *mark) doubt(seen *mark) {
	if seen == nil {
		return
	}
	came := now.came(seen)
	now.Columns = slices.DeleteFunc(now.Columns, func(n int16) bool { return slices.Contains(came, n) && slices.Contains(now.filled, n) })
}

func (now *mark) equal(o *mark) bool {
	return slices.Equal(now.Columns, o.Columns) && now.File == o.File && now.Published == o.Published && now.Triggers == o.Triggers && slices.Equal(now.Generated, o.Generated) && (now.Leaves == nil) == (o.Leaves == nil) && maps.Equal(now.Leaves, o.Leaves)
}

// marksQuery reads the catalogs by its snapshot throughout: functions such as
// pg_relation_filenode see what is newer, and a partition dropped since has no file.
const marksQuery = `
WITH RECURSIVE tree (root, oid, since) AS (
    SELECT oid, oid, '' FROM unnest($2::bigint[]::oid[]) oid
  UNION
    SELECT tree.root, i.inhrelid, tree.since || i.xmin::text || ' '
    FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
)
SELECT c.oid::bigint,
       coalesce((SELECT concat_ws(' ', p.oid, r.oid, to_jsonb(r)->>'prattrs', to_jsonb(r)->>'prqual')
                 FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
                 WHERE p.pubname = $1 AND r.prrelid = c.oid), ''),
       (` + triggersQuery + `),
       ARRAY(SELECT attnum FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum),
       ARRAY(SELECT attnum FROM pg_attribute JOIN pg_type t ON t.oid = atttypid WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND (atthasmissing OR atthasdef OR t.typdefault IS NOT NULL)),
       CASE WHEN c.relkind = 'p' THEN 0 ELSE c.relfilenode::bigint END,
       ARRAY(SELECT attnum FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND attgenerated <> '' ORDER BY attnum),
       CASE WHEN c.relkind = 'p' THEN
           (SELECT coalesce(jsonb_object_agg(l.oid::text, jsonb_build_object('since', tree.since, 'file', l.relfilenode::bigint)), '{}')
            FROM tree JOIN pg_class l ON l.oid = tree.oid
            WHERE tree.root = c.oid AND l.relkind NOT IN ('p', 'I')) END
FROM pg_class c
WHERE c.oid = ANY ($2::bigint[]::oid[])`

// marks looks at tables. One that is gone is not in the result.
func (c *Capture) marks(ctx context.Context, conn *pgx.Conn, ids []millrace.TableID) (map[millrace.TableID]*mark, error) {
	list := make([]int64, 0, len(ids))
	for _, id := range ids {
		list = append(list, int64(id))
	}
	// What the catalogs have and what was noted of it are looked at in one
	// snapshot: a command changes both.
	var all map[millrace.TableID]*mark
	err := pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) (err error) {
		if all, err = readMarks(ctx, tx, c.cfg.Publication, list); err == nil {
			err = readNoted(ctx, tx, all)
		}
		return err
	})
	return all, err
}

func readMarks(ctx context.Context, tx pgx.Tx, publication string, list []int64) (map[millrace.TableID]*mark, error) {
	rows, err := tx.Query(ctx, marksQuery, publication, list)
	if err != nil {
		return nil, fmt.Errorf("look at the tables' partitions: %w", err)
	}
	all := make(map[millrace.TableID]*mark)
	_, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (id int64, err error) {
		m := new(mark)
		var leaves []byte
		if err := row.Scan(&id, &m.Published, &m.Triggers, &m.Columns, &m.filled, &m.File, &m.Generated, &leaves); err != nil {
			return id, err
		}
		all[millrace.TableID(id)] = m
		if leaves == nil {
			return id, nil
		}
		return id, json.Unmarshal(leaves, &m.Leaves)
	})
	if err != nil {
		return nil, fmt.Errorf("look at the tables' partitions: %w", err)
	}
	return all, nil
}

// readNoted adds what the event triggers have noted.
func readNoted(ctx context.Context, tx pgx.Tx, all map[millrace.TableID]*mark) error {
	var kept bool
	err := tx.QueryRow(ctx, "SELECT to_regclass('millrace.leaf') IS NOT NULL").Scan(&kept)
	if err != nil || !kept {
		return err
	}
	rows, err := tx.Query(ctx, "SELECT root::bigint, leaf::text, file::bigint FROM millrace.leaf")
	if err != nil {
		return fmt.Errorf("read partitions that were told of: %w", err)
	}
	_, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (leaf string, err error) {
		var root, file int64
		err = row.Scan(&root, &leaf, &file)
		if m := all[millrace.TableID(root)]; m != nil {
			if m.noted == nil {
				m.noted = make(map[string]uint32)
			}
			m.noted[leaf] = uint32(file)
		}
		return leaf, err
	})
	return err
}

// follower has tables loaded again where their rows came or went without being
// sent. It compares their marks, now and then and at every start, with those that
// it keeps in the control schema. A new mark is kept there once the begin of a
// load that is later than it is published, because such a load is brought to its
// end, or begun anew, whatever happens; if it is not kept in time, the table is
// loaded once more.
//
// It asks for a load by a message in the WAL: so the load begins behind all that
// was sent before the rows came or went.
type follower struct {
	c   *Capture
	ids []millrace.TableID
	// known are the marks in the control schema, or would be if it were there;
	// nil before they were read.
	known map[millrace.TableID]*mark
	kept  bool // the control schema has a place for them
	// begun are marks with the place in the WAL behind which the begin of a
	// later load is.
	begun map[millrace.TableID]begunMark
	// confirmed returns what is published.
	confirmed func() millrace.LSN
}

type begunMark struct {
	mark *mark
	lsn  millrace.LSN
}

func (s *Source) newFollower(tables []*table.Info) *follower {
	return &follower{
		c: s.c, ids: idsOf(tables), begun: make(map[millrace.TableID]begunMark),
		confirmed: func() millrace.LSN { return millrace.LSN(s.confirmed.Load()) },
	}
}

// began notes marks of tables whose loads begin no later than at lsn.
func (f *follower) began(marks map[millrace.TableID]*mark, ids []millrace.TableID, lsn millrace.LSN) {
	for _, id := range ids {
		if marks[id] != nil {
			f.begun[id] = begunMark{marks[id], lsn}
		}
	}
}

// run compares once.
func (f *follower) run(ctx context.Context, conn *pgx.Conn) error {
	if f.known == nil {
		if err := f.read(ctx, conn); err != nil {
			return err
		}
	}
	if err := f.settle(ctx, conn); err != nil {
		return err
	}
	now, err := f.c.marks(ctx, conn, f.ids)
	if err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(now)) {
		seen := f.known[id]
		b, waits := f.begun[id]
		if waits {
			seen = b.mark
		}
		reason := now[id].differs(seen)
		if seen == nil && !f.kept && now[id].Leaves == nil {
			reason = "" // without the control schema there is nothing to go by
		}
		if reason == "" {
			now[id].doubt(seen)
		}
		switch {
		case reason != "":
			f.c.log.Warn("rows of a table came or went without being sent; it is loaded again", "oid", id, "reason", reason)
			lsn, err := f.ask(ctx, conn, id, reason)
			if err != nil {
				return err
			}
			f.begun[id] = begunMark{now[id], lsn}
		case !waits && (seen == nil || !now[id].equal(seen)):
			if err := f.keep(ctx, conn, id, now[id]); err != nil {
				return err
			}
		}
	}
	return nil
}

// waits reports whether marks wait to be kept.
func (f *follower) waits() bool { return f.known != nil && len(f.begun) > 0 }

// settle keeps the marks of loads whose begin is published by now. The sooner the
// better: until then a new start takes the table for one of which nothing is known.
func (f *follower) settle(ctx context.Context, conn *pgx.Conn) error {
	for _, id := range slices.Sorted(maps.Keys(f.begun)) {
		if b := f.begun[id]; f.confirmed() > b.lsn {
			if err := f.keep(ctx, conn, id, b.mark); err != nil {
				return err
			}
			delete(f.begun, id)
		}
	}
	return nil
}

// ask writes a message that begins a load, and returns a place before its commit.
func (f *follower) ask(ctx context.Context, conn *pgx.Conn, id millrace.TableID, reason string) (millrace.LSN, error) {
	content, err := json.Marshal(map[string]any{"tag": "comparison", "stream": f.c.cfg.Stream, "load": []millrace.TableID{id}, "reason": reason})
	if err != nil {
		return 0, err
	}
	var text string
	if err := conn.QueryRow(ctx, "SELECT pg_logical_emit_message(true, $1, $2::text)::text", ddlPrefix, string(content)).Scan(&text); err != nil {
		return 0, fmt.Errorf("ask for a load of the table with OID %v: %w", id, err)
	}
	return millrace.ParseLSN(text)
}

func (f *follower) read(ctx context.Context, conn *pgx.Conn) error {
	if err := conn.QueryRow(ctx, "SELECT to_regclass('millrace.followed') IS NOT NULL").Scan(&f.kept); err != nil {
		return fmt.Errorf("look for the control schema: %w", err)
	}
	known := make(map[millrace.TableID]*mark)
	if f.kept {
		rows, err := conn.Query(ctx, "SELECT table_id::bigint, mark::text FROM millrace.followed WHERE stream = $1", f.c.cfg.Stream)
		if err != nil {
			return fmt.Errorf("read the marks of tables: %w", err)
		}
		_, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (id int64, err error) {
			m := new(mark)
			var text string
			if err := row.Scan(&id, &text); err != nil {
				return id, err
			}
			known[millrace.TableID(id)] = m
			return id, json.Unmarshal([]byte(text), m)
		})
		if err != nil {
			return fmt.Errorf("read the marks of tables: %w", err)
		}
	}
	f.known = known
	return nil
}

func (f *follower) keep(ctx context.Context, conn *pgx.Conn, id millrace.TableID, m *mark) error {
	if f.kept {
		text, err := json.Marshal(m)
		if err != nil {
			return err
		}
		_, err = conn.Exec(ctx, `
INSERT INTO millrace.followed (stream, table_id, mark) VALUES ($1, $2::bigint::oid, $3::text::jsonb)
ON CONFLICT (stream, table_id) DO UPDATE SET mark = excluded.mark`, f.c.cfg.Stream, int64(id), string(text))
		if err != nil {
			return fmt.Errorf("keep the mark of the table with OID %v: %w", id, err)
		}
	}
	f.known[id] = m
	return nil
}

// strange is lookUps.strange.
func (c *Capture) strange(ctx context.Context, conn *pgx.Conn, id millrace.TableID) (millrace.TableID, error) {
	var kept bool
	var triggers string
	err := conn.QueryRow(ctx, "SELECT to_regclass('millrace.followed') IS NOT NULL, ("+triggersQuery+")").Scan(&kept, &triggers)
	if err != nil || !kept || triggers != "" {
		return 0, err
	}
	var root int64
	err = conn.QueryRow(ctx, `
WITH RECURSIVE up (oid) AS (
    SELECT $2::bigint::oid
  UNION
    SELECT i.inhparent FROM up JOIN pg_inherits i ON i.inhrelid = up.oid
)
SELECT f.table_id::bigint
FROM up JOIN millrace.followed f ON f.table_id = up.oid AND f.stream = $1
WHERE f.table_id <> $2::bigint::oid AND NOT f.mark->'leaves' ? $2::bigint::text`, c.cfg.Stream, int64(id)).Scan(&root)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look up what table %v is a partition of: %w", id, err)
	}
	return millrace.TableID(root), nil
}

func idsOf(tables []*table.Info) []millrace.TableID {
	ids := make([]millrace.TableID, 0, len(tables))
	for _, t := range tables {
		ids = append(ids, t.ID)
	}
	return ids
}
