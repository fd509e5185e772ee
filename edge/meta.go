package edge

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"time"

	"github.com/bmatsuo/lmdb-go/lmdb"

	"github.com/millrace-db/millrace"
)

const (
	metaName = "meta"

	// formatVersion is the version of the layout. Version 1 had no pieces; a store
	// of it becomes one of the newest version when it is opened for writing.
	formatVersion = 2
	// formatPartial is that of a store that does not hold everything, which programs
	// that know of none must not read.
	formatPartial = 3
)

var (
	keyFormat     = []byte("format")
	keyStream     = []byte("stream")
	keyHead       = []byte("head")
	keyCheckpoint = []byte("checkpoint")
	keyHeader     = []byte("header")
	keyUnproven   = []byte("unproven")

	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// The first bytes of the keys of which there are many.
const (
	prefixSchema   = 's'
	prefixDiverged = 'd'
	prefixDatabase = 'g'
	prefixMissing  = 'm'
	prefixVerify   = 'v'
)

func schemaKey(table millrace.TableID, version millrace.SchemaVersion) []byte {
	k := binary.BigEndian.AppendUint32([]byte{prefixSchema, 0}, uint32(table))
	return binary.BigEndian.AppendUint64(k, uint64(version))
}

func divergedKey(table millrace.TableID) []byte {
	return binary.BigEndian.AppendUint32([]byte{prefixDiverged, 0}, uint32(table))
}

func databaseKey(name string) []byte { return append([]byte{prefixDatabase, 0}, name...) }

func missingPrefix(name string) []byte {
	return append(append([]byte{prefixMissing, 0}, name...), 0)
}

// seal appends the CRC of key and value to a value of meta.
func seal(key, value []byte) []byte {
	return binary.BigEndian.AppendUint32(value, metaCRC(key, value))
}

// unseal checks and removes it.
func unseal(key, sealed []byte) ([]byte, error) {
	n := len(sealed) - 4
	if n < 0 {
		return nil, fmt.Errorf("meta record %q is cut off", key)
	}
	if got, want := metaCRC(key, sealed[:n]), binary.BigEndian.Uint32(sealed[n:]); got != want {
		return nil, fmt.Errorf("meta record %q: CRC-32C is %08x, its bytes give %08x", key, want, got)
	}
	return sealed[:n:n], nil
}

func metaCRC(key, value []byte) uint32 {
	return crc32.Update(crc32.Update(0, castagnoli, key), castagnoli, value)
}

// head is the small record that every view reads.
type head struct {
	index millrace.Index
	chain millrace.Chain
	time  time.Time
	epoch millrace.Epoch
	term  millrace.Term
	// catalog numbers the state of schemas and generations.
	catalog uint64
	// superseded tells that readers have gone over to the store of a newer epoch.
	superseded bool
}

// headSize is that of a store in use; a superseded one has one byte more.
const headSize = 8 + 32 + 8 + 8 + 8 + 8

func (h *head) append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.index))
	dst = append(dst, h.chain[:]...)
	us := int64(math.MinInt64)
	if !h.time.IsZero() {
		us = h.time.UnixMicro()
	}
	dst = binary.BigEndian.AppendUint64(dst, uint64(us))
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.epoch))
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.term))
	dst = binary.BigEndian.AppendUint64(dst, h.catalog)
	if h.superseded {
		dst = append(dst, 1)
	}
	return dst
}

func (h *head) decode(sealed []byte) error {
	b, err := unseal(keyHead, sealed)
	if err != nil {
		return err
	}
	h.superseded = len(b) == headSize+1 && b[headSize] == 1
	if len(b) != headSize && !h.superseded {
		return fmt.Errorf("meta record %q has %d bytes, want %d", keyHead, len(b), headSize)
	}
	h.index = millrace.Index(binary.BigEndian.Uint64(b))
	copy(h.chain[:], b[8:])
	h.time = time.Time{}
	if us := int64(binary.BigEndian.Uint64(b[40:])); us != math.MinInt64 {
		h.time = time.UnixMicro(us).UTC()
	}
	h.epoch = millrace.Epoch(binary.BigEndian.Uint64(b[48:]))
	h.term = millrace.Term(binary.BigEndian.Uint64(b[56:]))
	h.catalog = binary.BigEndian.Uint64(b[64:])
	return nil
}

// readHead reads the head as txn sees it.
func (s *Store) readHead(txn *lmdb.Txn, h *head) error {
	b, err := txn.Get(s.meta, keyHead)
	if lmdb.IsNotFound(err) {
		return s.corrupt("meta record %q is missing", keyHead)
	}
	if err != nil {
		return s.fail("read head", err)
	}
	if err := h.decode(b); err != nil {
		return s.corrupt("%v", err)
	}
	return nil
}

// readCheckpoint reads the checkpoint as txn sees it, or nil if nothing has
// been applied. cat must be the catalog of the same snapshot.
func (s *Store) readCheckpoint(txn *lmdb.Txn, cat *catalog) (*millrace.Checkpoint, error) {
	sealed, err := txn.Get(s.meta, keyCheckpoint)
	if lmdb.IsNotFound(err) {
		return nil, nil //nolint:nilnil // no checkpoint is no error
	}
	if err != nil {
		return nil, s.fail("read checkpoint", err)
	}
	b, err := unseal(keyCheckpoint, sealed)
	if err != nil {
		return nil, s.corrupt("%v", err)
	}
	c, err := millrace.DecodeCheckpoint(b)
	if err != nil {
		return nil, s.corrupt("checkpoint: %v", err)
	}
	c.Catalog.Schemas = cat.newestSchemas()
	return c, nil
}

// writePlace writes checkpoint and head into txn.
func (s *Store) writePlace(txn *lmdb.Txn, c *millrace.Checkpoint, h *head) error {
	bare := *c
	bare.Catalog.Schemas = nil
	if err := txn.Put(s.meta, keyCheckpoint, seal(keyCheckpoint, millrace.AppendCheckpoint(nil, &bare)), 0); err != nil {
		return s.fail("write checkpoint", err)
	}
	return s.writeHead(txn, h)
}

// writeHeader writes the signed header of the record that ends at an index. The one
// of an older index counts as none.
func (s *Store) writeHeader(txn *lmdb.Txn, index millrace.Index, header []byte) error {
	if len(header) == 0 {
		return nil
	}
	value := binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(header)+4), uint64(index))
	return s.fail("write signed header", txn.Put(s.meta, keyHeader, seal(keyHeader, append(value, header...)), 0))
}

// readHeader reads the signed header of the record that ends at an index, as txn sees
// it; nil if there is none. The result does not alias the store.
func (s *Store) readHeader(txn *lmdb.Txn, index millrace.Index) ([]byte, error) {
	sealed, err := txn.Get(s.meta, keyHeader)
	if lmdb.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, s.fail("read signed header", err)
	}
	b, err := unseal(keyHeader, sealed)
	if err == nil && len(b) < 8 {
		err = fmt.Errorf("meta record %q is cut off", keyHeader)
	}
	if err != nil {
		return nil, s.corrupt("%v", err)
	}
	if millrace.Index(binary.BigEndian.Uint64(b)) != index {
		return nil, nil
	}
	return bytes.Clone(b[8:]), nil
}

func (s *Store) writeHead(txn *lmdb.Txn, h *head) error {
	return s.fail("write head", txn.Put(s.meta, keyHead, seal(keyHead, h.append(make([]byte, 0, headSize+4))), 0))
}
