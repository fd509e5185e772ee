package wal

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture/chunk"
	"github.com/millrace-db/millrace/capture/table"
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
	// schemas are the newest that the stream has; version is the highest used.
	schemas map[millrace.TableID]*millrace.Schema
	version millrace.SchemaVersion
	// turn grows with each schema, and whenever the decoder is told that a table
	// was altered; told counts the latter by table.
	turn   uint64
	told   map[millrace.TableID]uint64
	asSent bool // Config.AsSent
	// plan says which tables join and leave the stream; nil for none.
	plan *plan
	// strange returns the partitioned table that a table is a partition of by
	// now, if nobody has told of it, or 0; met are those that it was asked for.
	strange func(id millrace.TableID) (root millrace.TableID, err error)
	met     map[millrace.TableID]bool
	// settled waits until the source's catalogs show what a transaction did.
	settled func(xid uint32) error
	// snapshot takes one of the source as it is now.
	snapshot func() (chunk.Snapshot, error)
	// loads are those under way, and loaded the tables of which the unit under
	// way has begun one.
	// ending tells that the unit under way ends some.
	loads  *loads
	loaded map[millrace.TableID]bool
	ending bool
	// under has, for tables with types that may be altered, what the source's catalogs
	// showed at most when a change was described last, and read what they showed at least
	// to the newest load.
	under, read map[millrace.TableID]chunk.Snapshot
	// lookUp asks the source's catalogs.
	lookUp func(id millrace.TableID, types []uint32) (*table.Info, error)
	// emit takes a finished unit and its size in bytes.
	emit  func(*millrace.Unit, int64) error
	spool *spool
	// budget is how much of one transaction is held in memory, in bytes.
	budget int
	// open are the transactions that are streamed before they end.
	open    *openTransactions
	log     *slog.Logger
	metrics *metrics
	// breathe is called now and then during work that takes long, for what
	// else the connection needs.
	breathe func() error

	relations map[millrace.TableID]*relation

	// The transaction under way: the one being received, or a streamed one
	// after its commit.
	begun bool
	begin beginMessage
	w     millrace.UnitWriter
	file  *spoolFile
	// passed are the messages of readers of chunks that the transaction has.
	passed []string

	// Reused from row to row.
	key, from, row []byte
	planted        planted
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
	d.loads.begin(c.xid)
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
	d.loads.begin(d.begin.xid)
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
	clear(d.loaded)
	if d.w.Len() > 0 {
		if err := d.finishUnit(c); err != nil {
			return err
		}
		d.endLoads()
	}
	for _, message := range d.passed {
		if err := d.arrive(message, c.time); err != nil {
			return err
		}
	}
	d.passed = d.passed[:0]
	return d.unburden()
}

// unburden asks the source what it sees where that has not been told for long,
// because the heartbeat's connection fails: until then every transaction is kept in
// mind.
func (d *decoder) unburden() error {
	if !d.loads.burdened() {
		return nil
	}
	s, err := d.snapshot()
	if err != nil {
		return err
	}
	d.loads.relieve(s)
	return nil
}

// finishUnit gives out the entries of the transaction.
func (d *decoder) finishUnit(c commitMessage) error {
	if err := d.noteLoads(); err != nil {
		return err
	}
	d.position.LSN = c.end
	return d.handOver(millrace.UnitEnd{Time: c.time, Token: uint64(c.end), XID: d.begin.xid})
}

