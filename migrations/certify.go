package migrations

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
)

// certifier compares ranges of rows at an index: the capture states what the source
// has in a range, at a place of the changes, and behind the commit that ends there
// the target's rows are hashed. Nobody is locked, and nobody waits but the changes.
type certifier struct {
	m      *Migration
	conn   *pgx.Conn
	mu     sync.Mutex // over ranges
	tables map[millrace.TableID]*certified
	// wanted is when the pass was asked for that has begun; done tells that one has ended.
	wanted   time.Time
	begun    bool
	done     bool
	suspects []*suspect
}

// certified is a table that is compared.
type certified struct {
	*mapping
	schema  *millrace.Schema
	plan    *millrace.VerifyPlan
	collate []bool // of the key's columns, where ordered says that ranges are sorted
	ordered bool
	ranges
}

func (m *Migration) openCertifier(ctx context.Context, all []*mapping, schemas []*millrace.Schema) (*certifier, error) {
	c := &certifier{m: m, tables: make(map[millrace.TableID]*certified)}
	for _, t := range all {
		i := slices.IndexFunc(schemas, func(s *millrace.Schema) bool { return s.Table == t.id })
		x := &certified{mapping: t, schema: schemas[i], plan: millrace.NewVerifyPlan(schemas[i])}
		x.collate, x.ordered = t.codec.SourceOrder()
		c.tables[t.id] = x
	}
	var err error
	if c.conn, err = m.connect(ctx, target); err != nil {
		return nil, err
	}
	if err = install(ctx, c.conn); err == nil { // it may be of an older version
		err = c.load(ctx)
	}
	if err != nil {
		capture.Close(c.conn)
		return nil, err
	}
	return c, nil
}

func (c *certifier) close() { capture.Close(c.conn) }

// cloneVerify copies what an entry says of a range.
func cloneVerify(e *millrace.Entry) *millrace.Entry {
	v := *e.Verify
	v.Low, v.High = bytes.Clone(v.Low), bytes.Clone(v.High)
	v.LeftOut = make([][]byte, len(e.Verify.LeftOut))
	for i, k := range e.Verify.LeftOut {
		v.LeftOut[i] = bytes.Clone(k)
	}
	return &millrace.Entry{Kind: e.Kind, Table: e.Table, Verify: &v}
}

// tend begins a pass if somebody wants one, or goes on with it, and notes how it ends.
func (c *certifier) tend(ctx context.Context, f *follower) error {
	if !f.sink.exact {
		return nil
	}
	if c.begun {
		return c.finish(ctx, f)
	}
	err := c.conn.QueryRow(ctx, "UPDATE millrace.migration_wanted SET taken_at = clock_timestamp() WHERE name = $1 AND done_at IS NULL RETURNING wanted_at", c.m.cfg.Name).Scan(&c.wanted)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look whether verification is wanted: %w", err)
	}
	c.begun, c.done = true, false
	for _, t := range c.tables {
		if err := c.begin(ctx, t); err != nil {
			return err
		}
		if len(t.left) == 0 {
			continue
		}
		if err := f.from.VerifyRanges(t.from.String(), t.left); err != nil {
			return err
		}
	}
	return nil
}

// finish notes that a pass has ended, or failed.
func (c *certifier) finish(ctx context.Context, f *follower) error {
	problem, left := "", len(c.suspects)
	for _, p := range f.from.Passes() {
		if p.Phase == capture.PassFailed {
			problem = p.Table + ": " + p.Problem
		}
	}
	for _, t := range c.tables {
		left += len(t.left)
	}
	if problem == "" && left > 0 {
		return nil
	}
	if _, err := c.conn.Exec(ctx, `
UPDATE millrace.migration_wanted SET done_at = clock_timestamp(), problem = nullif($2, ''), index = $3::text::numeric, position = $4, chain = $5
WHERE name = $1 AND wanted_at = $6`, c.m.cfg.Name, problem, f.at.Index.String(), f.at.Position.String(), f.at.Chain[:], c.wanted); err != nil {
		return fmt.Errorf("note that verification has ended: %w", err)
	}
	c.begun, c.done = false, true
	return nil
}

