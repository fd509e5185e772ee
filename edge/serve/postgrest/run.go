package postgrest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/internal/rowjson"
)

// Limits bound what one answer may take, and say what else Run needs.
type Limits struct {
	// Scan is the most rows to look at, Rows the most to give, Bytes the most that
	// these may take: one row may have more.
	Scan, Rows, Bytes int
	// Reserve reports whether there is memory for an answer of so many bytes.
	Reserve func(size int) bool
	// Encoder returns what writes rows of one schema as rows of another.
	Encoder func(row, as *millrace.Schema, bigInt bool) (*rowjson.Encoder, error)
	// Stream names the stream in hints.
	Stream string
}

// ErrBusy occurs where Limits.Reserve said no.
var ErrBusy = errors.New("no memory for the answer")

// Answer is what Run gives.
type Answer struct {
	// Body holds Rows rows.
	Body []byte
	Rows int64
	// Total is the number of all rows that fulfil the conditions, -1 where it was not
	// asked for.
	Total int64
	// Scanned is how many rows were looked at.
	Scanned int
}

// errEnough ends the walk.
var errEnough = errors.New("enough rows")

// lookEvery is after how many rows it is looked whether anybody still wants them.
const lookEvery = 256

// errUnsure ends a walk whose order is not sure to be that of the keys.
var errUnsure = errors.New("keys too long for an order")

// sureKey is how long keys may be that lie in their order in a store, in bytes: of
// longer ones with the same start some are kept under a hash.
const sureKey = 440

// run is one answer being made.
type run struct {
	*Plan
	ctx    context.Context //nolint:containedctx // a run is one call
	limits Limits
	table  *edge.Table
	reader rowReader
	answer Answer
	// matched counts the rows that fulfil the conditions; those from Offset on and
	// before end are given, all if it is negative. whole tells that the rest are to
	// be counted.
	matched, end int64
	whole        bool
	// strict tells that the order of the path matters.
	strict bool

	written *millrace.Schema
	enc     *rowjson.Encoder
	// found are the rows to be sorted, with bytes in all.
	found []found
	bytes int
}

// found is a row to be sorted: what sorts it, and its key.
type found struct{ sort, key []byte }

// Run answers from a table, whose newest schema must be that of the plan. The answer
// is appended to dst. It ends with the context.
func (p *Plan) Run(ctx context.Context, t *edge.Table, dst []byte, limits Limits) (Answer, error) {
	r := run{Plan: p, ctx: ctx, limits: limits, table: t, end: -1, reader: rowReader{t: p.t}}
	r.answer = Answer{Body: dst, Total: -1}
	if p.q.Limit >= 0 {
		if r.end = p.q.Offset + p.q.Limit; r.end < 0 {
			r.end = 1<<63 - 1
		}
	}
	// Of a table that is held in part the number of rows says nothing.
	r.whole = p.q.Media == MediaObject || p.q.Count && (len(p.where) > 0 || t.Held() != nil)
	if r.end != p.q.Offset || r.whole {
		err := r.fill(p.sorted)
		if errors.Is(err, errUnsure) {
			r.answer = Answer{Body: dst, Total: -1}
			r.matched = 0
			err = r.fill(false)
		}
		if err != nil && !errors.Is(err, errEnough) {
			return r.answer, err
		}
	} else {
		r.begin()
	}
	if p.q.Count {
		r.answer.Total = r.matched
		if len(p.where) == 0 {
			n, err := t.Rows()
			if err != nil {
				return r.answer, err
			}
			r.answer.Total = int64(n)
		}
	}
	return r.answer, r.finish()
}

// begin begins the body.
func (r *run) begin() {
	if r.q.Media == MediaJSON {
		r.answer.Body = append(r.answer.Body, '[')
	}
}

// fill gives the rows, taking the path's order for the one that is wanted or sorting
// them afterwards.
func (r *run) fill(sorted bool) error {
	r.begin()
	if sorted {
		r.strict = len(r.order) > 0
		return r.walk(r.visit)
	}
	r.strict = false
	if err := r.walk(r.collect); err != nil {
		return err
	}
	return r.fromSorted()
}

// finish ends the body.
func (r *run) finish() error {
	switch r.q.Media {
	case MediaJSON:
		r.answer.Body = append(r.answer.Body, ']')
	case MediaObject:
		if r.answer.Rows != 1 {
			return &Error{
				Status: http.StatusNotAcceptable, Code: "PGRST116", Message: "Cannot coerce the result to a single JSON object",
				Details: fmt.Sprintf("The result contains %d rows", r.answer.Rows),
			}
		}
	case MediaCSV:
		if r.answer.Rows == 0 {
			r.answer.Body = append(r.answer.Body, '\n') // an empty header
		}
	}
	return nil
}