// handOver gives out the entries that were written as a unit that ends at the
// position.
func (d *decoder) handOver(end millrace.UnitEnd) error {
	entries := d.w.Len()
	payload, err := d.w.Finish(end)
	if err != nil {
		return err
	}
	if d.file == nil {
		return d.emit(millrace.NewUnit(d.position, end.Time, entries, payload), int64(len(payload)))
	}
	if err := d.file.write(payload); err != nil {
		return err
	}
	return d.emitFile(end.Time, entries)
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

// change begins to read a row's change: the table, which is described by then,
// or nil if the stream does not have it. What is left of the message are rows.
func (d *decoder) change(b []byte) (message, *relation, error) {
	m := message{b: b}
	id := millrace.TableID(m.uint32())
	if m.err != nil {
		return m, nil, m.err
	}
	r, err := d.use(id)
	return m, r, err
}

func (d *decoder) insert(b []byte) error {
	m, r, err := d.change(b)
	if err != nil || r == nil {
		return err
	}
	if kind := m.uint8(); kind != 'N' {
		m.fail(fmt.Sprintf("row of form %q", kind))
	}
	m.parseTuple(r.new)
	if err := m.end(); err != nil {
		return r.wrap(err)
	}
	if r.filtered {
		if err := d.entered(r); err != nil {
			return err
		}
	}
	return d.put(r, nil, true)
}

// entered sees to a row that an update has brought into what is captured: it
// comes as an insert, without the values that are stored out of line and did not
// change. Only a load has them; one that is under way reads the row by its key.
func (d *decoder) entered(r *relation) error {
	for i := range r.new {
		if r.new[i].State == millrace.ColumnUnchanged && !d.loads.loading(r.id) {
			return d.load(r.id, cause{text: "a row came into what is captured without its value of column " + r.schema.Columns[i].Name})
		}
	}
	return nil
}

// put writes the row in r.new. old is the row that it was before, if the source
// sent it; isNew tells that there was none.
func (d *decoder) put(r *relation, old []millrace.Datum, isNew bool) (err error) {
	d.planted.putting(r)
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
	if d.loads.count.Load() > 0 {
		c := chunk.Change{Kind: millrace.KindPut, Key: d.key, Unchanged: hasUnchanged(r.new), Bare: isNew}
		if moved {
			c.From = d.from
		}
		d.loads.emitted(r.id, c)
	}
	if !moved {
		if err := d.w.Put(r.id, d.key, nil, d.row, 0); err != nil {
			return r.wrap(err)
		}
		return d.wrote()
	}
	d.loads.emitted(r.id, chunk.Change{Kind: millrace.KindDelete, Key: d.from})
	// Columns that were not sent come from the row of the old key, so that one
	// goes after.
	if err := d.w.Put(r.id, d.key, d.from, d.row, 0); err != nil {
		return r.wrap(err)
	}
	if err := d.w.Delete(r.id, d.from); err != nil {
		return r.wrap(err)
	}
	return d.wrote()
}

func (d *decoder) update(b []byte) error {
	m, r, err := d.change(b)
	if err != nil || r == nil {
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
	return d.put(r, old, false)
}

func (d *decoder) delete(b []byte) error {
	m, r, err := d.change(b)
	if err != nil || r == nil {
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
	d.loads.emitted(r.id, chunk.Change{Kind: millrace.KindDelete, Key: d.key})
	if err := d.w.Delete(r.id, d.key); err != nil {
		return r.wrap(err)
	}
	return d.wrote()
}

// hasUnchanged reports whether the source left a column out that did not change.
func hasUnchanged(row []millrace.Datum) bool {
	for i := range row {
		if row[i].State == millrace.ColumnUnchanged {
			return true
		}
	}
	return false
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
		if r == nil {
			continue
		}
		d.loads.emitted(id, chunk.Change{Kind: millrace.KindTruncate})
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
	case m.prefix == ddlPrefix:
		return d.ddl(m.content)
	case m.prefix == chunk.MessagePrefix:
		d.passed = append(d.passed, string(m.content))
		return nil
	case m.prefix == planPrefix:
		return d.carryOut(m.content)
	case strings.HasPrefix(m.prefix, reservedPrefix):
		// Anybody may write it, so it must not stop the stream; and readers
		// must not take it for ours.
		return nil
	}
	if err := d.w.Append(&e); err != nil {
		return fmt.Errorf("logical message %q: %w", m.prefix, err)
	}
	return d.wrote()
}
