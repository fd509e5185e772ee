package millrace

import (
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// Kind says what an Entry does.
type Kind uint8

// The kinds of entries. Their numbers are part of the format.
const (
	// KindPut sets the row of Key. Where From is set, columns of Row that are
	// marked unchanged come from the row of that key.
	KindPut Kind = 1
	// KindDelete removes the row of Key.
	KindDelete Kind = 2
	// KindTruncate removes all rows of Table.
	KindTruncate Kind = 3
	// KindSchema describes Table from here on.
	KindSchema Kind = 4
	// KindLoadBegin begins a shadow generation of Table for Load.
	KindLoadBegin Kind = 5
	// KindLoadEnd makes the shadow generation of Load the table.
	KindLoadEnd Kind = 6
	// KindVerify states what the source has in a range of Table.
	KindVerify Kind = 7
	// KindHeartbeat shows that the source and capture are alive.
	KindHeartbeat Kind = 8
	// KindMessage is an application's message written at the source.
	KindMessage Kind = 9
	// KindQuarantine stands in the place of an entry that was kept back.
	KindQuarantine Kind = 10
	// KindLoadProgress says how far Load has come.
	KindLoadProgress Kind = 11
	// KindDrop takes Table out of the stream, with its rows and schemas.
	KindDrop Kind = 12
)

var kindNames = [...]string{
	KindPut: "put", KindDelete: "delete", KindTruncate: "truncate", KindSchema: "schema",
	KindLoadBegin: "load_begin", KindLoadEnd: "load_end", KindVerify: "verify",
	KindHeartbeat: "heartbeat", KindMessage: "message", KindQuarantine: "quarantine",
	KindLoadProgress: "load_progress", KindDrop: "drop",
}

// NumKinds is one more than the highest kind: the size of an array by kind.
const NumKinds = len(kindNames)

// String returns the name of the kind in lower case.
func (k Kind) String() string {
	if k > 0 && int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "kind " + strconv.Itoa(int(k))
}

// MaxEntry is the largest encoded entry in bytes. A row that needs more stops
// the stream.
const MaxEntry = 16 << 20

// MaxProgress is the largest note of a load's progress in bytes.
const MaxProgress = 1 << 20

// UnitEnd stands on the last entry of a unit and flags it.
type UnitEnd struct {
	// Time is when the unit was committed, by the source's clock.
	Time time.Time
	// Token is the comparable part of the unit's Position.
	Token uint64
	// XID is the source transaction, or 0 for units of no transaction.
	XID uint32
}

// Entry is one item of the log. Which fields are set depends on Kind; Ordinal
// and End are set in all kinds.
type Entry struct {
	Kind  Kind
	Table TableID
	// Ordinal is the 0-based place of the entry in its unit.
	Ordinal uint64
	// Key and From are encoded keys (key.go), Row an encoded row (row.go).
	// After decoding they alias the payload, as the byte strings in LoadInfo,
	// Verify and Message do.
	Key, From, Row []byte
	// Load is the load that a Put, LoadBegin, LoadProgress, LoadEnd belongs to;
	// 0 for live changes.
	Load       LoadID
	LoadInfo   *LoadInfo
	Schema     *Schema
	Verify     *VerifyRange
	Message    *LogicalMessage
	Quarantine *Quarantined
	// Last flags the unit's last entry; End is meaningful only then.
	Last bool
	End  UnitEnd
}

// LoadInfo accompanies a LoadBegin, LoadProgress or LoadEnd; a LoadProgress has
// always one.
type LoadInfo struct {
	// Reason says why the load was begun, for people.
	Reason string
	// Rows is the number of rows that the source gave (LoadEnd).
	Rows uint64
	// Progress is capture's note of how far the load has come, at most
	// MaxProgress bytes. In a LoadBegin it is the load's first note; in a
	// LoadProgress it takes the place of the one before.
	Progress []byte
	// Added is appended to the note before (LoadProgress). A LoadProgress with
	// neither says that the load begins anew, without a note.
	Added []byte
}

// VerifyRange states what the source has in a range of keys of one table, in
// the snapshot it names. Keys from Low to before High are in the range; an
// empty High means the end.
type VerifyRange struct {
	// ID is that of the pass over the table; all its ranges share it.
	ID        uint64
	Low, High []byte
	// Buckets and Bucket select keys by hash where a table is verified whole:
	// Buckets is 0 when it is not.
	Buckets, Bucket uint32
	Rows            uint64
	// Hash is that of the rows; see VerifySum.
	Hash [16]byte
	// LeftOut are keys in the range that took no part.
	LeftOut [][]byte
	// Snapshot is what pg_current_snapshot() printed.
	Snapshot string
}

// LogicalMessage is a message that an application wrote into the WAL.
type LogicalMessage struct {
	Prefix  string
	Content []byte
}

// Quarantined tells what was kept back and why.
type Quarantined struct {
	Kind   Kind
	Reason string
}

const (
	entryKind       protowire.Number = 1
	entryTable      protowire.Number = 2
	entryOrdinal    protowire.Number = 3
	entryKey        protowire.Number = 4
	entryFrom       protowire.Number = 5
	entryRow        protowire.Number = 6
	entryLoad       protowire.Number = 7
	entryLoadInfo   protowire.Number = 8
	entrySchema     protowire.Number = 9
	entryVerify     protowire.Number = 10
	entryMessage    protowire.Number = 11
	entryQuarantine protowire.Number = 12
	entryEnd        protowire.Number = 15

	endTime  protowire.Number = 1
	endToken protowire.Number = 2
	endXID   protowire.Number = 3

	loadInfoReason   protowire.Number = 1
	loadInfoRows     protowire.Number = 2
	loadInfoProgress protowire.Number = 3
	loadInfoAdded    protowire.Number = 4

	verifyID       protowire.Number = 1
	verifyLow      protowire.Number = 2
	verifyHigh     protowire.Number = 3
	verifyBuckets  protowire.Number = 4
	verifyBucket   protowire.Number = 5
	verifyRows     protowire.Number = 6
	verifyHash     protowire.Number = 7
	verifyLeftOut  protowire.Number = 8
	verifySnapshot protowire.Number = 9

	messagePrefix  protowire.Number = 1
	messageContent protowire.Number = 2

	quarantineKind   protowire.Number = 1
	quarantineReason protowire.Number = 2

	// payloadEntries is the one field of the payload message.
	payloadEntries protowire.Number = 1
)

// AppendEntry appends the encoded form of e, without the tag and length that
// stand before it in a payload.
func AppendEntry(dst []byte, e *Entry) []byte {
	dst = appendVarintField(dst, entryKind, uint64(e.Kind))
	dst = appendVarintField(dst, entryTable, uint64(e.Table))
	dst = appendVarintField(dst, entryOrdinal, e.Ordinal)
	dst = appendBytesField(dst, entryKey, e.Key)
	dst = appendBytesField(dst, entryFrom, e.From)
	dst = appendBytesField(dst, entryRow, e.Row)
	dst = appendVarintField(dst, entryLoad, uint64(e.Load))
	if e.LoadInfo != nil {
		dst = appendMessageField(dst, entryLoadInfo, func(dst []byte) []byte {
			dst = appendStringField(dst, loadInfoReason, e.LoadInfo.Reason)
			dst = appendVarintField(dst, loadInfoRows, e.LoadInfo.Rows)
			dst = appendBytesField(dst, loadInfoProgress, e.LoadInfo.Progress)
			return appendBytesField(dst, loadInfoAdded, e.LoadInfo.Added)
		})
	}
	if e.Schema != nil {
		dst = appendMessageField(dst, entrySchema, func(dst []byte) []byte { return AppendSchema(dst, e.Schema) })
	}
	if e.Verify != nil {
		dst = appendMessageField(dst, entryVerify, func(dst []byte) []byte { return appendVerify(dst, e.Verify) })
	}
	if e.Message != nil {
		dst = appendMessageField(dst, entryMessage, func(dst []byte) []byte {
			dst = appendStringField(dst, messagePrefix, e.Message.Prefix)
			return appendBytesField(dst, messageContent, e.Message.Content)
		})
	}
	if e.Quarantine != nil {
		dst = appendMessageField(dst, entryQuarantine, func(dst []byte) []byte {
			dst = appendVarintField(dst, quarantineKind, uint64(e.Quarantine.Kind))
			return appendStringField(dst, quarantineReason, e.Quarantine.Reason)
		})
	}
	if e.Last {
		dst = appendEnd(dst, e.End)
	}
	return dst
}

// appendEnd writes the field that flags the last entry of a unit. Its number is
// the highest, so it can be appended to an entry that is already encoded.
func appendEnd(dst []byte, end UnitEnd) []byte {
	return appendMessageField(dst, entryEnd, func(dst []byte) []byte {
		if !end.Time.IsZero() {
			dst = appendVarintField(dst, endTime, uint64(end.Time.UnixMicro()))
		}
		dst = appendVarintField(dst, endToken, end.Token)
		return appendVarintField(dst, endXID, uint64(end.XID))
	})
}

func appendVerify(dst []byte, v *VerifyRange) []byte {
	dst = appendVarintField(dst, verifyID, v.ID)
	dst = appendBytesField(dst, verifyLow, v.Low)
	dst = appendBytesField(dst, verifyHigh, v.High)
	dst = appendVarintField(dst, verifyBuckets, uint64(v.Buckets))
	dst = appendVarintField(dst, verifyBucket, uint64(v.Bucket))
	dst = appendVarintField(dst, verifyRows, v.Rows)
	dst = appendBytesField(dst, verifyHash, v.Hash[:])
	for _, k := range v.LeftOut {
		dst = protowire.AppendTag(dst, verifyLeftOut, protowire.BytesType)
		dst = protowire.AppendBytes(dst, k)
	}
	return appendStringField(dst, verifySnapshot, v.Snapshot)
}

// DecodeEntry reads one encoded entry into e, which it overwrites. The byte
// strings of e alias b. It allocates only for what control entries carry.
func DecodeEntry(b []byte, e *Entry) error {
	*e = Entry{}
	var last protowire.Number
	for len(b) > 0 {
		f := field{message: "entry"}
		n, err := f.consume(b, &last)
		if err != nil {
			return err
		}
		if err := e.set(&f); err != nil {
			return err
		}
		b = b[n:]
	}
	return e.Validate()
}

func (e *Entry) set(f *field) error {
	switch f.num {
	case entryKind:
		return decodeSmall(f, &e.Kind)
	case entryTable:
		return f.uint32((*uint32)(&e.Table))
	case entryOrdinal:
		return f.varint(&e.Ordinal)
	case entryKey:
		return f.bytes(&e.Key)
	case entryFrom:
		return f.bytes(&e.From)
	case entryRow:
		return f.bytes(&e.Row)
	case entryLoad:
		return f.varint((*uint64)(&e.Load))
	case entryEnd:
		e.Last = true
		return e.End.decode(f)
	}
	return e.setRare(f)
}

// setRare decodes the fields that come with control entries; they allocate.
func (e *Entry) setRare(f *field) error {
	if f.num > entryQuarantine {
		return f.unknown()
	}
	var b []byte
	if err := f.bytes(&b); err != nil {
		return err
	}
	switch f.num {
	case entryLoadInfo:
		e.LoadInfo = new(LoadInfo)
		return eachField(b, "load info", func(f *field) error {
			switch f.num {
			case loadInfoReason:
				return f.string(&e.LoadInfo.Reason)
			case loadInfoRows:
				return f.varint(&e.LoadInfo.Rows)
			case loadInfoProgress:
				return f.bytes(&e.LoadInfo.Progress)
			case loadInfoAdded:
				return f.bytes(&e.LoadInfo.Added)
			}
			return f.unknown()
		})
	case entrySchema:
		s, err := DecodeSchema(b)
		e.Schema = s
		return err
	case entryVerify:
		e.Verify = new(VerifyRange)
		return e.Verify.decode(b)
	case entryMessage:
		e.Message = new(LogicalMessage)
		return eachField(b, "message", func(f *field) error {
			switch f.num {
			case messagePrefix:
				return f.string(&e.Message.Prefix)
			case messageContent:
				return f.bytes(&e.Message.Content)
			}
			return f.unknown()
		})
	case entryQuarantine:
		e.Quarantine = new(Quarantined)
		return eachField(b, "quarantine", func(f *field) error {
			switch f.num {
			case quarantineKind:
				return decodeSmall(f, &e.Quarantine.Kind)
			case quarantineReason:
				return f.string(&e.Quarantine.Reason)
			}
			return f.unknown()
		})
	}
	return f.unknown()
}

func (end *UnitEnd) decode(f *field) error {
	var b []byte
	if err := f.bytes(&b); err != nil {
		return err
	}
	var last protowire.Number
	for len(b) > 0 {
		f := field{message: "unit end"}
		n, err := f.consume(b, &last)
		if err != nil {
			return err
		}
		switch f.num {
		case endTime:
			err = f.time(&end.Time)
		case endToken:
			err = f.varint(&end.Token)
		case endXID:
			err = f.uint32(&end.XID)
		default:
			err = f.unknown()
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func (v *VerifyRange) decode(b []byte) error {
	return eachField(b, "verify", func(f *field) error {
		switch f.num {
		case verifyID:
			return f.varint(&v.ID)
		case verifyLow:
			return f.bytes(&v.Low)
		case verifyHigh:
			return f.bytes(&v.High)
		case verifyBuckets:
			return f.uint32(&v.Buckets)
		case verifyBucket:
			return f.uint32(&v.Bucket)
		case verifyRows:
			return f.varint(&v.Rows)
		case verifyHash:
			return f.fixedBytes(v.Hash[:])
		case verifyLeftOut:
			var k []byte
			err := f.element(&k)
			v.LeftOut = append(v.LeftOut, k)
			return err
		case verifySnapshot:
			return f.string(&v.Snapshot)
		}
		return f.unknown()
	})
}

// Validate says what a well-formed entry of this kind lacks or has too much.
func (e *Entry) Validate() error {
	bad := func(what string) error {
		return fmt.Errorf("%w: %v entry: %s", ErrMalformed, e.Kind, what)
	}
	if e.Kind == 0 || int(e.Kind) >= NumKinds {
		return fmt.Errorf("%w: unknown entry type %d: written by a newer version of millrace; upgrade this process", ErrMalformed, e.Kind)
	}
	ofTable := e.Kind != KindHeartbeat && e.Kind != KindMessage
	ofLoad := e.Kind == KindLoadBegin || e.Kind == KindLoadProgress || e.Kind == KindLoadEnd
	switch {
	case ofTable != (e.Table != 0):
		return bad("table ID missing or not wanted")
	case (e.Kind == KindPut) != (len(e.Row) > 0):
		return bad("row missing or not wanted")
	case len(e.From) > 0 && e.Kind != KindPut:
		return bad("old key not wanted")
	case (e.Kind == KindPut || e.Kind == KindDelete) && len(e.Key) == 0:
		return bad("key missing")
	case len(e.Key) > 0 && e.Kind != KindPut && e.Kind != KindDelete && e.Kind != KindQuarantine:
		return bad("key not wanted")
	case ofLoad && e.Load == 0:
		return bad("load ID missing")
	case e.Load != 0 && !ofLoad && e.Kind != KindPut:
		return bad("load ID not wanted")
	case e.LoadInfo != nil && !ofLoad, e.LoadInfo == nil && e.Kind == KindLoadProgress:
		return bad("load info missing or not wanted")
	case e.LoadInfo != nil && !e.LoadInfo.fits(e.Kind):
		return bad("note of progress not wanted or too long")
	case (e.Kind == KindSchema) != (e.Schema != nil):
		return bad("schema missing or not wanted")
	case e.Schema != nil && e.Schema.Table != e.Table:
		return bad("schema is of another table")
	case (e.Kind == KindVerify) != (e.Verify != nil):
		return bad("range missing or not wanted")
	case (e.Kind == KindMessage) != (e.Message != nil):
		return bad("message missing or not wanted")
	case (e.Kind == KindQuarantine) != (e.Quarantine != nil):
		return bad("quarantine missing or not wanted")
	case e.Quarantine != nil && (e.Quarantine.Kind == 0 || int(e.Quarantine.Kind) >= NumKinds):
		return bad("unknown kind of what was kept back")
	case !e.textsValid():
		return bad("a text is not UTF-8")
	}
	return nil
}

// fits reports whether the notes are those that an entry of the kind has.
func (i *LoadInfo) fits(kind Kind) bool {
	switch {
	case len(i.Progress) > MaxProgress || len(i.Added) > MaxProgress:
		return false
	case kind == KindLoadProgress:
		return len(i.Progress) == 0 || len(i.Added) == 0
	}
	return len(i.Added) == 0 && (len(i.Progress) == 0 || kind == KindLoadBegin)
}

// textsValid reports whether the texts are UTF-8, which decoders insist on; the
// schema looks after its own.
func (e *Entry) textsValid() bool {
	switch {
	case e.LoadInfo != nil:
		return utf8.ValidString(e.LoadInfo.Reason)
	case e.Verify != nil:
		return utf8.ValidString(e.Verify.Snapshot)
	case e.Message != nil:
		return utf8.ValidString(e.Message.Prefix)
	case e.Quarantine != nil:
		return utf8.ValidString(e.Quarantine.Reason)
	}
	return true
}
