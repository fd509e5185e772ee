package wal

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/millrace-db/millrace"
)

// Layouts of pgoutput's messages: "Logical Replication Message Formats" in the
// Postgres manual. Numbers are big-endian, strings end with a zero byte.

// message is the rest of a replication message under decoding. Its first error
// sticks; what is read after it is zero.
type message struct {
	b   []byte
	err error
}

func (m *message) fail(what string) {
	if m.err == nil {
		m.err = fmt.Errorf("%w: %s", ErrProtocol, what)
	}
	m.b = nil
}

func (m *message) take(n int) []byte {
	if n < 0 || len(m.b) < n {
		m.fail("it is cut off")
		return nil
	}
	b := m.b[:n:n]
	m.b = m.b[n:]
	return b
}

func (m *message) uint8() byte {
	if b := m.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (m *message) uint16() uint16 {
	if b := m.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (m *message) uint32() uint32 {
	if b := m.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (m *message) uint64() uint64 {
	if b := m.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// text returns a copy.
func (m *message) text() string {
	n := bytes.IndexByte(m.b, 0)
	if n < 0 {
		m.fail("a name is cut off")
		return ""
	}
	s := string(m.b[:n])
	m.b = m.b[n+1:]
	if !utf8.ValidString(s) {
		m.fail("a name is not UTF-8")
	}
	return s
}

// end returns the first error, or one if bytes are left.
func (m *message) end() error {
	if m.err == nil && len(m.b) != 0 {
		m.fail(fmt.Sprintf("%d bytes follow its end", len(m.b)))
	}
	return m.err
}

// pgEpoch is Postgres's zero of time, in microseconds of Unix time.
const pgEpoch = 946684800 * 1_000_000

func pgTime(us uint64) time.Time { return time.UnixMicro(int64(us) + pgEpoch).UTC() }

type beginMessage struct {
	final millrace.LSN // where the commit record begins
	time  time.Time
	xid   uint32
}

func parseBegin(b []byte) (beginMessage, error) {
	m := message{b: b}
	r := beginMessage{final: millrace.LSN(m.uint64()), time: pgTime(m.uint64()), xid: m.uint32()}
	return r, m.end()
}

type commitMessage struct {
	commit, end millrace.LSN
	time        time.Time
}

func parseCommit(b []byte) (commitMessage, error) {
	m := message{b: b}
	_ = m.uint8() // flags, none defined
	r := commitMessage{commit: millrace.LSN(m.uint64()), end: millrace.LSN(m.uint64()), time: pgTime(m.uint64())}
	return r, m.end()
}

// The messages that carry a transaction which the source has not committed yet
// ("streaming"). Between a stream start and a stream stop, each change has the
// xid of its subtransaction before it.

type streamStartMessage struct {
	xid   uint32
	first bool // the transaction's first block
}

func parseStreamStart(b []byte) (streamStartMessage, error) {
	m := message{b: b}
	r := streamStartMessage{xid: m.uint32()}
	first := m.uint8()
	if first > 1 {
		m.fail("it is neither a first block nor another")
	}
	r.first = first == 1
	return r, m.end()
}

type streamCommitMessage struct {
	xid uint32
	commitMessage
}

func parseStreamCommit(b []byte) (streamCommitMessage, error) {
	m := message{b: b}
	r := streamCommitMessage{xid: m.uint32()}
	if m.err != nil {
		return r, m.err
	}
	var err error
	r.commitMessage, err = parseCommit(m.b)
	return r, err
}

type streamAbortMessage struct {
	xid uint32
	sub uint32 // what is aborted: xid itself, or one of its subtransactions
}

func parseStreamAbort(b []byte) (streamAbortMessage, error) {
	m := message{b: b}
	r := streamAbortMessage{xid: m.uint32(), sub: m.uint32()}
	return r, m.end()
}

func parseRelation(b []byte) (*relationMessage, error) {
	m := message{b: b}
	r := &relationMessage{id: millrace.TableID(m.uint32())}
	r.name.Schema, r.name.Name = m.text(), m.text()
	if r.name.Schema == "" {
		r.name.Schema = "pg_catalog"
	}
	r.identity = m.uint8()
	n := int(m.uint16())
	if n > millrace.MaxColumns {
		m.fail("it has too many columns")
		n = 0
	}
	for range n {
		flags := m.uint8()
		c := relationColumn{key: flags&1 != 0, name: m.text(), typ: m.uint32(), typmod: int32(m.uint32())}
		if m.err != nil {
			break
		}
		r.columns = append(r.columns, c)
	}
	return r, m.end()
}

func parseTruncate(b []byte) ([]millrace.TableID, error) {
	m := message{b: b}
	n := m.uint32()
	_ = m.uint8() // CASCADE and RESTART IDENTITY: what they reach is listed
	if uint64(n)*4 != uint64(len(m.b)) {
		m.fail("its number of tables is wrong")
		return nil, m.err
	}
	var tables []millrace.TableID
	for range n {
		tables = append(tables, millrace.TableID(m.uint32()))
	}
	return tables, m.end()
}

type logicalMessage struct {
	transactional bool
	prefix        string
	content       []byte // aliases the message
}

func parseLogical(b []byte) (logicalMessage, error) {
	m := message{b: b}
	r := logicalMessage{transactional: m.uint8()&1 != 0}
	_ = m.uint64() // LSN
	r.prefix = m.text()
	r.content = m.take(int(m.uint32()))
	return r, m.end()
}

// parseTuple reads a tuple's columns into dst, which is as long as the table has
// columns. The texts alias the message.
func (m *message) parseTuple(dst []millrace.Datum) {
	if n := int(m.uint16()); n != len(dst) {
		if m.err == nil {
			m.fail(fmt.Sprintf("a row has %d columns, its table was described with %d", n, len(dst)))
		}
		return
	}
	for i := range dst {
		switch kind := m.uint8(); kind {
		case 't':
			text := m.take(int(m.uint32()))
			dst[i] = millrace.Datum{State: millrace.ColumnValue, Text: text}
		case 'n':
			dst[i] = millrace.Datum{State: millrace.ColumnNull}
		case 'u':
			dst[i] = millrace.Datum{State: millrace.ColumnUnchanged}
		default:
			m.fail(fmt.Sprintf("a column has the form %q", kind))
		}
		if m.err != nil {
			return
		}
	}
}
