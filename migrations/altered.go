package migrations

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
)

// A table may be altered at the source in a way that leaves its rows as they are: a column
// comes that may be NULL and has no default. The source describes the table anew in front of the first row that looks otherwise. The
// follower commits everything before that, looks whether the target has a place for the
// new columns, and begins again there with the new description. Whatever else is done to
// a table stops the migration.

// alteredError occurs in front of a new description of a table.
type alteredError struct {
	schema *millrace.Schema
	// alone tells that everything before it is committed, but for changes of other tables
	// in the same unit; single that the batch was of one unit.
	alone, single bool
	// index is where the batch begins.
	index millrace.Index
}

func (e *alteredError) Error() string {
	return fmt.Sprintf("%v: the source describes %s anew; mend: millrace migrate follow -f FILE, which goes on or says why not", ErrChanged, e.schema.QualifiedName())
}

func (e *alteredError) Unwrap() error { return ErrChanged }

// adoptAgain is how often more than there are tables a description may be another one at
// the same place than the one that was taken.
const adoptAgain = 3

// adoption is what followers that come after each other know of altered tables.
type adoption struct {
	// single has batches be of one unit up to the next description, so that everything
	// before it is committed.
	single bool
	// schemas are the descriptions that come next, and are taken.
	schemas map[millrace.TableID]*millrace.Schema
}

// follow is one follower after the other, until one ends otherwise than in front of a new
// description that can be taken.
func (m *Migration) follow(ctx context.Context, until Until) error {
	var adopt adoption
	var index millrace.Index
	for again := 0; ; {
		err := m.followUntil(ctx, until, &adopt)
		var a *alteredError
		switch {
		case !errors.As(err, &a):
			return err
		case !a.alone && !a.single:
			adopt = adoption{single: true}
			continue
		case !a.alone:
			return fmt.Errorf("%w: %s was altered in a transaction that had written to it before; mend: millrace migrate abort -f FILE, and begin again", ErrChanged, a.schema.QualifiedName())
		}
		// Tables that are altered in one transaction are met one by one, and the source may
		// be altered on meanwhile.
		if again++; a.index != index {
			index, again = a.index, 0
		}
		if again > len(m.cfg.Tables)+adoptAgain {
			return fmt.Errorf("%w: %s is described otherwise each time that it is read; mend: millrace migrate abort -f FILE, and begin again", ErrChanged, a.schema.QualifiedName())
		}
		if err := m.mayAdopt(ctx, a.schema); err != nil {
			return err
		}
		if adopt.schemas == nil {
			adopt.schemas = make(map[millrace.TableID]*millrace.Schema)
		}
		if was := adopt.schemas[a.schema.Table]; was != nil && was.Version == a.schema.Version {
			return err // it was taken, and is not what comes
		}
		adopt.schemas[a.schema.Table] = a.schema
	}
}

// expect puts the descriptions that come next in the place of those that are known.
func (a *adoption) expect(c *millrace.Catalog) *millrace.Catalog {
	next := c.Clone()
	for i, s := range next.Schemas {
		if s := a.schemas[s.Table]; s != nil && s.Version > c.LastVersion {
			next.Schemas[i] = s
		}
	}
	return &next
}

// described takes a new description into the place, or refuses it.
func (g *gatherer) described(at *millrace.Checkpoint, s *millrace.Schema, t *gathered) error {
	if known := at.Catalog.Schema(s.Table); known != nil && known.SameAs(s) {
		enter(at, s)
		return nil
	}
	if expected := g.adopt.schemas[s.Table]; expected == nil || !expected.SameAs(s) {
		b := t.batch.tables[s.Table]
		return &alteredError{schema: s, alone: t.units == 0 && (b == nil || b.counts == Counts{}), single: t.single, index: t.at.Index}
	}
	enter(at, s)
	g.adopt.single = false // from the next batch on
	g.m.log.Info("the source's table was altered, and the target has a place for it", "table", s.QualifiedName(), "columns", len(s.Columns))
	return nil
}

// enter puts a description into the catalog of a place.
func enter(at *millrace.Checkpoint, s *millrace.Schema) {
	at.Catalog = at.Catalog.Clone()
	at.Catalog.LastVersion = max(at.Catalog.LastVersion, s.Version)
	i, ok := slices.BinarySearchFunc(at.Catalog.Schemas, s.Table, func(s *millrace.Schema, t millrace.TableID) int { return cmp.Compare(s.Table, t) })
	if ok {
		at.Catalog.Schemas[i] = s
	}
}

