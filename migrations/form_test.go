package migrations

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/capture"
)

// TestForms copies values at the edges of each type that goes over in the binary form,
// and others that go as text, from 15 to 17.
func TestForms(t *testing.T) {
	const enum = "CREATE TYPE mood AS ENUM ('sad', 'très gai'); "
	r := newRig(t, 17, enum+`CREATE DOMAIN short AS varchar(3);
		CREATE TABLE bytes (id bigint PRIMARY KEY, b bool, i2 smallint, i4 int, f4 real, f8 float8, n numeric, n2 numeric(12,3), o oid, t text, v varchar(10), c char(5), y bytea, u uuid, j json, jb jsonb,
			d date, ti time, tz timetz, ts timestamp, tsz timestamptz(3), ip inet, net cidr, mac macaddr, m mood,
			ba bool[], ia int[], na numeric[], ta text[], ua uuid[], ja jsonb[], tsa timestamptz[], extra text GENERATED ALWAYS AS (upper(t)) STORED);
		INSERT INTO bytes (id) VALUES (1);
		INSERT INTO bytes VALUES (-9223372036854775808, true, -32768, -2147483648, '-0', 'NaN', 'NaN', 123456789.120, 4294967295, E'tab\t, line\n, \\ and \\N', '', 'ab', '\x0001ff', 'ffffffff-ffff-ffff-ffff-ffffffffffff', '{"a" :  1, "a":2}', '{"b":1e400, "a":"\u00e9"}',
			'-infinity', '24:00', '23:59:59.999999-15:59', 'infinity', '294276-12-31 23:59:59.999+00', '::ffff:1.2.3.4/96', '10.0.0.0/8', '08:00:2b:01:02:03', 'très gai',
			'{t,NULL,f}', '[2:3]={1,2}', '{1.10,Infinity}', '{{a,"b,c"},{NULL,""}}', '{}', ARRAY['{}'::jsonb], '{-infinity}'),
			(2, false, 1, 2, 1e-45, 5e-324, -0.00, -0.001, 0, repeat('é', 3000), 'ééé', 'é', '', '00000000-0000-0000-0000-000000000000', 'null', 'null', '4713-01-01 BC', '00:00', '00:00+14', '4713-01-01 00:00 BC', 'epoch', '0.0.0.0', '::/0', 'ff:ff:ff:ff:ff:ff', 'sad',
			NULL, NULL, NULL, NULL, NULL, NULL, NULL);
		CREATE TABLE texts (id int PRIMARY KEY, i interval, s short, m mood[], b bit varying, r int4range, p point);
		INSERT INTO texts VALUES (1, '1 mon -1 day 00:00:00.000001', 'abc', '{sad,NULL}', B'101', '[1,5)', '(1,2.5)'), (2, NULL, NULL, NULL, NULL, NULL, NULL);
		CREATE TABLE wider (id int PRIMARY KEY, n int, i smallint, v varchar(5), w varchar(5), d numeric(10,2)); INSERT INTO wider VALUES (1, 2147483647, -1, 'é', '', 1.10), (2, NULL, NULL, NULL, NULL, NULL)`, tablesOf("bytes", "texts", "wider")...)
	r.dst.Exec(enum + "CREATE DOMAIN short AS varchar(3); CREATE TABLE wider (id bigint PRIMARY KEY, n bigint, i numeric, v text, w varchar(9), d numeric)")
	r.must("prepare", r.m.Prepare(r.ctx(), nil))
	src, dst, err := r.m.both(r.ctx())
	r.must("connect", err)
	for _, conn := range []*pgx.Conn{src, dst} {
		defer capture.Close(conn)
	}
	for i, binary := range []bool{true, false, true} {
		m, problems, err := readMapping(r.ctx(), src, dst, &r.cfg.Tables[i], nil)
		r.must("look up", err)
		r.must("look up", capture.FirstError(problems))
		if m.binary != binary {
			t.Errorf("table %v goes over in the binary form: %v, want %v", m.from, m.binary, binary)
		}
	}
	r.must("copy", r.m.Copy(r.ctx()))
	r.same()
	if got := r.dst.String("SELECT count(*) FROM millrace.migration_chunk WHERE sum_read = sum_there AND rows_read = rows_there AND rows_read > 0"); got != "3" {
		t.Errorf("%s chunks have the same rows and sums, want 3", got)
	}
}
