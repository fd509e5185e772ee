package wal

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/millrace-db/millrace"
)

const (
	heartbeatPrefix = "millrace.heartbeat"
	reservedPrefix  = "millrace."
	// spoolStep is how much of a transaction that goes to a file is gathered
	// for one write, in bytes.
	spoolStep = 1 << 20
)

// decoder turns the messages of one replication connection into units. It
// belongs to the goroutine of that connection.
type decoder struct {
	stream   string
	position millrace.Position // of the newest unit, or where the stream began
	wanted   map[millrace.TableID]bool
	// schemas are the newest that the stream has; version is the highest used.
	schemas map[millrace.TableID]*millrace.Schema
	version millrace.SchemaVersion
	// lookUp asks the source's catalogs.
	lookUp func(id millrace.TableID, types []uint32) (*tableInfo, error)
	// emit takes a finished unit and its size in bytes.
	emit  func(*millrace.Unit, int64) error
	spool *spool
	// budget is how much of one transaction is held in memory, in bytes.
	budget int
	// open are the transactions that are streamed before they end.
	open *openTransactions
	// breathe is called now and then during work that takes long, for what
	// else the connection needs.
	breathe func() error

	relations map[millrace.TableID]*relation
	// numbers are those of the columns as last looked up.
	numbers map[millrace.TableID]map[string]int16

	// The transaction under way: the one being received, or a streamed one
	// after its commit.
	begun bool
	begin beginMessage
	w     millrace.UnitWriter
	file  *spoolFile

	// Reused from row to row.
	key, from, row []byte
}

// relation is a table as the changes to come have it.
type relation struct {
	*relationMessage
	// place is that of the message among those of the connection.
	place uint64
	// schema is nil until the first change. It was the newest that the stream
	// had of the table when the decoder's version was checked.
	schema   *millrace.Schema
	checked  millrace.SchemaVersion
	codec    *millrace.KeyCodec
	new, old []millrace.Datum
}

// message takes one pgoutput message. It keeps nothing of b. After an error the
// decoder is of no more use but for close.
func (d *decoder) message(b []byte) error {
	if len(b) == 0 {
		return fmt.Errorf("%w: it is empty", ErrProtocol)
	}
	kind, rest := b[0], b[1:]
	if t := d.open.current; t != nil {
		if err := d.open.add(kind, rest); err != nil {
			return fmt.Errorf("take message %q of streamed transaction %d, after %v: %w", kind, t.xid, d.position.LSN, err)
		}
		return nil
	}
	if err := d.take(kind, rest); err != nil {
		return fmt.Errorf("take message %q of transaction %d, after %v: %w", kind, d.begin.xid, d.position.LSN, err)
	}
	return nil
}

// take takes a message that stands in no block of a streamed transaction.
func (d *decoder) take(kind byte, b []byte) error {
	switch kind {
	case 'I':
		return d.insert(b)
	case 'U':
		return d.update(b)
	case 'D':
		return d.delete(b)
	case 'B':
		return d.beginTransaction(b)
	case 'C':
		return d.commit(b)
	case 'R':
		d.open.place++
		return d.relation(b, d.open.place)
	case 'T':
		return d.truncate(b)
	case 'M':
		return d.logical(b)
	case 'S', 'c', 'A':
		return d.takeStreamed(kind, b)
	case 'O', 'Y':
		// Where a transaction came from, and names of types, which come from
		// the catalog.
		return nil
	}
	return fmt.Errorf("%w: unknown type", ErrProtocol)
}

// takeStreamed takes what begins a block of a streamed transaction, or ends the
// transaction.
func (d *decoder) takeStreamed(kind byte, b []byte) error {
	if d.begun {
		return fmt.Errorf("%w: transaction %d has not ended", ErrProtocol, d.begin.xid)
	}
	switch kind {
	case 'S':
		return d.open.start(b)
	case 'A':
		return d.open.abort(b)
	}
	c, err := parseStreamCommit(b)
	if err != nil {
		return err
	}
	t := d.open.byXID[c.xid]
	if t == nil {
		return fmt.Errorf("%w: commit of streamed transaction %d, which did not begin", ErrProtocol, c.xid)
	}
	d.begin, d.begun = beginMessage{final: c.commit, time: c.time, xid: c.xid}, true
	if err := d.replay(t); err != nil {
		return err
	}
	if err := d.open.forget(t); err != nil {
		return err
	}
	return d.finish(c.commitMessage)
}

