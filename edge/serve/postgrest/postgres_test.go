package postgrest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/serve/postgrest"
	"github.com/millrace-db/millrace/internal/pgtest"

	"github.com/millrace-db/millrace"
)

var (
	queries  = flag.Int("queries", 800, "how many random queries are compared with Postgres")
	seedFlag = flag.Uint64("seed", 0, "seed of random queries; 0 for one of this run's own")
)

func newRand(t testing.TB) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// testColumn is a column with values that rows have, and others that queries ask for.
type testColumn struct {
	name, typ      string
	values, others []string
}

var testColumns = []testColumn{
	{"small", "int2", []string{"-32768", "-1", "0", "1", "7"}, []string{"07", " 7 ", "+1", "32768", "x", "", "1.0", "9"}},
	{"num", "int4", []string{"-2147483648", "-5", "0", "3", "2147483647"}, []string{"2147483648", "1e3", "0x10", "1_000", "\t3", "_1", "0b12"}},
	{"big", "int8", []string{"-9223372036854775808", "0", "9007199254740993", "9223372036854775807"}, []string{"9223372036854775808", "-0"}},
	{"dec", "numeric", []string{"1.50", "1.5", "-0.001", "0", "1e-30", "123456789012345678901234567890.5", "NaN", "Infinity", "-Infinity"}, []string{"1.500", ".5", "5.", "1.5e0", "-inf", "nan", "--1", "1e", ".", "1_0.5"}},
	{"money", "numeric(10,2)", []string{"1.00", "-0.01", "99999999.99"}, []string{"1", "1.005"}},
	{"f8", "float8", []string{"0.1", "-0", "1e300", "5e-324", "NaN", "Infinity", "-Infinity", "1e15"}, []string{"0", "1e400", "1e-400", "inf", "-infinity", "0.10000000000000001", "nope", "0x1p3"}},
	{"f4", "float4", []string{"1.1", "0", "16777216", "-1e-20", "NaN"}, []string{"1.10", "16777217", "1e40"}},
	{"flag", "bool", []string{"t", "f"}, []string{"true", "FALSE", "yes", "of", "o", "1", "0", " on ", "maybe", "tru"}},
	{"txt", "text", []string{"", "a", "ab", "a%b", "a_b", "B", "é", "日本", `q"q`, `back\slash`, "a,b", "(x)", " pad ", "NULL", "long" + strings.Repeat("x", 500)}, []string{"A", "null", "*"}},
	{"ctxt", `text collate "C"`, []string{"", "a", "ab", "abc", "b", "é", "Z", "a b", `\`, strings.Repeat("k", 480) + "1", strings.Repeat("k", 480) + "2"}, []string{"aa", "zz"}},
	{"vc", `varchar(10) collate "POSIX"`, []string{"x", "xy", "y ", "y"}, []string{"longer than ten"}},
	{"ch", `char(5) collate "C"`, []string{"ab", "a", "", "abcde", "a b"}, []string{"ab   ", "a  ", "abcdef"}},
	{"nm", "name", []string{"short", "other"}, []string{"short" + strings.Repeat("n", 70)}},
	{"one", `"char"`, []string{"a", "b", ""}, []string{"ab"}},
	{"bin", "bytea", []string{`\x`, `\x00ff`, `\x6162`, `\xff`}, []string{"ab", `\x00FF`, `\xzz`}},
	{"id2", "uuid", []string{"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "00000000-0000-0000-0000-000000000000"}, []string{"{A0EEBC999C0B4EF8BB6D6BB9BD380A11}", "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11", "a0eebc99", "xyz"}},
	{"day", "date", []string{"2024-02-29", "infinity", "-infinity", "0044-03-15 BC", "12345-01-01"}, []string{"2024-02-30", "Infinity", "2024-13-01"}},
	{"tm", "time", []string{"00:00:00", "12:34:56.789", "24:00:00"}, []string{"12:34", "25:00:00"}},
	{"ts", "timestamp", []string{"2024-02-29 12:00:00", "infinity", "0044-03-15 12:00:00.5 BC", "2024-02-29 12:00:00.000001"}, []string{"2024-02-29T12:00", "2024-02-29", "2024-02-29T12:00:00.000Z", "2024-02-29 12:00:00+05:30"}},
	{"tz", "timestamptz", []string{"2024-02-29 12:00:00+00", "-infinity", "12345-01-01 00:00:00.000001+00"}, []string{"2024-02-29T14:00:00+02:00", "2024-02-29T12:00:00Z", "2024-02-29 06:30:00-0530", "2024-02-29 12:00", "2024-02-30T00:00:00Z"}},
	{"ip", "inet", []string{"10.0.0.1", "10.0.0.1/8", "2001:db8::1", "::ffff:1.2.3.4"}, []string{"10.0.0.1/32", "2001:DB8:0::1", "10.0.0.1/33"}},
	{"net", "cidr", []string{"10.0.0.0/8", "2001:db8::/32"}, []string{"10.0.0.1/8"}},
	{"mac", "macaddr", []string{"08:00:2b:01:02:03", "ff:00:00:00:00:00"}, []string{"08-00-2B-01-02-03"}},
	{"bits", "varbit", []string{"", "1", "10", "0101", "100000001"}, []string{"102", "0"}},
	{"feeling", "mood", []string{"sad", "ok", "a happy one"}, []string{"none"}},
	{"pos", "positive", []string{"1", "5"}, []string{"-1", "05"}},
	{"numo", "oid", []string{"0", "4294967295"}, []string{"4294967296", "7"}},
	{"js", "jsonb", []string{`{"a": 1}`, "null", "1.50"}, nil},
	{"arr", "int4[]", []string{"{1,NULL}", "{}"}, nil},
}

// testIndexes are over columns with null, of several types, and with order.
var testIndexes = [][]string{
	{"small"},
	{"big", "num"},
	{"dec"},
	{"f8"},
	{"flag", "ts"},
	{"txt"},
	{"ctxt", "small"},
	{"ch"},
	{"nm"},
	{"bin"},
	{"id2"},
	{"day", "tm"},
	{"tz"},
	{"ip"},
	{"bits"},
	{"feeling", "ctxt"},
	{"pos", "numo"},
	{"vc"},
	{"mac"},
	{"one"},
}

// condition is a condition in both languages.
type condition struct{ rest, sql string }

func literalSQL(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// generator makes queries.
type generator struct{ *rand.Rand }

func pick[T any](g *generator, list []T) T { return list[g.IntN(len(list))] }

func (g *generator) value(c *testColumn) string {
	if len(c.others) > 0 && g.IntN(12) == 0 {
		return pick(g, c.others)
	}
	return pick(g, c.values)
}

func quoteRest(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// leaf makes a condition on one column. nested is the syntax within and and or.
func (g *generator) leaf(nested bool) condition {
	c := pick(g, testColumns)
	if g.IntN(3) == 0 {
		c = testColumn{name: "id", values: []string{"1", "17", "60", "300"}, others: []string{"-1", "x"}}
		if g.IntN(3) == 0 {
			c = testColumn{name: "grp", values: []string{"a", "b", "c,d"}, others: []string{"none"}}
		}
	}
	col := `t."` + c.name + `"`
	not, notSQL := "", ""
	if g.IntN(5) == 0 {
		not, notSQL = "not.", "NOT "
	}
	text := func(s string) string {
		if nested {
			return quoteRest(s)
		}
		return s
	}
	make := func(op, value, sql string) condition {
		if nested {
			return condition{c.name + "." + not + op + "." + value, notSQL + sql}
		}
		return condition{c.name + "=" + url.QueryEscape(not+op+"."+value), notSQL + sql}
	}
	v := g.value(&c)
	switch n := g.IntN(14); n {
	case 0, 1, 2:
		return make("eq", text(v), "("+col+" = "+literalSQL(v)+")")
	case 3:
		return make("neq", text(v), "("+col+" <> "+literalSQL(v)+")")
	case 4, 5, 6, 7:
		op := n - 4
		return make([]string{"gt", "gte", "lt", "lte"}[op], text(v), "("+col+" "+[]string{">", ">=", "<", "<="}[op]+" "+literalSQL(v)+")")
	case 8, 9:
		var list, sql []string
		for range 1 + g.IntN(4) {
			v := g.value(&c)
			list = append(list, quoteRest(v))
			sql = append(sql, quoteRest(v))
		}
		if len(sql) == 1 && sql[0] == `""` {
			sql = nil // PostgREST takes a single empty value for none
		}
		return make("in", "("+strings.Join(list, ",")+")", "("+col+" = ANY ("+literalSQL("{"+strings.Join(sql, ",")+"}")+"))")
	case 10:
		is := pick(g, []string{"null", "not_null", "true", "false", "unknown"})
		return make("is", is, "("+col+" IS "+strings.ToUpper(strings.ReplaceAll(is, "_", " "))+")")
	case 11:
		return make("isdistinct", text(v), "("+col+" IS DISTINCT FROM "+literalSQL(v)+")")
	}
	p := pick(g, []string{"*", "a*", "ab*", "%b", "a_b", "_", "%a%b%", "", "k*2", "y *", `a\%b`, `back\\slash`, "日_", "short*", "a\\", "é*", "%_%"})
	return make("like", text(p), "("+col+" like "+literalSQL(strings.ReplaceAll(p, "*", "%"))+")")
}

// tree makes conditions of conditions.
func (g *generator) tree(depth int) condition {
	if depth == 0 || g.IntN(2) == 0 {
		return g.leaf(true)
	}
	op := pick(g, []string{"and", "or"})
	var rest, sql []string
	for range 1 + g.IntN(3) {
		c := g.tree(depth - 1)
		rest, sql = append(rest, c.rest), append(sql, c.sql)
	}
	not, notSQL := "", ""
	if g.IntN(4) == 0 {
		not, notSQL = "not.", "NOT "
	}
	return condition{not + op + "(" + strings.Join(rest, ",") + ")", notSQL + "(" + strings.Join(sql, " "+strings.ToUpper(op)+" ") + ")"}
}

// query makes a query string, and SQL for the JSON and the number of all rows.
func (g *generator) query() (rest, sql, count string) {
	var params, where []string
	for range g.IntN(4) {
		c := g.leaf(false)
		params, where = append(params, c.rest), append(where, c.sql)
	}
	if g.IntN(3) == 0 {
		op := pick(g, []string{"and", "or"})
		var list, sqls []string
		for range 1 + g.IntN(3) {
			c := g.tree(2)
			list, sqls = append(list, c.rest), append(sqls, c.sql)
		}
		params = append(params, op+"="+url.QueryEscape("("+strings.Join(list, ",")+")"))
		where = append(where, "("+strings.Join(sqls, " "+strings.ToUpper(op)+" ")+")")
	}
	var order, orderSQL []string
	for range g.IntN(3) {
		c := pick(g, testColumns)
		name := c.name
		if g.IntN(2) == 0 {
			name = pick(g, []string{"grp", "id"})
		}
		dir := pick(g, []string{"", ".asc", ".desc", ".nullsfirst", ".desc.nullslast", ".asc.nullslast", ".desc.nullsfirst"})
		order = append(order, name+dir)
		orderSQL = append(orderSQL, `t."`+name+`"`+strings.NewReplacer(".asc", " ASC", ".desc", " DESC", ".nullsfirst", " NULLS FIRST", ".nullslast", " NULLS LAST").Replace(dir))
	}
	// A key at the end makes the order one of all rows, in either direction.
	dir := pick(g, []string{"", ".desc"})
	order = append(order, "grp"+dir, "id"+dir)
	sqlDir := strings.NewReplacer(".desc", " DESC").Replace(dir)
	orderSQL = append(orderSQL, `t."grp"`+sqlDir, `t."id"`+sqlDir)
	params = append(params, "order="+strings.Join(order, ","))
	columns := "t.*"
	if g.IntN(2) == 0 {
		var list, sqls []string
		for range 1 + g.IntN(3) {
			c := pick(g, testColumns)
			item, one := c.name, `t."`+c.name+`"`
			if g.IntN(3) == 0 {
				typ := pick(g, []string{"text", "text", "int8", "numeric", c.typ})
				if !strings.ContainsAny(typ, `("[`) && !strings.Contains(typ, "collate") {
					item, one = item+"::"+typ, "CAST("+one+" AS "+typ+")"
				}
			}
			as := c.name
			if g.IntN(3) == 0 {
				as = fmt.Sprintf("as %d", len(list))
				item = as + ":" + item
			}
			list, sqls = append(list, item), append(sqls, one+` AS "`+as+`"`)
		}
		params = append(params, "select="+url.QueryEscape(strings.Join(list, ",")))
		columns = strings.Join(sqls, ", ")
	}
	limit := ""
	if g.IntN(2) == 0 {
		n := g.IntN(20)
		params = append(params, fmt.Sprintf("limit=%d", n))
		limit = fmt.Sprintf(" LIMIT %d", n)
	}
	if g.IntN(3) == 0 {
		n := g.IntN(6)
		params = append(params, fmt.Sprintf("offset=%d", n))
		limit += fmt.Sprintf(" OFFSET %d", n)
	}
	// Conditions stay in their order, so that of two errors both sides see the same first.
	if n := len(where); n < len(params) {
		at := g.IntN(n + 1)
		params = slices.Concat(params[n:], params[:at], params[at:n])
	}
	condition := ""
	if len(where) > 0 {
		condition = " WHERE " + strings.Join(where, " AND ")
	}
	from := " FROM items t" + condition
	return strings.Join(params, "&"),
		"SELECT coalesce(json_agg(_t), '[]')::text FROM (SELECT " + columns + from + " ORDER BY " + strings.Join(orderSQL, ", ") + limit + ") _t",
		"SELECT count(*)" + from
}

