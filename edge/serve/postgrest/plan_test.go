package postgrest_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/serve/postgrest"
)

// itemsSchema is (zone int4, id int4, name text C null, rank int8 null), key (zone, id).
func itemsSchema() *millrace.Schema {
	return &millrace.Schema{
		Version: 1, Table: 1, Namespace: "public", Name: "items",
		Types: []millrace.TypeDesc{
			{OID: 20, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "int8"},
			{OID: 23, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "int4"},
			{OID: 25, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "text"},
			{OID: 3802, Kind: millrace.TypeBase, Schema: "pg_catalog", Name: "jsonb"},
		},
		Columns: []millrace.Column{
			{Name: "name", Type: 25, Typmod: -1, Collation: "C"},
			{Name: "id", Type: 23, Typmod: -1, NotNull: true, KeyOrdinal: 2},
			{Name: "zone", Type: 23, Typmod: -1, NotNull: true, KeyOrdinal: 1},
			{Name: "rank", Type: 20, Typmod: -1},
			{Name: "note", Type: 25, Typmod: -1, Collation: "default"},
			{Name: "doc", Type: 3802, Typmod: -1},
		},
	}
}

// item is a row in Go's types, which the naive evaluator reads.
type item struct {
	zone, id int
	name     *string
	rank     *int
}

func (i *item) datums() []millrace.Datum {
	some := func(ok bool, text func() string) millrace.Datum {
		if !ok {
			return millrace.Datum{State: millrace.ColumnNull}
		}
		return millrace.Datum{Text: []byte(text())}
	}
	return []millrace.Datum{
		some(i.name != nil, func() string { return *i.name }),
		some(true, func() string { return strconv.Itoa(i.id) }),
		some(true, func() string { return strconv.Itoa(i.zone) }),
		some(i.rank != nil, func() string { return strconv.Itoa(*i.rank) }),
		some(true, func() string { return "note" }),
		some(true, func() string { return `{"a":1}` }),
	}
}

// naive is one condition for the naive evaluator: whether it surely holds.
type naive func(*item) bool

// compareNull orders values, null after all of them.
func compareNull[T cmp.Ordered](a, b *T) int {
	switch {
	case a == nil && b == nil:
		return 0
	case a == nil:
		return 1
	case b == nil:
		return -1
	}
	return cmp.Compare(*a, *b)
}

// condition makes a condition in both forms.
func (g *generator) naive() (string, naive) {
	numbers := map[string]func(*item) *int{
		"zone": func(i *item) *int { return &i.zone }, "id": func(i *item) *int { return &i.id }, "rank": func(i *item) *int { return i.rank },
	}
	names := []string{"", "a", "ab", "abc", "b", "é", "c"}
	ops := map[string]func(c int) bool{
		"eq": func(c int) bool { return c == 0 }, "neq": func(c int) bool { return c != 0 }, "gt": func(c int) bool { return c > 0 },
		"gte": func(c int) bool { return c >= 0 }, "lt": func(c int) bool { return c < 0 }, "lte": func(c int) bool { return c <= 0 },
	}
	op := pick(g, []string{"eq", "eq", "eq", "neq", "gt", "gte", "lt", "lte"})
	switch g.IntN(6) {
	case 0:
		column := pick(g, []string{"name", "rank"})
		missing := func(i *item) bool { return i.rank == nil }
		if column == "name" {
			missing = func(i *item) bool { return i.name == nil }
		}
		switch g.IntN(3) {
		case 0:
			return column + "=is.null", missing
		case 1:
			return column + "=is.not_null", func(i *item) bool { return !missing(i) }
		}
		return column + "=not.is.null", func(i *item) bool { return !missing(i) }
	case 1:
		p := pick(g, []string{"", "a", "ab", "é"})
		return "name=like." + url.QueryEscape(p+"*"), func(i *item) bool { return i.name != nil && strings.HasPrefix(*i.name, p) }
	case 2:
		v := pick(g, names)
		return "name=" + op + "." + url.QueryEscape(v), func(i *item) bool { return i.name != nil && ops[op](cmp.Compare(*i.name, v)) }
	case 3:
		column := pick(g, []string{"zone", "id", "rank"})
		var values []int
		var texts []string
		for range 1 + g.IntN(4) {
			values = append(values, g.IntN(12))
			texts = append(texts, strconv.Itoa(values[len(values)-1]))
		}
		holds := func(i *item) bool { n := numbers[column](i); return n != nil && slices.Contains(values, *n) }
		if g.IntN(2) == 0 {
			return "or=(" + column + ".eq." + strings.Join(texts, ","+column+".eq.") + ")", holds
		}
		return column + "=in.(" + strings.Join(texts, ",") + ")", holds
	}
	column, v := pick(g, []string{"zone", "id", "rank"}), g.IntN(12)
	return fmt.Sprintf("%s=%s.%d", column, op, v), func(i *item) bool { n := numbers[column](i); return n != nil && ops[op](cmp.Compare(*n, v)) }
}

