package rowjson_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/big"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/pgtest"
	"github.com/millrace-db/millrace/internal/rowjson"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// builtin has values of every built-in type that a table can have, as SQL
// expressions.
var builtin = []struct {
	typ    string
	values []string
}{
	{"boolean", []string{"true", "false"}},
	{"smallint", []string{"-32768", "0", "32767"}},
	{"integer", []string{"-2147483648", "0", "7"}},
	{"bigint", []string{"-9223372036854775808", "9007199254740993"}},
	{"real", []string{"1.1", "'-0'", "'NaN'", "'Infinity'", "'-Infinity'", "1e20", "1e-20", "999999", "16777216"}},
	{"double precision", []string{"0.1", "'-0'", "'NaN'", "'Infinity'", "'-Infinity'", "1e300", "5e-324", "1e15", "1e14"}},
	{"numeric", []string{"1.50", "0", "'NaN'", "'Infinity'", "'-Infinity'", "-123456789012345678901234567890.000000001", "1e-50"}},
	{"numeric(10,2)", []string{"1", "-0.01"}},
	{"money", []string{"12.5", "-1234567.89"}},
	{"oid", []string{"4294967295"}},
	{"text", []string{"''", "'NULL'", "'null'", `E'a"b\\c\n\t\r\b\f\x01\x1f'`, `'{a,b}'`, `'(a,"b")'`, "'é日𝄞'", "' '", `'\'`, "E'\\u2028/<>&'"}},
	{"varchar(20)", []string{"'abc'", "' x '"}},
	{"char(6)", []string{"'ab'", "''"}},
	{`"char"`, []string{"'a'", "''"}},
	{"name", []string{"'a name'"}},
	{"bytea", []string{`'\x'`, `'\x00ff'`}},
	{"date", []string{"'2024-02-29'", "'infinity'", "'-infinity'", "'0044-03-15 BC'", "'12345-01-01'"}},
	{"time", []string{"'00:00'", "'24:00:00'", "'12:34:56.789'"}},
	{"time(2)", []string{"'12:34:56.789'"}},
	{"time with time zone", []string{"'12:34:56+05:30'", "'00:00:00-08'"}},
	{"timestamp", []string{"'2024-02-29 12:00'", "'infinity'", "'-infinity'", "'0044-03-15 12:00:00.5 BC'", "'12345-01-01 00:00:00.000001'"}},
	{"timestamp(3)", []string{"'2024-02-29 12:00:00.123456'"}},
	{"timestamptz", []string{"'2024-02-29 12:00+02'", "'infinity'", "'-infinity'", "'0044-03-15 12:00:00+00 BC'", "'12345-01-01 00:00:00.000001+00'"}},
	{"interval", []string{"'1 year 2 mons 3 days 04:05:06.7'", "'-1 day'", "'0'"}},
	{"uuid", []string{"'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"}},
	{"json", []string{`'{"b": 1.50, "a" : [1, null, "x\"\\y"],  "b": {"c": 1e5}}'`, "'null'", `'"s"'`, "'[]'", "' 12 '"}},
	{"jsonb", []string{`'{"b": 1.50, "a" : [1, null, "x\"\\y"],  "b": {"c": 1e5}}'`, "'null'", `'"s"'`, "'{}'"}},
	{"jsonpath", []string{`'$.a[*] ? (@ > 1)'`}},
	{"xml", []string{`'<a b="c">d</a>'`}},
	{"inet", []string{"'10.0.0.1'", "'10.0.0.1/8'", "'2001:db8::1'"}},
	{"cidr", []string{"'10.0.0.0/8'", "'2001:db8::/32'"}},
	{"macaddr", []string{"'08:00:2b:01:02:03'"}},
	{"macaddr8", []string{"'08:00:2b:01:02:03:04:05'"}},
	{"bit(5)", []string{"B'10101'"}},
	{"varbit", []string{"B''", "B'101'"}},
	{"point", []string{"'(1,2)'", "'(1e20,-0.5)'"}},
	{"line", []string{"'{1,2,3}'"}},
	{"lseg", []string{"'[(1,2),(3,4)]'"}},
	{"box", []string{"'(3,4),(1,2)'"}},
	{"path", []string{"'[(1,2),(3,4)]'", "'((1,2),(3,4))'"}},
	{"polygon", []string{"'((1,2),(3,4),(5,6))'"}},
	{"circle", []string{"'<(1,2),3>'"}},
	{"tsvector", []string{"'a:1 b:2A ''c d'''"}},
	{"tsquery", []string{"'a & !b'"}},
	{"pg_lsn", []string{"'16/B374D848'"}},
	{"tid", []string{"'(1,2)'"}},
	{"xid", []string{"'7'"}},
	{"xid8", []string{"'7'"}},
	{"cid", []string{"'7'"}},
	{"txid_snapshot", []string{"'10:20:10,14,15'"}},
	{"pg_snapshot", []string{"'10:20:10,14,15'"}},
	{"refcursor", []string{"'cursor'"}},
	{"int2vector", []string{"'1 2 3'", "''"}},
	{"oidvector", []string{"'1 2 3'", "''"}},
	{"int4range", []string{"'[1,5)'", "'empty'", "'(,)'"}},
	{"int8range", []string{"'[1,5)'"}},
	{"numrange", []string{"'(1.50,2.5]'"}},
	{"tsrange", []string{"'[2024-01-01 00:00,2024-01-02 00:00)'"}},
	{"tstzrange", []string{"'[2024-01-01 00:00+00,infinity)'"}},
	{"daterange", []string{"'[2024-01-01,2024-01-02]'"}},
	{"int4multirange", []string{"'{[1,5),[7,8)}'", "'{}'"}},
	{"int8multirange", []string{"'{[1,5)}'"}},
	{"nummultirange", []string{"'{(1.5,2.5]}'"}},
	{"tsmultirange", []string{"'{[2024-01-01 00:00,2024-01-02 00:00)}'"}},
	{"tstzmultirange", []string{"'{[2024-01-01 00:00+00,2024-01-02 00:00+00)}'"}},
	{"datemultirange", []string{"'{[2024-01-01,2024-01-02]}'"}},
	// Made by users.
	{"mood", []string{"'sad'", "'o\"k, {\\}'"}},
	{"positive", []string{"5"}},
	{"names", []string{`'{a,"b c"}'`}},
	{"pair", []string{"row(1, 'a \"b\" \\ c, (d)')", "row(null, '')", "row(-5, null)", "row(1, E'\\n')"}},
	{"nest", []string{
		`row(row(1, 'x"y'), array[row(2, 'a,b'), null, row(null, '{"\}')]::pair[], 'sad', '2024-01-01 10:00+00', true, '{"k": [1, "}"]}', 1.50, array[[1,2],[3,4]])`,
		"row(null, null, null, null, null, null, null, null)",
		"row(row(null, null), '{}', 'sad', 'infinity', false, 'null', 'NaN', '{}')",
	}},
	{"boxes", []string{"array['(3,4),(1,2)', '(0,0),(1,1)']::box[]"}},
	{"hollow", []string{"row()"}},
	{"shifted", []string{"'[2:3]={1,2}'", "'[-1:0][5:5]={{1},{NULL}}'", "'{{{{{{1}}}}}}'"}},
}

