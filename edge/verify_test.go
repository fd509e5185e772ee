package edge

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bmatsuo/lmdb-go/lmdb"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
)

// sourceRows are what the source has of a table, by id.
type sourceRows struct {
	t      testing.TB
	schema *millrace.Schema
	rows   map[string][]string
}

func newSource(t testing.TB, schema *millrace.Schema) *sourceRows {
	return &sourceRows{t: t, schema: schema, rows: make(map[string][]string)}
}

func (s *sourceRows) put(values ...string) []string {
	s.rows[values[0]] = values
	return values
}

// verify makes the entry that the source would send for a range.
func (s *sourceRows) verify(v millrace.VerifyRange, leftOut ...string) *millrace.Entry {
	s.t.Helper()
	out := make(map[string]bool)
	for _, id := range leftOut {
		out[id] = true
		v.LeftOut = append(v.LeftOut, encodeKey(s.t, s.schema, id))
	}
	plan := millrace.NewVerifyPlan(s.schema)
	var sum millrace.VerifySum
	for id, values := range s.rows {
		key := encodeKey(s.t, s.schema, id)
		if out[id] || !v.Holds(key) {
			continue
		}
		columns := make([]millrace.Datum, len(values))
		for i, value := range values {
			if columns[i].Text = []byte(value); value == "NULL" {
				columns[i] = millrace.Datum{State: millrace.ColumnNull}
			}
		}
		if err := sum.Add(plan, key, columns); err != nil {
			s.t.Fatal(err)
		}
	}
	v.Rows, v.Hash = sum.Rows, sum.Sum()
	return &millrace.Entry{Kind: millrace.KindVerify, Table: s.schema.Table, Verify: &v, Last: true}
}

func (s *sourceRows) between(pass uint64, low, high string) millrace.VerifyRange {
	v := millrace.VerifyRange{ID: pass}
	if low != "" {
		v.Low = encodeKey(s.t, s.schema, low)
	}
	if high != "" {
		v.High = encodeKey(s.t, s.schema, high)
	}
	return v
}

const verifyWait = time.Minute

// settled waits until everything that was handed over has been compared.
func settled(t testing.TB, s *Store) []TableVerify {
	t.Helper()
	deadline := time.NewTimer(verifyWait)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for s.Verifying() != 0 {
		select {
		case <-deadline.C:
			t.Fatalf("Verify entries at index %v are not compared after %v", s.Verifying(), verifyWait)
		case <-tick.C:
		}
	}
	return s.Verified()
}

func oneTable(t testing.TB, s *Store) TableVerify {
	t.Helper()
	all := settled(t, s)
	if len(all) != 1 {
		t.Fatalf("%d tables were verified, want 1: %+v", len(all), all)
	}
	return all[0]
}

// wantCounts compares equal/different/skipped since the start.
func wantCounts(t testing.TB, s *Store, what, want string) TableVerify {
	t.Helper()
	v := oneTable(t, s)
	if got := fmt.Sprintf("%d/%d/%d", v.Equal, v.Different, v.Skipped); got != want {
		t.Errorf("%s: %s ranges equal/different/skipped, want %s: %+v", what, got, want, v)
	}
	return v
}

// rawPut puts a row into the live generation behind the store's back, in the
// form that the store itself would give it.
func rawPut(t testing.TB, s *Store, schema *millrace.Schema, damage bool, values ...string) {
	t.Helper()
	table := s.catalog.Load().tables[schema.Table]
	key := encodeKey(t, schema, values[0])
	row := encodeRow(schema.Version, values...)
	stored := storeKey(nil, key)
	value := make([]byte, valueSize(stored, key, row))
	fillValue(value, table.seed, stored, key, row)
	if damage {
		value[len(value)-1] ^= 1
	}
	rawChange(t, s, func(txn *lmdb.Txn) error {
		return errFirst(rawForget(s, txn, table.live.dbi, stored), txn.Put(table.live.dbi, stored, value, 0))
	})
}

func rawDelete(t testing.TB, s *Store, schema *millrace.Schema, id string) {
	t.Helper()
	dbi := s.catalog.Load().tables[schema.Table].live.dbi
	stored := storeKey(nil, encodeKey(t, schema, id))
	rawChange(t, s, func(txn *lmdb.Txn) error {
		return errFirst(rawForget(s, txn, dbi, stored), txn.Del(dbi, stored, nil))
	})
}