// mayAdopt refuses a description where stored rows may have changed with it, or the
// target has no place for what comes.
func (m *Migration) mayAdopt(ctx context.Context, s *millrace.Schema) error {
	src, dst, err := m.both(ctx)
	if err != nil {
		return err
	}
	defer capture.Close(src)
	defer capture.Close(dst)
	at, err := readPlace(ctx, dst, m.cfg.Name)
	if err != nil {
		return err
	}
	var converged bool
	if err := dst.QueryRow(ctx, "SELECT coalesce((SELECT converged_at IS NOT NULL FROM millrace.migration_place WHERE name = $1), false)", m.cfg.Name).Scan(&converged); err != nil {
		return fmt.Errorf("read the place of migration %s: %w", m.cfg.Name, err)
	}
	const again = "millrace migrate abort -f FILE, and begin again"
	from, _ := m.sides()
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s at the %s: %s; mend: %s", ErrChanged, s.QualifiedName(), from, fmt.Sprintf(format, args...), again)
	}
	if at == nil || !converged {
		return refuse("it was altered before the target had converged")
	}
	known := at.Catalog.Schema(s.Table)
	if known == nil || known.QualifiedName() != s.QualifiedName() {
		return refuse("it is another table, or has another name")
	}
	i := slices.IndexFunc(m.cfg.Tables, func(t Table) bool { return t.From.Schema == s.Namespace && t.From.Name == s.Name })
	if i < 0 {
		return refuse("it does not move")
	}
	t := &m.cfg.Tables[i]
	for i := range known.Columns {
		c := &known.Columns[i]
		n := s.Counterpart(c)
		switch {
		case n < 0:
			return refuse("its column %s is gone", c.Name)
		case s.Columns[n].Name != c.Name:
			return refuse("its column %s is called %s now", c.Name, s.Columns[n].Name)
		case s.Columns[n].Type != c.Type || s.Columns[n].Typmod != c.Typmod || s.Columns[n].Collation != c.Collation:
			return refuse("its column %s has another type, which may have changed every row", c.Name)
		case s.Columns[n].KeyOrdinal != c.KeyOrdinal:
			return refuse("its key is another one")
		}
	}
	for i := range s.Columns {
		c := &s.Columns[i]
		if known.Counterpart(c) >= 0 {
			continue
		}
		if c.NotNull || c.KeyOrdinal != 0 {
			return refuse("its column %s is new and may not be NULL", c.Name)
		}
		if err := m.hasPlace(ctx, src, dst, t, c.Name); err != nil {
			return err
		}
	}
	return nil
}

// sides are what people call the two sides of the way.
func (m *Migration) sides() (from, to side) {
	if m.base != "" {
		return target, source
	}
	return source, target
}

// hasPlace looks whether the target has a column for one that is new at the source.
func (m *Migration) hasPlace(ctx context.Context, src, dst *pgx.Conn, t *Table, name string) error {
	at := name
	for to, from := range t.Columns {
		if from == name {
			at = to
		}
	}
	var typ string
	if err := src.QueryRow(ctx, "SELECT coalesce((SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = to_regclass($1) AND attname = $2 AND NOT attisdropped), '')", t.From.Quoted(), name).Scan(&typ); err != nil {
		return fmt.Errorf("look up column %s of %v: %w", name, t.From, err)
	}
	if typ == "" {
		return fmt.Errorf("%w: column %s of %v came and is gone again; mend: millrace migrate abort -f FILE, and begin again", ErrChanged, name, t.From)
	}
	var there, filled bool
	if err := dst.QueryRow(ctx, `
SELECT count(*) > 0, coalesce(bool_or(atthasmissing OR atthasdef), false) FROM pg_attribute WHERE attrelid = to_regclass($1) AND attname = $2 AND attnum > 0 AND NOT attisdropped`, t.To.Quoted(), at).Scan(&there, &filled); err != nil {
		return fmt.Errorf("look up column %s of %v: %w", at, t.To, err)
	}
	from, to := m.sides()
	add := fmt.Sprintf("ALTER TABLE %s ADD COLUMN %s %s at the %s, then millrace migrate follow -f FILE", t.To.Quoted(), table.Quote(at), typ, to)
	switch {
	case !there:
		return fmt.Errorf("%w: %v at the %s has a new column %s, and the %s's %v has no place for it; mend: %s", ErrChanged, t.From, from, name, to, t.To, add)
	case filled:
		return fmt.Errorf("%w: %v at the %s has a new column %s that is NULL in every row, and the %s's column %s has a default, by which rows that are there may have another value; mend: ALTER TABLE %s DROP COLUMN %s; %s", ErrChanged, t.From, from, name, to, at, t.To.Quoted(), table.Quote(at), add)
	}
	return nil
}
