package serve

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
)

// defaultRows is how many rows a scan answers with that does not say.
const defaultRows = 1000

// scanQuery is what a scan is asked with.
type scanQuery struct {
	prefix  []string
	partial bool
	limit   int
	cursor  string
}

// errPageEnd ends the walk at the end of a page.
var errPageEnd = errors.New("end of page")

// scan answers with a page of rows in key order.
func (q *request) scan(table string) error {
	query, err := q.scanQuery()
	if err != nil {
		return err
	}
	q.tagged = true
	return q.stream.store.View(q.r.Context(), func(v *edge.View) error {
		q.at(v)
		t, err := q.table(v, table)
		if err != nil {
			return err
		}
		return q.scanTable(t, query)
	})
}

func (q *request) scanQuery() (*scanQuery, error) {
	query := &scanQuery{limit: min(defaultRows, q.s.config.MaxRows)}
	values, err := q.params([]string{"prefix", "limit", "cursor"})
	if err != nil {
		return nil, err
	}
	for name, all := range values {
		text := all[0]
		switch name {
		case "prefix":
			if query.prefix, query.partial, err = millrace.ParseKeyPrefix(text); err != nil {
				return nil, badRequest("bad_prefix", "write a percent sign within a value as %25, which a query has as %2525", "%v", err)
			}
		case "limit":
			if text == "" {
				continue
			}
			if query.limit, err = strconv.Atoi(text); err != nil || query.limit < 1 || query.limit > q.s.config.MaxRows {
				return nil, badRequest("bad_limit", "read the rest with the cursor of the answer", "limit is %q, want a number from 1 to %d", text, q.s.config.MaxRows)
			}
		case "cursor":
			query.cursor = text
		}
	}
	return query, nil
}

func (q *request) scanTable(t *edge.Table, query *scanQuery) error {
	texts := make([][]byte, len(query.prefix))
	for i, v := range query.prefix {
		texts[i] = []byte(v)
	}
	prefix, err := t.Codec().AppendPrefix(nil, texts, query.partial)
	if err != nil {
		return badRequest("bad_prefix", prefixMend(t), "table %s: %v", t.Name(), err)
	}
	binding := cursorBinding{stream: q.stream.store.Stream(), table: t.ID(), prefix: prefix}
	binding.setRows(q.place.Epoch, t)
	var after []byte
	if query.cursor != "" {
		if after, err = binding.parse(query.cursor); errors.Is(err, errOtherRows) {
			return &fault{http.StatusGone, "cursor_gone", fmt.Sprintf("table %s: %v", t.Name(), err), "begin again without a cursor"}
		} else if err != nil {
			return badRequest("bad_cursor", "begin again without a cursor", "table %s: %v", t.Name(), err)
		}
	}
	q.body = append(q.body[:0], `{"rows":[`...)
	rows, more := 0, false
	var last []byte
	err = t.Scan(prefix, after, 0, func(key []byte, row *edge.Row) error {
		// The row is looked at only to learn that there is one.
		if rows == query.limit || rows > 0 && len(q.body) >= q.s.config.MaxPage {
			more = true
			return errPageEnd
		}
		if rows > 0 {
			q.body = append(q.body, ',')
		}
		if err := q.appendRow(t, row, errBusy); err != nil {
			if rows > 0 && errors.Is(err, errBusy) {
				q.body = q.body[:len(q.body)-1] // the comma
				more = true
				return errPageEnd
			}
			return err
		}
		last = append(last[:0], key...)
		rows++
		return nil
	})
	if err != nil && !errors.Is(err, errPageEnd) {
		return err
	}
	q.body = append(q.body, ']')
	if more {
		q.body = append(q.body, `,"cursor":"`...)
		q.body = binding.append(q.body, last)
		q.body = append(q.body, '"')
	}
	q.body = append(q.body, "}\n"...)
	return nil
}

func prefixMend(t *edge.Table) string {
	return keyMend(t) + "; later ones may be left out, and a trailing * says that the last is the start of a text. A query is percent-encoded once more, so %2C within a value becomes %252C there"
}