// rawForget removes the pieces of a row, if it has some.
func rawForget(s *Store, txn *lmdb.Txn, dbi lmdb.DBI, stored []byte) error {
	value, err := txn.Get(dbi, stored)
	if lmdb.IsNotFound(err) {
		return nil
	}
	old, err := heldBy(value)
	for n := 0; err == nil && n < old.pieces; n++ {
		err = txn.Del(s.catalog.Load().pieces, appendPieceKey(nil, old.id, n), nil)
	}
	return err
}

func rawChange(t testing.TB, s *Store, fn func(*lmdb.Txn) error) {
	t.Helper()
	if err := s.env.Update(fn); err != nil {
		t.Fatal(err)
	}
}

func verifyTable(t testing.TB, f *feed, keyType uint32, ids ...string) (tableFeed, *sourceRows) {
	t.Helper()
	tf := f.loaded(testSchema(7, 1, "accounts", keyType, "note", "big"))
	source := newSource(t, tf.schema)
	var unit []*millrace.Entry
	for _, id := range ids {
		unit = append(unit, tf.put(source.put(id, "note "+id, "NULL")...))
	}
	f.must(unit...)
	return tf, source
}

func numbers(n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = strconv.Itoa(i + 1)
	}
	return ids
}

// recorder keeps log lines.
type recorder struct {
	mu    sync.Mutex
	lines strings.Builder
}

func (r *recorder) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lines.Write(b)
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lines.String()
}

func TestVerifyFindsWhatDiffers(t *testing.T) {
	log := new(recorder)
	registry := prometheus.NewRegistry()
	s := openStore(t, t.TempDir(), func(o *Options) {
		o.Logger = slog.New(slog.NewTextHandler(log, nil))
		o.Registerer = registry
	})
	f := newFeed(t, s)
	tf, source := verifyTable(t, f, oidInt8, numbers(20)...)
	whole := source.between(1, "", "")
	f.must(source.verify(whole))
	v := wantCounts(t, s, "equal rows", "1/0/0")
	if v.Index != f.index || v.Pass.Rows != 20 || v.Pass.ID != 1 || v.Time.IsZero() || v.Table != "public.accounts" {
		t.Errorf("after the first: %+v at index %v", v, f.index)
	}

	// As many rows, one of another content.
	rawPut(t, s, tf.schema, false, "7", "altered", "NULL")
	f.must(source.verify(whole))
	v = wantCounts(t, s, "an altered row", "1/1/0")
	if len(v.Differences) != 1 || v.Differences[0].Rows != 20 || v.Differences[0].SourceRows != 20 || v.Differences[0].Index != f.index ||
		!strings.Contains(v.Differences[0].Reason, "content") {
		t.Errorf("an altered row: %+v", v)
	}
	if !strings.Contains(log.String(), "level=ERROR") || !strings.Contains(log.String(), `mend="millrace load public.accounts"`) {
		t.Errorf("the log does not raise an alarm with its mend: %s", log)
	}
	if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
		t.Errorf("%d alarms, want 1", n)
	}
	f.must(source.verify(whole))
	v = wantCounts(t, s, "again", "1/2/0")
	if n := strings.Count(log.String(), "level=ERROR"); n != 1 || v.Differences[0].Since >= v.Differences[0].Index {
		t.Errorf("the same difference again: %d alarms, want 1; %+v", n, v.Differences)
	}
	// It is found in the range that it is in, and in no other.
	f.must(source.verify(source.between(2, "", "7")))
	f.must(source.verify(source.between(2, "7", "8")))
	f.must(source.verify(source.between(2, "8", "")))
	v = wantCounts(t, s, "in ranges", "3/3/0")
	if len(v.Differences) != 1 || v.Differences[0].Low != "7" || v.Differences[0].High != "8" || v.Pass.Equal != 2 || v.Pass.Different != 1 {
		t.Errorf("in ranges: %+v", v)
	}
	rawPut(t, s, tf.schema, false, source.rows["7"]...)
	f.must(source.verify(whole))
	if v = wantCounts(t, s, "mended", "4/3/0"); len(v.Differences) != 0 || s.verifier.differences.Load() != 0 {
		t.Errorf("mended: %+v", v)
	}

	rawDelete(t, s, tf.schema, "3")
	f.must(source.verify(whole))
	v = wantCounts(t, s, "a missing row", "4/4/0")
	if v.Differences[0].Rows != 19 || !strings.Contains(v.Differences[0].Reason, "19 rows here, 20 at the source") {
		t.Errorf("a missing row: %+v", v)
	}
	rawPut(t, s, tf.schema, false, source.rows["3"]...)
	rawPut(t, s, tf.schema, false, "21", "extra", "NULL")
	f.must(source.verify(whole))
	if v = wantCounts(t, s, "a row too many", "4/5/0"); v.Differences[0].Rows != 21 {
		t.Errorf("a row too many: %+v", v)
	}
	rawDelete(t, s, tf.schema, "21")
	// One lost and one too many keep the count.
	rawDelete(t, s, tf.schema, "3")
	rawPut(t, s, tf.schema, false, "33", "note 3", "NULL")
	f.must(source.verify(whole))
	wantCounts(t, s, "another key", "4/6/0")
	rawDelete(t, s, tf.schema, "33")

	rawPut(t, s, tf.schema, true, source.rows["3"]...)
	f.must(source.verify(whole))
	v = wantCounts(t, s, "a damaged row", "4/7/0")
	if !strings.Contains(v.Differences[0].Reason, "row of key 3 is damaged") {
		t.Errorf("a damaged row: %+v", v)
	}
	f.must(source.verify(source.between(3, "4", "")))
	wantCounts(t, s, "beside the damaged row", "5/7/0")
	rawPut(t, s, tf.schema, false, source.rows["3"]...)
	f.must(source.verify(whole))
	wantCounts(t, s, "at the end", "6/7/0")

	metrics, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, m := range metrics {
		for _, one := range m.Metric {
			switch m.GetName() {
			case "millrace_edge_verify_ranges_total":
				got[one.Label[0].GetValue()] = one.Counter.GetValue()
			case "millrace_edge_verify_differences":
				got["differences"] = one.Gauge.GetValue()
			}
		}
	}
	if want := map[string]float64{"equal": 6, "different": 7, "skipped": 0, "differences": 0}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("metrics are %v, want %v", got, want)
	}
}

