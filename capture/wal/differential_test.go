package wal

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// reference makes of pgoutput messages, parsed by pglogrepl, the texts of the
// units that a decoder must give out. Unlike the decoder it keeps the changes of
// each subtransaction apart and throws away those of aborted ones by their xid.
type reference struct {
	codecs  map[uint32]*millrace.KeyCodec
	begin   *pglogrepl.BeginMessage
	changes []string
	// inStream is the streamed transaction whose block is being received.
	inStream uint32
	streamed map[uint32][]streamedChange
	units    []string
}

type streamedChange struct {
	xid  uint32
	text string
}

func newReference(t testing.TB, schemas map[millrace.TableID]*millrace.Schema) *reference {
	r := &reference{codecs: make(map[uint32]*millrace.KeyCodec), streamed: make(map[uint32][]streamedChange)}
	for id, s := range schemas {
		codec, err := millrace.NewKeyCodec(s)
		if err != nil {
			t.Fatal(err)
		}
		r.codecs[uint32(id)] = codec
	}
	return r
}

func (r *reference) message(b []byte) error {
	m, err := pglogrepl.ParseV2(b, r.inStream != 0)
	if err != nil {
		return err
	}
	switch m := m.(type) {
	case *pglogrepl.BeginMessage:
		r.begin, r.changes = m, nil
	case *pglogrepl.CommitMessage:
		r.unit(r.begin.Xid, uint64(m.TransactionEndLSN), m.CommitTime.UnixMicro(), r.changes)
	case *pglogrepl.StreamStartMessageV2:
		r.inStream = m.Xid
	case *pglogrepl.StreamStopMessageV2:
		r.inStream = 0
	case *pglogrepl.StreamAbortMessageV2:
		if m.SubXid == m.Xid {
			delete(r.streamed, m.Xid)
		} else {
			r.streamed[m.Xid] = slices.DeleteFunc(r.streamed[m.Xid], func(c streamedChange) bool { return c.xid == m.SubXid })
		}
	case *pglogrepl.StreamCommitMessageV2:
		var changes []string
		for _, c := range r.streamed[m.Xid] {
			changes = append(changes, c.text)
		}
		delete(r.streamed, m.Xid)
		r.unit(m.Xid, uint64(m.TransactionEndLSN), m.CommitTime.UnixMicro(), changes)
	case *pglogrepl.InsertMessageV2:
		row := r.row(m.Tuple)
		return r.change(m.Xid, r.put(m.RelationID, row, nil))
	case *pglogrepl.UpdateMessageV2:
		row, old := r.row(m.NewTuple), r.row(m.OldTuple)
		for i := range old {
			if row[i].State == millrace.ColumnUnchanged && old[i].State == millrace.ColumnValue {
				row[i] = old[i]
			}
		}
		return r.change(m.Xid, r.put(m.RelationID, row, old))
	case *pglogrepl.DeleteMessageV2:
		return r.change(m.Xid, fmt.Sprintf("delete %d %x", m.RelationID, r.key(m.RelationID, r.row(m.OldTuple))))
	case *pglogrepl.TruncateMessageV2:
		for _, id := range m.RelationIDs {
			if err := r.change(m.Xid, fmt.Sprintf("truncate %d", id)); err != nil {
				return err
			}
		}
	case *pglogrepl.LogicalDecodingMessageV2:
		if m.Transactional {
			return r.change(m.Xid, fmt.Sprintf("message %s %q", m.Prefix, m.Content))
		}
	}
	return nil
}

func (r *reference) change(xid uint32, text string) error {
	if r.inStream == 0 {
		r.changes = append(r.changes, text)
	} else {
		r.streamed[r.inStream] = append(r.streamed[r.inStream], streamedChange{xid, text})
	}
	return nil
}

func (r *reference) unit(xid uint32, end uint64, time int64, changes []string) {
	if len(changes) > 0 {
		r.units = append(r.units, unitText(xid, end, time, changes))
	}
}

func unitText(xid uint32, end uint64, time int64, changes []string) string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "transaction %d, ends at %d, time %d\n", xid, end, time)
	for _, c := range changes {
		fmt.Fprintln(&b, c)
	}
	return b.String()
}

