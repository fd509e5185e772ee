package migrations

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
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
	tables map[millrace.TableID]*certified
	// wanted are tables whose ranges are awaited, done tells that all have come.
	wanted   map[millrace.TableID]bool
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
	c.conn, err = m.connect(ctx, target)
	return c, err
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

// tend begins a pass if somebody wants one, and notes how it ends.
func (c *certifier) tend(ctx context.Context, f *follower) error {
	if !f.sink.exact {
		return nil
	}
	if c.begun {
		return c.finish(ctx, f)
	}
	tag, err := c.conn.Exec(ctx, "UPDATE millrace.migration_wanted SET taken_at = clock_timestamp() WHERE name = $1 AND done_at IS NULL", c.m.cfg.Name)
	if err != nil {
		return fmt.Errorf("look whether verification is wanted: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return nil
	}
	if err := f.from.Verify(nil); err != nil {
		return err
	}
	c.begun, c.done, c.wanted = true, false, make(map[millrace.TableID]bool)
	for id := range c.tables {
		c.wanted[id] = true
	}
	return nil
}

// finish notes that a pass has ended, or failed.
func (c *certifier) finish(ctx context.Context, f *follower) error {
	problem := ""
	for _, p := range f.from.Passes() {
		if p.Phase == capture.PassFailed {
			problem = p.Table + ": " + p.Problem
		}
	}
	if problem == "" && (len(c.wanted) > 0 || len(c.suspects) > 0) {
		return nil
	}
	if _, err := c.conn.Exec(ctx, "UPDATE millrace.migration_wanted SET done_at = clock_timestamp(), problem = nullif($2, '') WHERE name = $1", c.m.cfg.Name, problem); err != nil {
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
	if !f.sink.exact {
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
	if _, err := c.conn.Exec(ctx, `
INSERT INTO millrace.migration_range (name, table_name, pass, index, low, high, left_out, rows, sum, rows_there, sum_there, equal, found)
VALUES ($1, $2, $3, $4::text::numeric, $5, $6, $7, $8, $9, $10, $11, $12, $13::text::jsonb)
ON CONFLICT (name, table_name, pass, low) DO UPDATE SET index = excluded.index, high = excluded.high, left_out = excluded.left_out, rows = excluded.rows, sum = excluded.sum,
    rows_there = excluded.rows_there, sum_there = excluded.sum_there, equal = excluded.equal, found = excluded.found, checked_at = excluded.checked_at`,
		c.m.cfg.Name, t.from.String(), int64(r.ID), f.at.Index.String(), notNil(r.Low), notNil(r.High), len(r.LeftOut), int64(r.Rows), r.Hash[:], int64(there.Rows), hash[:], equal, found); err != nil {
		return fmt.Errorf("note a range of %v: %w", t.from, err)
	}
	if len(r.High) == 0 {
		delete(c.wanted, e.Table)
	}
	if equal {
		return nil
	}
	c.m.log.Error("source and target differ", "table", t.from.String(), "index", f.at.Index.String(), "rows", r.Rows, "rows_there", there.Rows)
	if wrong > 0 {
		return nil
	}
	s := &suspect{t: t, pass: int64(r.ID), low: r.Low, high: r.High}
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

// suspect is a range that differs, of which the rows are looked for.
type suspect struct {
	t         *certified
	pass      int64
	low, high []byte
	// rows are what the source has, or nil, by key, where the target has something
	// else; until is the place behind which the target must have it too.
	rows  map[string][]millrace.Datum
	until uint64
}

const (
	maxSuspects = 10_000 // rows that are held
	maxShown    = 100    // rows that are kept for people
)

// look reads the range at both sides and keeps what differs: the source may be ahead.
func (s *suspect) look(ctx context.Context, f *follower, dst *pgx.Conn) (err error) {
	there := make(map[string][]millrace.Datum)
	if err := s.t.rows(ctx, dst, target, s.low, s.high, func(key []byte, columns []millrace.Datum) error {
		there[string(key)] = copyColumns(columns)
		return nil
	}); err != nil {
		return err
	}
	s.rows = make(map[string][]millrace.Datum)
	if err := s.t.rows(ctx, f.src, source, s.low, s.high, func(key []byte, columns []millrace.Datum) error {
		other, ok := there[string(key)]
		if (!ok || !sameColumns(columns, other)) && len(s.rows) < maxSuspects {
			s.rows[string(key)] = copyColumns(columns)
		}
		delete(there, string(key))
		return nil
	}); err != nil {
		return err
	}
	for key := range there {
		if len(s.rows) < maxSuspects {
			s.rows[key] = nil
		}
	}
	s.until, err = f.sourceEnd(ctx)
	return err
}

func sameColumns(a, b []millrace.Datum) bool {
	return slices.EqualFunc(a, b, func(x, y millrace.Datum) bool { return x.State == y.State && bytes.Equal(x.Text, y.Text) })
}

// differing is a row that differs, for people. A side that has none is null.
type differing struct {
	Key    []string           `json:"key"`
	Source map[string]*string `json:"source"`
	Target map[string]*string `json:"target"`
}

// again looks at suspects whose place has been passed, and keeps those for people
// that still differ and have not changed since at the source.
func (c *certifier) again(ctx context.Context, f *follower) error {
	var left []*suspect
	for _, s := range c.suspects {
		if f.at.Position.Token() < s.until {
			left = append(left, s)
			continue
		}
		if err := c.judge(ctx, f, s); err != nil {
			return err
		}
	}
	c.suspects = left
	return nil
}

func (c *certifier) judge(ctx context.Context, f *follower, s *suspect) error {
	now := make(map[string][]millrace.Datum)
	if err := s.t.rows(ctx, f.src, source, s.low, s.high, func(key []byte, columns []millrace.Datum) error {
		if _, suspected := s.rows[string(key)]; suspected {
			now[string(key)] = copyColumns(columns)
		}
		return nil
	}); err != nil {
		return err
	}
	there := make(map[string][]millrace.Datum)
	if err := s.t.rows(ctx, c.conn, target, s.low, s.high, func(key []byte, columns []millrace.Datum) error {
		if _, suspected := s.rows[string(key)]; suspected {
			there[string(key)] = copyColumns(columns)
		}
		return nil
	}); err != nil {
		return err
	}
	found := []differing{}
	keys := make([]string, 0, len(s.rows))
	for key := range s.rows {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		if !sameColumns(now[key], s.rows[key]) || (now[key] == nil) != (s.rows[key] == nil) {
			continue // it is being changed
		}
		if sameColumns(now[key], there[key]) && (now[key] == nil) == (there[key] == nil) {
			continue
		}
		texts, err := s.t.codec.Decode([]byte(key), nil)
		if err != nil {
			return err
		}
		d := differing{Source: s.t.shown(now[key]), Target: s.t.shown(there[key])}
		for _, text := range texts {
			d.Key = append(d.Key, capture.Text(string(text)))
		}
		if found = append(found, d); len(found) == maxShown {
			break
		}
	}
	text, err := json.Marshal(found)
	if err != nil {
		return err
	}
	if _, err := c.conn.Exec(ctx, "UPDATE millrace.migration_range SET found = $5::text::jsonb WHERE name = $1 AND table_name = $2 AND pass = $3 AND low = $4",
		c.m.cfg.Name, s.t.from.String(), s.pass, notNil(s.low), string(text)); err != nil {
		return fmt.Errorf("note rows of %v that differ: %w", s.t.from, err)
	}
	return nil
}

// shown is a row for people.
func (t *mapping) shown(columns []millrace.Datum) map[string]*string {
	if columns == nil {
		return nil
	}
	all := make(map[string]*string)
	for i, c := range t.carried {
		if columns[i].State != millrace.ColumnValue {
			all[c.source] = nil
			continue
		}
		text := capture.Text(string(columns[i].Text))
		all[c.source] = &text
	}
	return all
}

// Certificate says what a verification has found.
type Certificate struct {
	// Equal says that every range of every table was equal at the index at which it
	// was compared, and that the target's foreign keys hold.
	Equal  bool             `json:"equal"`
	Tables []CertifiedTable `json:"tables"`
	// ForeignKeys are those of the target that rows violate.
	ForeignKeys []string  `json:"foreign_keys,omitempty"`
	CheckedAt   time.Time `json:"checked_at"`
}

// CertifiedTable is what it found of one table.
type CertifiedTable struct {
	Table  string `json:"table"`
	Ranges int64  `json:"ranges"`
	Rows   int64  `json:"rows"`
	// Differing are how many ranges differ. FirstIndex and LastIndex are where they
	// were compared.
	Differing  int64           `json:"differing"`
	FirstIndex string          `json:"first_index"`
	LastIndex  string          `json:"last_index"`
	Found      json.RawMessage `json:"found,omitempty"`
}