// Keys left out take no part, here as at the source: a transaction on the way
// changed them.
func TestVerifyLeavesKeysOut(t *testing.T) {
	s := openStore(t, t.TempDir())
	f := newFeed(t, s)
	tf, source := verifyTable(t, f, oidInt8, numbers(20)...)
	f.must(tf.put("5", "newer", "NULL"), tf.delete("6"), tf.put("30", "newer", "NULL"))
	whole := source.between(1, "", "")
	f.must(source.verify(whole, "5", "6", "30"))
	wantCounts(t, s, "all left out", "1/0/0")
	for i, left := range [][]string{{"6", "30"}, {"5", "30"}, {"5", "6"}} {
		f.must(source.verify(whole, left...))
		wantCounts(t, s, fmt.Sprint("left out ", left), fmt.Sprintf("1/%d/0", i+1))
	}
}

// Rows written under several schemas equal what the source has under its newest,
// where columns that were added are NULL.
func TestVerifySeveralSchemas(t *testing.T) {
	s := openStore(t, t.TempDir())
	f := newFeed(t, s)
	tf, source := verifyTable(t, f, oidInt8, numbers(5)...)
	newer := tableFeed{t, testSchema(7, 2, "accounts", oidInt8, "added", "big", "note")}
	f.must(newer.describe(), newer.put("6", "x", "y", "NULL"))
	now := newSource(t, newer.schema)
	for id, r := range source.rows {
		now.put(id, "NULL", r[2], r[1])
	}
	now.put("6", "x", "y", "NULL")
	f.must(now.verify(now.between(1, "", "")))
	wantCounts(t, s, "two schemas", "1/0/0")
	f.must(tf.put("5", "NULL", "note 5"))
	f.must(now.verify(now.between(2, "", "")))
	wantCounts(t, s, "a text under another column", "1/1/0")
}