func (r *reference) row(t *pglogrepl.TupleData) []millrace.Datum {
	if t == nil {
		return nil
	}
	var row []millrace.Datum
	for _, c := range t.Columns {
		switch c.DataType {
		case pglogrepl.TupleDataTypeNull:
			row = append(row, millrace.Datum{State: millrace.ColumnNull})
		case pglogrepl.TupleDataTypeToast:
			row = append(row, millrace.Datum{State: millrace.ColumnUnchanged})
		default:
			row = append(row, millrace.Datum{Text: c.Data})
		}
	}
	return row
}

func (r *reference) key(table uint32, row []millrace.Datum) []byte {
	key, err := r.codecs[table].AppendRowKey(nil, row)
	if err != nil {
		panic(err) // the streams of these tests have keys
	}
	return key
}

func (r *reference) put(table uint32, row, old []millrace.Datum) string {
	key := r.key(table, row)
	if old == nil || bytes.Equal(key, r.key(table, old)) {
		return putText(table, key, nil, row)
	}
	return putText(table, key, r.key(table, old), row) + fmt.Sprintf("\ndelete %d %x", table, r.key(table, old))
}

func putText(table uint32, key, from []byte, row []millrace.Datum) string {
	text := fmt.Sprintf("put %d %x from %x:", table, key, from)
	for _, d := range row {
		text += fmt.Sprintf(" %v %q", d.State, d.Text)
	}
	return text
}

// decodedText gives a decoder's unit the reference's form.
func decodedText(t testing.TB, u *millrace.Unit) string {
	var changes []string
	var end millrace.UnitEnd
	for {
		run, err := u.Body.Next(1 << 20)
		if err != nil {
			break
		}
		for len(run) > 0 {
			var h millrace.Head
			if run, err = millrace.NextHead(run, &h); err != nil {
				t.Fatal(err)
			}
			var e millrace.Entry
			if err := millrace.DecodeEntry(h.Body, &e); err != nil {
				t.Fatal(err)
			}
			switch e.Kind {
			case millrace.KindPut:
				var row millrace.Row
				if err := millrace.DecodeRow(e.Row, &row); err != nil {
					t.Fatal(err)
				}
				changes = append(changes, putText(uint32(e.Table), e.Key, e.From, row.Columns))
			case millrace.KindDelete:
				changes = append(changes, fmt.Sprintf("delete %d %x", e.Table, e.Key))
			case millrace.KindTruncate:
				changes = append(changes, fmt.Sprintf("truncate %d", e.Table))
			case millrace.KindMessage:
				changes = append(changes, fmt.Sprintf("message %s %q", e.Message.Prefix, e.Message.Content))
			default:
				t.Fatalf("entry of kind %v", e.Kind)
			}
			if e.Last {
				end = e.End
			}
		}
	}
	if err := u.Body.Close(); err != nil {
		t.Fatal(err)
	}
	return unitText(end.XID, end.Token, end.Time.UnixMicro(), changes)
}

// compare decodes messages in both ways.
func compare(t testing.TB, d *decoder, messages [][]byte) {
	t.Helper()
	var got []string
	d.emit = func(u *millrace.Unit, _ int64) error {
		got = append(got, decodedText(t, u))
		return nil
	}
	r := newReference(t, d.schemas)
	buf := make([]byte, 0, 1<<10)
	for i, b := range messages {
		buf = append(buf[:0], b...)
		if err := d.message(buf); err != nil {
			t.Fatalf("message %d of %d: %v", i+1, len(messages), err)
		}
		clear(buf)
		if err := r.message(b); err != nil {
			t.Fatalf("message %d of %d, by pglogrepl: %v", i+1, len(messages), err)
		}
	}
	if err := d.close(); err != nil {
		t.Error(err)
	}
	if len(got) != len(r.units) {
		t.Errorf("decoder gives %d units, pglogrepl %d", len(got), len(r.units))
	}
	for i := range min(len(got), len(r.units)) {
		if got[i] != r.units[i] {
			t.Fatalf("unit %d: got\n%.2000s\nwant\n%.2000s", i+1, got[i], r.units[i])
		}
	}
}

// generate makes a random stream of small and streamed transactions, whose
// subtransactions nest as Postgres lets them.
func generate(random *rand.Rand) [][]byte {
	g := &generator{random: random, open: make(map[uint32]*generated), xid: random.Uint32(), lsn: 1000}
	g.send(g.transaction(nil)...)
	for range 2 + random.IntN(40) {
		switch random.IntN(4) {
		case 0:
			g.send(g.transaction(nil)...)
		default:
			g.block()
		}
	}
	return g.out
}

type generator struct {
	random *rand.Rand
	out    [][]byte
	open   map[uint32]*generated
	order  []uint32
	xid    uint32
	lsn    uint64
}

