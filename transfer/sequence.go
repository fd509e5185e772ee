package transfer

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/control"
)

// maxBatch bounds the payload of a batch in bytes, unless a single entry is
// larger.
const maxBatch = 1 << 20

// piece is a whole unit, or a part of one that is too large for a batch, with
// its place in the stream.
type piece struct {
	first millrace.Index
	count uint32
	// prev is the chain before the unit, chain the one after the piece as if the
	// unit ended there.
	prev, chain millrace.Chain
	// position and at are those of the newest unit that is complete after the
	// piece.
	position millrace.Position
	at       time.Time
	// part tells that the piece is not a whole unit, open that the unit goes on
	// after it.
	part, open bool
	// entries are valid until the next piece is made.
	entries []byte
	tally   []tally
	// verifies tells that the unit has Verify entries. An edge compares what it
	// has stored when it has committed just them, and it commits records.
	verifies bool
}

// tally is a number of entries of one table and kind.
type tally struct {
	table millrace.TableID
	kind  millrace.Kind
	n     uint64
}

// sequencer gives entries their indexes and units their chain. It does no I/O
// of its own and is used by one goroutine.
type sequencer struct {
	next     millrace.Index
	chain    millrace.Chain
	position millrace.Position
	at       time.Time
	unit     millrace.UnitHash
	tally    []tally
}

// newSequencer begins after a checkpoint.
func newSequencer(c *millrace.Checkpoint) *sequencer {
	return &sequencer{next: c.Index + 1, chain: c.Chain, position: c.Position, at: c.Time}
}

// add cuts a unit into pieces and gives each to put before it makes the next.
// It checks that the unit is what its capture promised: entries in order, the
// last one and only that flagged. It does not close the body.
func (s *sequencer) add(u *millrace.Unit, put func(*piece) error) error {
	var ordinal uint64
	for part := false; ; part = true {
		run, err := u.Body.Next(maxBatch)
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: unit of %d entries at %v ends after %d without its last", millrace.ErrMalformed, u.Entries, u.Position, ordinal)
		}
		if err != nil {
			return fmt.Errorf("read unit at %v: %w", u.Position, err)
		}
		p := piece{first: s.next, prev: s.chain, entries: run}
		end, err := s.walk(run, &p, &ordinal)
		if err != nil {
			return fmt.Errorf("read unit at %v: %w", u.Position, err)
		}
		p.chain = s.unit.Chain(s.chain)
		p.open = end == nil
		p.part = part || p.open
		if end != nil {
			if ordinal != u.Entries {
				return fmt.Errorf("%w: unit at %v has %d entries and says %d", millrace.ErrMalformed, u.Position, ordinal, u.Entries)
			}
			s.chain, s.position, s.at = p.chain, u.Position, end.Time
			s.unit.Reset()
		} else {
			s.unit.Absorb()
		}
		s.next += millrace.Index(p.count)
		p.position, p.at, p.tally = s.position, s.at, s.tally
		if err := put(&p); err != nil || end != nil {
			return err
		}
	}
}

// walk takes in a run of entries. It returns the unit's end if the run ends in
// it.
func (s *sequencer) walk(run []byte, p *piece, ordinal *uint64) (*millrace.UnitEnd, error) {
	var (
		h    millrace.Head
		hash millrace.Run
		err  error
	)
	s.tally = s.tally[:0]
	for len(run) > 0 {
		if h.Last {
			return nil, fmt.Errorf("%w: entry %d is flagged as the last and others follow", millrace.ErrMalformed, *ordinal-1)
		}
		if run, err = millrace.NextHead(run, &h); err != nil {
			return nil, err
		}
		if h.Ordinal != *ordinal {
			return nil, fmt.Errorf("%w: entry %d has ordinal %d", millrace.ErrMalformed, *ordinal, h.Ordinal)
		}
		p.verifies = p.verifies || h.Kind == millrace.KindVerify
		hash.Extend(&s.unit, &h)
		s.count(h.Table, h.Kind)
		*ordinal++
		p.count++
	}
	hash.Flush(&s.unit)
	if h.Last {
		return &h.End, nil
	}
	return nil, nil
}

// count adds one entry to the tally. Neighbours are mostly alike.
func (s *sequencer) count(table millrace.TableID, kind millrace.Kind) {
	for i := len(s.tally) - 1; i >= 0; i-- {
		if t := &s.tally[i]; t.table == table && t.kind == kind {
			t.n++
			return
		}
	}
	s.tally = append(s.tally, tally{table, kind, 1})
}

// batch is what becomes one record.
type batch struct {
	first       millrace.Index
	count       uint32
	prev, chain millrace.Chain
	position    millrace.Position
	at          time.Time
	part, open  bool
	verifies    bool
	payload     []byte
	captured    control.Counts
}

func (b *batch) last() millrace.Index { return b.first + millrace.Index(b.count) - 1 }

// begin makes b a batch of one piece. It keeps b's buffer.
func (b *batch) begin(p *piece) {
	*b = batch{
		first: p.first, count: p.count, prev: p.prev, chain: p.chain, position: p.position, at: p.at,
		part: p.part, open: p.open, verifies: p.verifies, payload: append(b.payload[:0], p.entries...), captured: make(control.Counts, len(p.tally)),
	}
	b.addTally(p.tally)
}

// fits reports whether a piece may follow in b: whole units only, up to the
// limit, and none after one with Verify entries. One that does not follow it in the stream, which would be a defect,
// gets a record of its own, for the fold to refuse.
func (b *batch) fits(p *piece) bool {
	return p.first == b.last()+1 && !b.part && !p.part && !b.verifies && len(b.payload)+len(p.entries) <= maxBatch
}

// add appends a piece that fits.
func (b *batch) add(p *piece) {
	b.count += p.count
	b.chain, b.position, b.at, b.verifies = p.chain, p.position, p.at, p.verifies
	b.payload = append(b.payload, p.entries...)
	b.addTally(p.tally)
}

func (b *batch) addTally(tallies []tally) {
	for _, t := range tallies {
		b.captured.Add(t.table, t.kind, t.n)
	}
}

// header is that of the batch's record, but for stream, epoch, term and
// publisher.
func (b *batch) header() millrace.Header {
	return millrace.Header{
		Kind: millrace.RecordBatch, First: b.first, Count: b.count, Prev: b.prev, Chain: b.chain,
		Position: b.position, Time: b.at,
	}
}

// countPayload counts the entries of a payload.
func countPayload(payload []byte, counts control.Counts) error {
	var h millrace.Head
	for len(payload) > 0 {
		rest, err := millrace.NextHead(payload, &h)
		if err != nil {
			return err
		}
		counts.Add(h.Table, h.Kind, 1)
		payload = rest
	}
	return nil
}

// merge adds the counts of b to a.
func merge(a, b control.Counts) {
	for table, kinds := range b {
		for kind, n := range kinds {
			if n > 0 {
				a.Add(table, millrace.Kind(kind), n)
			}
		}
	}
}
