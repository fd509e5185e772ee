package harness

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// The layout of a record batch in a segment of Kafka's log: base offset and
// length, epoch, magic, CRC-32C of all that follows the CRC.
const (
	batchLength = 8
	batchCRC    = 17
	batchBody   = 21
	batchHead   = 12 // offset and length, which the length leaves out
)

// AlterRecord changes a record in the segments of a topic's partition 0 in a
// broker's log directory, as a hand or a disk may that also gets Kafka's own
// checksum right. alter is given each record value in turn, may change it in
// place, and reports whether it did; the first that it changes is the last it
// sees. The broker must be down.
func AlterRecord(logDir, topic string, alter func(value []byte) bool) error {
	segments, err := filepath.Glob(filepath.Join(logDir, topic+"-0", "*.log"))
	if err != nil {
		return err
	}
	slices.Sort(segments)
	for _, path := range segments {
		done, err := alterSegment(path, alter)
		if err != nil {
			return fmt.Errorf("alter record in %s: %w", path, err)
		}
		if done {
			return nil
		}
	}
	return fmt.Errorf("alter record of topic %s in %s: none of its records fits", topic, logDir)
}

func alterSegment(path string, alter func([]byte) bool) (bool, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return false, err
	}
	for at := 0; at+batchBody <= len(b); {
		size := int(binary.BigEndian.Uint32(b[at+batchLength:]))
		if size == 0 || at+batchHead+size > len(b) {
			return false, nil // preallocated zeros, or the torn end of a crash
		}
		batch := b[at : at+batchHead+size]
		at += len(batch)
		changed, err := alterBatch(batch, alter)
		if err != nil {
			return false, err
		}
		if changed {
			sum := crc32.Checksum(batch[batchBody:], crc32.MakeTable(crc32.Castagnoli))
			binary.BigEndian.PutUint32(batch[batchCRC:], sum)
			return true, os.WriteFile(path, b, 0o600)
		}
	}
	return false, nil
}

// alterBatch gives the values of the batch's records to alter, within the
// batch's own bytes.
func alterBatch(batch []byte, alter func([]byte) bool) (bool, error) {
	var head kmsg.RecordBatch
	if err := head.ReadFrom(batch); err != nil {
		return false, err
	}
	switch {
	case head.Attributes&0x20 != 0:
		return false, nil // a control batch
	case head.Attributes&0x07 != 0:
		return false, errors.New("the batch is compressed by Kafka; millrace's producer should not do that")
	}
	rest := batch[len(batch)-len(head.Records):]
	for range head.NumRecords {
		size, n := binary.Varint(rest)
		if n <= 0 || int(size) > len(rest)-n {
			return false, errors.New("a record is cut off")
		}
		record := rest[n : n+int(size)]
		rest = rest[n+int(size):]
		value, err := recordValue(record)
		if err != nil {
			return false, err
		}
		if alter(value) {
			return true, nil
		}
	}
	return false, nil
}

// recordValue finds the value within a record: attributes, timestamp and offset
// deltas, key, value, headers.
func recordValue(record []byte) ([]byte, error) {
	rest := record[1:]
	for range 2 {
		_, n := binary.Varint(rest)
		if n <= 0 {
			return nil, errors.New("a record is cut off")
		}
		rest = rest[n:]
	}
	var field []byte
	for range 2 { // key, value
		size, n := binary.Varint(rest)
		if n <= 0 || int(size) > len(rest)-n {
			return nil, errors.New("a record is cut off")
		}
		field, rest = rest[n:n+max(int(size), 0)], rest[n+max(int(size), 0):]
	}
	return field, nil
}
