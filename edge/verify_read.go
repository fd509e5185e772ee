package edge

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/millrace-db/millrace"
)

// verifyJob are the Verify entries of one commit and a snapshot of just that
// commit. The snapshot has a reader of its own: views may all be taken, and the
// writer does not wait.
type verifyJob struct {
	index  millrace.Index
	view   View
	ranges []tableRange
	// until is when the snapshot is given up.
	until time.Time
}

// tableRange is one Verify entry.
type tableRange struct {
	table millrace.TableID
	v     *millrace.VerifyRange
}

// clone copies a range whose bytes are those of an entry.
func (r tableRange) clone() tableRange {
	v := *r.v
	v.Low, v.High = bytes.Clone(v.Low), bytes.Clone(v.High)
	v.LeftOut = make([][]byte, len(r.v.LeftOut))
	for i := range v.LeftOut {
		v.LeftOut[i] = bytes.Clone(r.v.LeftOut[i])
	}
	return tableRange{table: r.table, v: &v}
}

// verifying are the Verify entries of the writer's transaction.
type verifying struct {
	ranges []tableRange
	// middle are those that entries of another unit have followed: the commit
	// shows more than their unit.
	middle []tableRange
	// ended tells that the unit of ranges has ended.
	ended bool
}

func (p *verifying) empty() bool { return len(p.ranges) == 0 && len(p.middle) == 0 }

// pass takes notice of an entry.
func (p *verifying) pass(e *millrace.Entry) {
	if p.ended {
		p.middle = append(p.middle, p.ranges...)
		p.ranges = nil
	}
	p.ended = e.Last && (len(p.ranges) > 0 || e.Kind == millrace.KindVerify)
}

// Verifying reports whether the newest unit that was applied has Verify entries:
// then it must be committed before another follows.
func (w *Writer) Verifying() bool { return len(w.verify.ranges) > 0 }

// The reasons for which a range is not compared.
const (
	skipBusy    = "earlier ranges were still being read"
	skipMiddle  = "its unit is not the last of its record"
	skipLoading = "a load of the table is under way"
	skipUnknown = "the table has no rows here yet"
	skipClosed  = "the store was closed"
	skipPartial = "only keys under some prefixes are held here, and the range has others"
)

// take hands the Verify entries of a commit to the background. It is called by
// the writer between that commit and its next transaction, and does not wait.
func (v *verifier) take(p verifying, h *head) {
	if p.empty() {
		return
	}
	cat := v.s.catalog.Load()
	v.skip(cat, p.middle, h.index, skipMiddle)
	if why := v.begin(p.ranges, cat, h); why != "" {
		v.skip(cat, p.ranges, h.index, why)
		v.done(h.index)
	}
}

// begin takes the snapshot and passes it on, or says why not.
func (v *verifier) begin(ranges []tableRange, cat *catalog, h *head) (why string) {
	if len(v.jobs) == cap(v.jobs) {
		return skipBusy
	}
	j := &verifyJob{index: h.index, ranges: ranges, until: time.Now().Add(v.s.opts.MaxVerifyAge)}
	r := new(reader)
	err := v.s.readers.begin(r)
	if err == nil {
		j.view = View{s: v.s, r: r, txn: r.txn}
		if err = v.s.readHead(r.txn, &j.view.head); err == nil && (j.view.head.index != h.index || j.view.head.catalog != cat.number) {
			err = fmt.Errorf("the snapshot is of index %v", j.view.head.index)
		}
		if err != nil {
			r.txn.Abort()
		}
	}
	if err != nil {
		return "no snapshot could be had: " + err.Error()
	}
	j.view.cat = cat
	v.jobs <- j // the writer alone sends, and has seen room
	return ""
}