// order makes an order in both forms.
func (g *generator) order() (string, func(a, b *item) int) {
	var terms []string
	var all []func(a, b *item) int
	dirs := pick(g, [][]string{{""}, {".desc"}, {"", ".desc"}})
	for range 1 + g.IntN(3) {
		column, dir := pick(g, []string{"zone", "id", "name", "rank"}), pick(g, dirs)
		nulls := pick(g, []string{"", "", "", ".nullsfirst", ".nullslast"})
		terms = append(terms, column+dir+nulls)
		first := dir == ".desc"
		if nulls != "" {
			first = nulls == ".nullsfirst"
		}
		all = append(all, func(a, b *item) int {
			var c int
			missing := func(i *item) bool { return column == "name" && i.name == nil || column == "rank" && i.rank == nil }
			if missing(a) || missing(b) {
				switch {
				case missing(a) && missing(b):
					return 0
				case missing(a) == first:
					return -1
				}
				return 1
			}
			switch column {
			case "zone":
				c = cmp.Compare(a.zone, b.zone)
			case "id":
				c = cmp.Compare(a.id, b.id)
			case "name":
				c = compareNull(a.name, b.name)
			case "rank":
				c = compareNull(a.rank, b.rank)
			}
			if dir == ".desc" {
				c = -c
			}
			return c
		})
	}
	// The rest of the key, so that there is one order.
	terms = append(terms, "zone"+dirs[0], "id"+dirs[0])
	return strings.Join(terms, ","), func(a, b *item) int {
		for _, by := range all {
			if c := by(a, b); c != 0 {
				return c
			}
		}
		c := cmp.Or(cmp.Compare(a.zone, b.zone), cmp.Compare(a.id, b.id))
		if dirs[0] == ".desc" {
			c = -c
		}
		return c
	}
}

// Plans over every set of indexes give what looking at all rows gives.
func TestPlansEqualNaive(t *testing.T) {
	g := &generator{newRand(t)}
	s := itemsSchema()
	all := [][]string{{"name"}, {"rank"}, {"name", "rank"}, {"rank", "name"}, {"id"}, {"rank", "zone"}, {"id", "rank"}, {"zone", "name"}}
	for range 8 {
		var indexes [][]string
		for _, ix := range all {
			if g.IntN(3) == 0 {
				indexes = append(indexes, ix)
			}
		}
		items := make(map[[2]int]*item)
		for range 150 {
			i := &item{zone: g.IntN(5), id: g.IntN(40)}
			if g.IntN(4) > 0 {
				name := pick(g, []string{"", "a", "ab", "abc", "b", "é", "zz"})
				i.name = &name
			}
			if g.IntN(4) > 0 {
				rank := g.IntN(12)
				i.rank = &rank
			}
			items[[2]int{i.zone, i.id}] = i
		}
		var rows [][]millrace.Datum
		for _, i := range items {
			rows = append(rows, i.datums())
		}
		store := storeOf(t, s, indexes)
		fill(t, store, s, rows)
		for range 300 {
			compareNaive(t, g, store, s, items)
		}
	}
}

