package postgrest

import (
	"fmt"
	"net/http"
	"strings"
)

// Plan is how a query is answered from one table.
type Plan struct {
	q *Query
	t *Table
	// where must all hold.
	where []predicate
	order []sortTerm
	items []shown
	path  path
	// sorted tells that the path gives the order.
	sorted bool
}

// sortTerm is a Term that knows its column.
type sortTerm struct {
	col        *column
	desc       bool
	nullsFirst bool
}

// shown is one column of the answer.
type shown struct {
	col *column
	// lead is the comma or brace before, the quoted name and the colon.
	lead string
	name string
	cast cast
}

// Compile makes a plan. indexes gives the columns of the secondary indexes that can
// be read; it is asked only where the key does not lead to single rows. Errors are
// of type *Error.
func Compile(q *Query, t *Table, indexes func() [][]string) (*Plan, error) {
	p := &Plan{q: q, t: t}
	if q.Embedded != "" {
		return nil, &Error{
			Status: http.StatusBadRequest, Code: "PGRST200",
			Message: fmt.Sprintf("Could not find a relationship between '%s' and '%s' in the schema cache", t.schema.Name, q.Embedded),
			Details: fmt.Sprintf("Searched for a foreign key relationship between '%s' and '%s' in the schema '%s', but no matches were found.", t.schema.Name, q.Embedded, t.schema.Namespace),
			Hint:    "An edge has no relationships: ask for the tables one by one.",
		}
	}
	if err := p.show(); err != nil {
		return nil, err
	}
	p.where = make([]predicate, len(q.Where))
	for i := range q.Where {
		var err error
		if p.where[i], err = t.compile(&q.Where[i]); err != nil {
			return nil, err
		}
	}
	for _, term := range q.Order {
		col, err := t.column(term.Column)
		if err != nil {
			return nil, err
		}
		if err := col.ordered("order"); err != nil {
			return nil, err
		}
		p.order = append(p.order, sortTerm{col, term.Desc, term.NullsFirst})
	}
	return p, p.choose(indexes)
}

// show says which columns the answer has.
func (p *Plan) show() error {
	if p.q.All {
		return nil
	}
	for _, item := range p.q.Select {
		if item.Column == "*" {
			for i := range p.t.columns {
				p.items = append(p.items, shown{col: &p.t.columns[i], name: p.t.columns[i].name})
			}
			continue
		}
		col, err := p.t.column(item.Column)
		if err != nil {
			return err
		}
		s := shown{col: col, name: col.name}
		if item.As != "" {
			s.name = item.As
		}
		if s.cast, err = col.castTo(item.Cast); err != nil {
			return err
		}
		p.items = append(p.items, s)
	}
	for i := range p.items {
		comma := byte(',')
		if i == 0 {
			comma = '{'
		}
		lead, err := appendName(nil, comma, p.items[i].name)
		if err != nil {
			return err
		}
		p.items[i].lead = lead
	}
	return nil
}

// cast says how a value is turned into another type.
type cast uint8

const (
	castNone cast = iota
	// castText gives the text that Postgres prints.
	castText
	castBoolText
	castBpcharText
)

// castNames are the types that can be cast to, by their names in SQL.
var castNames = map[string]kind{
	"text": kindText, "varchar": kindText, "character varying": kindText,
	"int2": kindInt2, "smallint": kindInt2, "int4": kindInt4, "int": kindInt4, "integer": kindInt4, "int8": kindInt8, "bigint": kindInt8,
	"numeric": kindNumeric, "decimal": kindNumeric, "uuid": kindUUID, "bool": kindBool, "boolean": kindBool, "date": kindDate,
	"timestamp": kindTimestamp, "timestamptz": kindTimestamptz, "real": kindFloat4, "float4": kindFloat4, "float8": kindFloat8, "double precision": kindFloat8,
}

// castTo returns how values of the column become those of another type, where that
// changes nothing but the form of a value.
func (c *column) castTo(name string) (cast, error) {
	if name == "" {
		return castNone, nil
	}
	to, ok := castNames[strings.ToLower(name)]
	switch {
	case ok && to == kindText:
		switch c.kind {
		case kindBool:
			return castBoolText, nil
		case kindBpchar:
			return castBpcharText, nil
		case kindInet, kindCIDR: // their cast adds the number of bits
		case kindOther:
			switch c.typ {
			case "json", "jsonb", "interval", "timetz":
				return castText, nil
			}
		default:
			return castText, nil
		}
	case ok && to == c.kind:
		return castNone, nil
	case ok && (to == kindInt4 && c.kind == kindInt2 || to == kindInt8 && (c.kind == kindInt2 || c.kind == kindInt4) ||
		to == kindNumeric && (c.kind == kindInt2 || c.kind == kindInt4 || c.kind == kindInt8)):
		return castNone, nil
	}
	return castNone, refused("Ask for the column without a cast, or as text.", "column %s: a cast from %s to %s is not served", c.name, c.typ, name)
}
