package edge

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/millrace-db/millrace"
)

const (
	crcSize = 4
	// maxWholeKey is the longest encoded key that StoreKey leaves as it is.
	maxWholeKey = 472
)

var (
	errShortValue = errors.New("value is cut off")
	errOtherKey   = errors.New("value holds another key than the one it stands under")
)

// storeKey returns the form of key under which the store keeps it, written into
// buf where it is another one.
func storeKey(buf, key []byte) []byte {
	if len(key) <= maxWholeKey {
		return key
	}
	return millrace.StoreKey(buf[:0], key)
}

// valueSize returns the size of the value for a row that is kept whole.
func valueSize(stored, key, row []byte) int {
	n := crcSize + len(row)
	if millrace.IsLongKey(stored) {
		n += uvarintSize(uint64(len(key))) + len(key)
	}
	return n
}

// fillValue writes the value into dst, which has the size that valueSize gave.
func fillValue(dst []byte, seed uint32, stored, key, row []byte) {
	fillContent(dst[crcSize:], stored, key, row)
	sealValue(dst, seed, stored)
}

// fillContent writes what a value holds behind its CRC.
func fillContent(dst, stored, key, row []byte) {
	if millrace.IsLongKey(stored) {
		n := binary.PutUvarint(dst, uint64(len(key)))
		n += copy(dst[n:], key)
		dst = dst[n:]
	}
	copy(dst, row)
}

// sealValue writes the CRC of a value that is otherwise complete.
func sealValue(value []byte, seed uint32, stored []byte) {
	crc := crc32.Update(seed, castagnoli, stored)
	binary.BigEndian.PutUint32(value, crc32.Update(crc, castagnoli, value[crcSize:]))
}

// checkValue checks the CRC of a value and returns what follows it: the content,
// or a stub where the content is kept in pieces.
func checkValue(seed uint32, stored, value []byte) (rest []byte, err error) {
	if len(value) < crcSize {
		return nil, errShortValue
	}
	rest = value[crcSize:]
	crc := crc32.Update(seed, castagnoli, stored)
	if got, want := crc32.Update(crc, castagnoli, rest), binary.BigEndian.Uint32(value); got != want {
		return nil, fmt.Errorf("value's CRC-32C is %08x, its bytes give %08x", want, got)
	}
	return rest, nil
}

// openContent returns the row's encoded key and the encoded row. Both alias
// stored or content.
func openContent(stored, content []byte) (key, row []byte, err error) {
	if !millrace.IsLongKey(stored) {
		return stored, content, nil
	}
	size, n := binary.Uvarint(content)
	if n <= 0 || size > uint64(len(content)-n) {
		return nil, nil, errShortValue
	}
	key, row = content[n:n+int(size)], content[n+int(size):]
	var buf [maxWholeKey + 64]byte
	if !bytes.Equal(millrace.StoreKey(buf[:0], key), stored) {
		return nil, nil, errOtherKey
	}
	return key, row, nil
}

func uvarintSize(v uint64) int {
	n := 1
	for v >= 0x80 {
		v >>= 7
		n++
	}
	return n
}
