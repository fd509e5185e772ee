package migrations

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
)

// suspect is a range that differs, of which the rows are looked for.
type suspect struct {
	t         *certified
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

// read returns those of the rows that are suspected, as a side has them now.
func (s *suspect) read(ctx context.Context, conn *pgx.Conn, where side) (map[string][]millrace.Datum, error) {
	rows := make(map[string][]millrace.Datum)
	err := s.t.rows(ctx, conn, where, s.low, s.high, func(key []byte, columns []millrace.Datum) error {
		if _, suspected := s.rows[string(key)]; suspected {
			rows[string(key)] = copyColumns(columns)
		}
		return nil
	})
	return rows, err
}

func (c *certifier) judge(ctx context.Context, f *follower, s *suspect) error {
	now, err := s.read(ctx, f.src, source)
	if err != nil {
		return err
	}
	there, err := s.read(ctx, c.conn, target)
	if err != nil {
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
	if _, err := c.conn.Exec(ctx, "UPDATE millrace.migration_range SET found = $4::text::jsonb WHERE name = $1 AND table_name = $2 AND low = $3",
		c.m.cfg.Name, s.t.from.String(), notNil(s.low), string(text)); err != nil {
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