func compareNaive(t *testing.T, g *generator, store *edge.Store, s *millrace.Schema, items map[[2]int]*item) {
	t.Helper()
	var params []string
	var holds []naive
	for range g.IntN(4) {
		p, n := g.naive()
		params, holds = append(params, p), append(holds, n)
	}
	order, less := g.order()
	params = append(params, "order="+order, "select=zone,id")
	var want []*item
	for _, i := range items {
		if !slices.ContainsFunc(holds, func(n naive) bool { return !n(i) }) {
			want = append(want, i)
		}
	}
	slices.SortFunc(want, less)
	total := len(want)
	if g.IntN(2) == 0 {
		offset := g.IntN(4)
		params = append(params, fmt.Sprintf("offset=%d", offset))
		want = want[min(offset, len(want)):]
	}
	if g.IntN(2) == 0 {
		limit := g.IntN(8)
		params = append(params, fmt.Sprintf("limit=%d", limit))
		want = want[:min(limit, len(want))]
	}
	query := strings.Join(params, "&")
	answer, err := ask(t, store, s, query, limits)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	var got []struct{ Zone, ID int }
	if err := json.Unmarshal(answer.Body, &got); err != nil {
		t.Fatal(err)
	}
	same := len(got) == len(want)
	for i := 0; same && i < len(got); i++ {
		same = got[i].Zone == want[i].zone && got[i].ID == want[i].id
	}
	if !same {
		t.Fatalf("%s: got %s, want %d rows", query, answer.Body, len(want))
	}
	if answer.Scanned > len(items) {
		t.Fatalf("%s: %d of %d rows were looked at", query, answer.Scanned, len(items))
	}
	if answer, err = ask(t, store, s, query, limits, "Prefer", "count=exact"); err == nil && answer.Total != int64(total) {
		t.Fatalf("%s: counted %d, want %d", query, answer.Total, total)
	}
}

// planStore has 1,000 rows: zones 0 to 9 of 100 each, names of ten rows each.
func planStore(t testing.TB, indexes ...[]string) (*edge.Store, *millrace.Schema) {
	t.Helper()
	s := itemsSchema()
	store := storeOf(t, s, indexes)
	var rows [][]millrace.Datum
	for n := range 1000 {
		name, rank := fmt.Sprintf("n%02d", n%100), n
		i := item{zone: n / 100, id: n, name: &name, rank: &rank}
		rows = append(rows, i.datums())
	}
	fill(t, store, s, rows)
	return store, s
}

// How many rows each kind of query looks at, with indexes on name and rank.
func TestRowsLookedAt(t *testing.T) {
	store, s := planStore(t, []string{"name"}, []string{"rank"}, []string{"name", "rank"})
	for query, want := range map[string][2]int{ // looked at, given
		"zone=eq.3&id=eq.300":                               {1, 1},
		"id=eq.300&zone=eq.3":                               {1, 1},
		"zone=eq.3&id=in.(300,301,999)":                     {2, 2},
		"zone=in.(3,4)&id=in.(300,400)":                     {2, 2},
		"zone=eq.3&id=eq.999":                               {0, 0},
		"zone=eq.3":                                         {100, 100},
		"zone=eq.3&limit=5":                                 {5, 5},
		"zone=eq.3&id=gt.350&limit=5&order=id":              {5, 5},
		"zone=eq.3&id=gt.350&limit=5&order=id.desc":         {5, 5},
		"zone=eq.3&id=gte.350&id=lt.360":                    {10, 10},
		"order=zone.desc,id.desc&limit=3":                   {3, 3},
		"zone=gt.8":                                         {100, 100},
		"name=eq.n07":                                       {10, 10},
		"or=(name.eq.n07,name.eq.n08)":                      {20, 20},
		"name=like.n0*":                                     {100, 100},
		"name=is.null":                                      {0, 0},
		"zone=is.null":                                      {0, 0},
		"name=eq.n07&rank=gte.500&order=rank&limit=2":       {2, 2},
		"name=eq.n07&order=zone,id&limit=2":                 {2, 2},
		"name=eq.n07&zone=gte.5":                            {5, 5}, // the key follows the index
		"name=eq.n07&zone=eq.5":                             {1, 1},
		"order=rank.desc&limit=4":                           {4, 4},
		"rank=gte.990":                                      {10, 10},
		"rank=lt.10&order=rank.desc":                        {10, 10},
		"name=in.()":                                        {0, 0},
		"limit=0":                                           {0, 0},
		"id=eq.300":                                         {1000, 1}, // not leading: everything
		"name=eq.n07&order=rank.desc.nullslast&limit=2":     {10, 2},   // sorted afterwards
		"order=note&limit=2":                                {-1, 0},
		"note=gt.a":                                         {-1, 0},
		"name=eq.n07&and=(zone.eq.5,or(id.eq.507,id.eq.1))": {1, 1},
	} {
		answer, err := ask(t, store, s, query, limits)
		if want[0] < 0 {
			var bad *postgrest.Error
			if !errors.As(err, &bad) || bad.Code != "PGRST127" || !strings.Contains(bad.Details, `COLLATE "C"`) {
				t.Errorf("%s: %v, want to be refused for the collation", query, err)
			}
			continue
		}
		if err != nil || answer.Scanned != want[0] || answer.Rows != int64(want[1]) {
			t.Errorf("%s: looked at %d rows for %d, %v, want %v", query, answer.Scanned, answer.Rows, err, want)
		}
	}
}

