package trigger

import (
	"errors"
	"fmt"
	"strings"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/capture/trigger/keylog"
)

// keyLog is the log of a table's keys.
type keyLog struct {
	id int
	// key are the columns that are logged, in the order of the log's.
	key []string
}

func logOf(l *keylog.Log) keyLog { return keyLog{id: l.ID, key: l.Table.Key} }

// segments returns the names of the log's tables, as SQL writes them.
func (l *keyLog) segments() []string {
	var all []string
	for i := range keylog.Segments {
		all = append(all, keylog.Segment(l.id, i))
	}
	return all
}

// keys returns the names of the log's key columns.
func (l *keyLog) keys() []string {
	var all []string
	for i := range l.key {
		all = append(all, keylog.KeyColumn(i))
	}
	return all
}

// unnested is what to read to get the keys, one a row, under these names.
func (l *keyLog) unnested() string { return keylog.UnnestKeys(len(l.key)) }

// read writes a query of what transactions have logged, with the columns given.
// where is another condition, or "".
func (l *keyLog) read(columns string, u *unseen, where string) string {
	news := strings.Join(u.conditions("txid"), " OR ")
	if where != "" {
		news = "(" + news + ") AND " + where
	}
	var parts []string
	for _, segment := range l.segments() {
		parts = append(parts, "SELECT "+columns+" FROM "+segment+" WHERE "+news)
	}
	return strings.Join(parts, " UNION ALL ")
}

// known is the condition that a key, one a row, is known. Writers that find no column
// of the name that is logged, because it was renamed, log NULL for it.
func (l *keyLog) known() string { return strings.Join(l.keys(), " IS NOT NULL AND ") + " IS NOT NULL" }

// count writes a query that counts what transactions have logged: by action, the
// distinct keys, what is none of the known actions, and the distinct keys that are not
// known.
func (l *keyLog) count(u *unseen) string {
	keys := "(SELECT count(*) FILTER (WHERE " + l.known() + ") AS keys, count(*) FILTER (WHERE NOT (" + l.known() + ")) AS unknown" +
		" FROM (SELECT DISTINCT " + strings.Join(l.keys(), ", ") + " FROM (" + l.read(l.unnested(), u, "action <> 'T'") + ") l) k) k"
	var known []string
	for _, action := range []string{"I", "U", "D", "T"} {
		known = append(known, "coalesce(sum(n) FILTER (WHERE action = '"+action+"'), 0)")
	}
	return "SELECT l.*, k.* FROM (SELECT " + strings.Join(known, ", ") + " AS truncated" +
		", coalesce(sum(n) FILTER (WHERE action NOT IN ('I', 'U', 'D', 'T')), 0) FROM (" + l.read("action, n", u, "") + ") l) l CROSS JOIN " + keys
}

// captured is a table of the stream. It belongs to the Source.
type captured struct {
	id millrace.TableID
	// name is what it was called when it was last looked up: what is locked.
	name   table.Name
	choice table.Choice
	log    keyLog
	// schema is the newest that the stream has of it, nil before it has joined.
	schema *millrace.Schema
	codec  *millrace.KeyCodec
	// shape is what its schema was made of, and marks what it looked like, in the
	// newest window.
	shape string
	marks *marks
	// heaps are the files of its partitions in the newest window of this Source, by
	// their OIDs; nil where that is not known.
	heaps map[string]string

	// Reused from row to row.
	row            []millrace.Datum
	key, rowBuffer []byte
}

// adopt makes s the newest schema.
func (t *captured) adopt(s *millrace.Schema) error {
	codec, err := millrace.NewKeyCodec(s)
	if err != nil {
		return fmt.Errorf("%w: %v: %w", capture.ErrTable, t.name, err)
	}
	t.schema, t.codec, t.row = s, codec, make([]millrace.Datum, len(s.Columns))
	return nil
}

// fitsLog refuses a schema whose key is not what is logged.
func (t *captured) fitsLog(s *millrace.Schema) error {
	var key []string
	for _, i := range s.KeyColumns() {
		key = append(key, s.Columns[i].Name)
	}
	if have, want := strings.Join(key, ", "), strings.Join(t.log.key, ", "); have != want {
		return fmt.Errorf("%w: %v: its key is (%s), its log has (%s); mend: millrace init, which makes the log anew, or %s", capture.ErrKeyChanged, t.name, have, want, capture.CopyAgain)
	}
	return nil
}

// rowsQuery reads what the table has of the keys that were logged: each once, with
// whether there is a row, and the row or at least its key.
func (t *captured) rowsQuery(u *unseen, p planted) string {
	var names, columns, joins []string
	ordinal := make(map[string]int)
	for i, k := range t.log.key {
		ordinal[k] = i + 1
		joins = append(joins, "t."+table.Quote(k)+" = k."+keylog.KeyColumn(i))
	}
	for i := range t.schema.Columns {
		name := table.Quote(t.schema.Columns[i].Name)
		names = append(names, name)
		column := "t." + name
		if k := ordinal[t.schema.Columns[i].Name]; k != 0 {
			column = "coalesce(t." + name + ", k." + keylog.KeyColumn(k-1) + ")"
		}
		columns = append(columns, column)
	}
	from := t.name.Quoted()
	if t.choice.Where != "" {
		from = "(SELECT " + strings.Join(names, ", ") + " FROM " + from + " WHERE (" + t.choice.Where + "))"
	}
	keys := strings.Join(t.log.keys(), ", ")
	logged, there := "SELECT DISTINCT "+keys+" FROM ("+t.log.read(t.log.unnested(), u, "action <> 'T'")+") l WHERE "+t.log.known(), "t."+table.Quote(t.log.key[0])+" IS NOT NULL"
	if p.rows() {
		logged = "SELECT " + keys + ", (array_agg(action ORDER BY changed_at DESC, ctid DESC))[1] AS action FROM (" + t.log.read(t.log.unnested()+", action, changed_at, ctid", u, "action <> 'T'") + ") l WHERE " + t.log.known() + " GROUP BY " + keys
		there += " AND k.action <> 'D'"
	}
	return "SELECT " + there + ", " + strings.Join(columns, ", ") +
		" FROM (" + logged + ") k LEFT JOIN " + from + " t ON " + strings.Join(joins, " AND ")
}

// take writes the entry of a row of rowsQuery.
func (t *captured) take(values [][]byte, w *millrace.UnitWriter) (err error) {
	if len(values) != len(t.row)+1 {
		return fmt.Errorf("%w: %v: a row of %d columns came, want %d", millrace.ErrMalformed, t.name, len(values)-1, len(t.row))
	}
	for i, text := range values[1:] {
		if text == nil {
			t.row[i] = millrace.Datum{State: millrace.ColumnNull}
		} else {
			t.row[i] = millrace.Datum{State: millrace.ColumnValue, Text: text}
		}
	}
	if t.key, err = t.codec.AppendRowKey(t.key[:0], t.row); err != nil {
		return err
	}
	if string(values[0]) != "t" {
		return w.Delete(t.id, t.key)
	}
	t.rowBuffer = millrace.AppendRow(t.rowBuffer[:0], t.schema.Version, t.row)
	return w.Put(t.id, t.key, nil, t.rowBuffer, 0)
}

// wrap says which table an error is of.
func (t *captured) wrap(err error) error {
	if errors.Is(err, millrace.ErrTooLarge) {
		return fmt.Errorf("table %v: %w; mend: remove the value at the source, then begin a new epoch", t.name, err)
	}
	return fmt.Errorf("table %v: %w", t.name, err)
}
