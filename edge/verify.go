package edge

import (
	"bytes"
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace-db/millrace"
)

// TableVerify says what became of the Verify entries of a table at this edge.
type TableVerify struct {
	// Table is the qualified name.
	Table string           `json:"table"`
	ID    millrace.TableID `json:"id"`
	// Index and Time are those of the newest range that was compared: the end of
	// its unit, and when this edge compared it. Zero if none was.
	Index millrace.Index `json:"index"`
	Time  time.Time      `json:"time,omitzero"`
	// Equal, Different and Skipped count ranges since the store was opened.
	// SkipReason says why the newest skipped one was.
	Equal      uint64 `json:"equal"`
	Different  uint64 `json:"different"`
	Skipped    uint64 `json:"skipped"`
	SkipReason string `json:"skip_reason,omitempty"`
	// Pass is the newest pass over the table.
	Pass VerifyPass `json:"pass"`
	// Differences are ranges whose rows differ from the source's, oldest first,
	// at most MaxDifferencesShown of them; More is how many there are besides.
	Differences []VerifyDifference `json:"differences,omitempty"`
	More        int                `json:"more,omitempty"`
}

// MaxDifferencesShown is how many differences of a table are shown in full.
const MaxDifferencesShown = 3

// VerifyPass is what is known of one pass over a table: the Verify entries that
// share an ID.
type VerifyPass struct {
	ID uint64 `json:"id"`
	// Equal, Different and Skipped count the pass's ranges that are done, Rows
	// the rows here in those that were compared.
	Equal     uint64 `json:"equal"`
	Different uint64 `json:"different"`
	Skipped   uint64 `json:"skipped"`
	Rows      uint64 `json:"rows"`
	// From and To are the lowest and highest index at which they stood.
	From millrace.Index `json:"from"`
	To   millrace.Index `json:"to"`
}

// VerifyDifference is a range of keys in which the rows here are not those that
// the source had.
type VerifyDifference struct {
	// Low and High are the first key of the range and the one that it ends
	// before, in the form for people; empty where the range has no bound there.
	Low  string `json:"low"`
	High string `json:"high"`
	// Buckets and Bucket tell that only keys of one bucket were compared, where
	// Buckets is not 0.
	Buckets uint32 `json:"buckets,omitempty"`
	Bucket  uint32 `json:"bucket,omitempty"`
	// Since is the index at which the difference was found first; Index and Time
	// are of the newest time.
	Since millrace.Index `json:"since"`
	Index millrace.Index `json:"index"`
	Time  time.Time      `json:"time"`
	// Rows and SourceRows are the numbers of rows here and at the source.
	Rows       uint64 `json:"rows"`
	SourceRows uint64 `json:"source_rows"`
	// Reason says what is different.
	Reason string `json:"reason"`
}

const (
	// maxDifferences is how many a table keeps apart. One more is merged with
	// the last.
	maxDifferences = 32
	// maxBucketsNoted bounds what is noted of a whole pass in buckets.
	maxBucketsNoted = 1 << 16
)

// difference is a VerifyDifference with its bounds as keys.
type difference struct {
	low, high       []byte
	buckets, bucket uint32
	since, index    millrace.Index
	time            time.Time
	rows, source    uint64
	reason          string
	// equal notes which buckets of how many were found equal since, over the
	// whole range: where the number of buckets has changed, all of them
	// together clear it.
	equal   map[uint32]bool
	equalOf uint32
}

// covers reports whether the keys from low to before high are all of those of d.
func (d *difference) covers(low, high []byte) bool {
	return bytes.Compare(low, d.low) <= 0 && (len(high) == 0 || len(d.high) > 0 && bytes.Compare(high, d.high) >= 0)
}

// overlaps reports whether d has keys from low to before high.
func (d *difference) overlaps(low, high []byte) bool {
	return (len(high) == 0 || bytes.Compare(d.low, high) < 0) && (len(d.high) == 0 || bytes.Compare(low, d.high) < 0)
}

// settle takes a range that was found equal out of d, and reports whether
// nothing is left. Ranges come in ascending order within a pass, and where one
// ends in the middle of d the next goes on from there.
func (d *difference) settle(v *millrace.VerifyRange) (gone bool) {
	whole := d.covers(v.Low, v.High)
	switch {
	case v.Buckets == 0 || v.Buckets == d.buckets && v.Bucket == d.bucket:
		if whole {
			return true
		}
		if bytes.Compare(v.Low, d.low) <= 0 && len(v.High) > 0 && bytes.Compare(v.High, d.low) > 0 {
			d.low = bytes.Clone(v.High)
		}
		if bytes.Compare(v.Low, d.low) > 0 && (len(v.High) == 0 || len(d.high) > 0 && bytes.Compare(v.High, d.high) >= 0) &&
			(len(d.high) == 0 || bytes.Compare(v.Low, d.high) < 0) {
			d.high = bytes.Clone(v.Low)
		}
	case whole && v.Buckets <= maxBucketsNoted:
		if d.equalOf != v.Buckets {
			d.equal, d.equalOf = make(map[uint32]bool), v.Buckets
		}
		d.equal[v.Bucket] = true
		return len(d.equal) == int(v.Buckets)
	}
	return false
}

