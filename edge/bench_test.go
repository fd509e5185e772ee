package edge

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/bmatsuo/lmdb-go/lmdb"

	"github.com/millrace-db/millrace"
)

// benchEntries makes puts of n rows of about 100 bytes, in random order or in
// that of their keys.
func benchEntries(b *testing.B, schema *millrace.Schema, n int, random bool) []*millrace.Entry {
	b.Helper()
	tf := tableFeed{b, schema}
	note := fmt.Sprintf("%060d", 0)
	entries := make([]*millrace.Entry, n)
	for i := range entries {
		entries[i] = tf.put(strconv.Itoa(i), note)
	}
	if random {
		rnd := rand.New(rand.NewPCG(1, 2))
		rnd.Shuffle(n, func(i, j int) { entries[i], entries[j] = entries[j], entries[i] })
	}
	return entries
}

const benchRows = 100_000

// BenchmarkApply measures puts over an existing table, with sync commits of the
// given size, beside a loop over LMDB alone that writes the same bytes.
func BenchmarkApply(b *testing.B) {
	for _, random := range []bool{false, true} {
		for _, size := range []int{1, 100, 10_000} {
			order := "sequential"
			if random {
				order = "random"
			}
			b.Run(fmt.Sprintf("store/%s/commit=%d", order, size), func(b *testing.B) { benchStore(b, random, size) })
			b.Run(fmt.Sprintf("lmdb/%s/commit=%d", order, size), func(b *testing.B) { benchLMDB(b, random, size) })
		}
	}
}

func benchStore(b *testing.B, random bool, size int) {
	s := openStore(b, b.TempDir())
	f := newFeed(b, s)
	schema := testSchema(1, 1, "t", oidInt8, "note")
	f.loaded(schema)
	entries := benchEntries(b, schema, benchRows, random)
	f.must(entries...)
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i += size {
		at := i % (benchRows - size + 1)
		if err := f.unit(entries[at : at+min(size, b.N-i)]...); err != nil {
			b.Fatal(err)
		}
	}
}