// columns are the carried columns by the names of a side.
func (t *mapping) columns(where side) string {
	var names []string
	for _, c := range t.carried {
		if where == source {
			names = append(names, c.source)
		} else {
			names = append(names, c.target)
		}
	}
	return quoteAll("", names)
}

// inRange is a condition for the rows of a range, by the names of a side. It may let
// others through.
func (t *certified) inRange(where side, low, high []byte) (string, error) {
	terms := []string{"true"}
	if t.part != "" && where == target {
		// The rows of this partition, as the constraint would have it of the same row.
		var columns []string
		for _, c := range t.carried {
			columns = append(columns, fmt.Sprintf("%s::%s AS %s", quoteAll(t.to.Quoted()+".", []string{c.target}), c.sourceCast, quoteAll("", []string{c.source})))
		}
		terms = append(terms, fmt.Sprintf("(SELECT coalesce(%s, true) FROM (SELECT %s) millrace_row)", t.part, strings.Join(columns, ", ")))
	}
	if !t.ordered {
		return strings.Join(terms, " AND "), nil
	}
	var names []string
	for i, place := range t.key {
		name := t.carried[place].target
		if where == source {
			name = t.carried[place].source
		}
		text := quoteAll("", []string{name})
		if t.collate[i] {
			text += ` COLLATE "C"`
		}
		names = append(names, text)
	}
	for _, bound := range []struct {
		key      []byte
		operator string
	}{{low, ">="}, {high, "<"}} {
		if len(bound.key) == 0 {
			continue
		}
		texts, err := t.codec.Decode(bound.key, nil)
		if err != nil {
			return "", fmt.Errorf("read a key of %v: %w", t.from, err)
		}
		var values []string
		for i, place := range t.key {
			value := literal(string(texts[i])) + "::" + t.carried[place].sourceCast
			if t.collate[i] {
				value += ` COLLATE "C"`
			}
			values = append(values, value)
		}
		terms = append(terms, fmt.Sprintf("ROW(%s) %s ROW(%s)", strings.Join(names, ", "), bound.operator, strings.Join(values, ", ")))
	}
	return strings.Join(terms, " AND "), nil
}

// rows calls fn for each row of a range at a side, with its encoded key and columns,
// which are valid during the call.
func (t *certified) rows(ctx context.Context, conn *pgx.Conn, where side, low, high []byte, fn func(key []byte, columns []millrace.Datum) error) error {
	condition, err := t.inRange(where, low, high)
	if err != nil {
		return err
	}
	from := t.to
	if where == source {
		from = t.from
	}
	rows, err := conn.Query(ctx, fmt.Sprintf("SELECT %s FROM %s WHERE %s", t.columns(where), from.Quoted(), condition), pgx.QueryExecModeExec, pgx.QueryResultFormats{pgx.TextFormatCode})
	if err != nil {
		return fmt.Errorf("read %v at the %s: %w", from, where, err)
	}
	defer rows.Close()
	columns := make([]millrace.Datum, len(t.carried))
	within := millrace.VerifyRange{Low: low, High: high}
	var key []byte
	for rows.Next() {
		for i, text := range rows.RawValues() {
			columns[i] = millrace.Datum{State: millrace.ColumnValue, Text: text}
			if text == nil {
				columns[i] = millrace.Datum{State: millrace.ColumnNull}
			}
		}
		if key, err = t.codec.AppendRowKey(key[:0], columns); err != nil {
			return err
		}
		if !within.Holds(key) {
			continue
		}
		if err := fn(key, columns); err != nil {
			return err
		}
	}
	return rows.Err()
}

