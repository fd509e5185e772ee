package serve

import (
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/serve/postgrest"
	"github.com/millrace-db/millrace/internal/rowjson"
)

const restPath = "/rest/"

// Headers of PostgREST's dialect.
const (
	headerContentRange   = "Content-Range"
	headerContentProfile = "Content-Profile"
	headerApplied        = "Preference-Applied"
)

var varyRest = []string{"Accept, Accept-Profile, Prefer, Range"}

// rest answers a query in PostgREST's dialect: /rest/{stream}/{table}.
func (q *request) rest(rest string) error {
	name, table, ok := strings.Cut(rest, "/")
	name, err := unescape(name)
	if err != nil {
		return err
	}
	if q.stream = q.s.streams[name]; q.stream == nil {
		return postgrest.NoPath("This edge has the streams: " + list(q.seen()))
	}
	if table, err = unescapeTable(table); err != nil {
		return err
	}
	if !ok || table == "" {
		return postgrest.NoPath("Ask for /rest/" + name + "/{table}; /v1/streams/" + name + "/tables lists the tables.")
	}
	switch q.r.Method {
	case http.MethodGet, http.MethodHead:
	case http.MethodOptions:
		q.w.Header().Set("Allow", "OPTIONS,GET,HEAD")
		q.body = q.body[:0]
		return nil
	default:
		q.w.Header().Set("Allow", "OPTIONS,GET,HEAD")
		return postgrest.BadMethod(q.r.Method)
	}
	query, err := postgrest.Parse(q.r.Method, q.r.URL.RawQuery, q.r.Header)
	if err != nil {
		return err
	}
	if err := q.await(nil); err != nil {
		return err
	}
	return q.stream.store.View(q.r.Context(), func(v *edge.View) error {
		q.at(v)
		return q.restTable(v, query, table)
	})
}

// unescapeTable reads the rest of the path, which is one segment.
func unescapeTable(segment string) (string, error) {
	if strings.IndexByte(segment, '/') >= 0 {
		return "", postgrest.NoPath("Ask for /rest/{stream}/{table}.")
	}
	return unescape(segment)
}

// restTable answers from one table of a snapshot.
func (q *request) restTable(v *edge.View, query *postgrest.Query, name string) error {
	t, err := q.restOpen(v, query.Profile, name)
	if err != nil {
		return err
	}
	table, err := q.stream.tables.get(t.Schema())
	if err != nil {
		return err
	}
	plan, err := postgrest.Compile(query, table, func() [][]string { return wholeIndexes(t) })
	if err != nil {
		return err
	}
	answer, err := plan.Run(q.r.Context(), t, q.body[:0], postgrest.Limits{
		Scan: q.s.config.MaxScan, Rows: q.s.config.MaxRows, Bytes: q.s.config.MaxPage, Stream: q.stream.name,
		Reserve: q.reserve, Encoder: q.stream.encoder,
	})
	q.body = answer.Body
	q.settle()
	if err != nil {
		if errors.Is(err, postgrest.ErrBusy) {
			return errBusy
		}
		return err
	}
	h := q.w.Header()
	h[headerContentRange] = []string{answer.ContentRange(query)}
	h["Vary"] = varyRest
	if query.Profile != "" {
		h[headerContentProfile] = []string{query.Profile}
	}
	if query.Applied != "" {
		h[headerApplied] = []string{query.Applied}
	}
	if q.answered, err = answer.Status(query); err != nil {
		return err
	}
	q.contentType = query.Media.ContentType()
	q.tagged = true
	return nil
}

// restOpen finds a table by the name without its schema: in the schema that is asked
// for, in public, or in the only one there is.
func (q *request) restOpen(v *edge.View, profile, name string) (*edge.Table, error) {
	schema := profile
	if schema == "" {
		schema = "public"
	}
	t, err := q.table(v, schema+"."+name)
	missing := isFault(err, "no_table")
	if err == nil || !missing && !isFault(err, "forbidden") && !errors.Is(err, edge.ErrNotHeld) {
		return t, err
	}
	names, tablesErr := q.schemas(v)
	switch {
	case tablesErr != nil:
		return nil, tablesErr
	case slices.Contains(names, schema):
		if missing {
			err = postgrest.NoTable(schema, name)
		}
	case profile == "" && len(names) == 1:
		if t, err = q.table(v, names[0]+"."+name); isFault(err, "no_table") {
			err = postgrest.NoTable(names[0], name)
		}
		return t, err
	case missing:
		err = postgrest.NoSchema(schema, strings.Join(names, ", "))
	}
	return nil, err
}

// schemas returns the names of the schemas of tables that may be read, in their order.
func (q *request) schemas(v *edge.View) ([]string, error) {
	infos, err := v.Tables()
	if err != nil {
		return nil, err
	}
	schemas := make(map[string]bool)
	for i := range infos {
		// The name of a schema may have a dot; that of the table is known.
		t, err := v.Table(infos[i].Name)
		if err != nil {
			return nil, err
		}
		if q.who.Table(q.stream.name, infos[i].Name) {
			schemas[t.Schema().Namespace] = true
		}
	}
	return slices.Sorted(maps.Keys(schemas)), nil
}

// isFault reports whether an error is a fault of a code.
func isFault(err error, code string) bool {
	var f *fault
	return errors.As(err, &f) && f.Code == code
}

// wholeIndexes returns the indexes of the table that can be read.
func wholeIndexes(t *edge.Table) [][]string {
	var all [][]string
	infos := t.Indexes()
	for i := range infos {
		if infos[i].Whole {
			all = append(all, infos[i].Columns)
		}
	}
	return all
}

// encoder returns what writes rows of one schema as rows of another.
func (s *stream) encoder(row, as *millrace.Schema, bigInt bool) (*rowjson.Encoder, error) {
	return s.encoders.get(row, as, bigInt)
}

// restError is the body of an error in PostgREST's shape.
type restError struct {
	Code    string  `json:"code"`
	Details *string `json:"details"`
	Hint    *string `json:"hint"`
	Message string  `json:"message"`
}

// failRest writes an error in PostgREST's shape. Those that PostgREST does not know
// keep their code behind millrace's name.
func (q *request) failRest(err error) (status int, body any) {
	some := func(s string) *string {
		if s == "" {
			return nil
		}
		return &s
	}
	var e *postgrest.Error
	if errors.As(err, &e) {
		return e.Status, restError{e.Code, some(e.Details), some(e.Hint), e.Message}
	}
	f := asFault(err)
	code := "millrace." + f.Code
	if f.status == http.StatusForbidden {
		code = "42501" // what Postgres says
	}
	return f.status, restError{code, nil, some(f.Mend), f.Message}
}
