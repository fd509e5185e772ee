package edge

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"

	"github.com/bmatsuo/lmdb-go/lmdb"

	"github.com/millrace-db/millrace"
)

// Differences are kept in the store, so that a restart does not silence the
// alarm. A record holds those of one table.

const verifyFormat = 1

// maxStoredKey is how long a bound may be; longer ones are left open, which
// makes the range larger.
const maxStoredKey = 4 << 10

// verifyRecord is a record of meta in JSON.
type verifyRecord struct {
	Format      int                `json:"v"`
	Differences []storedDifference `json:"differences"`
}

type storedDifference struct {
	Low     []byte         `json:"low,omitempty"`
	High    []byte         `json:"high,omitempty"`
	Buckets uint32         `json:"buckets,omitempty"`
	Bucket  uint32         `json:"bucket,omitempty"`
	Since   millrace.Index `json:"since"`
	Index   millrace.Index `json:"index"`
	Time    time.Time      `json:"time"`
	Rows    uint64         `json:"rows"`
	Source  uint64         `json:"source_rows"`
	Reason  string         `json:"reason"`
}

func verifyKey(table millrace.TableID) []byte {
	return binary.BigEndian.AppendUint32([]byte{prefixVerify, 0}, uint32(table))
}

func encodeDifferences(list []difference) ([]byte, error) {
	r := verifyRecord{Format: verifyFormat}
	for i := range list {
		d := &list[i]
		stored := storedDifference{
			Low: d.low, High: d.high, Buckets: d.buckets, Bucket: d.bucket, Since: d.since, Index: d.index,
			Time: d.time, Rows: d.rows, Source: d.source, Reason: d.reason,
		}
		if len(d.low) > maxStoredKey {
			stored.Low = nil
		}
		if len(d.high) > maxStoredKey {
			stored.High = nil
		}
		r.Differences = append(r.Differences, stored)
	}
	return json.Marshal(&r)
}

func decodeDifferences(key, value []byte) (id millrace.TableID, list []difference, err error) {
	var r verifyRecord
	if len(key) != 6 {
		return 0, nil, fmt.Errorf("record of differences stands under a key of %d bytes", len(key))
	}
	if err := json.Unmarshal(value, &r); err != nil {
		return 0, nil, fmt.Errorf("record of differences: %w", err)
	}
	if r.Format != verifyFormat {
		return 0, nil, fmt.Errorf("record of differences has format %d, this process reads %d", r.Format, verifyFormat)
	}
	for _, d := range r.Differences {
		list = append(list, difference{
			low: d.Low, high: d.High, buckets: d.Buckets, bucket: d.Bucket, since: d.Since, index: d.Index,
			time: d.Time, rows: d.Rows, source: d.Source, reason: d.Reason,
		})
	}
	return millrace.TableID(binary.BigEndian.Uint32(key[2:])), list, nil
}

// storeDifferences stores what was found since the last commit, where no other
// commit follows.
func (w *Writer) storeDifferences() error {
	if !w.s.verifier.dirty() {
		return nil
	}
	if err := w.Begin(); err != nil {
		return err
	}
	stored, err := w.s.verifier.write(w.txn, nil)
	if err == nil {
		err = w.finish(w.s.place.Load())
	}
	if err != nil {
		w.Abort()
		return err
	}
	stored()
	return nil
}

// eachDifferences calls fn with what is stored of each table.
func (s *Store) eachDifferences(txn *lmdb.Txn, fn func(id millrace.TableID, list []difference)) error {
	cur, err := txn.OpenCursor(s.meta)
	if err != nil {
		return s.fail("read differences", err)
	}
	defer cur.Close()
	for k, value, err := cur.Get([]byte{prefixVerify, 0}, nil, lmdb.SetRange); ; k, value, err = cur.Get(nil, nil, lmdb.Next) {
		if lmdb.IsNotFound(err) || err == nil && (len(k) < 2 || k[0] != prefixVerify || k[1] != 0) {
			return nil
		}
		if err != nil {
			return s.fail("read differences", err)
		}
		b, err := unseal(k, value)
		if err != nil {
			return s.corrupt("%v", err)
		}
		id, list, err := decodeDifferences(k, b)
		if err != nil {
			return s.corrupt("%v", err)
		}
		fn(id, list)
	}
}

// load takes in what an earlier process has found.
func (v *verifier) load(txn *lmdb.Txn, cat *catalog) error {
	return v.s.eachDifferences(txn, func(id millrace.TableID, list []difference) {
		t := v.table(cat.known(id))
		t.list = list
		v.differences.Add(int64(len(list)))
	})
}

// dirty reports whether something found has not been stored.
func (v *verifier) dirty() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, t := range v.tables {
		if t.version != t.stored {
			return true
		}
	}
	return v.unproven.dirty()
}

// write brings what was found since the last time into the transaction, and
// takes out what is stored of tables whose load ends in it. The function it
// returns is to be called once that is committed.
func (v *verifier) write(txn *lmdb.Txn, loaded []millrace.TableID) (committed func(), err error) {
	type written struct {
		t       *verified
		version uint64
	}
	var all []written
	v.mu.Lock()
	defer v.mu.Unlock()
	for id, t := range v.tables {
		if t.version == t.stored {
			continue
		}
		if err := v.writeTable(txn, id, t.list); err != nil {
			return nil, err
		}
		all = append(all, written{t, t.version})
	}
	for _, id := range loaded {
		if err := v.writeTable(txn, id, nil); err != nil {
			return nil, err
		}
	}
	left := -1
	if v.unproven.dirty() {
		left = len(v.unproven.tables)
		if err := v.s.writeUnproven(txn, v.unproven); err != nil {
			return nil, err
		}
	}
	return func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.unproven.storedAs(left)
		for _, w := range all {
			w.t.stored = max(w.t.stored, w.version)
		}
	}, nil
}

func (v *verifier) writeTable(txn *lmdb.Txn, id millrace.TableID, list []difference) error {
	key := verifyKey(id)
	if len(list) == 0 {
		if err := txn.Del(v.s.meta, key, nil); err != nil && !lmdb.IsNotFound(err) {
			return v.s.fail("remove record of differences", err)
		}
		return nil
	}
	b, err := encodeDifferences(list)
	if err != nil {
		return fmt.Errorf("write record of differences: %w", err)
	}
	return v.s.fail("write record of differences", txn.Put(v.s.meta, key, seal(key, b), 0))
}