// world is a table at a Postgres server, and a store with its rows.
type world struct {
	conn   *pgx.Conn
	schema *millrace.Schema
	store  *edge.Store
}

func newWorld(ctx context.Context, t *testing.T, g *generator) *world {
	t.Helper()
	db := pgtest.New(t)
	conn, err := pgx.Connect(ctx, db.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) }) // the database goes away with it
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatalf("%v: %.300s", err, sql)
		}
	}
	exec(`set timezone = 'UTC'; set datestyle = 'ISO'; set intervalstyle = 'postgres'; set bytea_output = 'hex'; set extra_float_digits = 1`)
	exec(`create type mood as enum ('sad', 'ok', 'a happy one'); create domain positive as int check (value > 0)`)
	table := `create table items (grp text collate "C", id int4`
	for _, c := range testColumns {
		table += ", " + c.name + " " + c.typ
	}
	exec(table + ", primary key (grp, id))")
	var rows []string
	for id := range 300 {
		row := literalSQL([]string{"a", "b", "c,d"}[id%3]) + fmt.Sprintf(", %d", id)
		for _, c := range testColumns {
			if g.IntN(4) == 0 {
				row += ", NULL"
				continue
			}
			row += ", " + literalSQL(pick(g, c.values))
		}
		rows = append(rows, "("+row+")")
	}
	exec("insert into items values " + strings.Join(rows, ", "))
	w := &world{conn: conn, schema: schemaOf(ctx, t, conn, "items")}
	w.store = copyOf(ctx, t, conn, w.schema, testIndexes)
	return w
}

