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

	relations map[millrace.TableID]*relation
	// numbers are those of the columns as last looked up.
	numbers map[millrace.TableID]map[string]int16

	// The transaction under way.
	begun bool
	begin beginMessage
	w     millrace.UnitWriter
	file  *spoolFile

	// Reused from row to row.
	key, from, row []byte
}

// relation is a table as the changes to come have it.
type relation struct {
	name tableName
	// schema is nil for tables that are not captured under their own name.
	schema *millrace.Schema
	codec  *millrace.KeyCodec
	// fresh: the stream does not have the schema yet.
	fresh    bool
	new, old []millrace.Datum
}

// message takes one pgoutput message. It keeps nothing of b. After an error the
// decoder is of no more use but for close.
func (d *decoder) message(b []byte) error {
	if len(b) == 0 {
		return fmt.Errorf("%w: it is empty", ErrProtocol)
	}
	kind, rest := b[0], b[1:]
	var err error
	switch kind {
	case 'I':
		err = d.insert(rest)
	case 'U':
		err = d.update(rest)
	case 'D':
		err = d.delete(rest)
	case 'B':
		err = d.beginTransaction(rest)
	case 'C':
		err = d.commit(rest)
	case 'R':
		err = d.relation(rest)
	case 'T':
		err = d.truncate(rest)
	case 'M':
		err = d.logical(rest)
	case 'O', 'Y':
		// Where a transaction came from, and names of types, which come from
		// the catalog.
	default:
		err = fmt.Errorf("%w: unknown type", ErrProtocol)
	}
	if err != nil {
		return fmt.Errorf("take message %q of transaction %d, after %v: %w", kind, d.begin.xid, d.position.LSN, err)
	}
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

// close lets go of a transaction that was cut off.
func (d *decoder) close() error {
	if d.file == nil {
		return nil
	}
	return d.file.remove()
}

// relation takes the description of a table, which pgoutput sends before the
// first change and again whenever it may have changed.
func (d *decoder) relation(b []byte) error {
	m, err := parseRelation(b)
	if err != nil {
		return err
	}
	r := &relation{name: m.name}
	d.relations[m.id] = r
	if !d.wanted[m.id] {
		// Leaves of partitioned tables are described too, beside the root
		// that their rows come under.
		return nil
	}
	info, err := d.lookUp(m.id, m.typeOIDs())
	if err != nil {
		return err
	}
	before := d.schemas[m.id]
	if name := d.remade(m.id, info, before); name != "" {
		return fmt.Errorf("%w: %v: column %s was dropped and made again, which changes rows at the source without sending them; mend: begin a new epoch", ErrTableChanged, m.name, name)
	}
	s, err := schemaOf(m, info, before)
	if err != nil {
		return err
	}
	switch {
	case before == nil:
		return fmt.Errorf("%w: %v was never copied; mend: begin a new epoch", ErrTables, m.name)
	case before.SameAs(withVersion(s, before.Version)):
		s = before
	default:
		var missing func(string) bool
		if info != nil {
			missing = info.hasMissing
		}
		if what := reshaped(before, s, missing); what != "" {
			return fmt.Errorf("%w: %v: %s, which changes rows at the source without sending them; mend: begin a new epoch", ErrTableChanged, m.name, what)
		}
		r.fresh = true
		s = withVersion(s, 0)
	}
	r.schema = s
	if r.codec, err = millrace.NewKeyCodec(s); err != nil {
		return fmt.Errorf("%w: %v: %w", ErrTable, m.name, err)
	}
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

// use returns the table of a change, after the stream was told its schema.
func (d *decoder) use(id millrace.TableID) (*relation, error) {
	if !d.begun {
		return nil, fmt.Errorf("%w: a change of table %v stands outside a transaction", ErrProtocol, id)
	}
	r := d.relations[id]
	if r == nil {
		return nil, fmt.Errorf("%w: a change of table %v, which was not described", ErrProtocol, id)
	}
	if r.schema == nil {
		return nil, fmt.Errorf("%w: a change of table %v, which is not configured: the publication was altered; mend: millrace init", ErrPublication, r.name)
	}
	if r.fresh {
		if err := d.introduce(id, r); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (d *decoder) introduce(id millrace.TableID, r *relation) error {
	d.version++
	r.schema = withVersion(r.schema, d.version)
	if err := r.schema.Validate(); err != nil {
		return err
	}
	d.schemas[id] = r.schema
	r.fresh = false
	return d.w.Append(&millrace.Entry{Kind: millrace.KindSchema, Table: id, Schema: r.schema})
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