const makeTypes = `
	create type mood as enum ('sad', 'o"k, {\}');
	create domain positive as int check (value > 0);
	create domain names as text[];
	create domain boxes as box[];
	create domain shifted as int[];
	create type pair as (a int, "b ""quoted""" text);
	create type nest as (p pair, ps pair[], m mood, at timestamptz, yes bool, j jsonb, n numeric, grid int[]);
	create type hollow as ();`

// notInTables are built-in types without values of their own that a test could
// write, or that capture refuses.
var notInTables = []string{
	"aclitem", "gtsvector", "pg_brin_bloom_summary", "pg_brin_minmax_multi_summary", "pg_dependencies", "pg_mcv_list", "pg_ndistinct", "pg_node_tree",
	"regclass", "regcollation", "regconfig", "regdictionary", "regnamespace", "regoper", "regoperator", "regproc", "regprocedure", "regrole", "regtype", "regdatabase",
}

// allTypes describes every type of the database.
func allTypes(ctx context.Context, t *testing.T, conn *pgx.Conn) []millrace.TypeDesc {
	t.Helper()
	rows, err := conn.Query(ctx, `
		select t.oid::int8, n.nspname::text, t.typname::text, t.typtype::text, ascii(t.typdelim::text),
			coalesce(case when t.typtype = 'd' then t.typbasetype when t.typtype in ('r', 'm') then r.rngsubtype
				when t.typsubscript = 'array_subscript_handler'::regproc then t.typelem end, 0)::int8,
			array(select attname::text from pg_attribute where attrelid = t.typrelid and attnum > 0 and not attisdropped order by attnum),
			array(select atttypid::int8 from pg_attribute where attrelid = t.typrelid and attnum > 0 and not attisdropped order by attnum)
		from pg_type t join pg_namespace n on n.oid = t.typnamespace left join pg_range r on t.oid in (r.rngtypid, r.rngmultitypid)
		where t.typtype <> 'p' and (t.typtype <> 'c' or n.nspname = 'public')
			and not exists (select from pg_type e where e.oid = t.typelem and (e.typtype = 'p' or e.typtype = 'c' and e.typnamespace <> 'public'::regnamespace))
		order by t.oid`)
	if err != nil {
		t.Fatal(err)
	}
	types, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (d millrace.TypeDesc, err error) {
		var oid, elem int64
		var delim int
		var kind string
		var names []string
		var attributes []int64
		err = row.Scan(&oid, &d.Schema, &d.Name, &kind, &delim, &elem, &names, &attributes)
		d.OID, d.Elem, d.Delim = uint32(oid), uint32(elem), byte(delim)
		d.Kind = map[string]millrace.TypeKind{
			"b": millrace.TypeBase, "d": millrace.TypeDomain, "e": millrace.TypeEnum, "c": millrace.TypeComposite,
			"r": millrace.TypeRange, "m": millrace.TypeMultirange,
		}[kind]
		if d.Kind == millrace.TypeBase && elem != 0 {
			d.Kind = millrace.TypeArray
		}
		for i := range names {
			d.Attributes = append(d.Attributes, millrace.Attribute{Name: names[i], Type: uint32(attributes[i])})
		}
		return d, err
	})
	if err != nil {
		t.Fatal(err)
	}
	return types
}