func benchLMDB(b *testing.B, random bool, size int) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	env, err := lmdb.NewEnv()
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = env.Close() }()
	if err := errFirst(env.SetMapSize(1<<30), env.SetMaxDBs(64), env.Open(b.TempDir(), 0, 0o600)); err != nil {
		b.Fatal(err)
	}
	entries := benchEntries(b, testSchema(1, 1, "t", oidInt8, "note"), benchRows, random)
	var dbi lmdb.DBI
	put := func(list []*millrace.Entry) {
		err := env.UpdateLocked(func(txn *lmdb.Txn) (err error) {
			if dbi == 0 {
				if dbi, err = txn.CreateDBI("t"); err != nil {
					return err
				}
			}
			for _, e := range list {
				if err := txn.Put(dbi, e.Key, e.Row, 0); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	put(entries)
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i += size {
		at := i % (benchRows - size + 1)
		put(entries[at : at+min(size, b.N-i)])
	}
}

func errFirst(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// BenchmarkGet measures reads of random rows: in one view, in a view each, and
// of rows that are absent, beside LMDB alone.
func BenchmarkGet(b *testing.B) {
	s := openStore(b, b.TempDir())
	f := newFeed(b, s)
	schema := testSchema(1, 1, "t", oidInt8, "note")
	f.loaded(schema)
	entries := benchEntries(b, schema, benchRows, false)
	f.must(entries...)
	rnd := rand.New(rand.NewPCG(1, 2))
	ctx := context.Background()
	get := func(v *View, key []byte, row *Row) error {
		table, err := v.Table("public.t")
		if err != nil {
			return err
		}
		return table.Get(key, row)
	}
	b.Run("one view", func(b *testing.B) {
		b.ReportAllocs()
		var row Row
		err := s.View(ctx, func(v *View) error {
			table, err := v.Table("public.t")
			if err != nil {
				return err
			}
			for range b.N {
				if err := table.Get(entries[rnd.IntN(benchRows)].Key, &row); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	})
	b.Run("view each", func(b *testing.B) {
		b.ReportAllocs()
		var row Row
		for range b.N {
			key := entries[rnd.IntN(benchRows)].Key
			if err := s.View(ctx, func(v *View) error { return get(v, key, &row) }); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("absent", func(b *testing.B) {
		b.ReportAllocs()
		var row Row
		key := append([]byte(nil), entries[0].Key...)
		for range b.N {
			binary.BigEndian.PutUint64(key, rnd.Uint64()|1<<63)
			if err := s.View(ctx, func(v *View) error { return get(v, key, &row) }); err == nil {
				continue // one of the rows after all
			}
		}
	})
	b.Run("lmdb", func(b *testing.B) {
		b.ReportAllocs()
		table := s.catalog.Load().visible["public.t"]
		txn, err := s.env.BeginTxn(nil, lmdb.Readonly)
		if err != nil {
			b.Fatal(err)
		}
		defer txn.Abort()
		txn.RawRead = true
		for range b.N {
			if _, err := txn.Get(table.live.dbi, entries[rnd.IntN(benchRows)].Key); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkAbsent measures look-ups of rows that are there and of others that are not, all
// over the same table, in turns: what the second cost beside the first.
func BenchmarkAbsent(b *testing.B) {
	s := openStore(b, b.TempDir(), func(o *Options) { o.MapSize = 1 << 30 })
	f := newFeed(b, s)
	schema := testSchema(1, 1, "t", oidInt8, "note")
	f.loaded(schema)
	tf := tableFeed{b, schema}
	note := fmt.Sprintf("%060d", 0)
	const rows = 500_000
	for i := 0; i < rows; {
		var some []*millrace.Entry
		for range 20_000 {
			some = append(some, tf.put(strconv.Itoa(2*i), note))
			i++
		}
		f.must(some...)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	ctx := context.Background()
	key := func(id uint64) []byte { // int8, sortable
		return binary.BigEndian.AppendUint64(nil, id|1<<63)
	}
	if got := tf.put("2", note).Key; !bytes.Equal(got, key(2)) {
		b.Fatalf("keys have another form: %x, %x", got, key(2))
	}
	var row Row
	get := func(k []byte, want error) {
		err := s.View(ctx, func(v *View) error {
			table, err := v.Table("public.t")
			if err != nil {
				return err
			}
			return table.Get(k, &row)
		})
		if !errors.Is(err, want) {
			b.Fatal(err)
		}
	}
	const turn = 200
	keys := make([][]byte, turn)
	var took [2]time.Duration
	b.ResetTimer()
	for n := 0; n < b.N; n += 2 * turn {
		for odd, want := range []error{nil, ErrNotFound} {
			for i := range keys {
				keys[i] = key(2*rnd.Uint64N(rows-1) + uint64(odd))
			}
			began := time.Now()
			for _, k := range keys {
				get(k, want)
			}
			took[odd] += time.Since(began)
		}
	}
	each := float64(max(b.N, 2*turn)) / 2
	b.ReportMetric(float64(took[0].Nanoseconds())/each, "ns/there")
	b.ReportMetric(float64(took[1].Nanoseconds())/each, "ns/absent")
	b.ReportMetric(float64(took[1])/float64(took[0]), "absent/there")
}

// BenchmarkScan measures rows read in key order.
func BenchmarkScan(b *testing.B) {
	s := openStore(b, b.TempDir())
	f := newFeed(b, s)
	schema := testSchema(1, 1, "t", oidInt8, "note")
	f.loaded(schema)
	f.must(benchEntries(b, schema, benchRows, false)...)
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; {
		err := s.View(context.Background(), func(v *View) error {
			table, err := v.Table("public.t")
			if err != nil {
				return err
			}
			return table.Scan(nil, nil, b.N-n, func([]byte, *Row) error { n++; return nil })
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkVerify hashes ranges of 10,000 rows in the background.
func BenchmarkVerify(b *testing.B) {
	s := openStore(b, b.TempDir())
	f := newFeed(b, s)
	const rows = 10_000
	_, source := verifyTable(b, f, oidInt8, numbers(rows)...)
	entry := source.verify(source.between(1, "", ""))
	b.ReportAllocs()
	for b.Loop() {
		f.must(entry)
		settled(b, s)
	}
	b.ReportMetric(float64(b.N)*rows/b.Elapsed().Seconds(), "rows/s")
	if v := s.Verified()[0]; v.Different+v.Skipped > 0 {
		b.Errorf("ranges differ or were skipped: %+v", v)
	}
}
