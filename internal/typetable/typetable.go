// Package typetable is for tests: a table of Postgres's types with values that
// have gone wrong somewhere, which the tests of single parts and those of the
// whole road share.
package typetable

// Type is a type and values of it.
type Type struct {
	// Name is how SQL names it.
	Name string
	// Values are SQL expressions that can be cast to the type, at least one.
	Values []string
}

// Make makes the types of the table that Postgres does not have by itself, but
// for those of Extensions.
const Make = `
	create type mood as enum ('sad', 'o"k, {\}');
	create domain positive as int check (value > 0);
	create domain names as text[];
	create domain boxes as box[];
	create domain shifted as int[];
	create type pair as (a int, "b ""quoted""" text);
	create type nest as (p pair, ps pair[], m mood, at timestamptz, yes bool, j jsonb, n numeric, grid int[]);
	create type hollow as ();`

// Types has every type that a table can have and that Postgres brings along,
// and some that users make.
var Types = []Type{
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

// Refused are those of Types that capture refuses: they are made for the system
// catalogs.
var Refused = []string{"int2vector", "oidvector"}

// Extension is one that servers may have, with its types.
type Extension struct {
	Name  string
	Types []Type
}

// Extensions come with Postgres's own sources and are there if whoever built the
// server has put them in.
var Extensions = []Extension{
	{"citext", []Type{{"citext", []string{"'Abc'", "''", "'Straße'"}}}},
	{"hstore", []Type{{"hstore", []string{
		`'a=>1, b=>NULL, "c d"=>"x \" y \\ z", "é,"=>"=>", ""=>""'`, "''", `'"null"=>"NULL", n=>"1.50"'`, `E'"\n"=>"\t"'`,
	}}}},
	{"ltree", []Type{{"ltree", []string{"'Top.Countries.Europe'", "''"}}, {"lquery", []string{"'Top.*{1,2}.Euro*'"}}}},
	{"isn", []Type{{"isbn", []string{"'978-0-393-04002-9'"}}}},
	{"cube", []Type{{"cube", []string{"'(1,2),(3,4)'"}}}},
	{"seg", []Type{{"seg", []string{"'1.5(+-)0.5'"}}}},
}