// TestEqualsToJSONB makes a table with a column of every built-in type, of
// arrays of it and of types that users make, and compares every row with what
// to_jsonb gives for it.
func TestEqualsToJSONB(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	db := pgtest.New(t)
	conn, err := pgx.Connect(ctx, db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }()
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatalf("%v: %s", err, sql)
		}
	}
	exec(`set timezone = 'UTC'; set datestyle = 'ISO'; set intervalstyle = 'postgres'; set bytea_output = 'hex'; set extra_float_digits = 1`)
	exec(makeTypes)

	schema := &millrace.Schema{Version: 1, Table: 1, Namespace: "public", Name: "t"}
	table := "create table t (id int primary key"
	type place struct{ row, column int }
	rows, values := 0, make(map[place]string)
	for i, b := range builtin {
		scalar, array := 2*i+1, 2*i+2
		table += fmt.Sprintf(", \"scalar %d\" %s, \"array %d\" %s[]", i, b.typ, i, b.typ)
		var elements []string
		for j, v := range b.values {
			v = "(" + v + ")::" + b.typ
			elements = append(elements, v)
			values[place{j, scalar}] = v
			values[place{j, array}] = "array[" + v + "]"
		}
		n, all := len(b.values), strings.Join(elements, ", ")
		values[place{n, array}] = "array[" + all + ", null::" + b.typ + "]"
		values[place{n + 1, array}] = "array[array[" + all + "], array[" + all + "]]"
		values[place{n + 2, array}] = "'{}'"
		rows = max(rows, n+3)
	}
	exec(table + ")")
	columns := 2*len(builtin) + 1
	for r := range rows {
		insert := []string{fmt.Sprint(r)}
		for c := 1; c < columns; c++ {
			v := values[place{r, c}]
			if v == "" {
				v = "null"
			}
			insert = append(insert, v)
		}
		exec("insert into t values (" + strings.Join(insert, ", ") + ")")
	}

	schema.Types = allTypes(ctx, t, conn)
	tested := make(map[string]bool)
	result, err := conn.Query(ctx, "select t.*, to_jsonb(t) from t order by id", pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Fatal(err)
	}
	defer result.Close()
	for i, f := range result.FieldDescriptions()[:columns] {
		c := millrace.Column{Name: f.Name, Type: f.DataTypeOID, Typmod: f.TypeModifier}
		if i == 0 {
			c.KeyOrdinal = 1
		}
		schema.Columns = append(schema.Columns, c)
		tested[schema.Type(c.Type).Name] = true
	}
	if err := schema.Validate(); err != nil {
		t.Fatal(err)
	}
	encoder, err := rowjson.New(schema)
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for result.Next() {
		raw := result.RawValues()
		row := millrace.Row{Version: 1}
		for _, text := range raw[:columns] {
			d := millrace.Datum{Text: text}
			if text == nil {
				d.State = millrace.ColumnNull
			}
			row.Columns = append(row.Columns, d)
		}
		got, err := encoder.AppendRow(nil, &row)
		if err != nil {
			t.Fatal(err)
		}
		compareObjects(t, schema, row.Columns, got, raw[columns])
		count++
	}
	if err := result.Err(); err != nil {
		t.Fatal(err)
	}
	if count != rows {
		t.Errorf("compared %d rows, want %d", count, rows)
	}
	for _, d := range schema.Types {
		scalar := d.Kind == millrace.TypeBase || d.Kind == millrace.TypeRange || d.Kind == millrace.TypeMultirange
		if d.Schema == "pg_catalog" && scalar && !tested[d.Name] && !slices.Contains(notInTables, d.Name) {
			t.Errorf("type %s is not in the test", d.Name)
		}
	}
}