// Long keys stand in the store in another order than theirs: ranges that begin
// or end among them hold the same keys all the same.
func TestVerifyRandomRanges(t *testing.T) {
	seed := testSeed(t)
	rng := rand.New(rand.NewPCG(seed, 1))
	s := openStore(t, t.TempDir())
	f := newFeed(t, s)
	var ids []string
	for range 300 {
		head := strings.Repeat("k", []int{0, 1, 3, 430, 436, 437, 438, 439, 440, 441, 470, 471, 472, 473, 600}[rng.IntN(15)])
		ids = append(ids, head+strconv.FormatInt(int64(rng.IntN(60)), 36))
	}
	tf, source := verifyTable(t, f, oidText, ids...)
	bound := func() string {
		if rng.IntN(8) == 0 {
			return ""
		}
		return ids[rng.IntN(len(ids))]
	}
	equal, different := 0, 0
	for i := range 200 {
		v := source.between(uint64(i), bound(), bound())
		if rng.IntN(3) == 0 {
			v.Buckets = uint32(1 + rng.IntN(4))
			v.Bucket = rng.Uint32N(v.Buckets)
		}
		victim := ids[rng.IntN(len(ids))]
		held := v.Holds(encodeKey(t, tf.schema, victim))
		alter := rng.IntN(2) == 0
		if alter {
			rawPut(t, s, tf.schema, false, victim, "altered", "NULL")
		}
		f.must(source.verify(v))
		if alter && held {
			different++
		} else {
			equal++
		}
		wantCounts(t, s, fmt.Sprintf("range %d: %+v, %q altered: %v, held: %v", i, v, victim, alter, held), fmt.Sprintf("%d/%d/0", equal, different))
		if t.Failed() {
			return
		}
		rawPut(t, s, tf.schema, false, source.rows[victim]...)
	}
	if different < 10 {
		t.Errorf("only %d of 200 ranges held an altered row", different)
	}
}

// The buckets of a table are read in one go.
func TestVerifyBuckets(t *testing.T) {
	s := openStore(t, t.TempDir())
	f := newFeed(t, s)
	tf, source := verifyTable(t, f, oidInt8, numbers(200)...)
	unit := func(pass uint64, buckets uint32) (all []*millrace.Entry) {
		for b := range buckets {
			e := source.verify(millrace.VerifyRange{ID: pass, Buckets: buckets, Bucket: b})
			e.Last = b == buckets-1
			all = append(all, e)
		}
		return all
	}
	f.must(unit(1, 8)...)
	wantCounts(t, s, "eight buckets", "8/0/0")
	rawPut(t, s, tf.schema, false, "77", "altered", "NULL")
	f.must(unit(2, 8)...)
	v := wantCounts(t, s, "one altered", "15/1/0")
	if want := millrace.VerifyBucket(encodeKey(t, tf.schema, "77"), 8); len(v.Differences) != 1 || v.Differences[0].Bucket != want || v.Differences[0].Buckets != 8 {
		t.Errorf("differences are %+v, want bucket %d of 8", v.Differences, want)
	}
	// A pass with another number of buckets clears it when all of them are equal.
	rawPut(t, s, tf.schema, false, source.rows["77"]...)
	pass := unit(3, 3)
	f.must(pass[:2]...)
	if v = wantCounts(t, s, "two of three", "17/1/0"); len(v.Differences) != 1 {
		t.Errorf("two of three buckets have cleared the difference: %+v", v)
	}
	f.must(pass[2:]...)
	if v = wantCounts(t, s, "three of three", "18/1/0"); len(v.Differences) != 0 {
		t.Errorf("three of three buckets have not cleared the difference: %+v", v)
	}
}

