package postgrest_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/millrace-db/millrace/edge/serve/postgrest"
)

func TestParse(t *testing.T) {
	leaf := func(op postgrest.Op, column, value string) postgrest.Node {
		return postgrest.Node{Op: op, Column: column, Value: value}
	}
	in := func(column string, list ...string) postgrest.Node {
		return postgrest.Node{Op: postgrest.In, Column: column, List: list}
	}
	negated := func(n postgrest.Node) postgrest.Node { n.Not = true; return n }
	for query, want := range map[string][]postgrest.Node{
		"":                        nil,
		"a=eq.1&b=gt.x.y":         {leaf(postgrest.Eq, "a", "1"), leaf(postgrest.Gt, "b", "x.y")},
		"a=not.eq.":               {negated(leaf(postgrest.Eq, "a", ""))},
		"a=eq.a%2Cb%20c+d":        {leaf(postgrest.Eq, "a", "a,b c d")},
		`a=eq."q"`:                {leaf(postgrest.Eq, "a", `"q"`)}, // as it is outside of lists
		`"a.b"=neq.1`:             {leaf(postgrest.Neq, "a.b", "1")},
		"with-dash=lte.1":         {leaf(postgrest.Lte, "with-dash", "1")},
		"with space=gte.1":        {leaf(postgrest.Gte, "with space", "1")},
		"a=in.(1,2)":              {in("a", "1", "2")},
		`a=in.("x,y","\"\\",z w)`: {in("a", "x,y", `"\`, "z w")},
		"a=in.()":                 {in("a")},
		`a=in.(,)`:                {in("a", "", "")},
		"a=is.null&b=is.NOT_null": {{Op: postgrest.IsNull, Column: "a"}, {Op: postgrest.IsNotNull, Column: "b"}},
		"a=not.is.true":           {negated(postgrest.Node{Op: postgrest.IsTrue, Column: "a"})},
		"a=like.x*":               {leaf(postgrest.Like, "a", "x*")},
		"a=isdistinct.1":          {leaf(postgrest.IsDistinct, "a", "1")},
		"or=(a.eq.1,b.eq.2)":      {{Op: postgrest.Or, Kids: []postgrest.Node{leaf(postgrest.Eq, "a", "1"), leaf(postgrest.Eq, "b", "2")}}},
		"not.and=(a.not.eq.1)":    {{Op: postgrest.And, Not: true, Kids: []postgrest.Node{negated(leaf(postgrest.Eq, "a", "1"))}}},
		`or=( a.eq."x,)", and(b.in.(1,2),not.or(c.is.null)) )`: {{Op: postgrest.Or, Kids: []postgrest.Node{
			leaf(postgrest.Eq, "a", "x,)"),
			{Op: postgrest.And, Kids: []postgrest.Node{in("b", "1", "2"), {Op: postgrest.Or, Not: true, Kids: []postgrest.Node{{Op: postgrest.IsNull, Column: "c"}}}}},
		}}},
		"and=(and.eq.1,or.eq.{1,2},not.eq.3)": {{Op: postgrest.And, Kids: []postgrest.Node{
			leaf(postgrest.Eq, "and", "1"), leaf(postgrest.Eq, "or", "{1,2}"), leaf(postgrest.Eq, "not", "3"),
		}}},
		"columns=x&on_conflict=y&valueless": nil,
	} {
		q, err := postgrest.Parse("GET", strings.ReplaceAll(query, " ", "%20"), nil)
		if err != nil {
			t.Errorf("%s: %v", query, err)
		} else if !reflect.DeepEqual(q.Where, want) {
			t.Errorf("%s: got %+v, want %+v", query, q.Where, want)
		}
	}
}

func TestParseSelectAndOrder(t *testing.T) {
	for query, want := range map[string]postgrest.Query{
		"":                              {All: true},
		"select=*":                      {All: true},
		"select=":                       {},
		"select=a,b":                    {Select: []postgrest.Item{{Column: "a"}, {Column: "b"}}},
		"select= x:a::text , *,b::int8": {Select: []postgrest.Item{{Column: "a", As: "x", Cast: "text"}, {Column: "*"}, {Column: "b", Cast: "int8"}}},
		`select="a,b":"c:d"`:            {Select: []postgrest.Item{{Column: "c:d", As: "a,b"}}},
		"select=a::double precision":    {Select: []postgrest.Item{{Column: "a", Cast: "double precision"}}},
		"order=a,b.desc,c.nullsfirst":   {All: true, Order: []postgrest.Term{{Column: "a"}, {Column: "b", Desc: true, NullsFirst: true}, {Column: "c", NullsFirst: true}}},
		"order=a.desc.nullslast":        {All: true, Order: []postgrest.Term{{Column: "a", Desc: true}}},
		"select=a,other(b,c(d)),e":      {Select: []postgrest.Item{{Column: "a"}, {Column: "other"}, {Column: "e"}}, Embedded: "other"},
		"select=x:other!inner(*)":       {Select: []postgrest.Item{{Column: "other", As: "x"}}, Embedded: "other"},
		"select=...other(*)":            {Select: []postgrest.Item{{Column: "other"}}, Embedded: "other"},
	} {
		q, err := postgrest.Parse("GET", strings.ReplaceAll(query, " ", "%20"), nil)
		want.Limit = -1
		if err != nil {
			t.Errorf("%s: %v", query, err)
		} else if !reflect.DeepEqual(*q, want) {
			t.Errorf("%s: got %+v, want %+v", query, *q, want)
		}
	}
}

func TestRanges(t *testing.T) {
	for _, tt := range []struct {
		query, header string
		offset, limit int64
		code          string
	}{
		{"", "", 0, -1, ""},
		{"limit=5&offset=2", "", 2, 5, ""},
		{"", "0-9", 0, 10, ""},
		{"", "items=3-3", 3, 1, ""},
		{"", "5-", 5, -1, ""},
		{"", "nonsense", 0, -1, ""},
		{"", "bytes=0-9", 0, -1, ""},
		{"limit=3", "1-9", 1, 2, ""},
		{"offset=4", "1-9", 4, 6, ""},
		{"limit=0", "1-9", 0, 0, ""},
		{"limit=20&offset=5", "7-8", 7, 2, ""},
		{"", "5-4", 0, 0, "PGRST103"},
		{"limit=2", "7-9", 0, 0, "PGRST103"},
		{"limit=-1", "", 0, 0, "PGRST103"},
		{"offset=-1", "", 0, -1, ""},
		{"limit=x", "", 0, 0, "PGRST100"},
		{"limit=1&limit=2", "", 0, 0, "PGRST127"},
		{"select=id&select=name", "", 0, 0, "PGRST127"},
		{"order=id&limit=1&order=name", "", 0, 0, "PGRST127"},
		{"limit=9223372036854775807&offset=9223372036854775807", "", 1<<63 - 1, 1<<63 - 1, ""},
		{"", "9223372036854775807-9223372036854775807", 0, -1, ""},
		{"", "-5", 0, -1, ""},
		{"", "0--5", 0, -1, ""},
	} {
		h := http.Header{}
		if tt.header != "" {
			h.Set("Range", tt.header)
		}
		q, err := postgrest.Parse("GET", tt.query, h)
		var bad *postgrest.Error
		switch {
		case tt.code != "":
			if !errors.As(err, &bad) || bad.Code != tt.code {
				t.Errorf("%+v: %v", tt, err)
			}
		case err != nil || q.Offset != tt.offset || q.Limit != tt.limit:
			t.Errorf("%+v: got %+v, %v", tt, q, err)
		}
	}
	// A range is of GET alone.
	if q, err := postgrest.Parse("HEAD", "", http.Header{"Range": {"0-9"}}); err != nil || q.Limit != -1 {
		t.Errorf("HEAD: %+v, %v", q, err)
	}
}

// What is refused, with PostgREST's codes and, where it has them, its words.
func TestErrors(t *testing.T) {
	store, s := planStore(t)
	for query, want := range map[string]string{
		"a.b=eq.1":           `PGRST108: 'a' is not an embedded resource in this request`,
		"id=noop.0":          `PGRST100: "failed to parse filter (noop.0)" (line 1, column 1)`,
		"id=5":               `PGRST100: "failed to parse filter (5)" (line 1, column 1): unexpected "5" expecting "not" or operator (eq, gt, ...)`,
		"id=eq":              `PGRST100: "failed to parse filter (eq)"`,
		"id=is.x":            `PGRST100: "failed to parse filter (is.x)" (line 1, column 4): unexpected "x" expecting isVal: (null, not_null, true, false, unknown)`,
		"id=in.1":            `PGRST100`,
		"id=in.(1,2":         `PGRST100`,
		"id=in.(1)x":         `PGRST100`,
		"or=()":              `PGRST100: "failed to parse logic tree (())" (line 1, column 4): unexpected ")" expecting field name (* or [a..z0..9_$]), negation operator (not) or logic operator (and, or)`,
		"or=(id.eq.1":        `PGRST100`,
		"and=(ord(id.eq.1))": `PGRST100: "failed to parse logic tree ((ord(id.eq.1)))" (line 1, column 8): unexpected "(" expecting delimiter (.)`,
		"or=" + strings.Repeat("(or", 100) + "(id.eq.1" + strings.Repeat(")", 101): `PGRST`,
		"order=id.ac":                            `PGRST100: "failed to parse order (id.ac)" (line 1, column 4): unexpected "a" expecting "asc", "desc", "nullsfirst" or "nullslast"`,
		"order=id.descc":                         `PGRST100: "failed to parse order (id.descc)" (line 1, column 8): unexpected "c" expecting delimiter (.), "," or end of input`,
		"order=zone(id)":                         `PGRST127`,
		"select=a!hint":                          `PGRST100`,
		"select=id::":                            `PGRST100`,
		"select=id,zones(*)":                     `PGRST200: Could not find a relationship between 'items' and 'zones' in the schema cache: Searched for a foreign key relationship between 'items' and 'zones' in the schema 'public', but no matches were found.`,
		"select=count()":                         `PGRST123: Use of aggregate functions is not allowed`,
		"select=id.sum()":                        `PGRST123`,
		"select=doc->>a":                         `PGRST127: Feature not implemented: column doc: paths into JSON (->) are not served`,
		"doc->a=eq.1":                            `PGRST127`,
		"select=nope":                            `42703: column items.nope does not exist`,
		"nope=eq.1":                              `42703: column items.nope does not exist`,
		"order=nope":                             `42703: column items.nope does not exist`,
		"id=eq.one":                              `22P02: invalid input syntax for type integer: "one"`,
		"id=eq.2147483648":                       `22003: value "2147483648" is out of range for type integer`,
		"id=is.true":                             `42804: argument of IS TRUE must be type boolean, not type integer`,
		"id=like.1*":                             `42883: operator does not exist: integer ~~ unknown`,
		"name=like.a%5C":                         `22025: LIKE pattern must not end with escape character`,
		"name=like." + strings.Repeat("x", 1001): `PGRST127`,
		"name=eq.%00":                            `22021: invalid byte sequence for encoding "UTF8": 0x00`,
		"name=eq.%ff":                            `22021: invalid byte sequence for encoding "UTF8": 0xff`,
		"name=eq.%zz":                            `PGRST100`,
		"name=ilike.a":                           `PGRST127: Feature not implemented: operator ilike is not served`,
		"name=fts.a":                             `PGRST127`,
		"name=eq(any).{a}":                       `PGRST127`,
		"note=gte.a":                             `PGRST127: Feature not implemented: column note: gte is not served: its collation "default" may order texts otherwise`,
		"doc=eq.1":                               `PGRST127: Feature not implemented: column doc: eq is not served: its type jsonb cannot be part of an index`,
		"select=doc::int4":                       `PGRST127: Feature not implemented: column doc: a cast from jsonb to int4 is not served`,
		"select=rank::int4":                      `PGRST127`,
		"offset=1001&limit=1&zone=eq.1":          `PGRST103: Requested range not satisfiable: An offset of 1001 was requested, but there are only 100 rows.`,
	} {
		_, err := ask(t, store, s, query, limits, "Prefer", "count=exact")
		var bad *postgrest.Error
		if !errors.As(err, &bad) || !strings.HasPrefix(err.Error(), want) || bad.Status < 400 || bad.Status >= 500 {
			t.Errorf("%.80s: got %v, want %s", query, err, want)
		}
	}
	for name, tt := range map[string]struct{ header, value, want string }{
		"media":  {"Accept", "text/unknown, image/png", "PGRST107: None of these media types are available: text/unknown, image/png"},
		"strip":  {"Accept", "application/vnd.pgrst.object+json;nulls=stripped", "PGRST107"},
		"strict": {"Prefer", "handling=strict, anything", "PGRST122: Invalid preferences given with handling=strict: Invalid preferences: anything"},
		"object": {"Accept", "application/vnd.pgrst.object+json", "PGRST116: Cannot coerce the result to a single JSON object: The result contains 1000 rows"},
	} {
		if _, err := ask(t, store, s, "", limits, tt.header, tt.value); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %s", name, err, tt.want)
		}
	}
}

func TestMedia(t *testing.T) {
	for accept, want := range map[string]postgrest.Media{
		"*/*":                                    postgrest.MediaJSON,
		"application/json":                       postgrest.MediaJSON,
		"":                                       postgrest.MediaJSON,
		"text/csv":                               postgrest.MediaCSV,
		"application/vnd.pgrst.object+json":      postgrest.MediaObject,
		"Application/Vnd.PgRsT.Object+json; q=1": postgrest.MediaObject,
		"text/html, text/csv;q=0.5, */*;q=0.1":   postgrest.MediaCSV,
		"text/csv;q=0.5, application/json;q=0.9": postgrest.MediaJSON,
		"application/vnd.pgrst.array+json":       postgrest.MediaJSON,
	} {
		q, err := postgrest.Parse("GET", "", http.Header{"Accept": {accept}})
		if err != nil || q.Media != want {
			t.Errorf("%q: %v, %v", accept, q, err)
		}
	}
}

// The forms of an answer.
func TestForms(t *testing.T) {
	store, s := planStore(t)
	for _, tt := range []struct{ query, header, value, want string }{
		{"zone=eq.0&id=eq.7", "", "", `[{"name":"n07","id":7,"zone":0,"rank":7,"note":"note","doc":{"a":1}}]`},
		{"zone=eq.0&id=eq.7&select=id", "", "", `[{"id":7}]`},
		{"zone=eq.0&id=eq.7&select=", "", "", `[{}]`},
		{"zone=eq.0&id=eq.7&select=the id:id::text,rank,rank", "", "", `[{"the id":"7","rank":7,"rank":7}]`},
		{"zone=eq.0&id=eq.7&select=rank,id", "Prefer", "bigint=string", `[{"rank":"7","id":7}]`},
		{"zone=eq.0&id=eq.7&select=id", "Accept", "application/vnd.pgrst.object+json", `{"id":7}`},
		{"zone=eq.0&id=eq.7&select=x:id,name,doc", "Accept", "text/csv", "x,name,doc\n7,n07,\"{\"\"a\"\":1}\""},
		{"zone=eq.0&id=eq.-1", "", "", `[]`},
		{"zone=eq.0&limit=2&select=id", "", "", `[{"id":0},{"id":1}]`},
	} {
		a, err := ask(t, store, s, strings.ReplaceAll(tt.query, " ", "%20"), limits, tt.header, tt.value)
		if err != nil || string(a.Body) != tt.want {
			t.Errorf("%s %s: got %s, %v, want %s", tt.query, tt.value, a.Body, err, tt.want)
		}
	}
}

// FuzzQuery: no query makes the dialect panic, or fail with anything but an error of
// its own or an answer that is whole.
func FuzzQuery(f *testing.F) {
	store, s := planStore(f, []string{"name", "rank"}, []string{"rank"})
	for _, seed := range []struct{ query, accept, prefer, span string }{
		{"zone=eq.3&id=in.(1,2)&select=x:id::text,name&order=rank.desc.nullslast&limit=3", "application/json", "count=exact", "0-9"},
		{"or=(name.like.n0*,and(rank.gt.3,not.or(id.is.null,name.eq.\"a,b\")))", "text/csv;q=0.5", "handling=strict", "5-"},
		{"name=not.like.%25_a%5C%25*&rank=isdistinct.7", "application/vnd.pgrst.object+json", "bigint=string", ""},
		{"select=a,b(c)&order=name.asc&offset=1", "*/*", "", "1-0"},
		{"name=gte.a&name=lt.%C3%A9&and=(rank.gte.0,rank.lte.9)", "", "timezone=UTC", ""},
	} {
		f.Add(seed.query, seed.accept, seed.prefer, seed.span)
	}
	f.Fuzz(func(t *testing.T, query, accept, prefer, span string) {
		a, err := ask(t, store, s, query, limits, "Accept", accept, "Prefer", prefer, "Range", span)
		var bad *postgrest.Error
		switch {
		case errors.As(err, &bad):
			if bad.Status < 400 || bad.Status >= 500 || bad.Code == "" || bad.Message == "" {
				t.Fatalf("%q: %+v", query, bad)
			}
		case err != nil:
			t.Fatalf("%q: %v", query, err)
		case !strings.Contains(accept, "csv") && !strings.Contains(accept, "text/*") && !json.Valid(a.Body):
			t.Fatalf("%q: %s is not JSON", query, a.Body)
		}
	})
}
