package postgrest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/serve/postgrest"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// The tables that PostgREST's own tests ask (its commit 4834678, test/spec), with keys
// where those have none.
const answersFixture = `
	create table items (id int8 primary key);
	insert into items select generate_series(1, 15);
	create table simple_pk (k varchar primary key, extra varchar not null);
	insert into simple_pk values ('xyyx', 'u'), ('xYYx', 'v');
	create table no_pk (a varchar collate "C", b varchar, n int primary key);
	insert into no_pk values (null, null, 1), ('1', '0', 2), ('2', '0', 3);
	create table chores (id int primary key, name text, done bool);
	insert into chores values (1, 'take out the garbage', true), (2, 'do the laundry', false), (3, 'wash the dishes', null);
	create table projects (id int primary key, name text not null, client_id int);
	insert into projects values (1, 'Windows 7', 1), (2, 'Windows 10', 1), (3, 'IOS', 2), (4, 'OSX', 2), (5, 'Orphan', null);
	create table names (name text, n int primary key);
	insert into names values ('Hebdon, John', 1), ('Williams, Mary', 2), ('Smith, Joseph', 3), ('David White', 4), ('Larry Thompson', 5),
		('Double O Seven(007)', 6), ('"', 7), ('Double"Quote"McGraw"', 8), ('\', 9), ('/\Slash/\Beast/\', 10);
	create table entities (id int primary key, name text, arr int[]);
	insert into entities values (1, 'entity 1', '{1}'), (2, 'entity 2', '{1,2}'), (3, 'entity 3', '{1,2,3}'), (4, null, null);
	create table grandchildren (id int primary key, name text, and_starting_col text, or_starting_col text);
	insert into grandchildren values (1, 'grandchild entity 1'), (2, 'grandchild entity 2'), (3, 'grandchild entity 3'),
		(4, '(grandchild,entity,4)'), (5, '(grandchild,entity,5)');
	create table types (int_data int primary key, text_data text, bool_data bool, bin_data bytea, char_data varchar, date_data date, real_data real, time_data time);
	insert into types values (1, null, null, null, null, null, null, null);
	create table reserved ("*id*" int primary key, ":arr->ow::cast" text, "(inside,parens)" text, "a.dotted.column" text, "  col  w  space  " text);
	insert into reserved values (1, ' arrow-1 ', ' parens-1 ', ' dotted-1 ', ' space-1');
	create table dollars ("a$num$" int primary key);
	insert into dollars values (100), (200);`

