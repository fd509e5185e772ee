package serve

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/internal/rowjson"
)

// rowReader has what reading rows by key takes, to be used again.
type rowReader struct {
	table, path string
	raw         []byte   // the texts of the key
	texts       [][]byte // parts of raw
	key         []byte
	row         edge.Row
}

func (r *rowReader) release() {
	const most = 64 << 10
	r.table, r.path = "", ""
	if cap(r.raw) > most {
		r.raw = nil
	}
	if cap(r.key) > most {
		r.key = nil
	}
	clear(r.texts)
	// The texts of the row lie in a snapshot that was given back, and the schema
	// belongs to one stream.
	clear(r.row.Columns)
	r.row.Schema = nil
}

// setPath takes the key's texts out of a path.
func (r *rowReader) setPath(path string) error {
	r.path = path
	r.texts = r.texts[:0]
	if strings.IndexByte(path, '%') >= 0 {
		values, err := millrace.ParseKeyPath(path)
		if err != nil {
			return err
		}
		for _, v := range values {
			r.texts = append(r.texts, []byte(v))
		}
		return nil
	}
	r.raw = append(r.raw[:0], path...)
	start := 0
	for i := range r.raw {
		if r.raw[i] == ',' {
			r.texts = append(r.texts, r.raw[start:i:i])
			start = i + 1
		}
	}
	r.texts = append(r.texts, r.raw[start:])
	return nil
}

// row answers with one row.
func (q *request) row(table, path string) error {
	q.rows.table = table
	if err := q.rows.setPath(path); err != nil {
		return badRequest("bad_key", "write a percent sign as %25", "%v", err)
	}
	if _, err := q.params(nil); err != nil {
		return err
	}
	q.body, q.tagged = q.body[:0], true
	return q.stream.store.View(q.r.Context(), q.readRow)
}

func (q *request) readOne(v *edge.View) error {
	q.at(v)
	t, err := q.table(v, q.rows.table)
	if err != nil {
		return err
	}
	if err := q.encodeKey(t); err != nil {
		return err
	}
	if err := t.Get(q.rows.key, &q.rows.row); err != nil {
		if errors.Is(err, edge.ErrNotFound) {
			return notFound("no_row", "ask for another key, or later", "%s has no row with key %s at index %v", q.rows.table, q.rows.path, q.place.Index)
		}
		return err
	}
	if err := q.appendRow(t, &q.rows.row, errBusy); err != nil {
		return err
	}
	q.body = append(q.body, '\n')
	return nil
}

// encodeKey makes the key of the texts.
func (q *request) encodeKey(t *edge.Table) (err error) {
	if q.rows.key, err = t.Codec().Append(q.rows.key[:0], q.rows.texts); err != nil {
		return badRequest("bad_key", keyMend(t), "table %s: %v", t.Name(), err)
	}
	return nil
}

// keyMend says how a key of the table is written.
func keyMend(t *edge.Table) string {
	return "give the key columns (" + strings.Join(keyNames(t.Schema()), ", ") + ") in this order, with commas between them and each percent-encoded (a comma within a value is %2C)"
}

func keyNames(s *millrace.Schema) []string {
	var names []string
	for _, i := range s.KeyColumns() {
		names = append(names, s.Columns[i].Name)
	}
	return names
}

// table finds a table; where it is not there yet, the answer says so.
func (q *request) table(v *edge.View, name string) (*edge.Table, error) {
	if err := q.mayTable(name); err != nil {
		return nil, err
	}
	t, err := v.Table(name)
	if err == nil {
		return t, nil
	}
	if !errors.Is(err, edge.ErrNoTable) {
		return nil, err
	}
	const wait = "ask again when the first copy has ended; status shows how far the edge is"
	checkpoint, cpErr := v.Checkpoint()
	if cpErr != nil {
		return nil, cpErr
	}
	if checkpoint == nil || checkpoint.Index == 0 {
		return nil, unavailable("not_copied", wait, "stream %s has not been copied to this edge yet", q.stream.name)
	}
	for _, s := range checkpoint.Catalog.Schemas {
		if s.QualifiedName() == name {
			return nil, unavailable("not_copied", wait, "table %s is being copied to this edge", name)
		}
	}
	infos, tablesErr := v.Tables()
	if tablesErr != nil {
		return nil, tablesErr
	}
	var names []string
	for i := range infos {
		if q.who.Table(q.stream.name, infos[i].Name) {
			names = append(names, infos[i].Name)
		}
	}
	return nil, notFound("no_table", "name the table with its schema; there are: "+list(names), "stream %s has no table %s", q.stream.name, name)
}

