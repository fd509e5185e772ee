package migrations

import (
	"fmt"
	"slices"
	"strings"

	"github.com/millrace-db/millrace/capture/table"
)

// What is unique at the target beside the key is compared by the indexes' own
// expressions. They are written over bare names of columns, so they are evaluated
// where only one relation has these.

// withUnique adds to rows that have the target's columns what each unique index has
// of them: millrace_u<index>_<column>, and whether it has them, millrace_w<index>.
func (m *mapping) withUnique(rows string) string {
	if len(m.unique) == 0 {
		return rows
	}
	var b strings.Builder
	b.WriteString("SELECT *")
	for n := range m.unique {
		x := &m.unique[n]
		for i, e := range x.exprs {
			fmt.Fprintf(&b, ", (%s) AS millrace_u%d_%d", e, n, i)
		}
		where := "true"
		if x.where != "" {
			where = "coalesce((" + x.where + "), false)"
		}
		fmt.Fprintf(&b, ", %s AS millrace_w%d", where, n)
	}
	fmt.Fprintf(&b, " FROM (%s) millrace_rows", m.withGenerated(rows))
	return b.String()
}

// withGenerated adds to rows the generated columns that unique indexes are of, as the
// target will compute them.
func (m *mapping) withGenerated(rows string) string {
	var columns []string
	for _, g := range m.generated {
		if slices.ContainsFunc(m.unique, func(x uniqueIndex) bool {
			return strings.Contains(x.where, g.target) || slices.ContainsFunc(x.exprs, func(e string) bool { return strings.Contains(e, g.target) })
		}) {
			columns = append(columns, "("+g.sql+")::"+g.targetCast+" AS "+table.Quote(g.target))
		}
	}
	if len(columns) == 0 {
		return rows
	}
	return "SELECT *, " + strings.Join(columns, ", ") + " FROM (" + rows + ") millrace_columns"
}

// holders selects from the target what unique index n has, with the key's columns.
func (m *mapping) holders(n int) string {
	x := &m.unique[n]
	var b strings.Builder
	b.WriteString("SELECT tableoid AS millrace_heap, ctid AS millrace_at, ")
	b.WriteString(quoteAll("", m.keyNames()))
	for i, e := range x.exprs {
		fmt.Fprintf(&b, ", (%s) AS millrace_u%d_%d", e, n, i)
	}
	fmt.Fprintf(&b, " FROM %s", m.to.Quoted())
	if x.where != "" {
		fmt.Fprintf(&b, " WHERE (%s)", x.where)
	}
	return b.String()
}

// sameUnique compares what unique index n has of two rows.
func (m *mapping) sameUnique(n int, a, b string) string {
	x := &m.unique[n]
	operator := "="
	if x.oneNull {
		operator = "IS NOT DISTINCT FROM"
	}
	var terms []string
	for i := range x.exprs {
		terms = append(terms, fmt.Sprintf("%smillrace_u%d_%d %s %smillrace_u%d_%d", a, n, i, operator, b, n, i))
	}
	return strings.Join(terms, " AND ")
}

// clash says whether a row s, which withUnique has made, has a value of unique index
// n that a row at the target has.
func (m *mapping) clash(n int) string {
	return fmt.Sprintf("s.millrace_w%d AND EXISTS (SELECT FROM (%s) h WHERE %s)", n, m.holders(n), m.sameUnique(n, "h.", "s."))
}