// What a PostgREST answers, by its own tests: rows, and where they look at it the range.
func TestAnswersOfPostgREST(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	db := pgtest.New(t)
	conn, err := pgx.Connect(ctx, db.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) }) // the database goes away with it
	if _, err := conn.Exec(ctx, answersFixture); err != nil {
		t.Fatal(err)
	}
	type table struct {
		schema *millrace.Schema
		store  *edge.Store
	}
	tables := make(map[string]table)
	ids := func(list ...int) string {
		var all []string
		for _, id := range list {
			all = append(all, fmt.Sprintf(`{"id":%d}`, id))
		}
		return "[" + strings.Join(all, ",") + "]"
	}
	all := ids(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
	names := func(list ...string) string {
		var all []map[string]string
		for _, name := range list {
			all = append(all, map[string]string{"name": name})
		}
		b, _ := json.Marshal(all) // texts
		return string(b)
	}
	for _, tt := range []struct{ query, header, want, span string }{
		{`items?id=eq.5`, "", ids(5), "0-0/*"},
		{`items?id=not.eq.5&order=id`, "", ids(1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), "0-13/*"},
		{`items?id=not.lt.14&order=id.asc`, "", ids(14, 15), "0-1/*"},
		{`items?id=not.gt.2&order=id.asc`, "", ids(1, 2), "0-1/*"},
		{`items?id=in.(1,3,5)`, "", ids(1, 3, 5), "0-2/*"},
		{`items?id=not.in.(2,4,6,7,8,9,10,11,12,13,14,15)`, "", ids(1, 3, 5), "0-2/*"},
		{`items?id=lte.2&order=id.desc`, "", ids(2, 1), "0-1/*"},
		{`items?select=id&order=id.asc`, "", all, "0-14/*"},
		{`items?select=id&order=id.asc&limit=3`, "", ids(1, 2, 3), "0-2/*"},
		{`items?select=id&order=id.asc&limit=3`, "Range: 0-1", ids(1, 2), "0-1/*"},
		{`items?select=id&order=id.asc&limit=3&offset=2`, "", ids(3, 4, 5), "2-4/*"},
		{`items?offset=0&id=eq.0`, "", `[]`, "*/*"},
		{`items?offset=0&id=eq.0`, "Prefer: count=exact", `[]`, "*/0"},
		{`items?select=id&offset=0&order=id`, "", all, "0-14/*"},
		{`items?select=id&offset=-4&order=id`, "", all, "0-14/*"},
		{`items?select=id&limit=0`, "", `[]`, "*/*"},
		{`items?select=id&limit=-1`, "", `PGRST103: Requested range not satisfiable: Limit should be greater than or equal to zero.`, ""},
		{`items?offset=100`, "Prefer: count=exact", `PGRST103: Requested range not satisfiable: An offset of 100 was requested, but there are only 15 rows.`, "*/15"},
		{`items?id=eq.0&offset=1`, "Prefer: count=exact", `PGRST103: Requested range not satisfiable: An offset of 1 was requested, but there are only 0 rows.`, "*/0"},
		{`items?id=eq.0`, "Range: 1-0", `PGRST103: Requested range not satisfiable: The lower boundary must be lower than or equal to the upper boundary in the Range header.`, ""},
		{`items?order=id`, "Range: 10-100", ids(11, 12, 13, 14, 15), "10-14/*"},
		{`items?id=eq.0`, "Range: 0-1", `[]`, "*/*"},
		{`items?id=eq.5`, "Accept: application/vnd.pgrst.object+json", `{"id":5}`, ""},
		{`items?id=eq.5`, "Accept: application/vnd.pgrst.object", `{"id":5}`, ""},
		{`items?id=gt.0&id=lt.0`, "Accept: application/vnd.pgrst.object+json", `PGRST116`, ""},
		{`items?order=id.asc.nullslasttt`, "", `PGRST100: "failed to parse order (id.asc.nullslasttt)" (line 1, column 17)`, ""},
		{`items?id=0`, "", `PGRST100: "failed to parse filter (0)" (line 1, column 1): unexpected "0" expecting "not" or operator (eq, gt, ...)`, ""},
		{`simple_pk?k=like.*yx&extra=not.eq.u`, "", `[]`, ""},
		{`simple_pk?k=like.*yx`, "", `[{"k":"xyyx","extra":"u"}]`, ""},
		{`simple_pk?k=like.xy*`, "", `[{"k":"xyyx","extra":"u"}]`, ""},
		{`simple_pk?k=like.*YY*`, "", `[{"k":"xYYx","extra":"v"}]`, ""},
		{`simple_pk?k=not.like.*yx`, "", `[{"k":"xYYx","extra":"v"}]`, ""},
		{`simple_pk?k=eq.xyyx`, "Accept: text/unknowntype, text/csv", "k,extra\nxyyx,u", ""},
		{`simple_pk?k=in.(xyyx,xYYx)`, "Accept: text/csv; version=1", "k,extra\nxYYx,v\nxyyx,u", ""},
		{`simple_pk`, "Accept: text/unknowntype", `PGRST107: None of these media types are available: text/unknowntype`, ""},
		{`no_pk?select=a,b&a=not.is.null`, "", `[{"a":"1","b":"0"},{"a":"2","b":"0"}]`, ""},
		{`no_pk?select=a,b&a=is.not_null`, "", `[{"a":"1","b":"0"},{"a":"2","b":"0"}]`, ""},
		{`no_pk?select=a,b&a=is.null`, "", `[{"a":null,"b":null}]`, ""},
		{`no_pk?select=a,b&a=not.is.not_null`, "", `[{"a":null,"b":null}]`, ""},
		{`no_pk?select=a,b&order=a.nullsfirst`, "", `[{"a":null,"b":null},{"a":"1","b":"0"},{"a":"2","b":"0"}]`, "0-2/*"},
		{`no_pk?select=a,b&order=a.asc.nullslast`, "", `[{"a":"1","b":"0"},{"a":"2","b":"0"},{"a":null,"b":null}]`, "0-2/*"},
		{`no_pk?select=a,b&order=a.desc.nullsfirst`, "", `[{"a":null,"b":null},{"a":"2","b":"0"},{"a":"1","b":"0"}]`, "0-2/*"},
		{`no_pk?select=a,b&order=a.desc.nullslast`, "", `[{"a":"2","b":"0"},{"a":"1","b":"0"},{"a":null,"b":null}]`, "0-2/*"},
		{`chores?done=is.true`, "", `[{"id":1,"name":"take out the garbage","done":true}]`, ""},
		{`chores?done=is.FAlSe`, "", `[{"id":2,"name":"do the laundry","done":false}]`, ""},
		{`chores?done=is.UnKnOwN`, "", `[{"id":3,"name":"wash the dishes","done":null}]`, ""},
		{`chores?done=is.NULL`, "", `[{"id":3,"name":"wash the dishes","done":null}]`, ""},
		{`chores?done=is.NoT_NuLl&select=id`, "", ids(1, 2), ""},
		{`chores?done=is.nil`, "", `PGRST100`, ""},
		{`chores?done=is.ok`, "", `PGRST100`, ""},
		{`projects?select=client_id,id,name&order=client_id.desc.nullslast,id.desc`, "", `[{"client_id":2,"id":4,"name":"OSX"},{"client_id":2,"id":3,"name":"IOS"},` +
			`{"client_id":1,"id":2,"name":"Windows 10"},{"client_id":1,"id":1,"name":"Windows 7"},{"client_id":null,"id":5,"name":"Orphan"}]`, "0-4/*"},
		{`names?select=name&name=in.("Hebdon, John")`, "", names("Hebdon, John"), ""},
		{`names?select=name&name=in.("Hebdon, John","Williams, Mary","Smith, Joseph")`, "", names("Hebdon, John", "Williams, Mary", "Smith, Joseph"), ""},
		{`names?select=name&name=not.in.("Hebdon, John","Williams, Mary","Smith, Joseph")&limit=3`, "", names("David White", "Larry Thompson", "Double O Seven(007)"), ""},
		{`names?select=name&name=in.(David White,"Hebdon, John")`, "", names("Hebdon, John", "David White"), ""},
		{`names?select=name&name=in.("Double O Seven(007)")`, "", names("Double O Seven(007)"), ""},
		{`names?select=name&name=in.("Double\"Quote\"McGraw\"")`, "", names(`Double"Quote"McGraw"`), ""},
		{`names?select=name&name=in.("\\")`, "", names(`\`), ""},
		{`names?select=name&name=in.("/\\Slash/\\Beast/\\")`, "", names(`/\Slash/\Beast/\`), ""},
		{`names?select=name&name=in.("D\a\vid W\h\ite")`, "", names("David White"), ""},
		{`names?select=name&name=in.(")`, "", names(`"`), ""},
		{`names?select=name&name=in.(Double"Quote"McGraw")`, "", names(`Double"Quote"McGraw"`), ""},
		{`names?select=name&name=in.(\)`, "", names(`\`), ""},
		{`names?select=name&name=in.(/\Slash/\Beast/\)`, "", names(`/\Slash/\Beast/\`), ""},
		{`entities?or=(id.eq.1,id.eq.2)&select=id`, "", ids(1, 2), ""},
		{`entities?not.or=(id.eq.1,id.eq.2)&select=id`, "", ids(3, 4), ""},
		{`entities?or=(id.eq.1,id.eq.2)&name=eq.entity 1&select=id`, "", ids(1), ""},
		{`entities?or=(and(name.eq.entity 2,id.eq.2),and(name.eq.entity 1,id.eq.1))&select=id`, "", ids(1, 2), ""},
		{`entities?or=(not.and(name.eq.entity 2,id.eq.2),not.and(name.eq.entity 1,id.eq.1))&select=id`, "", ids(1, 2, 3, 4), ""},
		{`entities?and=(id.eq.1,name.eq.entity 1)&or=(id.eq.1,id.eq.2)&select=id`, "", ids(1), ""},
		{`entities?or=(id.lt.2,id.gt.3)&select=id`, "", ids(1, 4), ""},
		{`entities?or=(id.lte.2,id.gte.3)&select=id`, "", ids(1, 2, 3, 4), ""},
		{`entities?or=(id.in.(1,2),id.in.(3,4))&select=id`, "", ids(1, 2, 3, 4), ""},
		{`entities?and=(name.is.null,arr.is.null)&select=id`, "", ids(4), ""},
		{`entities?and=(id.not.in.(1,3),name.not.is.null)&select=id`, "", ids(2), ""},
		{`entities?and=( and ( id.in.( 1, 2, 3 ) , id.eq.3 ) , or ( id.eq.2 , id.eq.3 ) )&select=id`, "", ids(3), ""},
		{`entities?or=()`, "", `PGRST100: "failed to parse logic tree (())" (line 1, column 4): unexpected ")" expecting field name (* or [a..z0..9_$]), negation operator (not) or logic operator (and, or)`, ""},
		{`entities?or=(id.eq.1)&select=id`, "", ids(1), ""},
		{`grandchildren?or=(name.eq."(grandchild,entity,4)",name.eq."(grandchild,entity,5)")&select=id`, "", ids(4, 5), ""},
		{`grandchildren?or=(name.like."*ity,4*",name.like."*ity,5)")&select=id`, "", ids(4, 5), ""},
		{`grandchildren?or=(id.in.("1","2"),id.in.("3","4"))&select=id`, "", ids(1, 2, 3, 4), ""},
		{`grandchildren?or=(id.eq.1, id.eq.2, id.eq.3)&select=id`, "", ids(1, 2, 3), ""},
		{`grandchildren?and=(id.in.(1,2), id.in.(3,1), id.in.(1,4))&select=id`, "", ids(1), ""},
		{`grandchildren?or=( id.eq.1, id.eq.2, and(id.in.(1,3), id.in.(2,3)), id.eq.4 )&select=id`, "", ids(1, 2, 3, 4), ""},
		{`grandchildren?and=( id.eq.1, not.or(id.eq.2, id.eq.3), id.in.(1,4), or(id.eq.1, id.eq.4) )&select=id`, "", ids(1), ""},
		{`grandchildren?or=(and_starting_col.eq.smth, or_starting_col.eq.smth)`, "", `[]`, ""},
		{`types?int_data=in.()`, "", `[]`, ""},
		{`types?text_data=in.()`, "", `[]`, ""},
		{`types?bool_data=in.()`, "", `[]`, ""},
		{`types?bin_data=in.()`, "", `[]`, ""},
		{`types?char_data=in.()`, "", `[]`, ""},
		{`types?date_data=in.()`, "", `[]`, ""},
		{`types?real_data=in.()`, "", `[]`, ""},
		{`types?time_data=in.()`, "", `[]`, ""},
		{`types?int_data=not.in.()&select=int_data`, "", `[{"int_data":1}]`, ""},
		{`types?int_data=in.(    )`, "", `[]`, ""},
		{`types?int_data=in.( ,3,4)`, "", `22P02: invalid input syntax for type integer: ""`, ""},
		{
			`reserved?select=%22:arr-%3Eow::cast%22,%22(inside,parens)%22,%22a.dotted.column%22,%22%20%20col%20%20w%20%20space%20%20%22&%22*id*%22=eq.1`, "",
			`[{":arr->ow::cast":" arrow-1 ","(inside,parens)":" parens-1 ","a.dotted.column":" dotted-1 ","  col  w  space  ":" space-1"}]`, "",
		},
		{`dollars?select=a$num$&a$num$=eq.100`, "", `[{"a$num$":100}]`, ""},
	} {
		name, query, _ := strings.Cut(tt.query, "?")
		if tables[name].store == nil {
			s := schemaOf(ctx, t, conn, name)
			tables[name] = table{s, copyOf(ctx, t, conn, s, nil)}
		}
		var header []string
		if field, value, ok := strings.Cut(tt.header, ": "); ok {
			header = []string{field, value}
		}
		query = strings.NewReplacer(" ", "%20", `"`, "%22").Replace(query)
		answer, err := ask(t, tables[name].store, tables[name].schema, query, limits, header...)
		var bad *postgrest.Error
		switch {
		case errors.As(err, &bad):
			if !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("%s %s: got %v, want %s", tt.query, tt.header, err, tt.want)
			}
		case err != nil:
			t.Fatalf("%s: %v", tt.query, err)
		case string(answer.Body) != tt.want && (!json.Valid(answer.Body) || !json.Valid([]byte(tt.want)) || !sameJSON(t, answer.Body, []byte(tt.want))):
			t.Errorf("%s %s: got %s, want %s", tt.query, tt.header, answer.Body, tt.want)
		}
		if q, err := postgrest.Parse("GET", query, headerOf(header)); err == nil && tt.span != "" && answer.ContentRange(q) != tt.span {
			t.Errorf("%s %s: range %s, want %s", tt.query, tt.header, answer.ContentRange(q), tt.span)
		}
	}
}
