package millrace

import (
	"encoding/binary"
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// A partial batch is a batch as a partial edge gets it: its signed header and its
// signature are those of the topic, its payload holds the entries that the edge wants
// and, for each table that was left out of a unit, the hash that the table's entries
// have in the chain. So the chain is computed as from the whole batch, and what was
// left out can be of no other history. The form is said by the transport part of the
// record (Record.Partial); it never stands in the topic.

const (
	formWhole   byte = 0
	formPartial byte = 1

	partialUnits protowire.Number = 2

	partialUnitEntries protowire.Number = 1
	partialUnitKept    protowire.Number = 2
	partialUnitOpen    protowire.Number = 3
	partialUnitTables  protowire.Number = 4

	partialTableID    protowire.Number = 1
	partialTableHash  protowire.Number = 2
	partialTableState protowire.Number = 3
)

// partialUnit is one unit of a partial batch, or the part of one that is in it.
type partialUnit struct {
	// entries is how many entries of the unit the batch has, kept how many of them
	// are here.
	entries, kept uint32
	// open tells that the unit goes on in the next batch.
	open bool
	// tables is where those of the unit begin and end in partialBatch.tables.
	from, to int
}

// partialTable is a table that a unit touches in a batch, in the order of first touch
// there.
type partialTable struct {
	id TableID
	// hash is that of all entries of the table in the unit so far, where those in
	// this batch are not here. Otherwise they all are, and state is that of their
	// hash before this batch where the ones before were left out. Both alias the
	// payload.
	hash, state []byte
}

// partialPlaces finds tables among those of a unit. It is used again for the next one.
type partialPlaces struct {
	tables []partialTable
	last   int
	byID   map[TableID]int
}

// use makes tables those that are looked in. It reports whether one stands twice.
func (p *partialPlaces) use(tables []partialTable) (twice bool) {
	p.tables, p.last = tables, 0
	clear(p.byID)
	if len(tables) <= fewTables {
		for i := range tables {
			for j := range i {
				twice = twice || tables[j].id == tables[i].id
			}
		}
		return twice
	}
	if p.byID == nil {
		p.byID = make(map[TableID]int, len(tables))
	}
	for i := range tables {
		p.byID[tables[i].id] = i
	}
	return len(p.byID) != len(tables)
}

// find returns the place of a table, or −1. Most likely it is that of the one before.
func (p *partialPlaces) find(id TableID) int {
	if len(p.tables) > 0 && p.tables[p.last].id == id {
		return p.last
	}
	if len(p.tables) > fewTables {
		i, ok := p.byID[id]
		if !ok {
			return -1
		}
		p.last = i
		return i
	}
	for i := range p.tables {
		if p.tables[i].id == id {
			p.last = i
			return i
		}
	}
	return -1
}

// partialBatch is the payload of a partial batch, taken apart.
type partialBatch struct {
	// entries are those that are here, in payload form.
	entries []byte
	units   []partialUnit
	tables  []partialTable
}

// append appends the encoded form.
func (p *partialBatch) append(dst []byte) []byte {
	dst = append(dst, p.entries...)
	for i := range p.units {
		u := &p.units[i]
		dst = appendMessageField(dst, partialUnits, func(dst []byte) []byte {
			dst = appendVarintField(dst, partialUnitEntries, uint64(u.entries))
			dst = appendVarintField(dst, partialUnitKept, uint64(u.kept))
			dst = appendBoolField(dst, partialUnitOpen, u.open)
			for j := u.from; j < u.to; j++ {
				t := &p.tables[j]
				dst = appendMessageField(dst, partialUnitTables, func(dst []byte) []byte {
					dst = appendVarintField(dst, partialTableID, uint64(t.id))
					dst = appendBytesField(dst, partialTableHash, t.hash)
					return appendBytesField(dst, partialTableState, t.state)
				})
			}
			return dst
		})
	}
	return dst
}

// decode takes a payload apart, and checks what can be said of it without its entries
// and its header. It reuses p's slices; what they hold aliases b.
func (p *partialBatch) decode(b []byte) error {
	p.units, p.tables = p.units[:0], p.tables[:0]
	n := 0
	for n < len(b) && b[n] == payloadTag {
		size, err := entrySize(b[n:])
		if err != nil {
			return err
		}
		if n += size; n > len(b) {
			return errShort
		}
	}
	p.entries = b[:n:n]
	err := eachField(b[n:], "partial batch", func(f *field) error {
		if f.num != partialUnits {
			return f.unknown()
		}
		var b []byte
		if err := f.element(&b); err != nil {
			return err
		}
		u, err := p.decodeUnit(b)
		if err != nil {
			return err
		}
		if last := len(p.units) - 1; last >= 0 && (p.units[last].open || u.open) {
			return fmt.Errorf("%w: partial batch: part of a unit stands in a batch with other units", ErrMalformed)
		}
		p.units = append(p.units, u)
		return nil
	})
	if err != nil {
		return err
	}
	if len(p.units) == 0 {
		return fmt.Errorf("%w: partial batch: it has no units", ErrMalformed)
	}
	return nil
}

func (p *partialBatch) decodeUnit(b []byte) (u partialUnit, err error) {
	u.from = len(p.tables)
	err = eachField(b, "unit of a partial batch", func(f *field) error {
		switch f.num {
		case partialUnitEntries:
			return f.uint32(&u.entries)
		case partialUnitKept:
			return f.uint32(&u.kept)
		case partialUnitOpen:
			return f.bool(&u.open)
		case partialUnitTables:
			var b []byte
			if err := f.element(&b); err != nil {
				return err
			}
			t, err := decodePartialTable(b)
			p.tables = append(p.tables, t)
			return err
		}
		return f.unknown()
	})
	u.to = len(p.tables)
	if err == nil && (u.entries == 0 || u.kept > u.entries || u.from == u.to || u.to-u.from > int(u.entries)) {
		err = fmt.Errorf("%w: unit of a partial batch: %d entries, %d of them here, of %d tables", ErrMalformed, u.entries, u.kept, u.to-u.from)
	}
	return u, err
}

func decodePartialTable(b []byte) (t partialTable, err error) {
	err = eachField(b, "table of a partial batch", func(f *field) error {
		switch f.num {
		case partialTableID:
			return f.uint32((*uint32)(&t.id))
		case partialTableHash:
			if err := f.bytes(&t.hash); err != nil {
				return err
			}
			if len(t.hash) != 32 {
				return f.bad("a hash of 32 bytes")
			}
			return nil
		case partialTableState:
			if err := f.bytes(&t.state); err != nil {
				return err
			}
			if len(t.state) < 8 || len(t.state) > maxMidstate {
				return f.bad("a state of a hash")
			}
			return nil
		}
		return f.unknown()
	})
	switch {
	case err != nil:
	case len(t.hash) > 0 && len(t.state) > 0:
		err = fmt.Errorf("%w: table of a partial batch: table %v has a hash and a state", ErrMalformed, t.id)
	case len(t.hash) > 0 && t.id == 0:
		err = fmt.Errorf("%w: table of a partial batch: entries of no table were left out", ErrMalformed)
	}
	return t, err
}

// appendPartial appends the stored form of r, a batch, with another payload in partial
// form. Header and signature stay as they were decoded, so r must have come from
// DecodeRecord and the bytes it was decoded from must be unchanged.
func appendPartial(dst []byte, r *Record, payload []byte) ([]byte, error) {
	if r.Kind != RecordBatch || r.signed == nil {
		return dst, fmt.Errorf("encode partial batch: a %v record that was not decoded", r.Kind)
	}
	if len(payload) > MaxPayload {
		return dst, fmt.Errorf("encode partial batch: payload of %d bytes: %w; the limit is %d", len(payload), ErrTooLarge, MaxPayload)
	}
	start := len(dst)
	dst = append(dst, r.signed...)
	return appendTransport(dst, start, formPartial, r.KeyID, r.Signature, payload), nil
}

// appendTransport appends what follows the signed part of a record, which begins at
// start in dst: the transport part, the signature and the payload.
func appendTransport(dst []byte, start int, form byte, key KeyID, signature, payload []byte) []byte {
	transport := len(dst)
	sigSize := 0
	if len(signature) > 0 {
		sigSize = signatureSize
	}
	dst = append(dst, byte(CodecNone), form)
	dst = binary.BigEndian.AppendUint16(dst, uint16(sigSize))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(payload)))
	dst = append(dst, 0, 0, 0, 0, 0, 0, 0, 0) // stored length and CRC
	if sigSize > 0 {
		dst = append(append(dst, key[:]...), signature...)
	}
	stored := len(dst)
	dst, codec := appendPacked(dst, payload)
	dst[transport] = byte(codec)
	binary.BigEndian.PutUint32(dst[transport+8:], uint32(len(dst)-stored))
	binary.BigEndian.PutUint32(dst[transport+12:], recordCRC(dst[start:], transport-start+12))
	return dst
}