// replay decodes a streamed transaction. The source describes tables to each
// streamed transaction anew; with its commit the descriptions hold for all, but
// for those that were given to all later.
func (d *decoder) replay(t *streamed) error {
	all := d.relations
	d.relations = make(map[millrace.TableID]*relation)
	breath := 0
	err := t.tape.play(func(kind byte, b []byte) error {
		if breath += len(b); breath > spoolStep {
			breath = 0
			if err := d.breathe(); err != nil {
				return err
			}
		}
		if kind == 'R' {
			return d.relation(b, 0)
		}
		if err := d.take(kind, b); err != nil {
			return fmt.Errorf("replay message %q: %w", kind, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for id, r := range d.relations {
		r.place = t.described[id].place
		if old := all[id]; old == nil || old.place < r.place {
			all[id] = r
		}
	}
	d.relations = all
	return nil
}

func (d *decoder) beginTransaction(b []byte) (err error) {
	if d.begun {
		return fmt.Errorf("%w: transaction %d has not ended", ErrProtocol, d.begin.xid)
	}
	d.begin, err = parseBegin(b)
	d.begun = true
	return err
}

func (d *decoder) commit(b []byte) error {
	c, err := parseCommit(b)
	if err != nil {
		return err
	}
	if !d.begun || c.commit != d.begin.final {
		return fmt.Errorf("%w: commit at %v of a transaction that did not begin", ErrProtocol, c.commit)
	}
	return d.finish(c)
}

// finish gives out the transaction under way.
func (d *decoder) finish(c commitMessage) error {
	if c.end <= d.position.LSN {
		return fmt.Errorf("%w: commit ends at %v, the one before at %v", ErrProtocol, c.end, d.position.LSN)
	}
	d.begun = false
	entries := d.w.Len()
	if entries == 0 {
		return nil
	}
	payload, err := d.w.Finish(millrace.UnitEnd{Time: c.time, Token: uint64(c.end), XID: d.begin.xid})
	if err != nil {
		return err
	}
	d.position.LSN = c.end
	if d.file == nil {
		return d.emit(millrace.NewUnit(d.position, c.time, entries, payload), int64(len(payload)))
	}
	if err := d.file.write(payload); err != nil {
		return err
	}
	return d.emitFile(c.time, entries)
}

func (d *decoder) emitFile(t time.Time, entries uint64) error {
	body, err := d.file.body()
	if err != nil {
		return err
	}
	size := d.file.size
	d.file = nil
	u := &millrace.Unit{Position: d.position, Time: t, Entries: entries, Body: body}
	if err := d.emit(u, size); err != nil {
		return errors.Join(err, body.Close())
	}
	return nil
}

// wrote moves the transaction to a file once it is above the budget.
func (d *decoder) wrote() (err error) {
	if d.file == nil {
		if d.w.Buffered() <= d.budget {
			return nil
		}
		if d.file, err = d.spool.create(); err != nil {
			return err
		}
	} else if d.w.Buffered() <= spoolStep {
		return nil
	}
	return d.file.write(d.w.Take())
}

// close lets go of transactions that were cut off.
func (d *decoder) close() error {
	err := d.open.close()
	if d.file != nil {
		err = errors.Join(err, d.file.remove())
	}
	return err
}

// relation takes the description of a table, which pgoutput sends before the
// first change and again whenever it may have changed. What the stream makes of
// it is decided at the next change.
func (d *decoder) relation(b []byte, place uint64) error {
	m, err := parseRelation(b)
	if err != nil {
		return err
	}
	d.relations[m.id] = &relation{relationMessage: m, place: place}
	return nil
}

// use returns the relation of a change, after the stream has its schema.
func (d *decoder) use(id millrace.TableID) (*relation, error) {
	if !d.begun {
		return nil, fmt.Errorf("%w: a change of table %v stands outside a transaction", ErrProtocol, id)
	}
	r := d.relations[id]
	if r == nil {
		return nil, fmt.Errorf("%w: a change of table %v, which was not described", ErrProtocol, id)
	}
	if r.checked == d.version && r.schema != nil {
		return r, nil
	}
	// The stream has got a schema since; of this table?
	if r.schema == nil || r.schema != d.schemas[id] {
		if err := d.describe(r); err != nil {
			return nil, err
		}
	}
	r.checked = d.version
	return r, nil
}

// describe finds the schema of r's changes and puts it into the stream if it is
// another one than before.
func (d *decoder) describe(r *relation) error {
	if !d.wanted[r.id] {
		// Leaves of partitioned tables are described too, beside the root that
		// their rows come under.
		return fmt.Errorf("%w: a change of table %v, which is not configured: the publication was altered; mend: millrace init", ErrPublication, r.name)
	}
	info, err := d.lookUp(r.id, r.typeOIDs())
	if err != nil {
		return err
	}
	before := d.schemas[r.id]
	if name := d.remade(r.id, info, before); name != "" {
		return fmt.Errorf("%w: %v: column %s was dropped and made again, which changes rows at the source without sending them; mend: begin a new epoch", ErrTableChanged, r.name, name)
	}
	s, err := schemaOf(r.relationMessage, info, before)
	if err != nil {
		return err
	}
	switch {
	case before == nil:
		return fmt.Errorf("%w: %v was never copied; mend: begin a new epoch", ErrTables, r.name)
	case before.SameAs(withVersion(s, before.Version)):
		s = before
	default:
		var missing func(string) bool
		if info != nil {
			missing = info.hasMissing
		}
		if what := reshaped(before, s, missing); what != "" {
			return fmt.Errorf("%w: %v: %s, which changes rows at the source without sending them; mend: begin a new epoch", ErrTableChanged, r.name, what)
		}
		if s, err = d.introduce(s); err != nil {
			return err
		}
	}
	if r.codec, err = millrace.NewKeyCodec(s); err != nil {
		return fmt.Errorf("%w: %v: %w", ErrTable, r.name, err)
	}
	r.schema = s
	r.new = make([]millrace.Datum, len(s.Columns))
	r.old = make([]millrace.Datum, len(s.Columns))
	return nil
}

// numbers returns the numbers that the catalog has given a table's columns. A
// column that is dropped and made again under its name has another one.
func (t *tableInfo) numbers() map[string]int16 {
	all := make(map[string]int16, len(t.columns))
	for _, c := range t.columns {
		all[c.name] = c.number
	}
	return all
}

// remade names a column of the schema before that is another one by now although
// it has the same name, or is empty. The messages do not tell the two apart.
func (d *decoder) remade(id millrace.TableID, info *tableInfo, before *millrace.Schema) string {
	if info == nil {
		return ""
	}
	known, now := d.numbers[id], info.numbers()
	if d.numbers == nil {
		d.numbers = make(map[millrace.TableID]map[string]int16)
	}
	d.numbers[id] = now
	if before == nil {
		return ""
	}
	for i := range before.Columns {
		name := before.Columns[i].Name
		if was, is := known[name], now[name]; was != 0 && is != 0 && was != is {
			return name
		}
	}
	return ""
}

// introduce gives s the next version and puts it into the stream.
func (d *decoder) introduce(s *millrace.Schema) (*millrace.Schema, error) {
	s = withVersion(s, d.version+1)
	if err := s.Validate(); err != nil {
		return nil, err
	}
	if err := d.w.Append(&millrace.Entry{Kind: millrace.KindSchema, Table: s.Table, Schema: s}); err != nil {
		return nil, err
	}
	d.version = s.Version
	d.schemas[s.Table] = s
	return s, nil
}

func withVersion(s *millrace.Schema, v millrace.SchemaVersion) *millrace.Schema {
	c := *s
	c.Version = v
	return &c
}

// hasMissing reports whether the rows that were there before the column may have
// a value for it. A column that is gone again may have had anything.
func (t *tableInfo) hasMissing(column string) bool {
	for _, c := range t.columns {
		if c.name == column {
			return c.hasMissing
		}
	}
	return true
}

// wrap says which table an error is of.
func (r *relation) wrap(err error) error {
	if errors.Is(err, millrace.ErrTooLarge) {
		return fmt.Errorf("table %v: %w; mend: remove the value at the source, then begin a new epoch", r.name, err)
	}
	return fmt.Errorf("table %v: %w", r.name, err)
}

func (d *decoder) insert(b []byte) error {
	m := message{b: b}
	id := millrace.TableID(m.uint32())
	if m.err != nil {
		return m.err
	}
	r, err := d.use(id)
	if err != nil {
		return err
	}
	if kind := m.uint8(); kind != 'N' {
		m.fail(fmt.Sprintf("row of form %q", kind))
	}
	m.parseTuple(r.new)
	if err := m.end(); err != nil {
		return r.wrap(err)
	}
	return d.put(id, r, nil)
}

// put writes the row in r.new. old is the row that it was before, if the source
// sent it.
func (d *decoder) put(id millrace.TableID, r *relation, old []millrace.Datum) (err error) {
	if d.key, err = r.codec.AppendRowKey(d.key[:0], r.new); err != nil {
		return r.wrap(err)
	}
	d.row = millrace.AppendRow(d.row[:0], r.schema.Version, r.new)
	moved := false
	if old != nil {
		if d.from, err = r.codec.AppendRowKey(d.from[:0], old); err != nil {
			return r.wrap(err)
		}
		moved = !bytes.Equal(d.key, d.from)
	}
	if !moved {
		if err := d.w.Put(id, d.key, nil, d.row, 0); err != nil {
			return r.wrap(err)
		}
		return d.wrote()
	}
	// Columns that were not sent come from the row of the old key, so that one
	// goes after.
	if err := d.w.Put(id, d.key, d.from, d.row, 0); err != nil {
		return r.wrap(err)
	}
	if err := d.w.Delete(id, d.from); err != nil {
		return r.wrap(err)
	}
	return d.wrote()
}

func (d *decoder) update(b []byte) error {
	m := message{b: b}
	id := millrace.TableID(m.uint32())
	if m.err != nil {
		return m.err
	}
	r, err := d.use(id)
	if err != nil {
		return err
	}
	kind := m.uint8()
	var old []millrace.Datum
	if kind == 'K' || kind == 'O' {
		old = r.old
		m.parseTuple(old)
		kind = m.uint8()
	}
	if kind != 'N' {
		m.fail(fmt.Sprintf("row of form %q", kind))
	}
	m.parseTuple(r.new)
	if err := m.end(); err != nil {
		return r.wrap(err)
	}
	// What the old row tells, the edge need not look up: all of it under
	// REPLICA IDENTITY FULL, otherwise a key column stored out of line.
	for i := range old {
		if r.new[i].State == millrace.ColumnUnchanged && old[i].State == millrace.ColumnValue {
			r.new[i] = old[i]
		}
	}
	return d.put(id, r, old)
}

func (d *decoder) delete(b []byte) error {
	m := message{b: b}
	id := millrace.TableID(m.uint32())
	if m.err != nil {
		return m.err
	}
	r, err := d.use(id)
	if err != nil {
		return err
	}
	if kind := m.uint8(); kind != 'K' && kind != 'O' {
		m.fail(fmt.Sprintf("row of form %q", kind))
	}
	m.parseTuple(r.old)
	if err := m.end(); err != nil {
		return r.wrap(err)
	}
	if d.key, err = r.codec.AppendRowKey(d.key[:0], r.old); err != nil {
		return r.wrap(err)
	}
	if err := d.w.Delete(id, d.key); err != nil {
		return r.wrap(err)
	}
	return d.wrote()
}

func (d *decoder) truncate(b []byte) error {
	tables, err := parseTruncate(b)
	if err != nil {
		return err
	}
	for _, id := range tables {
		r, err := d.use(id)
		if err != nil {
			return err
		}
		if err := d.w.Append(&millrace.Entry{Kind: millrace.KindTruncate, Table: id}); err != nil {
			return r.wrap(err)
		}
	}
	return d.wrote()
}

// logical takes a message that somebody wrote into the WAL. One outside a
// transaction has no commit and so no place in the stream: it is not carried.
func (d *decoder) logical(b []byte) error {
	m, err := parseLogical(b)
	if err != nil {
		return err
	}
	if !m.transactional {
		return nil
	}
	if !d.begun {
		return fmt.Errorf("%w: a logical message stands outside a transaction", ErrProtocol)
	}
	e := millrace.Entry{Kind: millrace.KindMessage, Message: &millrace.LogicalMessage{Prefix: m.prefix, Content: m.content}}
	switch {
	case m.prefix == heartbeatPrefix:
		if string(m.content) != d.stream {
			return nil // of another stream of the same database
		}
		e = millrace.Entry{Kind: millrace.KindHeartbeat}
	case strings.HasPrefix(m.prefix, reservedPrefix):
		return fmt.Errorf("%w: logical message %q: the prefix %s is reserved and this version does not know it; mend: upgrade this process", ErrProtocol, m.prefix, reservedPrefix)
	}
	if err := d.w.Append(&e); err != nil {
		return fmt.Errorf("logical message %q: %w", m.prefix, err)
	}
	return d.wrote()
}
