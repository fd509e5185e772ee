package migrations

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/capture/table"
)

// sequencePair is a sequence of the closing side and its counterpart.
type sequencePair struct{ from, to string }

// sequences pairs those that columns of the tables draw from.
func (c *closer) sequences(ctx context.Context) ([]sequencePair, error) {
	var pairs []sequencePair
	for i := range c.w.m.cfg.Tables {
		t := &c.w.m.cfg.Tables[i]
		one, _, err := readMapping(ctx, c.w.src, c.w.dst, t, nil)
		if err != nil {
			return nil, err
		}
		if one == nil {
			return nil, fmt.Errorf("%w: table %v is gone; mend: millrace migrate abort -f FILE, and begin again", ErrChanged, t.From)
		}
		for _, k := range one.carried {
			p := sequencePair{}
			if p.from, err = drawnFrom(ctx, c.w.src, t.From, k.source); err != nil {
				return nil, err
			}
			if p.to, err = drawnFrom(ctx, c.w.dst, t.To, k.target); err != nil {
				return nil, err
			}
			if c.from == target {
				p.from, p.to = p.to, p.from
			}
			if p.from != "" && p.to != "" {
				pairs = append(pairs, p)
			}
		}
	}
	return pairs, nil
}

// drawnFrom returns the sequence that a column draws from, as SQL writes it.
func drawnFrom(ctx context.Context, q queryer, t table.Name, column string) (name string, err error) {
	err = q.QueryRow(ctx, `
SELECT coalesce(pg_get_serial_sequence($1, $2), (
    SELECT c.oid::regclass::text FROM pg_attrdef f JOIN pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum
    JOIN pg_depend p ON p.classid = 'pg_attrdef'::regclass AND p.objid = f.oid AND p.refclassid = 'pg_class'::regclass
    JOIN pg_class c ON c.oid = p.refobjid AND c.relkind = 'S'
    WHERE f.adrelid = to_regclass($1) AND a.attname = $2 LIMIT 1), '')`, t.Quoted(), column).Scan(&name)
	if err != nil {
		return "", fmt.Errorf("look up the sequence of column %s of %v: %w", column, t, err)
	}
	return name, nil
}

// ahead writes the statement that sets sequences of the opening side to where their
// counterparts are. All are read in one message, because writers wait.
func ahead(ctx context.Context, closing *pgx.Conn, pairs []sequencePair) (set string, err error) {
	if len(pairs) == 0 {
		return "", nil
	}
	var read, sets []string
	for i, p := range pairs {
		read = append(read, fmt.Sprintf("SELECT %d, last_value, is_called FROM %s", i, p.from))
	}
	rows, err := closing.Query(ctx, strings.Join(read, " UNION ALL "), pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return "", fmt.Errorf("read sequences: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var i int
		var last int64
		var called bool
		if err := rows.Scan(&i, &last, &called); err != nil {
			return "", fmt.Errorf("read sequences: %w", err)
		}
		sets = append(sets, fmt.Sprintf("setval(%s::regclass, %d, %t)", literal(pairs[i].to), last, called))
	}
	if err := rows.Err(); err != nil {
		return "", fmt.Errorf("read sequences: %w", err)
	}
	if len(sets) != len(pairs) {
		return "", fmt.Errorf("read sequences: %d of %d answered", len(sets), len(pairs))
	}
	return "SELECT " + strings.Join(sets, ", "), nil
}