// compareObjects compares member by member, so that a failure names the column.
func compareObjects(t *testing.T, s *millrace.Schema, columns []millrace.Datum, got, want []byte) {
	t.Helper()
	g, w := decodeObject(t, got), decodeObject(t, want)
	if len(g) != len(w) {
		t.Errorf("got %d members, want %d", len(g), len(w))
	}
	for i := range s.Columns {
		name := s.Columns[i].Name
		if !reflect.DeepEqual(g[name], w[name]) {
			t.Errorf("%s of type %s, text %q: got %v, want %v", name, s.Type(s.Columns[i].Type).Name, columns[i].Text, g[name], w[name])
		}
	}
}

func decodeObject(t *testing.T, b []byte) map[string]any {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var object map[string]any
	if err := d.Decode(&object); err != nil {
		t.Fatalf("decode %s: %v", b, err)
	}
	return normalise(object).(map[string]any)
}

// number is a number by its value.
type number string

// normalise replaces numbers by their value.
func normalise(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = normalise(v[k])
		}
	case []any:
		for i := range v {
			v[i] = normalise(v[i])
		}
	case json.Number:
		r, ok := new(big.Rat).SetString(v.String())
		if !ok {
			panic("not a number: " + v.String())
		}
		return number(r.RatString())
	}
	return v
}