// verified is what is known of one table.
type verified struct {
	TableVerify
	codec *table // for keys in the form for people; nil until a range has come
	list  []difference
	// loaded is the index at which the newest load ended: what was found before
	// is of rows that are gone.
	loaded millrace.Index
	// skipping is the reason that was logged last; empty once a range was
	// compared.
	skipping string
	// version counts changes of list, stored is the one that is on disk.
	version, stored uint64
}

// verifier compares stored rows with what Verify entries say, in the background
// and from snapshots that were taken at their commits.
type verifier struct {
	s    *Store
	jobs chan *verifyJob

	// news counts changes of what is wrong with any table.
	news atomic.Uint64
	// differences counts them over all tables.
	differences atomic.Int64

	mu     sync.Mutex
	tables map[millrace.TableID]*verified
	// unproven are the tables with rows of an image that no pass has compared yet;
	// nil if there are none.
	unproven *unproven
	// pending are the indexes of the commits whose Verify entries are not
	// compared, in their order.
	pending []millrace.Index
	// plans are those of the schemas that were met; the background's own.
	plans map[*millrace.Schema]*millrace.VerifyPlan
}

const (
	// verifyQueue is how many snapshots may wait to be compared. Each keeps the
	// pages of its time from being used again.
	verifyQueue      = 16
	defaultVerifyAge = time.Minute
)

func newVerifier(s *Store) *verifier {
	return &verifier{
		s: s, jobs: make(chan *verifyJob, verifyQueue),
		tables: make(map[millrace.TableID]*verified),
		plans:  make(map[*millrace.Schema]*millrace.VerifyPlan),
	}
}

// Verified returns what became of Verify entries, in the order of the tables'
// names. A store that was opened with ReadOnly knows what was stored when it was
// opened.
func (s *Store) Verified() []TableVerify {
	v := s.verifier
	v.mu.Lock()
	defer v.mu.Unlock()
	all := make([]TableVerify, 0, len(v.tables))
	for id, t := range v.tables {
		shown := t.TableVerify
		if known := s.catalog.Load().tables[id]; known != nil {
			t.codec = known
		}
		shown.Table = t.codec.name()
		shown.Differences = nil
		for i := range t.list[:min(len(t.list), MaxDifferencesShown)] {
			shown.Differences = append(shown.Differences, t.list[i].shown(t.codec))
		}
		shown.More = len(t.list) - len(shown.Differences)
		all = append(all, shown)
	}
	slices.SortFunc(all, func(a, b TableVerify) int {
		return cmp.Or(cmp.Compare(a.Table, b.Table), cmp.Compare(a.ID, b.ID))
	})
	return all
}

// Verifying returns the index of the oldest Verify entries that are not compared
// yet, 0 if there are none: what stands before it is done.
func (s *Store) Verifying() millrace.Index {
	s.verifier.mu.Lock()
	defer s.verifier.mu.Unlock()
	if len(s.verifier.pending) == 0 {
		return 0
	}
	return s.verifier.pending[0]
}

// VerifyNews counts the times that a difference was found or went away.
func (s *Store) VerifyNews() uint64 { return s.verifier.news.Load() }

func (d *difference) shown(t *table) VerifyDifference {
	shown := VerifyDifference{
		Buckets: d.buckets, Bucket: d.bucket, Since: d.since, Index: d.index, Time: d.time,
		Rows: d.rows, SourceRows: d.source, Reason: d.reason,
	}
	if len(d.low) > 0 {
		shown.Low = t.describe(d.low)
	}
	if len(d.high) > 0 {
		shown.High = t.describe(d.high)
	}
	return shown
}

// table returns what is known of a table, making it if need be.
func (v *verifier) table(t *table) *verified {
	known := v.tables[t.id]
	if known == nil {
		known = &verified{TableVerify: TableVerify{ID: t.id}}
		v.tables[t.id] = known
	}
	known.codec = t
	return known
}

// outcome is what became of one range.
type outcome struct {
	table *table
	index millrace.Index
	v     *millrace.VerifyRange
	// skipped says why the range was not compared; reason why the rows differ.
	skipped, reason string
	rows            uint64
}

// The values of the label result.
const (
	verifyEqual     = "equal"
	verifyDifferent = "different"
	verifySkipped   = "skipped"
)

