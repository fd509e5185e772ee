package postgrest_test

import (
	"context"
	"net/http"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/serve/postgrest"
	"github.com/millrace-db/millrace/internal/pgtest"
	"github.com/millrace-db/millrace/internal/rowjson"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

var testStream = millrace.StreamID{9}

// schemaOf describes a table as capture does.
func schemaOf(ctx context.Context, t testing.TB, conn *pgx.Conn, table string) *millrace.Schema {
	t.Helper()
	s := &millrace.Schema{Version: 1, Table: 1, Namespace: "public", Name: table}
	rows, err := conn.Query(ctx, `
		select t.oid::int8, n.nspname::text, t.typname::text, t.typtype::text, ascii(t.typdelim::text),
			coalesce(case when t.typtype = 'd' then t.typbasetype when t.typsubscript = 'array_subscript_handler'::regproc then t.typelem end, 0)::int8,
			array(select enumlabel::text from pg_enum where enumtypid = t.oid order by enumsortorder)
		from pg_type t join pg_namespace n on n.oid = t.typnamespace
		where t.oid in (with recursive used(oid) as (
			select atttypid from pg_attribute where attrelid = $1::text::regclass and attnum > 0
			union select case when t.typtype = 'd' then t.typbasetype else t.typelem end from pg_type t join used u on u.oid = t.oid
			where t.typtype = 'd' or t.typsubscript = 'array_subscript_handler'::regproc
		) select oid from used)
		order by t.oid`, table)
	if err != nil {
		t.Fatal(err)
	}
	s.Types, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (d millrace.TypeDesc, err error) {
		var oid, elem int64
		var delim int
		var kind string
		err = row.Scan(&oid, &d.Schema, &d.Name, &kind, &delim, &elem, &d.Labels)
		d.OID, d.Elem, d.Delim = uint32(oid), uint32(elem), byte(delim)
		d.Kind = map[string]millrace.TypeKind{"b": millrace.TypeBase, "d": millrace.TypeDomain, "e": millrace.TypeEnum}[kind]
		if d.Kind == millrace.TypeBase && elem != 0 {
			d.Kind = millrace.TypeArray
		}
		return d, err
	})
	if err != nil {
		t.Fatal(err)
	}
	rows, err = conn.Query(ctx, `
		select a.attname::text, a.atttypid::int8, a.atttypmod, coalesce(c.collname::text, ''), a.attnotnull,
			coalesce(array_position(i.indkey::int2[], a.attnum) + 1, 0), a.attnum::int8
		from pg_attribute a left join pg_collation c on c.oid = a.attcollation
			left join pg_index i on i.indrelid = a.attrelid and i.indisprimary
		where a.attrelid = $1::text::regclass and a.attnum > 0 and not a.attisdropped
		order by a.attnum`, table)
	if err != nil {
		t.Fatal(err)
	}
	s.Columns, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (c millrace.Column, err error) {
		var oid, key, number int64
		err = row.Scan(&c.Name, &oid, &c.Typmod, &c.Collation, &c.NotNull, &key, &number)
		c.Type, c.KeyOrdinal, c.Number = uint32(oid), uint32(key), uint32(number)
		return c, err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	return s
}

// copyOf returns a store with the rows of a table, and indexes over it.
func copyOf(ctx context.Context, t testing.TB, conn *pgx.Conn, s *millrace.Schema, indexes [][]string) *edge.Store {
	t.Helper()
	store := storeOf(t, s, indexes)
	result, err := conn.Query(ctx, "select * from "+pgx.Identifier{s.Name}.Sanitize(), pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Fatal(err)
	}
	defer result.Close()
	var rows [][]millrace.Datum
	for result.Next() {
		var row []millrace.Datum
		for _, text := range result.RawValues() {
			d := millrace.Datum{Text: append([]byte(nil), text...)}
			if text == nil {
				d = millrace.Datum{State: millrace.ColumnNull}
			}
			row = append(row, d)
		}
		rows = append(rows, row)
	}
	if err := result.Err(); err != nil {
		t.Fatal(err)
	}
	fill(t, store, s, rows)
	return store
}

func storeOf(t testing.TB, s *millrace.Schema, indexes [][]string) *edge.Store {
	t.Helper()
	store, err := edge.Open(edge.Options{
		Dir: t.TempDir(), Stream: testStream, MapSize: 256 << 20,
		Indexes: map[string][][]string{s.QualifiedName(): indexes},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Check(context.Background()); err != nil {
			t.Error(err)
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return store
}

// fill puts rows into a new store: the schema and an empty load, then the rows.
func fill(t testing.TB, store *edge.Store, s *millrace.Schema, rows [][]millrace.Datum) {
	t.Helper()
	w, err := store.NewWriter()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	codec, err := millrace.NewKeyCodec(s)
	if err != nil {
		t.Fatal(err)
	}
	entries := []*millrace.Entry{
		{Kind: millrace.KindSchema, Table: s.Table, Schema: s},
		{Kind: millrace.KindLoadBegin, Table: s.Table, Load: 1},
		{Kind: millrace.KindLoadEnd, Table: s.Table, Load: 1},
	}
	for _, row := range rows {
		key, err := codec.AppendRowKey(nil, row)
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, &millrace.Entry{Kind: millrace.KindPut, Table: s.Table, Key: key, Row: millrace.AppendRow(nil, s.Version, row)})
	}
	if err := w.Begin(); err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := w.Apply(e, millrace.ModeWAL); err != nil {
			t.Fatal(err)
		}
	}
	c := &millrace.Checkpoint{
		Stream: testStream, Epoch: 1, Index: millrace.Index(len(entries)), Chain: millrace.NewChain(testStream, 1), Term: 1, Offset: 1,
		Position: millrace.Position{Mode: millrace.ModeWAL, SystemID: 1, Timeline: 1, Slot: "s", LSN: 1},
		Catalog:  millrace.Catalog{Schemas: []*millrace.Schema{s}, LastVersion: s.Version, LastLoad: 1},
	}
	if err := w.Commit(c); err != nil {
		t.Fatal(err)
	}
}

// limits are those of most tests.
var limits = postgrest.Limits{
	Scan: 100_000, Rows: 10_000, Bytes: 8 << 20, Stream: "bank",
	Reserve: func(int) bool { return true },
	Encoder: func(row, as *millrace.Schema, bigInt bool) (*rowjson.Encoder, error) {
		if bigInt {
			return rowjson.NewBigIntText(row, as)
		}
		return rowjson.NewAs(row, as)
	},
}

// headerOf takes names and values in turn.
func headerOf(list []string) http.Header {
	h := make(http.Header)
	for i := 0; i+1 < len(list); i += 2 {
		h.Set(list[i], list[i+1])
	}
	return h
}

// ask answers a query string from a store.
func ask(t testing.TB, store *edge.Store, s *millrace.Schema, query string, l postgrest.Limits, header ...string) (a postgrest.Answer, err error) {
	t.Helper()
	q, err := postgrest.Parse("GET", query, headerOf(header))
	if err != nil {
		return a, err
	}
	err = store.View(context.Background(), func(v *edge.View) error {
		table, err := v.Table(s.QualifiedName())
		if err != nil {
			return err
		}
		compiled, err := postgrest.NewTable(table.Schema())
		if err != nil {
			return err
		}
		plan, err := postgrest.Compile(q, compiled, func() [][]string {
			var all [][]string
			for _, ix := range table.Indexes() {
				if ix.Whole {
					all = append(all, ix.Columns)
				}
			}
			return all
		})
		if err != nil {
			return err
		}
		if a, err = plan.Run(t.Context(), table, nil, l); err != nil {
			return err
		}
		_, err = a.Status(q)
		return err
	})
	return a, err
}