// compare compares the range of an entry, where the target has just come to.
func (c *certifier) compare(ctx context.Context, f *follower, e *millrace.Entry) error {
	t, r := c.tables[e.Table], e.Verify
	if t == nil {
		return fmt.Errorf("%w: a range of table %v, which does not move", ErrChanged, e.Table)
	}
	if !f.sink.exact || !c.begun {
		return nil // asked for by nobody
	}
	var there millrace.VerifySum
	if err := t.rows(ctx, c.conn, target, r.Low, r.High, func(key []byte, columns []millrace.Datum) error {
		if _, left := slices.BinarySearchFunc(r.LeftOut, key, bytes.Compare); left {
			return nil
		}
		return there.Add(t.plan, key, columns)
	}); err != nil {
		return err
	}
	wrong, err := c.miscomputed(ctx, t, r.Low, r.High)
	if err != nil {
		return err
	}
	hash := there.Sum()
	equal := there.Rows == r.Rows && hash == r.Hash && wrong == 0
	var found *string
	if wrong > 0 {
		text, _ := json.Marshal(fmt.Sprintf("%d rows have other values in computed columns than their expressions give", wrong)) // a text has JSON
		found = new(string(text))
	}
	of := capture.KeyRange{Low: r.Low, High: r.High}
	if err := pgx.BeginFunc(ctx, c.conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "DELETE FROM millrace.migration_range WHERE name = $1 AND table_name = $2 AND (high = '' OR high > $3) AND ($4::bytea = '' OR low < $4::bytea)",
			c.m.cfg.Name, t.from.String(), notNil(r.Low), notNil(r.High)); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `
INSERT INTO millrace.migration_range (name, table_name, index, low, high, left_out, rows, sum, rows_there, sum_there, equal, found, since, shape, counted)
SELECT $1, $2, $3::text::numeric, $4, $5, $6, $7, $8, $9, $10, $11, $12::text::jsonb, p.converged_at, $13, $14 FROM millrace.migration_place p WHERE p.name = $1`,
			c.m.cfg.Name, t.from.String(), f.at.Index.String(), notNil(r.Low), notNil(r.High), len(r.LeftOut), int64(r.Rows), r.Hash[:], int64(there.Rows), hash[:], equal, found, t.shape, c.wanted)
		return err
	}); err != nil {
		return fmt.Errorf("note a range of %v: %w", t.from, err)
	}
	c.mu.Lock()
	t.compared(of, equal && len(r.LeftOut) == 0)
	c.mu.Unlock()
	if equal {
		return nil
	}
	c.m.log.Error("source and target differ", "table", t.from.String(), "index", f.at.Index.String(), "rows", r.Rows, "rows_there", there.Rows)
	if wrong > 0 {
		return nil
	}
	s := &suspect{t: t, low: r.Low, high: r.High}
	if err := s.look(ctx, f, c.conn); err != nil {
		return err
	}
	c.suspects = append(c.suspects, s)
	return nil
}

func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// miscomputed counts rows of a range whose computed columns are not what their
// expressions give.
func (c *certifier) miscomputed(ctx context.Context, t *certified, low, high []byte) (n int64, err error) {
	if len(t.derived) == 0 {
		return 0, nil
	}
	condition, err := t.inRange(target, low, high)
	if err != nil {
		return 0, err
	}
	var columns, terms []string
	for _, k := range t.carried {
		columns = append(columns, fmt.Sprintf("%s::%s AS %s", quoteAll("", []string{k.target}), k.sourceCast, quoteAll("", []string{k.source})))
	}
	for i, d := range t.derived {
		columns = append(columns, fmt.Sprintf("%s AS millrace_d%d", quoteAll("", []string{d.target}), i))
		terms = append(terms, fmt.Sprintf("millrace_d%d IS DISTINCT FROM (%s)::%s", i, d.sql, d.targetCast))
	}
	err = c.conn.QueryRow(ctx, fmt.Sprintf("SELECT count(*) FROM (SELECT %s FROM %s WHERE %s) x WHERE %s", strings.Join(columns, ", "), t.to.Quoted(), condition, strings.Join(terms, " OR "))).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("compute columns of %v: %w", t.to, err)
	}
	return n, nil
}