// expect notes that the Verify entries of a commit are not compared yet. That is
// known before the commit is visible: who sees its index and finds nothing to
// wait for finds the outcome.
func (v *verifier) expect(p verifying, index millrace.Index) {
	if p.empty() {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.pending = append(v.pending, index)
}

func (v *verifier) skip(cat *catalog, ranges []tableRange, index millrace.Index, why string) {
	for _, r := range ranges {
		v.note(&outcome{table: cat.known(r.table), index: index, v: r.v, skipped: why})
	}
}

// known returns the table with the ID, or one that merely has it.
func (c *catalog) known(id millrace.TableID) *table {
	if t := c.tables[id]; t != nil {
		return t
	}
	return newTable(id)
}

// run compares until the store is closed.
func (v *verifier) run() {
	for {
		select {
		case <-v.s.closing:
			for {
				select {
				case j := <-v.jobs:
					v.end(j, skipClosed)
				default:
					return
				}
			}
		case j := <-v.jobs:
			v.compare(j)
		}
	}
}

func (v *verifier) end(j *verifyJob, why string) {
	v.skip(j.view.cat, j.ranges, j.index, why)
	j.view.txn.Abort()
	v.done(j.index)
}

// compare reads the rows of a job's ranges. Ranges of a table that differ in
// their bucket alone are read together.
func (v *verifier) compare(j *verifyJob) {
	left := j.ranges
	for len(left) > 0 {
		n := 1
		for n < len(left) && sameBounds(left[0], left[n]) {
			n++
		}
		v.compareTable(j, left[:n])
		left = left[n:]
	}
	j.view.txn.Abort()
	v.done(j.index)
}

func sameBounds(a, b tableRange) bool {
	return a.table == b.table && a.v.Buckets == b.v.Buckets && a.v.Buckets > 0 &&
		bytes.Equal(a.v.Low, b.v.Low) && bytes.Equal(a.v.High, b.v.High)
}

// verifySums are those of the ranges that are read together.
type verifySums struct {
	v      *verifier
	t      *table
	ranges []tableRange
	// byBucket gives the ranges of a bucket; all are of bucket 0 where there are
	// none.
	byBucket map[uint32][]int
	left     []map[string]struct{}
	sums     []millrace.VerifySum
	damage   []string
	one      millrace.VerifySum
}

func (v *verifier) compareTable(j *verifyJob, ranges []tableRange) {
	t := j.view.cat.known(ranges[0].table)
	switch {
	case t.live == nil:
		v.skip(j.view.cat, ranges, j.index, skipUnknown)
		return
	case !t.comparable(ranges[0].v):
		v.skip(j.view.cat, ranges, j.index, skipPartial)
		return
	case t.shadow != nil:
		v.skip(j.view.cat, ranges, j.index, skipLoading)
		return
	}
	s := &verifySums{
		v: v, t: t, ranges: ranges, byBucket: make(map[uint32][]int),
		left: make([]map[string]struct{}, len(ranges)), sums: make([]millrace.VerifySum, len(ranges)), damage: make([]string, len(ranges)),
	}
	for i, r := range ranges {
		s.byBucket[r.v.Bucket] = append(s.byBucket[r.v.Bucket], i)
		s.left[i] = make(map[string]struct{}, len(r.v.LeftOut))
		for _, key := range r.v.LeftOut {
			s.left[i][string(key)] = struct{}{}
		}
	}
	began := time.Now()
	err := s.read(j)
	v.s.metrics.verifySeconds.Observe(time.Since(began).Seconds())
	for i, r := range ranges {
		o := &outcome{table: t, index: j.index, v: r.v, rows: s.sums[i].Rows, reason: s.damage[i]}
		var gaveUp skipError
		switch {
		case errors.As(err, &gaveUp):
			o.skipped = string(gaveUp)
		case o.reason != "":
		case err != nil:
			o.reason = "rows cannot be read: " + err.Error()
		case o.rows != r.v.Rows:
			o.reason = fmt.Sprintf("%d rows here, %d at the source", o.rows, r.v.Rows)
		case s.sums[i].Sum() != r.v.Hash:
			o.reason = "as many rows here as at the source, of other content"
		}
		v.note(o)
	}
}

// skipError says why reading was given up.
type skipError string

func (e skipError) Error() string { return string(e) }

// verifyGlance is how many rows are read between two looks at the clock.
const verifyGlance = 256

// read hashes the rows. What is damaged it notes, and goes on; the error tells of
// what keeps it from that.
func (s *verifySums) read(j *verifyJob) error {
	return j.view.run(func(view *View) error {
		record, err := view.treeNamed(s.t.live.name)
		if err != nil {
			return err
		}
		low, high := s.ranges[0].v.Low, s.ranges[0].v.High
		w := view.s.newWalk(record)
		more, err := w.seek(low[:min(len(low), storedHead)])
		var row Row
		for n := 0; more && err == nil; more, err = w.next() {
			if n++; n%verifyGlance == 1 {
				if err := s.goOn(j); err != nil {
					return err
				}
			}
			stored := w.item.key
			if behind(stored, high) {
				return nil
			}
			if err := s.add(view, stored, w.item.value, &row); err != nil {
				s.blame(stored, fmt.Sprintf("row of key %s is damaged: %v", s.t.describe(stored), err))
			}
		}
		return err
	})
}

// goOn says why the snapshot has to be given up, if so.
func (s *verifySums) goOn(j *verifyJob) error {
	select {
	case <-s.v.s.closing:
		return skipError(skipClosed)
	default:
	}
	if time.Now().After(j.until) {
		return skipError(fmt.Sprintf("reading its rows took longer than %v", s.v.s.opts.MaxVerifyAge))
	}
	return nil
}

// behind reports whether no key from stored on is before high. Of a long key the
// store's form says only how it begins.
func behind(stored, high []byte) bool {
	if len(high) == 0 {
		return false
	}
	order := bytes.Compare(stored[:min(len(stored), storedHead)], high[:min(len(high), storedHead)])
	return order > 0 || order == 0 && len(high) <= storedHead
}

// add adds a row to the sums that it belongs to.
func (s *verifySums) add(view *View, stored, value []byte, row *Row) error {
	key, body, err := view.open(s.t.seed, stored, value, &row.joined)
	if err != nil {
		return err
	}
	bounds := s.ranges[0].v
	if !within(bounds, key) {
		return nil
	}
	if err := s.t.decode(body, row); err != nil {
		return err
	}
	hashed := false
	for _, i := range s.byBucket[millrace.VerifyBucket(key, bounds.Buckets)] {
		if _, out := s.left[i][string(key)]; out {
			continue
		}
		if !hashed {
			s.one.Reset()
			if err := s.one.Add(s.v.plan(row.Schema), key, row.Columns); err != nil {
				return err
			}
			hashed = true
		}
		s.sums[i].AddSum(&s.one)
	}
	return nil
}

func within(v *millrace.VerifyRange, key []byte) bool {
	return bytes.Compare(key, v.Low) >= 0 && (len(v.High) == 0 || bytes.Compare(key, v.High) < 0)
}

// blame marks the ranges that a damaged row is in. Of a long key it is not known
// which those are.
func (s *verifySums) blame(stored []byte, why string) {
	bounds := s.ranges[0].v
	long := millrace.IsLongKey(stored)
	if !long && !within(bounds, stored) {
		return
	}
	for i, r := range s.ranges {
		if long || millrace.VerifyBucket(stored, bounds.Buckets) == r.v.Bucket {
			s.damage[i] = cmp.Or(s.damage[i], why)
		}
	}
}

// maxPlans bounds the plans that are kept; a stream has more schemas only after
// long.
const maxPlans = 4096

func (v *verifier) plan(schema *millrace.Schema) *millrace.VerifyPlan {
	p := v.plans[schema]
	if p == nil {
		if len(v.plans) >= maxPlans {
			clear(v.plans)
		}
		p = millrace.NewVerifyPlan(schema)
		v.plans[schema] = p
	}
	return p
}