// A query that would look at too much is refused with the index that would do, which
// does when it is there.
func TestMaxScan(t *testing.T) {
	bare, s := planStore(t)
	few := limits
	few.Scan = 120
	for query, want := range map[string]string{
		"id=eq.300":                          "edge: {indexes: {bank: {public.items: [[id]]}}}",
		"name=eq.n07":                        "public.items: [[name]]",
		"name=eq.n07&rank=gt.3":              "public.items: [[name, rank]]",
		"name=like.n0*":                      "public.items: [[name]]",
		"order=rank.desc&limit=3":            "public.items: [[rank]]",
		"name=eq.n07&order=rank&limit=1":     "public.items: [[name, rank]]",
		"name=neq.n07":                       "No index would lead to fewer",
		"or=(name.eq.n07,rank.eq.3)&limit=9": "No index would lead to fewer",
		"offset=500&limit=3":                 "No index would lead to fewer",
	} {
		_, err := ask(t, bare, s, query, few)
		var bad *postgrest.Error
		if !errors.As(err, &bad) || bad.Code != postgrest.CodeMaxScan || !strings.Contains(bad.Hint, want) {
			t.Errorf("%s: %v, hint %q, want %q", query, err, hintOf(err), want)
		}
	}
	store, s := planStore(t, []string{"id"}, []string{"name"}, []string{"name", "rank"}, []string{"rank"})
	for _, query := range []string{"id=eq.300", "name=eq.n07", "name=eq.n07&rank=gt.3", "name=like.n0*", "order=rank.desc&limit=3", "name=eq.n07&order=rank&limit=1"} {
		if _, err := ask(t, store, s, query, few); err != nil {
			t.Errorf("%s with the index: %v", query, err)
		}
	}
}

func hintOf(err error) string {
	var bad *postgrest.Error
	if errors.As(err, &bad) {
		return bad.Hint
	}
	return ""
}

// A client that goes away ends the look at rows.
func TestCanceled(t *testing.T) {
	store, s := planStore(t)
	q, err := postgrest.Parse("GET", "name=eq.none", nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err = store.View(t.Context(), func(v *edge.View) error {
		table, err := v.Table(s.QualifiedName())
		if err != nil {
			return err
		}
		compiled, err := postgrest.NewTable(table.Schema())
		if err != nil {
			return err
		}
		plan, err := postgrest.Compile(q, compiled, func() [][]string { return nil })
		if err != nil {
			return err
		}
		answer, err := plan.Run(ctx, table, nil, limits)
		if answer.Scanned >= 1000 {
			t.Errorf("%d rows were looked at", answer.Scanned)
		}
		return err
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// Answers are bounded in rows and bytes, and by the memory that there is.
func TestBoundedAnswers(t *testing.T) {
	store, s := planStore(t)
	few := limits
	few.Rows = 10
	if _, err := ask(t, store, s, "zone=eq.1", few); err == nil || !strings.Contains(err.Error(), postgrest.CodeMaxRows) {
		t.Errorf("too many rows: %v", err)
	}
	if a, err := ask(t, store, s, "zone=eq.1&limit=10", few); err != nil || a.Rows != 10 {
		t.Errorf("as many rows as may be: %d, %v", a.Rows, err)
	}
	few = limits
	few.Bytes = 100
	if _, err := ask(t, store, s, "zone=eq.1", few); err == nil || !strings.Contains(err.Error(), postgrest.CodeTooLarge) {
		t.Errorf("too many bytes: %v", err)
	}
	few = limits
	few.Reserve = func(n int) bool { return n < 10_000 }
	for _, query := range []string{"", "order=rank"} {
		if _, err := ask(t, store, s, query, few); !errors.Is(err, postgrest.ErrBusy) {
			t.Errorf("%q without memory: %v", query, err)
		}
	}
}
