package edge

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/bmatsuo/lmdb-go/lmdb"
)

// A value that does not fit into a leaf page beside another one would get pages
// of its own, and these must lie side by side: on a file that has been written to
// for long, looking for such a place takes time and lets the file grow. So its
// content is cut into pieces that fill one page each, which every free page
// takes. They lie in a named database of their own, under the value's ID and
// their number, and in the value's place stands a stub:
//
//	CRC-32C, as of any value
//	the byte 00, with which no content begins
//	the value's ID, 8 bytes
//	the number of pieces, a varint
//	the size of the content, a varint
//	CRC-32C of the content, over the ID before it
//	the rest of the content, where it fits
const (
	piecesName   = "pieces"
	stubMark     = 0
	pieceKeySize = 8 + 4
	// maxStubHead is the largest size of a stub without the rest.
	maxStubHead = crcSize + 1 + 8 + 2*binary.MaxVarintLen64 + 4
)

// valueSizes follow from the page size, which is that of the machine that made
// the store.
type valueSizes struct {
	// item is the largest size that key and value may have together to stand in
	// a leaf page, piece that of a value that has one page of its own.
	item, piece int
}

func sizesOfPage(page int) valueSizes {
	// As LMDB counts: two items a page, each with a header and a pointer.
	node := ((page-pageHeader)/2)&^1 - 2
	return valueSizes{item: node - nodeHeader, piece: page - pageHeader}
}

// stub is what stands for content that is kept in pieces.
type stub struct {
	id     uint64
	pieces int
	size   int
	crc    uint32
	rest   []byte
}

// isStub reports whether what follows a value's CRC is a stub.
func isStub(rest []byte) bool { return len(rest) > 0 && rest[0] == stubMark }

func (p *stub) append(dst []byte) []byte {
	dst = append(dst, stubMark)
	dst = binary.BigEndian.AppendUint64(dst, p.id)
	dst = binary.AppendUvarint(dst, uint64(p.pieces))
	dst = binary.AppendUvarint(dst, uint64(p.size))
	dst = binary.BigEndian.AppendUint32(dst, p.crc)
	return append(dst, p.rest...)
}

func (p *stub) decode(b []byte) error {
	const what = "stub of a value in pieces"
	if len(b) < 9 {
		return fmt.Errorf("%s is cut off", what)
	}
	p.id, b = binary.BigEndian.Uint64(b[1:]), b[9:]
	pieces, n := binary.Uvarint(b)
	if n <= 0 || pieces == 0 || pieces > 1<<31 {
		return fmt.Errorf("%s names a wrong number of them", what)
	}
	b = b[n:]
	size, n := binary.Uvarint(b)
	if n <= 0 || len(b) < n+4 || size > 1<<40 {
		return fmt.Errorf("%s is cut off", what)
	}
	p.pieces, p.size = int(pieces), int(size)
	p.crc, p.rest = binary.BigEndian.Uint32(b[n:]), b[n+4:]
	return nil
}

// contentSize is how many bytes a value stands for, which was not checked.
func contentSize(value []byte) int {
	var p stub
	if len(value) > crcSize && isStub(value[crcSize:]) && p.decode(value[crcSize:]) == nil {
		return p.size
	}
	return len(value)
}

// cut says how content of a size is cut: into how many pieces, and how much of it
// stays with the stub.
func (z valueSizes) cut(stored []byte, size int) (pieces, rest int) {
	pieces, rest = size/z.piece, size%z.piece
	if len(stored)+maxStubHead+rest > z.item {
		return pieces + 1, 0
	}
	return pieces, rest
}

func contentCRC(id uint64, content []byte) uint32 {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], id)
	return crc32.Update(crc32.Checksum(b[:], castagnoli), castagnoli, content)
}

func appendPieceKey(dst []byte, id uint64, n int) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(dst, id), uint32(n))
}

// missing is the error for a piece that is not there.
func (p *stub) missing(n int) error {
	return fmt.Errorf("piece %d of %d of value %d is missing", n+1, p.pieces, p.id)
}

// finish appends the rest to the pieces, and checks the whole.
func (p *stub) finish(content []byte) ([]byte, error) {
	content = append(content, p.rest...)
	if len(content) != p.size {
		return nil, fmt.Errorf("the %d pieces of value %d have %d bytes with its rest, its stub says %d", p.pieces, p.id, len(content), p.size)
	}
	if got := contentCRC(p.id, content); got != p.crc {
		return nil, fmt.Errorf("CRC-32C of the %d pieces of value %d is %08x, their bytes give %08x", p.pieces, p.id, p.crc, got)
	}
	return content, nil
}

// joinFrom reads the pieces of a stub through LMDB into buf.
func (p *stub) joinFrom(txn *lmdb.Txn, pieces lmdb.DBI, buf []byte) ([]byte, error) {
	buf = buf[:0]
	var key [pieceKeySize]byte
	for n := range p.pieces {
		b, err := txn.Get(pieces, appendPieceKey(key[:0], p.id, n))
		if lmdb.IsNotFound(err) {
			return nil, p.missing(n)
		}
		if err != nil {
			return nil, fmt.Errorf("read piece %d of %d of value %d: %w", n+1, p.pieces, p.id, err)
		}
		buf = append(buf, b...)
	}
	return p.finish(buf)
}

// join reads the pieces of a stub into buf, from the pages of the map.
func (v *View) join(p *stub, buf []byte) ([]byte, error) {
	record, err := v.treeNamed(piecesName)
	if err != nil {
		return nil, err
	}
	w := v.s.newWalk(record)
	var key [pieceKeySize]byte
	buf = buf[:0]
	more, err := w.seek(appendPieceKey(key[:0], p.id, 0))
	for n := range p.pieces {
		if err != nil {
			return nil, fmt.Errorf("read piece %d of %d of value %d: %w", n+1, p.pieces, p.id, err)
		}
		if !more || !bytes.Equal(w.item.key, appendPieceKey(key[:0], p.id, n)) {
			return nil, p.missing(n)
		}
		buf = append(buf, w.item.value...)
		if n+1 < p.pieces {
			more, err = w.next()
		}
	}
	return p.finish(buf)
}

// open checks a value and returns the row's encoded key and the encoded row. They
// alias stored, value or, where the content is in pieces, *buf, which is then
// written anew.
func (v *View) open(seed uint32, stored, value []byte, buf *[]byte) (key, row []byte, err error) {
	content, err := checkValue(seed, stored, value)
	if err != nil {
		return nil, nil, err
	}
	if isStub(content) {
		var p stub
		if err = p.decode(content); err != nil {
			return nil, nil, err
		}
		if content, err = v.join(&p, *buf); err != nil {
			return nil, nil, err
		}
		*buf = content
	}
	return openContent(stored, content)
}

// openIn does the same through LMDB: within a write transaction, whose pages are
// not all in the map, or where the pages have been looked at.
func openIn(txn *lmdb.Txn, pieces lmdb.DBI, seed uint32, stored, value []byte, buf *[]byte) (key, row []byte, err error) {
	content, err := checkValue(seed, stored, value)
	if err != nil {
		return nil, nil, err
	}
	if isStub(content) {
		var p stub
		if err = p.decode(content); err != nil {
			return nil, nil, err
		}
		if content, err = p.joinFrom(txn, pieces, *buf); err != nil {
			return nil, nil, err
		}
		*buf = content
	}
	return openContent(stored, content)
}