// What was found survives a restart, and goes with the load that mends it.
func TestVerifyDifferencesAreKept(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	f := newFeed(t, s)
	tf, source := verifyTable(t, f, oidInt8, numbers(20)...)
	rawDelete(t, s, tf.schema, "3")
	rawPut(t, s, tf.schema, false, "12", "altered", "NULL")
	f.must(source.verify(source.between(1, "2", "9")))
	f.must(source.verify(source.between(1, "9", "")))
	want := settled(t, s)[0].Differences
	if len(want) != 2 {
		t.Fatalf("differences are %+v, want 2", want)
	}
	reopen := func() {
		t.Helper()
		f.w.Close()
		closeStore(t, s)
		s = openStore(t, dir)
		f = newFeed(t, s)
	}
	for _, how := range []string{"with the writer's close", "with a commit"} {
		reopen()
		if got := oneTable(t, s).Differences; fmt.Sprint(got) != fmt.Sprint(want) || s.verifier.differences.Load() != 2 {
			t.Errorf("stored %s: differences are %+v, want %+v", how, got, want)
		}
		f.must(&millrace.Entry{Kind: millrace.KindHeartbeat})
	}

	// A part that is equal again is taken out; the rest stays.
	f.must(source.verify(source.between(2, "", "3")))
	f.must(source.verify(source.between(2, "4", "10")))
	v := oneTable(t, s)
	if len(v.Differences) != 2 || v.Differences[0].Low != "3" || v.Differences[0].High != "4" || v.Differences[1].Low != "10" {
		t.Errorf("after parts were equal: %+v", v.Differences)
	}

	load := func(ids ...string) {
		f.must(tf.control(millrace.KindLoadBegin, 9))
		for _, id := range ids {
			f.must(tf.load(9, source.rows[id]...))
		}
	}
	load(numbers(20)...)
	f.must(source.verify(source.between(3, "", "")))
	if v := wantCounts(t, s, "while a load is under way", "2/0/1"); v.SkipReason != skipLoading || len(v.Differences) != 2 {
		t.Errorf("while a load is under way: %+v", v)
	}
	f.must(tf.control(millrace.KindLoadEnd, 9))
	if got := oneTable(t, s).Differences; len(got) != 0 {
		t.Errorf("after a load: %+v", got)
	}
	reopen()
	for _, v := range settled(t, s) {
		if len(v.Differences) != 0 {
			t.Errorf("after a load and a restart: %+v", v.Differences)
		}
	}
	f.must(source.verify(source.between(4, "", "")))
	if got := wantCounts(t, s, "after the load", "1/0/0"); len(got.Differences) != 0 {
		t.Errorf("after the load: %+v", got)
	}

	// A table that is dropped takes its differences along.
	rawDelete(t, s, tf.schema, "3")
	f.must(source.verify(source.between(5, "", "")))
	if got := oneTable(t, s).Differences; len(got) != 1 {
		t.Fatalf("before the drop: %+v", got)
	}
	f.must(&millrace.Entry{Kind: millrace.KindHeartbeat})
	f.must(&millrace.Entry{Kind: millrace.KindDrop, Table: 7})
	for range 2 {
		if got := s.Verified(); len(got) != 0 || s.verifier.differences.Load() != 0 {
			t.Errorf("after the drop: %+v", got)
		}
		reopen()
	}
}

// What is compared are the rows as of the entry's own commit, of the generation
// that was live then, whatever is committed before the background comes to it.
func TestVerifyReadsItsOwnCommit(t *testing.T) {
	s := openStore(t, t.TempDir())
	f := newFeed(t, s)
	tf, source := verifyTable(t, f, oidInt8, numbers(2000)...)
	for round := range 30 {
		f.must(source.verify(source.between(uint64(round), "", "")))
		switch round % 3 {
		case 0: // other rows
			var unit []*millrace.Entry
			for i := range 2000 {
				unit = append(unit, tf.put(source.put(strconv.Itoa(i+1), "round "+strconv.Itoa(round), "NULL")...))
			}
			f.must(unit...)
		case 1: // no rows
			f.must(&millrace.Entry{Kind: millrace.KindTruncate, Table: 7})
			f.sweep()
			clear(source.rows)
		case 2: // another generation, from a load
			load := millrace.LoadID(100 + round)
			f.must(tf.control(millrace.KindLoadBegin, load))
			for i := range 100 {
				f.must(tf.load(load, source.put(strconv.Itoa(i+1), "load", "NULL")...))
			}
			f.must(tf.control(millrace.KindLoadEnd, load))
			f.sweep()
		}
	}
	v := oneTable(t, s)
	if v.Different != 0 || v.Equal == 0 || v.Equal+v.Skipped != 30 {
		t.Errorf("of 30 ranges: %+v", v)
	}
}

// More entries than can be compared are skipped and counted, and the writer goes
// on. Closing the store does not wait for them either.
func TestVerifyDoesNotHoldUpTheWriter(t *testing.T) {
	s := openStore(t, t.TempDir())
	f := newFeed(t, s)
	_, source := verifyTable(t, f, oidInt8, numbers(10_000)...)
	// Reading this takes minutes: it is read once for each range.
	long := slices.Repeat([]*millrace.Entry{source.verify(source.between(1, "", ""))}, 30_000)
	for i := range long[1:] {
		e := *long[i]
		e.Last = false
		long[i] = &e
	}
	f.must(long...)
	from := f.index
	first := source.verify(source.between(2, "", "2"))
	const more = 3 * verifyQueue
	for range more {
		f.must(first)
	}
	if s.Index() != from+more {
		t.Errorf("the store is at index %v, want %v", s.Index(), from+more)
	}
	if s.Verifying() != from {
		t.Errorf("compared up to index %v, want it to read those of %v still", s.Verifying(), from)
	}
	if v := s.Verified()[0]; v.Skipped < more-verifyQueue || v.SkipReason != skipBusy {
		t.Errorf("of %d entries behind a long one were skipped: %+v", more, v)
	}
	f.w.Close()
	closeStore(t, s)
}

