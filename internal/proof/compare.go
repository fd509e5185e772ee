package proof

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/zeebo/xxh3"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
)

// table compares one table: each row of the source is looked up in the store.
// If all were found and the store has no more rows than that, both sides have
// the same rows; otherwise a second reading finds those that only the store has.
func (r *run) table(ctx context.Context, v *edge.View, name string) error {
	r.result.Tables = append(r.result.Tables, TableResult{Name: name})
	result := &r.result.Tables[len(r.result.Tables)-1]
	table, err := v.Table(name)
	if errors.Is(err, edge.ErrNoTable) {
		return r.noTable(ctx, result)
	}
	if err != nil {
		return err
	}
	if result.EdgeRows, err = table.Rows(); err != nil {
		return err
	}
	c := &comparison{table: table, schema: table.Schema(), result: result, examples: r.cfg.Examples}
	if err := c.columns(ctx, r.rows, name); err != nil {
		return err
	}
	if err := r.each(ctx, c.query, c.compare); err != nil {
		return err
	}
	if result.SourceRows-result.Missing == result.EdgeRows {
		return nil
	}
	seen := make(map[xxh3.Uint128]struct{}, result.SourceRows)
	err = r.each(ctx, c.query, func(row []millrace.Datum) error {
		key, err := c.table.Codec().AppendRowKey(nil, row)
		seen[xxh3.Hash128(key)] = struct{}{}
		return err
	})
	if err != nil {
		return err
	}
	return table.Scan(nil, nil, 0, func(key []byte, row *edge.Row) error {
		if _, ok := seen[xxh3.Hash128(key)]; !ok {
			result.Extra++
			c.example("only the edge has %s: %s", c.key(key), texts(row.Schema, row.Columns))
		}
		return nil
	})
}

// noTable counts what the source has of a table that the store does not have.
func (r *run) noTable(ctx context.Context, result *TableResult) error {
	if err := r.rows.QueryRow(ctx, "SELECT count(*) FROM "+quoted(result.Name)).Scan(&result.SourceRows); err != nil {
		return err
	}
	result.Missing = result.SourceRows
	result.Examples = []string{result.Name + ": the edge does not have this table"}
	return nil
}

// each calls fn with every row of a query. Row and texts are valid until fn
// returns.
func (r *run) each(ctx context.Context, query string, fn func([]millrace.Datum) error) error {
	// Text results: what COPY and pgoutput print too.
	reader := r.rows.PgConn().ExecParams(ctx, query, nil, nil, nil, nil)
	var row []millrace.Datum
	var failed error
	for failed == nil && reader.NextRow() {
		row = row[:0]
		for _, text := range reader.Values() {
			d := millrace.Datum{State: millrace.ColumnValue, Text: text}
			if text == nil {
				d = millrace.Datum{State: millrace.ColumnNull}
			}
			row = append(row, d)
		}
		failed = fn(row)
	}
	if failed != nil {
		// The rest of the result would have to be read; the connection is not
		// needed any more.
		return errors.Join(failed, r.rows.PgConn().Close(context.WithoutCancel(ctx)))
	}
	if _, err := reader.Close(); err != nil {
		return fmt.Errorf("read rows of the source: %w", err)
	}
	return nil
}

// comparison is one table's.
type comparison struct {
	table    *edge.Table
	schema   *millrace.Schema
	query    string
	result   *TableResult
	examples int

	keyBuf []byte
	row    edge.Row
	// places of the newest schema's columns in an older row's, made anew when
	// another version comes.
	places  []int
	version millrace.SchemaVersion
}

const columnsQuery = `
SELECT attname FROM pg_attribute
WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
ORDER BY attnum`

// columns builds the query, and compares the columns of both sides.
func (c *comparison) columns(ctx context.Context, conn *pgx.Conn, name string) error {
	rows, err := conn.Query(ctx, columnsQuery, quoted(name))
	if err != nil {
		return fmt.Errorf("read columns: %w", err)
	}
	source, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("read columns: %w", err)
	}
	have := make(map[string]bool, len(source))
	for _, column := range source {
		have[column] = true
	}
	list := make([]string, 0, len(c.schema.Columns))
	for i := range c.schema.Columns {
		column := c.schema.Columns[i].Name
		if !have[column] {
			return fmt.Errorf("the edge has a column %s and the source has not", column)
		}
		list = append(list, pgx.Identifier{column}.Sanitize())
	}
	c.query = "SELECT " + strings.Join(list, ", ") + " FROM " + quoted(name)
	return nil
}

func (c *comparison) compare(row []millrace.Datum) (err error) {
	c.result.SourceRows++
	if c.keyBuf, err = c.table.Codec().AppendRowKey(c.keyBuf[:0], row); err != nil {
		return err
	}
	err = c.table.Get(c.keyBuf, &c.row)
	if errors.Is(err, edge.ErrNotFound) {
		c.result.Missing++
		c.example("only the source has %s: %s", c.key(c.keyBuf), texts(c.schema, row))
		return nil
	}
	if err != nil {
		return err
	}
	if !c.same(row) {
		c.result.Different++
		c.example("%s differs: source %s, edge %s", c.key(c.keyBuf), texts(c.schema, row), texts(c.row.Schema, c.row.Columns))
	}
	return nil
}

// same compares a row of the source with the one in c.row, which may have been
// written with an older schema: columns that this one lacks are null.
func (c *comparison) same(row []millrace.Datum) bool {
	if c.places == nil || c.version != c.row.Version {
		c.version, c.places = c.row.Version, make([]int, len(c.schema.Columns))
		for i := range c.schema.Columns {
			c.places[i] = c.row.Schema.Counterpart(&c.schema.Columns[i])
		}
	}
	for i := range row {
		stored := millrace.Datum{State: millrace.ColumnNull}
		if at := c.places[i]; at >= 0 {
			stored = c.row.Columns[at]
		}
		if stored.State != row[i].State || !bytes.Equal(stored.Text, row[i].Text) {
			return false
		}
	}
	return true
}

func (c *comparison) example(format string, args ...any) {
	if len(c.result.Examples) < c.examples {
		c.result.Examples = append(c.result.Examples, c.result.Name+": "+fmt.Sprintf(format, args...))
	}
}

// key writes an encoded key for people.
func (c *comparison) key(key []byte) string {
	values, err := c.table.Codec().Decode(key, nil)
	if err != nil {
		return fmt.Sprintf("key %x", key)
	}
	return "key " + string(bytes.Join(values, []byte(",")))
}

const exampleText = 80

// texts writes a row for people.
func texts(schema *millrace.Schema, row []millrace.Datum) string {
	parts := make([]string, 0, len(row))
	for i := range row {
		text := "null"
		if row[i].State == millrace.ColumnValue {
			text = string(row[i].Text)
			if len(text) > exampleText {
				text = text[:exampleText] + "…"
			}
			text = fmt.Sprintf("%q", text)
		}
		parts = append(parts, schema.Columns[i].Name+"="+text)
	}
	return strings.Join(parts, " ")
}