// generated is an open transaction: its subtransactions from the outermost, each
// with those that were released into it.
type generated struct {
	stack    []uint32
	released map[uint32][]uint32
	started  bool
}

func (g *generator) send(b ...[]byte) { g.out = append(g.out, b...) }

func (g *generator) next() uint32 {
	if g.xid++; g.xid < 3 {
		g.xid = 3 // the numbers before are not given to transactions
	}
	return g.xid
}

func (g *generator) change() []byte {
	id := strconv.Itoa(g.random.IntN(1000))
	v := []string{"NULL", "UNCHANGED", "", "value", "longer value"}[g.random.IntN(5)]
	switch g.random.IntN(8) {
	case 0:
		return msg('U').u32(testTable).u8('N').tuple(id, v).b
	case 1:
		return msg('U').u32(testTable).u8('K').tuple(strconv.Itoa(g.random.IntN(9)), "NULL").u8('N').tuple(id, v).b
	case 2:
		return msg('U').u32(testTable).u8('O').tuple(id, "old").u8('N').tuple(id, v).b
	case 3:
		return msg('D').u32(testTable).u8('K').tuple(id, "NULL").b
	case 4:
		return msg('T').u32(1).u8(byte(g.random.IntN(4))).u32(testTable).b
	case 5:
		return relationMsg()
	}
	if v == "UNCHANGED" {
		v = "new"
	}
	return insertMsg(id, v)
}

func (g *generator) transaction(out [][]byte) [][]byte {
	g.lsn += 100
	out = append(out, msg('B').u64(g.lsn).u64(g.lsn).u32(g.next()).b, relationMsg())
	for range g.random.IntN(4) {
		out = append(out, g.change())
	}
	if g.random.IntN(3) == 0 {
		out = append(out, msg('M').u8(1).u64(g.lsn).text("app").u32(2).raw("hi").b)
	}
	return append(out, msg('C').u8(0).u64(g.lsn).u64(g.lsn+8).u64(g.lsn).b)
}

// block sends a block of a streamed transaction, or its end, and the aborts that
// come after the block.
func (g *generator) block() {
	if len(g.order) == 0 || g.random.IntN(6) == 0 {
		xid := g.next()
		g.open[xid] = &generated{stack: []uint32{xid}, released: make(map[uint32][]uint32)}
		g.order = append(g.order, xid)
	}
	i := g.random.IntN(len(g.order))
	xid := g.order[i]
	t := g.open[xid]
	if t.started && g.random.IntN(4) == 0 {
		g.lsn += 100
		if g.random.IntN(4) == 0 {
			g.send(abortMsg(xid, xid))
		} else {
			g.send(msg('c').u32(xid).u8(0).u64(g.lsn).u64(g.lsn + 8).u64(g.lsn).b)
		}
		delete(g.open, xid)
		g.order = slices.Delete(g.order, i, i+1)
		return
	}
	g.send(startMsg(xid, !t.started))
	g.send(in(xid, relationMsg()))
	t.started = true
	for range g.random.IntN(12) {
		top := t.stack[len(t.stack)-1]
		switch {
		case g.random.IntN(4) == 0:
			t.stack = append(t.stack, g.next())
		case len(t.stack) > 1 && g.random.IntN(4) == 0:
			t.stack = t.stack[:len(t.stack)-1]
			under := t.stack[len(t.stack)-1]
			t.released[under] = append(append(t.released[under], t.released[top]...), top)
		default:
			g.send(in(top, g.change()))
		}
	}
	g.send(stopMsg())
	for len(t.stack) > 1 && g.random.IntN(2) == 0 {
		top := t.stack[len(t.stack)-1]
		t.stack = t.stack[:len(t.stack)-1]
		for _, inner := range t.released[top] {
			g.send(abortMsg(xid, inner))
		}
		g.send(abortMsg(xid, top))
	}
	if g.random.IntN(10) == 0 {
		g.send(abortMsg(g.next(), g.xid), abortMsg(xid, g.next())) // of nothing
	}
}

func TestDecoderAgreesOnGenerated(t *testing.T) {
	seed := testSeed(t)
	for i := range uint64(2000) {
		random := rand.New(rand.NewPCG(seed, i))
		d := testDecoder(t, nil)
		if i%2 == 0 {
			d.budget, d.open.blocks.limit = 100, 0 // everything goes through files
		}
		compare(t, d, generate(random))
		if t.Failed() {
			t.Fatalf("stream %d", i)
		}
	}
}