var minusZero = regexp.MustCompile(`:-0([,}])`)

// clip keeps messages readable.
func clip(s string) string { return fmt.Sprintf("%.1500s", s) }

// sameJSON compares values, numbers as they are written. json has a minus zero, which
// jsonb and millrace have not.
func sameJSON(t *testing.T, got, want []byte) bool {
	t.Helper()
	read := func(b []byte) (v any) {
		d := json.NewDecoder(bytes.NewReader(minusZero.ReplaceAll(b, []byte(`:0$1`))))
		d.UseNumber()
		if err := d.Decode(&v); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		return v
	}
	return reflect.DeepEqual(read(got), read(want))
}

// TestEqualsPostgres holds random queries against what Postgres answers to the SQL
// that PostgREST makes of them: rows, their order, their JSON, the number of all, and
// the codes of errors. What is refused by name is counted.
func TestEqualsPostgres(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	g := &generator{newRand(t)}
	w := newWorld(ctx, t, g)
	answered, refused, failed := 0, 0, 0
	for range *queries {
		rest, sql, count := g.query()
		answer, err := ask(t, w.store, w.schema, rest, limits, "Prefer", "count=exact")
		var bad *postgrest.Error
		if err != nil && !errors.As(err, &bad) {
			t.Fatalf("%s: %v", rest, err)
		}
		// Postgres tells of a pattern that ends in a backslash when it gets that far.
		if bad != nil && (bad.Code == "PGRST127" || bad.Code == "22025") {
			refused++
			continue
		}
		var want string
		var total int64
		sqlErr := w.conn.QueryRow(ctx, sql, pgx.QueryExecModeSimpleProtocol).Scan(&want)
		if sqlErr == nil {
			sqlErr = w.conn.QueryRow(ctx, count, pgx.QueryExecModeSimpleProtocol).Scan(&total)
		}
		var pgErr *pgconn.PgError
		switch {
		case errors.As(sqlErr, &pgErr):
			failed++
			if bad == nil || bad.Code != pgErr.Code {
				t.Fatalf("%s\n%s\ngot %v, %s\nwant %v", rest, sql, err, clip(string(answer.Body)), sqlErr)
			}
		case sqlErr != nil:
			t.Fatal(sqlErr)
		case bad != nil && bad.Code == "PGRST103":
			if total > 6 {
				t.Fatalf("%s: %v, and there are %d rows", rest, err, total)
			}
		case err != nil:
			t.Fatalf("%s\n%s\ngot %v, want %s", rest, sql, err, clip(want))
		default:
			answered++
			if !sameJSON(t, answer.Body, []byte(want)) || answer.Total != total {
				t.Fatalf("%s\n%s\ngot  %d %s\nwant %d %s", rest, sql, answer.Total, clip(string(answer.Body)), total, clip(want))
			}
		}
	}
	t.Logf("%d answered, %d refused, %d errors of Postgres", answered, refused, failed)
	if answered < *queries/5 {
		t.Errorf("only %d of %d queries were answered", answered, *queries)
	}
}

