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

// valueSize returns the size of the value for a row.
func valueSize(stored, key, row []byte) int {
	n := crcSize + len(row)
	if millrace.IsLongKey(stored) {
		n += uvarintSize(uint64(len(key))) + len(key)
	}
	return n
}

// fillValue writes the value into dst, which has the size that valueSize gave.
func fillValue(dst []byte, seed uint32, stored, key, row []byte) {
	rest := dst[crcSize:]
	if millrace.IsLongKey(stored) {
		n := binary.PutUvarint(rest, uint64(len(key)))
		n += copy(rest[n:], key)
		copy(rest[n:], row)
	} else {
		copy(rest, row)
	}
	crc := crc32.Update(seed, castagnoli, stored)
	binary.BigEndian.PutUint32(dst, crc32.Update(crc, castagnoli, rest))
}

// openValue checks a value and returns the row's encoded key and the encoded
// row. Both alias stored or value.
func openValue(seed uint32, stored, value []byte) (key, row []byte, err error) {
	if len(value) < crcSize {
		return nil, nil, errShortValue
	}
	rest := value[crcSize:]
	crc := crc32.Update(seed, castagnoli, stored)
	if got, want := crc32.Update(crc, castagnoli, rest), binary.BigEndian.Uint32(value); got != want {
		return nil, nil, fmt.Errorf("value's CRC-32C is %08x, its bytes give %08x", want, got)
	}
	if !millrace.IsLongKey(stored) {
		return stored, rest, nil
	}
	size, n := binary.Uvarint(rest)
	if n <= 0 || size > uint64(len(rest)-n) {
		return nil, nil, errShortValue
	}
	key, row = rest[n:n+int(size)], rest[n+int(size):]
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