// encoder returns what writes the row as one of the table's newest schema.
func (q *request) encoder(t *edge.Table, row *edge.Row) (*rowjson.Encoder, error) {
	return q.stream.encoders.get(row.Schema, t.Schema(), q.bigInt)
}

// appendRow appends the row as JSON, or returns full where there is no room.
func (q *request) appendRow(t *edge.Table, row *edge.Row, full error) error {
	enc, err := q.encoder(t, row)
	if err != nil {
		return err
	}
	size := len(q.body)
	for i := range row.Columns {
		size += len(row.Columns[i].Text)
	}
	if size > freeBuffer && !q.reserve(size) {
		return full
	}
	if q.body, err = enc.AppendRow(q.body, &row.Row); err != nil {
		return err
	}
	q.settle() // escapes may have made it longer
	return nil
}

const (
	maxRequestBody = 1 << 20
	maxKeys        = 1000
	// keysWeight is how many bytes of memory one of a request may come to take.
	keysWeight = 16
)

// rowsGetBody is what rows:get is asked with.
type rowsGetBody struct {
	Keys []struct {
		Table string       `json:"table"`
		Key   []keyElement `json:"key"`
	} `json:"keys"`
}

// keyElement is one value of a key: a string, or for convenience a number or a
// boolean.
type keyElement []byte

// UnmarshalJSON takes the text out of a string, and numbers and booleans as
// they are written.
func (e *keyElement) UnmarshalJSON(b []byte) error {
	switch c := b[0]; {
	case c == '"':
		var s string
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
		*e = keyElement(s)
	case c == 't', c == 'f', c == '-', c >= '0' && c <= '9':
		*e = append((*e)[:0], b...)
	default:
		return fmt.Errorf("%.40s cannot be part of a key; give a string, a number or a boolean", b)
	}
	return nil
}

// rowsGet answers with several rows of one snapshot.
func (q *request) rowsGet() error {
	const mend = `send {"keys":[{"table":"schema.table","key":["value of each key column",…]},…]}`
	var body rowsGetBody
	text, err := io.ReadAll(http.MaxBytesReader(q.w, q.r.Body, maxRequestBody))
	if err == nil && !q.reserve(keysWeight*len(text)) {
		return errBusy
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err == nil {
		err = d.Decode(&body)
	}
	if err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("something follows the object")
			if more != nil {
				err = more
			}
		}
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return &fault{http.StatusRequestEntityTooLarge, "too_large", fmt.Sprintf("the request has more than %d bytes", maxRequestBody), "ask for fewer rows at once"}
	case err != nil:
		return badRequest("bad_body", mend, "the request cannot be read: %v", err)
	case len(body.Keys) > min(maxKeys, q.s.config.MaxRows):
		return &fault{
			http.StatusRequestEntityTooLarge, "too_large", fmt.Sprintf("the request has %d keys", len(body.Keys)),
			fmt.Sprintf("ask for at most %d rows at once", min(maxKeys, q.s.config.MaxRows)),
		}
	}
	if _, err := q.params(nil); err != nil {
		return err
	}
	return q.stream.store.View(q.r.Context(), func(v *edge.View) error { return q.readSeveral(v, &body) })
}

func (q *request) readSeveral(v *edge.View, body *rowsGetBody) error {
	q.at(v)
	q.body = fmt.Appendf(q.body[:0], `{"index":%d,"rows":[`, q.place.Index)
	tables := make(map[string]*edge.Table)
	for i := range body.Keys {
		k := &body.Keys[i]
		t := tables[k.Table]
		if t == nil {
			var err error
			if t, err = q.table(v, k.Table); err != nil {
				return err
			}
			tables[k.Table] = t
		}
		q.rows.texts = q.rows.texts[:0]
		for _, e := range k.Key {
			q.rows.texts = append(q.rows.texts, e)
		}
		if i > 0 {
			q.body = append(q.body, ',')
		}
		if err := q.encodeKey(t); err != nil {
			return err
		}
		err := t.Get(q.rows.key, &q.rows.row)
		switch {
		case errors.Is(err, edge.ErrNotFound):
			q.body = append(q.body, "null"...)
			continue
		case err != nil:
			return err
		}
		if err := q.appendRow(t, &q.rows.row, errBusy); err != nil {
			return err
		}
		if len(q.body) > q.s.config.MaxPage && len(body.Keys) > 1 {
			return &fault{
				http.StatusRequestEntityTooLarge, "too_large", fmt.Sprintf("the first %d rows have more than %d bytes", i+1, q.s.config.MaxPage),
				"ask for fewer rows at once",
			}
		}
	}
	q.body = append(q.body, "]}\n"...)
	return nil
}