// TestCSVEqualsPostgres compares with the record form that PostgREST takes.
func TestCSVEqualsPostgres(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	g := &generator{newRand(t)}
	w := newWorld(ctx, t, g)
	var names []string
	for i := range w.schema.Columns {
		names = append(names, w.schema.Columns[i].Name)
	}
	answer, err := ask(t, w.store, w.schema, "order=grp,id", limits, "Accept", "text/csv")
	if err != nil {
		t.Fatal(err)
	}
	var want string
	err = w.conn.QueryRow(ctx, `select string_agg(substring(t::text, 2, length(t::text) - 2), E'\n' order by grp, id) from items t`).Scan(&want)
	if err != nil {
		t.Fatal(err)
	}
	want = strings.Join(names, ",") + "\n" + want
	if got := string(answer.Body); got != want {
		gotLines, wantLines := strings.Split(got, "\n"), strings.Split(want, "\n")
		i := slices.IndexFunc(gotLines, func(l string) bool { return !slices.Contains(wantLines, l) })
		t.Errorf("got  %s\nwant %s", gotLines[max(i, 0)], wantLines[max(i, 0)])
	}
	if answer, err = ask(t, w.store, w.schema, "id=eq.-1", limits, "Accept", "text/csv"); err != nil || string(answer.Body) != "\n" {
		t.Errorf("no rows: %q, %v", answer.Body, err)
	}
}
