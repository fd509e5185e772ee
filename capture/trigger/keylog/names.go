package keylog

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/millrace-db/millrace"
)

// Segments is the number of tables that a log is written to in turn.
const Segments = 3

// Mode says how often the triggers of a table are called.
type Mode string

// The modes.
const (
	// Statement: once a statement, with the rows that it changed.
	Statement Mode = "statement"
	// Row: once a row. For tables that triggers by statement would miss changes
	// of: partitioned tables, partitions, and what a subscription writes.
	Row Mode = "row"
)

// The kinds of trigger that each table has, which also end the names of trigger
// and function.
const (
	kindInsert    = "i"
	kindUpdate    = "u"
	kindKeyUpdate = "k"
	kindDelete    = "d"
	kindTruncate  = "t"
)

var (
	kinds    = [...]string{kindInsert, kindUpdate, kindKeyUpdate, kindDelete, kindTruncate}
	rowKinds = kinds[:4] // partitions have copies of these
)

// Segment returns the name of a segment of a log, 0 to 2, as SQL writes it.
func Segment(log, segment int) string {
	return "millrace." + segmentName(log, segment)
}

func segmentName(log, segment int) string {
	return "log_" + strconv.Itoa(log) + "_" + strconv.Itoa(segment)
}

// run is how many keys a row of a log has at most: enough that the row's own cost
// no longer counts, and few enough that most runs stay within a page.
const run = 200

// KeyColumn returns the name that the n-th key column, from 0, has in a log.
func KeyColumn(n int) string { return "k" + strconv.Itoa(n+1) }

// UnnestKeys returns what to select from a log of so many key columns to get its
// keys, one a row. In a list of columns the arrays, which are of one length, are
// taken in step.
func UnnestKeys(columns int) string {
	var all []string
	for i := range columns {
		k := KeyColumn(i)
		all = append(all, "pg_catalog.unnest("+k+") AS "+k)
	}
	return strings.Join(all, ", ")
}

func functionName(log int, kind string) string { return "log_" + strconv.Itoa(log) + "_" + kind }

func triggerName(log int, kind string) string { return "millrace_" + strconv.Itoa(log) + "_" + kind }

// Table is a table to be captured.
type Table struct {
	ID           millrace.TableID
	Schema, Name string // as the catalog writes them
	// Key are the columns of its key, in key order. An index, which may be
	// deferrable, must make them unique.
	Key []string
}

// String returns schema.table.
func (t *Table) String() string { return t.Schema + "." + t.Name }

func (t *Table) quoted() string { return quote(t.Schema) + "." + quote(t.Name) }

func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// literal returns text as a constant in SQL. No value here comes from elsewhere
// than catalogs and configuration, but those may hold any character.
func literal(text string) string {
	quoted := "'" + strings.ReplaceAll(text, "'", "''") + "'"
	if strings.Contains(text, `\`) { // whatever standard_conforming_strings is
		return " E" + strings.ReplaceAll(quoted, `\`, `\\`)
	}
	return quoted
}

func textArray(texts []string) string {
	all := make([]string, len(texts))
	for i, text := range texts {
		all[i] = literal(text)
	}
	return fmt.Sprintf("ARRAY[%s]::text[]", strings.Join(all, ", "))
}