// FuzzDecoderAgrees lets the fuzzer choose the stream.
func FuzzDecoderAgrees(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) {
		d := testDecoder(t, nil)
		compare(t, d, generate(rand.New(rand.NewPCG(a, b))))
	})
}

// record reads a slot up to a logical message and keeps the messages.
func record(ctx context.Context, t *testing.T, url, slot string, options ...string) [][]byte {
	t.Helper()
	conn, err := pgconn.Connect(ctx, url+"&replication=database")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }() // nothing is lost with it
	err = pglogrepl.StartReplication(ctx, conn, slot, 0, pglogrepl.StartReplicationOptions{Mode: pglogrepl.LogicalReplication, PluginArgs: options})
	if err != nil {
		t.Fatal(err)
	}
	var all [][]byte
	for {
		m, err := conn.ReceiveMessage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		data, ok := m.(*pgproto3.CopyData)
		if !ok || data.Data[0] != 'w' {
			continue
		}
		b := bytes.Clone(data.Data[dataHead:])
		all = append(all, b)
		if b[0] == 'C' && bytes.Contains(all[len(all)-2], []byte("the end")) {
			return all
		}
	}
}

// What a server sends, in both protocols, means the same to both decoders.
func TestDecoderAgreesOnRecorded(t *testing.T) {
	db := pgtest.New(t)
	streaming(db)
	db.Exec(tableA + "create table b (id numeric, k text, v text, n int, primary key (k, id)); " +
		"insert into b select i, 'k' || i, (select string_agg(md5(j::text || i), '') from generate_series(1, 200) j), i from generate_series(1, 10) i; create publication p for table a, b")
	db.Exec("select pg_create_logical_replication_slot('rec1_" + db.Name[:3] + "', 'pgoutput'); select pg_create_logical_replication_slot('rec2_" + db.Name[:3] + "', 'pgoutput')")
	r := &rig{t: t, db: db}
	one, two := r.client(), r.client()
	one.exec("begin; " + insert(1, 2000) + "savepoint s; " + insert(2001, 3000))
	two.exec("begin; " + insert(5001, 7000) + "savepoint s; savepoint u; " + insert(7001, 8000) + "release u; update a set v = 'x' where id > 5000")
	one.exec("rollback to s; " + insert(3001, 4000) + "update b set n = 0; delete from b where n = 0 and id < 4")
	two.exec("rollback to s; delete from a where id > 6000")
	db.Exec("update b set k = k || 'moved', n = null where id > 100; insert into b values (1000, 'é', '', null)")
	two.exec("commit")
	one.exec("update b set k = 'k' || id; truncate b; insert into b values (1, 'one'); commit")
	db.Exec("begin; " + insert(10001, 12000) + "rollback")
	db.Exec("begin; select pg_logical_emit_message(true, 'app', 'hi'); insert into a values (-1); commit; select pg_logical_emit_message(true, 'app', 'the end')")
	conn, err := db.Pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	var schemas []*millrace.Schema
	for i, name := range []string{"a", "b"} {
		info, err := table.ByName(t.Context(), conn.Conn(), table.Name{Schema: "public", Name: name})
		if err != nil {
			t.Fatal(err)
		}
		s, err := info.Schema(millrace.ModeWAL)
		if err != nil {
			t.Fatal(err)
		}
		schemas = append(schemas, withVersion(s, millrace.SchemaVersion(i+1)))
	}
	for slot, options := range map[string][]string{
		"rec1_": {"proto_version '1'"},
		"rec2_": {"proto_version '2'", "streaming 'on'"},
	} {
		t.Run(options[0], func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			all := record(ctx, t, db.URL, slot+db.Name[:3], append(options, "publication_names 'p'", "messages 'true'")...)
			streams := 0
			for _, b := range all {
				if b[0] == 'S' {
					streams++
				}
			}
			if (streams > 2) != (slot == "rec2_") {
				t.Errorf("%d blocks of streamed transactions were recorded", streams)
			}
			d := testDecoder(t, nil)
			d.schemas = map[millrace.TableID]*millrace.Schema{schemas[0].Table: schemas[0], schemas[1].Table: schemas[1]}
			d.version = 2
			d.lookUp = func(id millrace.TableID, types []uint32) (*table.Info, error) {
				return table.ByID(ctx, conn.Conn(), id, types)
			}
			compare(t, d, all)
		})
	}
}