// Entries walks the entries that a batch holds, whole or partial, in the order of
// their indexes. It is used by one goroutine.
type Entries struct {
	rest []byte
	// units are those of a partial batch that are not passed; nil for a whole one.
	units   []partialUnit
	partial bool
	// index is that of the next entry of a whole batch, or of the first entry that a
	// partial batch's unit has in the batch; kept how many of that unit are still to
	// come.
	index Index
	kept  uint32
	// ordinal is that of the unit's first entry in the batch.
	ordinal uint64
}

// Entries returns a walk over what the batch holds. unit is the index of the newest
// unit that is complete before it: an entry of a partial batch says its place in its
// unit, no more. The walk trusts what a Fold has accepted, and of anything else it
// says no more than that it is malformed.
func (r *Record) Entries(unit Index) (*Entries, error) {
	if r.Kind != RecordBatch {
		return nil, fmt.Errorf("walk entries: %w: %v record", ErrMalformed, r.Kind)
	}
	if !r.Partial {
		return &Entries{rest: r.Payload, index: r.First}, nil
	}
	var p partialBatch
	if err := p.decode(r.Payload); err != nil {
		return nil, err
	}
	e := &Entries{rest: p.entries, units: p.units, partial: true, index: r.First}
	if r.First > unit+1 {
		e.ordinal = uint64(r.First - unit - 1)
	}
	e.kept = p.units[0].kept
	return e, nil
}

// Next reads the head of the next entry. more is false behind the last one.
func (e *Entries) Next(h *Head) (at Index, more bool, err error) {
	for e.partial && e.kept == 0 && len(e.units) > 1 {
		e.index += Index(e.units[0].entries)
		e.units, e.ordinal = e.units[1:], 0
		e.kept = e.units[0].kept
	}
	if len(e.rest) == 0 {
		return 0, false, nil
	}
	if e.rest, err = NextHead(e.rest, h); err != nil {
		return 0, false, err
	}
	if !e.partial {
		at = e.index
		e.index++
		return at, true, nil
	}
	if e.kept == 0 || h.Ordinal < e.ordinal || h.Ordinal-e.ordinal > math.MaxUint32 {
		return 0, false, fmt.Errorf("%w: partial batch: entry with ordinal %d is of no unit of it", ErrMalformed, h.Ordinal)
	}
	e.kept--
	return e.index + Index(h.Ordinal-e.ordinal), true, nil
}
