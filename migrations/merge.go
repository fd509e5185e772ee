package migrations

import (
	"fmt"
	"strings"

	"github.com/millrace-db/millrace/capture/table"
)

// merge is the SQL by which the staged changes of a table go into the target. Each
// statement is for all rows at once, in this order:
//
//	complete   unchanged columns are taken from the row that has them
//	delete     what ended deleted goes
//	holders    rows that have a value which has to be unique, and which another row
//	           of the batch gets, go too: they get another value in the same batch
//	update     rows that are there
//	insert     rows that are not
//
// Rows that are there are updated and never deleted and inserted, but for holders.
type merge struct {
	staging string
	create  string
	// copyIn is the COPY that fills the staging table.
	copyIn   string
	truncate string
	complete string
	// count counts staged rows that could not be completed; unmissed and missed
	// note which keys are missing at the target, and forgo takes them out.
	count, unmissed, missed, forgo string
	remove                         string
	// holders are for a target that is the source, parking for one that is not yet:
	// there a row that is not in the batch may be in the way. It is of another time,
	// and a change of it is still to come.
	holders, parking []string
	update, insert   string
}

// newMerge writes the SQL for the table at place i.
func (m *mapping) newMerge(i int, migration string) *merge {
	s := &merge{staging: fmt.Sprintf("pg_temp.millrace_change_%d", i)}
	to, keys := m.to.Quoted(), m.keyNames()

	columns := []string{"op text", "u text"}
	for k := range m.key {
		columns = append(columns, fmt.Sprintf("k%d text", k))
	}
	for k := range m.key {
		columns = append(columns, fmt.Sprintf("b%d text", k))
	}
	for c := range m.carried {
		columns = append(columns, fmt.Sprintf("c%d text", c))
	}
	s.create = fmt.Sprintf("CREATE TEMP TABLE millrace_change_%d (%s) ON COMMIT DELETE ROWS", i, strings.Join(columns, ", "))
	s.copyIn = "COPY " + s.staging + " FROM STDIN"
	s.truncate = "DELETE FROM " + to

	// keyed compares a row t of the target with staged columns k… or b….
	keyed := func(t, staged, column string) string {
		var terms []string
		for k, place := range m.key {
			terms = append(terms, fmt.Sprintf("%s%s = (%s%s%d)::%s", t, table.Quote(m.carried[place].target), staged, column, k, m.carried[place].targetCast))
		}
		return strings.Join(terms, " AND ")
	}
	var sets []string
	for c := range m.carried {
		sets = append(sets, fmt.Sprintf("c%d = CASE WHEN substr(s.u, %d, 1) = '1' THEN t.%s::text ELSE s.c%[1]d END", c, c+1, table.Quote(m.carried[c].target)))
	}
	s.complete = fmt.Sprintf("UPDATE %s s SET u = NULL, %s FROM %s t WHERE s.u IS NOT NULL AND %s", s.staging, strings.Join(sets, ", "), to, keyed("t.", "s.", "b"))

	var texts []string
	for k := range m.key {
		texts = append(texts, fmt.Sprintf("s.k%d", k))
	}
	key := "ARRAY[" + strings.Join(texts, ", ") + "]"
	s.count = "SELECT count(*) FROM " + s.staging + " WHERE u IS NOT NULL"
	s.unmissed = fmt.Sprintf("DELETE FROM millrace.migration_missing x USING %s s WHERE x.name = %s AND x.table_id = %d AND x.key = %s", s.staging, literal(migration), m.id, key)
	s.missed = fmt.Sprintf("INSERT INTO millrace.migration_missing (name, table_id, key) SELECT %s, %d, %s FROM %s s WHERE s.u IS NOT NULL ON CONFLICT DO NOTHING", literal(migration), m.id, key, s.staging)
	s.forgo = "UPDATE " + s.staging + " SET op = 'd' WHERE u IS NOT NULL"
	s.remove = fmt.Sprintf("DELETE FROM %s t USING %s s WHERE s.op = 'd' AND %s", to, s.staging, keyed("t.", "s.", "k"))

	rows := m.rows(s.staging)
	for n := range m.unique {
		held := fmt.Sprintf("SELECT h.* FROM (%s) h JOIN (%s) s ON s.millrace_w%d AND %s WHERE NOT (%s)",
			m.holders(n), m.withUnique(rows), n, m.sameUnique(n, "h.", "s."), equal("h.", "s.", keys))
		staged := fmt.Sprintf("EXISTS (SELECT FROM %s s WHERE %s)", s.staging, keyed("x.", "s.", "k"))
		s.holders = append(s.holders, fmt.Sprintf("DELETE FROM %s d USING (%s) x WHERE d.tableoid = x.millrace_heap AND d.ctid = x.millrace_at AND %s", to, held, staged))
		s.parking = append(s.parking, fmt.Sprintf("DELETE FROM %s d USING (%s) x WHERE d.tableoid = x.millrace_heap AND d.ctid = x.millrace_at", to, held))
	}

	sets = nil
	for c := range m.carried {
		if !m.carried[c].fixed {
			name := table.Quote(m.carried[c].target)
			sets = append(sets, name+" = n."+name)
		}
	}
	for i := range m.derived {
		name := table.Quote(m.derived[i].target)
		sets = append(sets, name+" = n."+name)
	}
	if len(sets) == 0 { // the key alone, and it cannot be set
		s.update = fmt.Sprintf("SELECT FROM %s t, (%s) n WHERE %s", to, rows, equal("t.", "n.", keys))
	} else {
		s.update = fmt.Sprintf("UPDATE %s t SET %s FROM (%s) n WHERE %s", to, strings.Join(sets, ", "), rows, equal("t.", "n.", keys))
	}
	names := m.targets()
	s.insert = fmt.Sprintf("INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM (%s) n WHERE NOT EXISTS (SELECT FROM %s t WHERE %s)",
		to, quoteAll("", names), quoteAll("n.", names), rows, to, equal("t.", "n.", keys))
	return s
}

// rows selects the staged rows as the target has them.
func (m *mapping) rows(staging string) string {
	var columns []string
	if len(m.derived) == 0 {
		for c := range m.carried {
			columns = append(columns, fmt.Sprintf("(c%d)::%s AS %s", c, m.carried[c].targetCast, table.Quote(m.carried[c].target)))
		}
		return fmt.Sprintf("SELECT %s FROM %s WHERE op = 'p'", strings.Join(columns, ", "), staging)
	}
	return m.derive(fmt.Sprintf("SELECT %s FROM %s WHERE op = 'p'", m.sourceRow(), staging))
}

// sourceRow writes the staged columns under the source's names and types.
func (m *mapping) sourceRow() string {
	var columns []string
	for c := range m.carried {
		columns = append(columns, fmt.Sprintf("(c%d)::%s AS %s", c, m.carried[c].sourceCast, table.Quote(m.carried[c].source)))
	}
	return strings.Join(columns, ", ")
}

// derive turns rows of the source into rows of the target.
func (m *mapping) derive(rows string) string {
	var columns []string
	for _, c := range m.carried {
		columns = append(columns, fmt.Sprintf("%s::%s AS %s", table.Quote(c.source), c.targetCast, table.Quote(c.target)))
	}
	for _, d := range m.derived {
		columns = append(columns, fmt.Sprintf("(%s)::%s AS %s", d.sql, d.targetCast, table.Quote(d.target)))
	}
	return fmt.Sprintf("SELECT %s FROM (%s) millrace_source", strings.Join(columns, ", "), rows)
}
