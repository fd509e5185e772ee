package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/millrace-db/millrace"
)

// A transaction that grows too large for the source's memory is streamed: the
// source sends blocks of its messages while it is still open, those of several
// transactions between each other, and says later how it ended. Its messages are
// kept as they came and are decoded when it commits. Only then is it known which
// of them count, which schema versions came before them, and what the catalogs
// say of tables that it altered itself.
//
// An aborted subtransaction is cut off the tape's end, all from its first change
// on. That is exact, although subtransactions alternate: one can only abort
// while it is open, or with an open one around it; and while it is open every
// change of the transaction is its own or that of one inside it.

// streamed is one such transaction.
type streamed struct {
	xid  uint32
	tape tape
	// subs are the subtransactions whose changes the tape has.
	subs subtransactions
	// described has the newest description of each table. The source does not
	// send it again when the subtransaction that brought it aborts.
	described map[millrace.TableID]description
}

// description is a Relation message on a tape.
type description struct {
	at    int64 // where the tape has it
	place uint64
	raw   []byte
}

// openTransactions are the streamed transactions that have not ended. Together
// they hold no more in memory than the limit of blocks; the rest goes to files.
type openTransactions struct {
	spool   *spool
	metrics *metrics
	blocks  blockPool
	byXID   map[uint32]*streamed
	current *streamed // whose block is being received
	// place numbers the descriptions of tables, streamed or not.
	place   uint64
	planted planted
}

// newOpenTransactions takes a budget in bytes.
func newOpenTransactions(s *spool, m *metrics, budget int64) *openTransactions {
	return &openTransactions{spool: s, metrics: m, blocks: blockPool{limit: int(budget / blockSize)}, byXID: make(map[uint32]*streamed)}
}

// start begins a block of messages.
func (o *openTransactions) start(b []byte) error {
	m, err := parseStreamStart(b)
	if err != nil {
		return err
	}
	t := o.byXID[m.xid]
	switch {
	case m.first && t != nil:
		return fmt.Errorf("%w: transaction %d is streamed from its begin a second time", ErrProtocol, m.xid)
	case !m.first && t == nil:
		return fmt.Errorf("%w: the begin of streamed transaction %d did not come", ErrProtocol, m.xid)
	case m.first:
		t = &streamed{xid: m.xid, described: make(map[millrace.TableID]description)}
		o.byXID[m.xid] = t
		o.metrics.open.Set(float64(len(o.byXID)))
	}
	o.current = t
	return nil
}

// stop ends the block.
func (o *openTransactions) stop(b []byte) error {
	o.current = nil
	return (&message{b: b}).end()
}

// add takes a message of the current block.
func (o *openTransactions) add(kind byte, b []byte) error {
	t := o.current
	switch kind {
	case 'E':
		return o.stop(b)
	case 'I', 'U', 'D', 'T', 'R', 'M':
	case 'O', 'Y':
		return nil // as outside of blocks; the origin has no xid before it
	default:
		return fmt.Errorf("%w: it stands in a block of streamed transaction %d", ErrProtocol, t.xid)
	}
	if len(b) < 4 {
		return fmt.Errorf("%w: it is cut off", ErrProtocol)
	}
	xid, rest := binary.BigEndian.Uint32(b), b[4:]
	if xid != t.xid {
		t.subs.add(xid, t.tape.size)
	}
	if kind == 'R' {
		if len(rest) < 4 {
			return fmt.Errorf("%w: it is cut off", ErrProtocol)
		}
		o.describe(t, slices.Clone(rest))
	} else {
		t.tape.append(&o.blocks, kind, rest)
	}
	return o.shrink()
}

func (o *openTransactions) describe(t *streamed, raw []byte) {
	o.place++
	id := millrace.TableID(binary.BigEndian.Uint32(raw))
	t.described[id] = description{at: t.tape.size, place: o.place, raw: raw}
	t.tape.append(&o.blocks, 'R', raw)
}

// shrink moves the largest transactions to files until the rest is within the
// limit.
func (o *openTransactions) shrink() error {
	for o.blocks.used > o.blocks.limit {
		var largest *streamed
		for _, t := range o.byXID {
			if largest == nil || len(t.tape.blocks) > len(largest.tape.blocks) {
				largest = t
			}
		}
		if err := largest.tape.spill(&o.blocks, o.spool); err != nil {
			return err
		}
	}
	return nil
}

// abort forgets a transaction, or what it did in a subtransaction. The source
// also tells of aborts of which it has streamed nothing.
func (o *openTransactions) abort(b []byte) error {
	m, err := parseStreamAbort(b)
	if err != nil {
		return err
	}
	t := o.byXID[m.xid]
	if t == nil {
		return nil
	}
	if m.sub == m.xid {
		return o.forget(t)
	}
	if o.planted.aborting(t, m.sub) {
		return nil
	}
	at, ok := t.subs.cut(m.sub)
	if !ok {
		return nil
	}
	if err := t.tape.truncate(&o.blocks, at); err != nil {
		return err
	}
	for id, d := range t.described {
		if d.at >= at {
			t.described[id] = description{at: t.tape.size, place: d.place, raw: d.raw}
			t.tape.append(&o.blocks, 'R', d.raw)
		}
	}
	return o.shrink()
}

// forget lets go of a transaction that has ended.
func (o *openTransactions) forget(t *streamed) error {
	delete(o.byXID, t.xid)
	o.metrics.open.Set(float64(len(o.byXID)))
	err := t.tape.release(&o.blocks)
	if len(o.byXID) == 0 {
		o.blocks.spare = nil
	}
	return err
}

// close lets go of all.
func (o *openTransactions) close() error {
	var errs []error
	for _, t := range o.byXID {
		errs = append(errs, o.forget(t))
	}
	return errors.Join(errs...)
}

// subtransactions says where a tape has the first change of each. It is in the
// order of the xids, which is that of the starts too: see add.
type subtransactions []subtransaction

type subtransaction struct {
	xid   uint32
	start int64
}

// find returns the place of xid. Numbers of transactions go round, and those of
// one transaction lie close together.
func (s subtransactions) find(xid uint32) (int, bool) {
	if n := len(s); n > 0 && s[n-1].xid == xid {
		return n - 1, true
	}
	return slices.BinarySearchFunc(s, xid, func(t subtransaction, xid uint32) int { return int(int32(t.xid - xid)) })
}

// add notes a change of xid at the tape's end. Where ones with higher numbers
// have come before, they were begun inside xid, which has only now a change of
// its own: then what they did ends with xid too, so xid starts where they do.
func (s *subtransactions) add(xid uint32, end int64) {
	i, found := s.find(xid)
	if found {
		return
	}
	if i < len(*s) {
		end = (*s)[i].start
	}
	*s = slices.Insert(*s, i, subtransaction{xid, end})
}

// cut forgets xid and those inside it, and returns where xid started.
func (s *subtransactions) cut(xid uint32) (start int64, ok bool) {
	i, found := s.find(xid)
	if !found {
		return 0, false
	}
	start = (*s)[i].start
	*s = (*s)[:i]
	return start, true
}
