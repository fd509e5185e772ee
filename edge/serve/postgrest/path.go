package postgrest

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
)

// path is the rows that a plan looks at.
type path struct {
	// index names the columns of the secondary index to read, nil for the table's
	// key.
	index []string
	// points are whole keys of rows, in their order; ranges are what to read where
	// they are nil. Both may be empty: no row can be wanted.
	points [][]byte
	ranges []edge.Range
	// reverse goes through them from the last one to the first.
	reverse bool
}

// maxPoints is how many keys, or ranges, one path may have. What an in names beyond
// it is looked up by fewer columns.
const maxPoints = 2000

// bound is what the conditions say of one column: one of values, or a range.
type bound struct {
	// values are encoded texts that the column has, in the order of their keys; null
	// tells that it is null instead.
	values []string
	equal  bool
	null   bool
	// notNull tells that it is not null. A range says so, too.
	notNull bool
	// lowKey and highKey are encoded.
	lowKey, highKey   []byte
	lowOpen, highOpen bool
	prefix            []byte
}

// ranged reports whether there is a range.
func (b *bound) ranged() bool {
	return b.lowKey != nil || b.highKey != nil || len(b.prefix) > 0 || b.notNull
}

// storeOrdered reports whether the store keeps the values in their order.
func (c *column) storeOrdered() bool {
	return c.codec != nil && c.unordered == "" && c.kind != kindEnum
}

// bounds are what the conditions say of each column, by its place in the schema; nil for
// one of which they say nothing.
type bounds []*bound

// of returns the bound of a column, to be narrowed.
func (b bounds) of(c *column) *bound {
	if b[c.at] == nil {
		b[c.at] = new(bound)
	}
	return b[c.at]
}

// bounds gathers what all conditions together say of each column. A condition that
// says nothing is still held against the rows. empty tells that no row fulfils them.
func (p *Plan) bounds() (all bounds, empty bool) {
	all = make(bounds, len(p.t.columns))
	return all, all.narrow(p.where)
}

// narrow takes in conditions that must all hold. It returns true where none can.
func (b bounds) narrow(list []predicate) (empty bool) {
	for i := range list {
		w := &list[i]
		switch {
		case w.not:
			if w.op == IsNull {
				b.of(w.col).notNull = true
			}
		case w.op == And:
			empty = b.narrow(w.kids) || empty
		case w.op == Or:
			if values, keys, col := w.alternatives(); col != nil {
				empty = b.of(col).among(values, keys) || empty
			}
		default:
			empty = b.of(w.col).take(w) || empty
		}
	}
	return empty
}

// take takes in a condition on the column. It returns true where none can hold.
func (b *bound) take(w *predicate) (empty bool) {
	switch w.op {
	case Eq, IsTrue, IsFalse:
		return b.among([]string{w.text}, [][]byte{w.key})
	case In:
		return b.among(w.texts, w.keys)
	case IsNull, IsUnknown:
		empty = b.equal && !b.null || w.col.notNull
		b.equal, b.null, b.values = true, true, nil
		return empty
	case IsNotNull:
		b.notNull = true
	case Gt, Gte:
		if w.col.storeOrdered() && (b.lowKey == nil || bytes.Compare(w.key, b.lowKey) >= 0) {
			b.lowOpen = w.op == Gt || b.lowOpen && bytes.Equal(w.key, b.lowKey)
			b.lowKey = w.key
		}
	case Lt, Lte:
		if w.col.storeOrdered() && (b.highKey == nil || bytes.Compare(w.key, b.highKey) <= 0) {
			b.highOpen = w.op == Lt || b.highOpen && bytes.Equal(w.key, b.highKey)
			b.highKey = w.key
		}
	case Like:
		w.like.bind(b, w.col)
	}
	return false
}

// bind says what a pattern says of its column. Blanks at the end of character are not
// in keys.
func (l *pattern) bind(b *bound, c *column) {
	prefix := l.prefix
	switch c.kind {
	case kindBpchar:
		prefix = bytes.TrimRight(prefix, " ")
	case kindChar:
		return // its one byte is no text in the store
	}
	if len(prefix) > len(b.prefix) {
		b.prefix = prefix
	}
}

// alternatives returns the values of an Or that only names values of one column.
func (w *predicate) alternatives() (texts []string, keys [][]byte, col *column) {
	type value struct {
		text string
		key  []byte
	}
	var all []value
	for i := range w.kids {
		k := &w.kids[i]
		if k.not || k.op != Eq && k.op != In || col != nil && k.col != col {
			return nil, nil, nil
		}
		col = k.col
		if k.op == Eq {
			all = append(all, value{k.text, k.key})
		}
		for j := range k.texts {
			all = append(all, value{k.texts[j], k.keys[j]})
		}
	}
	slices.SortFunc(all, func(a, b value) int { return bytes.Compare(a.key, b.key) })
	all = slices.CompactFunc(all, func(a, b value) bool { return bytes.Equal(a.key, b.key) })
	for _, v := range all {
		texts, keys = append(texts, v.text), append(keys, v.key)
	}
	return texts, keys, col
}

// among narrows the bound to some values. It keeps the shorter of two lists, because
// rows are held against both anyway. It returns true where nothing is left.
func (b *bound) among(texts []string, keys [][]byte) (empty bool) {
	if len(keys) == 0 || b.equal && b.null {
		return true
	}
	if !b.equal || len(texts) < len(b.values) {
		b.equal, b.values = true, texts
	}
	return false
}

