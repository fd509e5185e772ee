package postgrest

import (
	"bytes"
	"strconv"
	"strings"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/internal/rowjson"
)

// appendName returns the lead of a member of a JSON object.
func appendName(dst []byte, comma byte, name string) (string, error) {
	dst, err := rowjson.AppendString(append(dst, comma), []byte(name))
	return string(append(dst, ':')), err
}

// appendObject appends a row as a JSON object.
func (r *run) appendObject(dst []byte, row *edge.Row) ([]byte, error) {
	if r.enc == nil || r.written != row.Schema {
		enc, err := r.limits.Encoder(row.Schema, r.t.schema, r.q.BigInt)
		if err != nil {
			return dst, err
		}
		r.enc, r.written = enc, row.Schema
	}
	if r.q.All {
		return r.enc.AppendRow(dst, &row.Row)
	}
	if len(r.items) == 0 {
		dst = append(dst, '{')
	}
	for i := range r.items {
		s := &r.items[i]
		dst = append(dst, s.lead...)
		d := r.reader.datum(s.col.at)
		var err error
		if s.cast == castNone || d.State == millrace.ColumnNull {
			dst, err = r.enc.AppendDatum(dst, s.col.at, *d)
		} else {
			dst, err = rowjson.AppendString(dst, s.cast.text(d.Text))
		}
		if err != nil {
			return dst, err
		}
	}
	return append(dst, '}'), nil
}

// text is the value as the type text.
func (c cast) text(text []byte) []byte {
	switch c {
	case castBoolText:
		if string(text) == "t" {
			return []byte("true")
		}
		return []byte("false")
	case castBpcharText:
		return bytes.TrimRight(text, " ")
	}
	return text
}

// giveCSV appends a line for the row of the reader, and before the first one the
// names. As in PostgREST a line is what Postgres prints for a row, without its
// parentheses.
func (r *run) giveCSV() error {
	dst := r.answer.Body
	shownOnes := r.items
	if r.q.All {
		shownOnes = make([]shown, len(r.t.columns))
		for i := range r.t.columns {
			shownOnes[i] = shown{col: &r.t.columns[i], name: r.t.columns[i].name}
		}
	}
	if r.answer.Rows == 1 {
		for i := range shownOnes {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(dst, shownOnes[i].name...)
		}
	}
	dst = append(dst, '\n')
	for i := range shownOnes {
		if i > 0 {
			dst = append(dst, ',')
		}
		if d := r.reader.datum(shownOnes[i].col.at); d.State != millrace.ColumnNull {
			dst = appendField(dst, shownOnes[i].cast.text(d.Text))
		}
	}
	r.answer.Body = dst
	return nil
}

// appendField quotes as Postgres does in a row.
func appendField(dst, text []byte) []byte {
	if len(text) > 0 && !bytes.ContainsAny(text, `"\(),`+blanks) {
		return append(dst, text...)
	}
	dst = append(dst, '"')
	for _, c := range text {
		if c == '"' || c == '\\' {
			dst = append(dst, c)
		}
		dst = append(dst, c)
	}
	return append(dst, '"')
}

// ContentRange is the header's value for an answer.
func (a *Answer) ContentRange(q *Query) string {
	rows := "*"
	if a.Rows > 0 {
		rows = decimalOf(q.Offset) + "-" + decimalOf(q.Offset+a.Rows-1)
	}
	total := "*"
	if a.Total >= 0 {
		total = decimalOf(a.Total)
	}
	return strings.Join([]string{rows, total}, "/")
}

// Status is 200 or 206, or an error where the rows begin behind the last one.
func (a *Answer) Status(q *Query) (int, error) {
	switch {
	case a.Total < 0:
		return 200, nil
	case q.Offset > a.Total:
		return 0, badRange("An offset of " + decimalOf(q.Offset) + " was requested, but there are only " + decimalOf(a.Total) + " rows.")
	case a.Rows < a.Total:
		return 206, nil
	}
	return 200, nil
}

func decimalOf(n int64) string { return strconv.FormatInt(n, 10) }