// walk calls fn with the rows of the path that fulfil the conditions.
func (r *run) walk(fn func(row *edge.Row) error) error {
	look := func(row *edge.Row) error {
		if r.answer.Scanned++; r.answer.Scanned > r.limits.Scan {
			return r.tooMany()
		}
		if r.answer.Scanned%lookEvery == 0 && r.ctx.Err() != nil {
			return r.ctx.Err()
		}
		r.reader.set(row.Schema, &row.Row)
		for i := range r.where {
			t, err := r.where[i].holds(&r.reader)
			if err != nil || t != yes {
				return err
			}
		}
		r.matched++
		return fn(row)
	}
	if r.path.points != nil {
		return r.walkPoints(look)
	}
	scan := r.table.ScanRange
	if r.path.index != nil {
		ix, err := r.table.Index(r.path.index...)
		if err != nil {
			return err
		}
		scan = ix.Scan
	}
	for i := range r.path.ranges {
		if r.path.reverse {
			i = len(r.path.ranges) - 1 - i
		}
		err := scan(r.path.ranges[i], 0, func(key []byte, row *edge.Row) error {
			if r.strict && len(key) > sureKey {
				return errUnsure
			}
			return look(row)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *run) walkPoints(look func(row *edge.Row) error) error {
	var row edge.Row
	for i := range r.path.points {
		if r.path.reverse {
			i = len(r.path.points) - 1 - i
		}
		err := r.table.Get(r.path.points[i], &row)
		if errors.Is(err, edge.ErrNotFound) {
			continue
		}
		if err == nil {
			err = look(&row)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// visit takes the next row in its order.
func (r *run) visit(row *edge.Row) error {
	if r.matched <= r.q.Offset {
		return nil
	}
	if r.end < 0 || r.matched <= r.end {
		if err := r.give(row); err != nil {
			return err
		}
	}
	if !r.whole && r.matched == r.end {
		return errEnough
	}
	return nil
}

// collect keeps what a row is sorted by.
func (r *run) collect(row *edge.Row) (err error) {
	var f found
	for i := range r.order {
		if f.sort, err = r.order[i].append(f.sort, r.reader.datum(r.order[i].col.at)); err != nil {
			return err
		}
	}
	texts := make([][]byte, len(r.t.key))
	for i, at := range r.t.key {
		texts[i] = r.reader.datum(at).Text
	}
	if f.key, err = r.table.Codec().Append(nil, texts); err != nil {
		return err
	}
	f.sort = append(f.sort, f.key...)
	r.found = append(r.found, f)
	if r.bytes += len(f.sort) + len(f.key) + 64; !r.limits.Reserve(r.bytes) {
		return ErrBusy
	}
	if r.end >= 0 && int64(len(r.found)) > 2*min(r.end, 1<<40)+1024 {
		r.sort()
		r.found = r.found[:r.end]
		r.bytes = 0
		for i := range r.found {
			r.bytes += len(r.found[i].sort) + len(r.found[i].key) + 64
		}
	}
	return nil
}

func (r *run) sort() {
	slices.SortFunc(r.found, func(a, b found) int { return bytes.Compare(a.sort, b.sort) })
}

// append appends what sorts a value, so that bytes compare as the order says.
func (s *sortTerm) append(dst []byte, d *millrace.Datum) ([]byte, error) {
	if d.State == millrace.ColumnNull {
		mark := byte(2)
		if s.nullsFirst {
			mark = 0
		}
		return append(dst, mark), nil
	}
	start := len(dst)
	dst, err := s.col.appendSort(dst, d) // begins with a mark of its own, 1
	if err == nil && s.desc {
		for i := start + 1; i < len(dst); i++ {
			dst[i] = ^dst[i]
		}
	}
	return dst, err
}

// fromSorted gives those of the sorted rows that are wanted.
func (r *run) fromSorted() error {
	r.sort()
	from := min(r.q.Offset, int64(len(r.found)))
	to := int64(len(r.found))
	if r.end >= 0 {
		to = max(from, min(to, r.end))
	}
	var row edge.Row
	for _, f := range r.found[from:to] {
		if err := r.table.Get(f.key, &row); err != nil {
			return err
		}
		r.reader.set(row.Schema, &row.Row)
		if err := r.give(&row); err != nil {
			return err
		}
	}
	return nil
}

// give adds a row to the answer.
func (r *run) give(row *edge.Row) (err error) {
	r.answer.Rows++
	if r.q.Media == MediaObject && r.answer.Rows > 1 {
		return nil // they are counted alone
	}
	if r.answer.Rows > int64(r.limits.Rows) {
		return &Error{
			Status: http.StatusRequestEntityTooLarge, Code: CodeMaxRows, Message: fmt.Sprintf("The result contains more than %d rows", r.limits.Rows),
			Hint: fmt.Sprintf("Ask for at most %d rows at once with limit, and for the rest from the last key on.", r.limits.Rows),
		}
	}
	size := len(r.answer.Body) + r.bytes
	for i := range row.Columns {
		size += len(row.Columns[i].Text)
	}
	if !r.limits.Reserve(size) {
		return ErrBusy
	}
	if r.q.Media == MediaCSV {
		if err = r.giveCSV(); err != nil {
			return err
		}
	} else {
		if r.answer.Rows > 1 {
			r.answer.Body = append(r.answer.Body, ',')
		}
		if r.answer.Body, err = r.appendObject(r.answer.Body, row); err != nil {
			return err
		}
	}
	if r.answer.Rows > 1 && len(r.answer.Body) > r.limits.Bytes {
		return &Error{
			Status: http.StatusRequestEntityTooLarge, Code: CodeTooLarge, Message: fmt.Sprintf("The result has more than %d bytes", r.limits.Bytes),
			Hint: "Ask for fewer rows at once with limit, or for fewer columns.",
		}
	}
	return nil
}

// tooMany is the error where the rows to look at are too many. It names the index that
// would lead to fewer.
func (r *run) tooMany() error {
	e := &Error{
		Status: http.StatusBadRequest, Code: CodeMaxScan,
		Message: fmt.Sprintf("More than %d rows of %s would have to be looked at", r.limits.Scan, r.t.schema.QualifiedName()),
		Details: "Rows were read " + r.path.describe(r.t) + ".",
		Hint:    "No index would lead to fewer: narrow the conditions, or raise edge.serve.max_scan.",
	}
	if columns := r.missingIndex(); columns != nil {
		e.Hint = "Declare this index in the edge's configuration: edge: {indexes: {" + r.limits.Stream + ": {" + yamlName(r.t.schema.QualifiedName()) + ": [[" + yamlNames(columns) + "]]}}}"
	}
	return e
}