// A snapshot is given up when it is too old, and that is said.
func TestVerifyGivesUpOldSnapshots(t *testing.T) {
	s := openStore(t, t.TempDir(), func(o *Options) { o.MaxVerifyAge = time.Nanosecond })
	f := newFeed(t, s)
	_, source := verifyTable(t, f, oidInt8, numbers(10)...)
	f.must(source.verify(source.between(1, "", "")))
	if v := wantCounts(t, s, "too old", "0/0/1"); !strings.Contains(v.SkipReason, "took longer than 1ns") {
		t.Errorf("skipped because %q", v.SkipReason)
	}
}

func TestVerifyEntryInTheMiddle(t *testing.T) {
	s := openStore(t, t.TempDir())
	f := newFeed(t, s)
	tf, source := verifyTable(t, f, oidInt8, numbers(10)...)
	after := tf.put("11", "after", "NULL")
	after.Last = true
	f.must(source.verify(source.between(1, "", "")), after)
	if v := wantCounts(t, s, "a unit behind it", "0/0/1"); v.SkipReason != skipMiddle {
		t.Errorf("skipped because %q, want %q", v.SkipReason, skipMiddle)
	}
	first := tf.put(source.put("11", "first", "NULL")...)
	first.Last = true
	f.must(first, source.verify(source.between(2, "", "")))
	wantCounts(t, s, "a unit before it", "1/0/1")
	if err := f.apply(source.verify(source.between(3, "", ""))); err != nil || !f.w.Verifying() {
		t.Errorf("Verifying is %v after a Verify entry (%v)", f.w.Verifying(), err)
	}
	f.w.Abort()
	if f.w.Verifying() {
		t.Error("Verifying after Abort")
	}
	f.index--
	wantCounts(t, s, "given up", "1/0/1")
}

// Of a table that has no rows here yet there is nothing to compare.
func TestVerifyWithoutRows(t *testing.T) {
	s := openStore(t, t.TempDir())
	f := newFeed(t, s)
	source := newSource(t, testSchema(7, 1, "accounts", oidInt8, "note", "big"))
	f.must(source.verify(source.between(1, "", "")))
	if v := wantCounts(t, s, "an unknown table", "0/0/1"); v.SkipReason != skipUnknown {
		t.Errorf("skipped because %q, want %q", v.SkipReason, skipUnknown)
	}
}

// Many differences are kept in bounded room, and none is forgotten: a pass that
// is equal clears them all, and nothing less does.
func TestVerifyManyDifferences(t *testing.T) {
	s := openStore(t, t.TempDir())
	f := newFeed(t, s)
	n := 3 * maxDifferences
	tf, source := verifyTable(t, f, oidInt8, numbers(n)...)
	pass := func(id uint64) {
		for i := 1; i <= n; i += 2 {
			f.must(source.verify(source.between(id, strconv.Itoa(i), strconv.Itoa(i+2))))
			settled(t, s)
		}
	}
	for i := 1; i <= n; i += 2 {
		rawDelete(t, s, tf.schema, strconv.Itoa(i))
	}
	pass(1)
	v := oneTable(t, s)
	if got := len(v.Differences) + v.More; got != maxDifferences || len(v.Differences) != MaxDifferencesShown || v.Different != uint64(n/2) {
		t.Errorf("%d differences are kept, want %d: %+v", got, maxDifferences, v)
	}
	for i := 1; i < n-2; i += 2 {
		rawPut(t, s, tf.schema, false, source.rows[strconv.Itoa(i)]...)
	}
	pass(2)
	if v = oneTable(t, s); len(v.Differences)+v.More != 1 {
		t.Errorf("after all but one were mended: %+v", v)
	}
	rawPut(t, s, tf.schema, false, source.rows[strconv.Itoa(n-1)]...)
	pass(3)
	if v = oneTable(t, s); len(v.Differences) != 0 {
		t.Errorf("after all were mended: %+v", v)
	}
}
