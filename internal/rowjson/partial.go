package rowjson

import (
	"fmt"

	"github.com/millrace-db/millrace"
)

// AppendKnown appends a row whose unchanged columns were not sent as an object without
// them, and their names to unchanged. On error it returns dst without the row.
func (e *Encoder) AppendKnown(dst []byte, unchanged []string, row *millrace.Row) ([]byte, []string, error) {
	if row.Version != e.row.Version || len(row.Columns) != len(e.row.Columns) {
		return dst, unchanged, fmt.Errorf("encode %s as JSON: row has %d columns of schema version %v, want %d of version %v",
			e.row.QualifiedName(), len(row.Columns), row.Version, len(e.row.Columns), e.row.Version)
	}
	s := e.pool.Get().(*scratch)
	defer e.put(s)
	start := len(dst)
	dst = append(dst, '{')
	for i := range e.columns {
		c := &e.columns[i]
		if c.at >= 0 && row.Columns[c.at].State == millrace.ColumnUnchanged {
			unchanged = append(unchanged, c.name)
			continue
		}
		if len(dst) > start+1 {
			dst = append(dst, ',')
		}
		dst = append(dst, c.lead[1:]...)
		if c.at < 0 {
			dst = append(dst, "null"...)
			continue
		}
		var err error
		if dst, err = e.append(dst, c, &row.Columns[c.at], s); err != nil {
			return dst[:start], unchanged, err
		}
	}
	return append(dst, '}'), unchanged, nil
}
