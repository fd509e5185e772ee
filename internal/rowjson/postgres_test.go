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
	"github.com/millrace-db/millrace/internal/typetable"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

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
	exec(typetable.Make)

	schema := &millrace.Schema{Version: 1, Table: 1, Namespace: "public", Name: "t"}
	table := "create table t (id int primary key"
	type place struct{ row, column int }
	rows, values := 0, make(map[place]string)
	for i, b := range typetable.Types {
		scalar, array := 2*i+1, 2*i+2
		table += fmt.Sprintf(", \"scalar %d\" %s, \"array %d\" %s[]", i, b.Name, i, b.Name)
		var elements []string
		for j, v := range b.Values {
			v = "(" + v + ")::" + b.Name
			elements = append(elements, v)
			values[place{j, scalar}] = v
			values[place{j, array}] = "array[" + v + "]"
		}
		n, all := len(b.Values), strings.Join(elements, ", ")
		values[place{n, array}] = "array[" + all + ", null::" + b.Name + "]"
		values[place{n + 1, array}] = "array[array[" + all + "], array[" + all + "]]"
		values[place{n + 2, array}] = "'{}'"
		rows = max(rows, n+3)
	}
	exec(table + ")")
	columns := 2*len(typetable.Types) + 1
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