// candidate is one path that could be taken.
type candidate struct {
	index   []string
	columns []*column // of the index, then of the key
	// own is how many of columns are the index's.
	own int
	// equal is how many leading columns are bound to values, points in how many ways.
	equal, points int
	ranged        bool
	sorted        bool
	reverse       bool
}

// choose finds the path that leads to the fewest rows, going by how many columns it
// is bound in.
func (p *Plan) choose(indexes func() [][]string) error {
	bounds, empty := p.bounds()
	if empty {
		p.path, p.sorted = path{points: [][]byte{}}, true
		return nil
	}
	best := p.candidate(nil, bounds)
	if best.equal < len(p.t.key) {
		for _, columns := range indexes() {
			if c := p.candidate(columns, bounds); c != nil && best.worse(c) {
				best = c
			}
		}
	}
	p.sorted = best.sorted
	return p.build(best, bounds)
}

// candidate looks at one path. It is nil where the index has a column that the table
// has no more.
func (p *Plan) candidate(index []string, bounds bounds) *candidate {
	c := &candidate{index: index, own: len(index), points: 1, columns: make([]*column, 0, len(index)+len(p.t.key))}
	for _, name := range index {
		col, err := p.t.column(name)
		if err != nil || col.codec == nil {
			return nil
		}
		c.columns = append(c.columns, col)
	}
	for _, at := range p.t.key {
		c.columns = append(c.columns, &p.t.columns[at])
	}
	for i, col := range c.columns {
		b := bounds[col.at]
		if b == nil || i >= c.own && slices.Contains(c.columns[:i], col) {
			break
		}
		if b.equal && (b.null && i < c.own || !b.null && c.points*len(b.values) <= maxPoints) {
			c.equal++
			c.points *= max(1, len(b.values))
			continue
		}
		if b.equal {
			break // too many values
		}
		c.ranged = b.ranged() && (len(b.prefix) > 0 || b.lowKey != nil || b.highKey != nil || i < c.own)
		break
	}
	c.sorted, c.reverse = p.sortedBy(c, bounds)
	return c
}

// worse reports whether o is better than c.
func (c *candidate) worse(o *candidate) bool {
	rank := func(c *candidate) int {
		n := 4 * c.equal
		if c.ranged {
			n += 2
		}
		if c.sorted {
			n++
		}
		return n
	}
	return cmp.Compare(rank(c), rank(o)) < 0
}

// sortedBy reports whether the path gives the rows in the order that is asked for, and
// whether it does so from its end. Columns that have one value do not matter.
func (p *Plan) sortedBy(c *candidate, bounds bounds) (sorted, reverse bool) {
	if len(p.order) == 0 {
		return true, false
	}
	constant := func(col *column) bool {
		b := bounds[col.at]
		return b != nil && b.equal && (b.null || len(b.values) == 1)
	}
	at, first := 0, true
	for i := range p.order {
		term := &p.order[i]
		if constant(term.col) || slices.ContainsFunc(p.order[:i], func(s sortTerm) bool { return s.col == term.col }) {
			continue
		}
		for at < len(c.columns) && (constant(c.columns[at]) || at > 0 && slices.Contains(c.columns[:at], c.columns[at])) {
			at++
		}
		if at == len(c.columns) {
			return true, reverse // the key is complete: no two rows are equal
		}
		if c.columns[at] != term.col || !term.col.storeOrdered() {
			return false, false
		}
		// Null comes after all values in the store.
		if !term.col.notNull && term.nullsFirst != term.desc {
			return false, false
		}
		if first {
			reverse, first = term.desc, false
		}
		if term.desc != reverse {
			return false, false
		}
		at++
	}
	return true, reverse
}

// build makes the keys or ranges of a path.
func (p *Plan) build(c *candidate, bounds bounds) error {
	p.path = path{index: c.index, reverse: c.reverse}
	k, err := p.t.keyer(c)
	if err != nil {
		return err
	}
	prefixes := [][]byte{nil}
	values := make([]millrace.Datum, 0, c.equal)
	if c.equal > 0 {
		prefixes = prefixes[:0]
		err = product(c, bounds, values, func(values []millrace.Datum) error {
			b, err := k.append(make([]byte, 0, 48), values)
			if err == nil {
				prefixes = append(prefixes, b)
			}
			return err
		})
		if err != nil {
			return err
		}
		slices.SortFunc(prefixes, bytes.Compare)
	}
	if c.index == nil && c.equal == len(p.t.key) {
		p.path.points = prefixes
		return nil
	}
	for _, prefix := range prefixes {
		r := edge.Range{Prefix: prefix, Descending: c.reverse}
		if c.ranged {
			col := c.columns[c.equal]
			if !k.narrow(&r, c.equal, bounds[col.at]) {
				continue
			}
		}
		p.path.ranges = append(p.path.ranges, r)
	}
	return nil
}

// product calls fn with every combination of the values of the bound columns.
func product(c *candidate, bounds bounds, values []millrace.Datum, fn func([]millrace.Datum) error) error {
	if len(values) == c.equal {
		return fn(values)
	}
	b := bounds[c.columns[len(values)].at]
	if b.null {
		return product(c, bounds, append(values, null), fn)
	}
	for _, text := range b.values {
		if err := product(c, bounds, append(values, millrace.Datum{Text: []byte(text)}), fn); err != nil {
			return err
		}
	}
	return nil
}