// note takes in what became of a range.
func (v *verifier) note(o *outcome) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if o.table.schema != nil && v.s.catalog.Load().tables[o.table.id] == nil {
		v.s.metrics.verified.WithLabelValues(verifySkipped).Inc() // dropped since
		return
	}
	t := v.table(o.table)
	if o.index < t.loaded && o.skipped == "" {
		o.skipped = "the table was loaded anew since"
	}
	if t.Pass.ID != o.v.ID || t.Pass.From == 0 {
		t.Pass = VerifyPass{ID: o.v.ID, From: o.index}
	}
	t.Pass.From, t.Pass.To = min(t.Pass.From, o.index), max(t.Pass.To, o.index)
	log := v.s.log.With("table", o.table.name(), "index", o.index)
	if o.skipped != "" {
		t.Skipped++
		t.Pass.Skipped++
		t.SkipReason = o.skipped
		v.s.metrics.verified.WithLabelValues(verifySkipped).Inc()
		if t.skipping != o.skipped {
			t.skipping = o.skipped
			log.Warn("a range was not verified", "reason", o.skipped)
		}
		return
	}
	t.skipping = ""
	t.Index, t.Time = o.index, time.Now().UTC()
	t.Pass.Rows += o.rows
	if o.reason == "" {
		t.Equal++
		t.Pass.Equal++
		v.s.metrics.verified.WithLabelValues(verifyEqual).Inc()
		v.prove(o.table.id, o.v)
		before := len(t.list)
		if before == 0 {
			return
		}
		left := t.list[:0]
		for _, d := range t.list {
			if d.index > o.index || !d.settle(o.v) {
				left = append(left, d)
			}
		}
		t.list = left
		v.changed(t, before)
		if len(left) < before {
			log.Info("rows that differed are those of the source again", "differences", len(left))
		}
		return
	}
	t.Different++
	t.Pass.Different++
	v.s.metrics.verified.WithLabelValues(verifyDifferent).Inc()
	before := len(t.list)
	d, isNew := t.differ(o)
	v.changed(t, before)
	if isNew {
		shown := d.shown(o.table)
		log.Error("rows here are not those of the source; they are still answered",
			"low", shown.Low, "high", shown.High, "rows", d.rows, "source_rows", d.source, "reason", d.reason,
			"mend", "millrace load "+o.table.name())
	}
}

// differ enters a difference. It is not new where it overlaps one that is known.
func (t *verified) differ(o *outcome) (d *difference, isNew bool) {
	n := difference{
		low: bytes.Clone(o.v.Low), high: bytes.Clone(o.v.High), buckets: o.v.Buckets, bucket: o.v.Bucket,
		since: o.index, index: o.index, time: t.Time, rows: o.rows, source: o.v.Rows, reason: o.reason,
	}
	for i := range t.list {
		d := &t.list[i]
		if d.buckets == n.buckets && d.bucket == n.bucket && d.overlaps(n.low, n.high) {
			if d.index > n.index {
				return d, false
			}
			n.since = d.since
			*d = n
			return d, false
		}
	}
	if len(t.list) < maxDifferences {
		t.list = append(t.list, n)
		return &t.list[len(t.list)-1], true
	}
	// The last stands for several from here on: for all keys between them.
	d = &t.list[len(t.list)-1]
	if bytes.Compare(n.low, d.low) > 0 {
		n.low = d.low
	}
	if len(d.high) == 0 || len(n.high) > 0 && bytes.Compare(n.high, d.high) < 0 {
		n.high = d.high
	}
	if n.buckets != d.buckets || n.bucket != d.bucket {
		n.buckets, n.bucket = 0, 0
	}
	n.since, n.rows, n.source = d.since, d.rows+n.rows, d.source+n.source
	*d = n
	return d, true
}

// changed tells of a list that had a number of differences before.
func (v *verifier) changed(t *verified, before int) {
	t.version++
	v.differences.Add(int64(len(t.list) - before))
	v.news.Add(1)
}

// loadedAt forgets what was found in rows that a load has replaced, or that went
// with their table.
func (v *verifier) loadedAt(ids []millrace.TableID, index millrace.Index) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, id := range ids {
		t := v.tables[id]
		if t == nil {
			continue
		}
		if v.s.catalog.Load().tables[id] == nil {
			v.differences.Add(-int64(len(t.list)))
			delete(v.tables, id)
			continue
		}
		t.loaded = index
		if before := len(t.list); before > 0 {
			t.list = nil
			v.changed(t, before)
			v.s.log.Info("a load has replaced the rows that differed", "table", t.codec.name(), "index", index)
		}
		t.stored = t.version // the load's commit has removed the record
	}
}

// done tells that the Verify entries of a commit need not be waited for.
func (v *verifier) done(index millrace.Index) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if i := slices.Index(v.pending, index); i >= 0 {
		v.pending = slices.Delete(v.pending, i, i+1)
	}
}
