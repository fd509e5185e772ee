package postgrest

import (
	"bytes"
	"net/http"
	"slices"

	"github.com/millrace-db/millrace"
)

// truth is what a condition is of a row: SQL's three values.
type truth uint8

const (
	no truth = iota
	unknown
	yes
)

func (t truth) not() truth { return yes - t }

func truthOf(b bool) truth {
	if b {
		return yes
	}
	return no
}

// predicate is a Node that knows its column, with its values encoded.
type predicate struct {
	op   Op
	not  bool
	kids []predicate
	col  *column
	// text is the value in the form that encodes; key is it encoded, and sortKey in
	// the form that orders.
	text    string
	key     []byte
	sortKey []byte
	// texts and keys are those of In, in the order of the keys, each once.
	texts []string
	keys  [][]byte
	like  pattern
}

// compile gives a condition its column, and refuses what cannot be held against rows
// exactly.
func (t *Table) compile(n *Node) (p predicate, err error) {
	p.op, p.not = n.Op, n.Not
	if n.Op == And || n.Op == Or {
		p.kids = make([]predicate, len(n.Kids))
		for i := range n.Kids {
			if p.kids[i], err = t.compile(&n.Kids[i]); err != nil {
				return p, err
			}
		}
		return p, nil
	}
	if p.col, err = t.column(n.Column); err != nil {
		return p, err
	}
	switch n.Op {
	case IsNull, IsNotNull:
		return p, nil
	case IsTrue, IsFalse, IsUnknown:
		if p.col.kind != kindBool {
			word := map[Op]string{IsTrue: "TRUE", IsFalse: "FALSE", IsUnknown: "UNKNOWN"}[n.Op]
			return p, sqlError(http.StatusBadRequest, "42804", "argument of IS %s must be type boolean, not type %s", word, p.col.typ)
		}
		return p, p.set(map[Op]string{IsTrue: "t", IsFalse: "f", IsUnknown: "t"}[n.Op])
	case Gt, Gte, Lt, Lte:
		// The order of enums is that of their labels, which are at hand.
		if err := p.col.ordered(n.Op.String()); err != nil {
			return p, err
		}
	case Like:
		return p, p.setLike(n)
	default:
		if err := p.col.comparable(n.Op.String()); err != nil {
			return p, err
		}
	}
	if n.Op == In {
		return p, p.setList(n.List)
	}
	text, err := p.col.literal(n.Value)
	if err != nil {
		return p, err
	}
	return p, p.set(text)
}

// set encodes the value.
func (p *predicate) set(text string) (err error) {
	p.text = text
	d := millrace.Datum{Text: []byte(text)}
	if p.key, err = p.col.codec.Append(make([]byte, 0, 16+len(text)), []millrace.Datum{d}); err != nil {
		return badInput(p.col.typ, text)
	}
	if p.sortKey = p.key; p.col.kind == kindEnum {
		p.sortKey, err = p.col.appendSort(nil, &d)
	}
	return err
}

func (p *predicate) setList(list []string) error {
	type value struct {
		text string
		key  []byte
	}
	all := make([]value, 0, len(list))
	for _, one := range list {
		text, err := p.col.literal(one)
		if err != nil {
			return err
		}
		if err := p.set(text); err != nil {
			return err
		}
		all = append(all, value{text, p.key})
	}
	slices.SortFunc(all, func(a, b value) int { return bytes.Compare(a.key, b.key) })
	all = slices.CompactFunc(all, func(a, b value) bool { return bytes.Equal(a.key, b.key) })
	for _, v := range all {
		p.texts = append(p.texts, v.text)
		p.keys = append(p.keys, v.key)
	}
	return nil
}

func (p *predicate) setLike(n *Node) (err error) {
	switch p.col.kind {
	case kindText, kindName, kindBpchar, kindChar:
	case kindBytea:
		return refused("", "column %s: like is not served for type bytea", p.col.name)
	default:
		if p.col.kind == kindOther && p.col.typ == "citext" {
			return p.col.comparable("like")
		}
		return &Error{
			Status: http.StatusNotFound, Code: "42883", Message: "operator does not exist: " + p.col.typ + " ~~ unknown",
			Hint: "No operator matches the given name and argument types. You might need to add explicit type casts.",
		}
	}
	if err := p.col.comparable("like"); err != nil {
		return err // a collation that takes different texts for equal
	}
	p.like, err = parsePattern(n.Value)
	return err
}

// rowReader gives the values of one row, whatever schema it was written under.
type rowReader struct {
	t *Table
	// places are where rows of the schema written have the table's columns.
	written *millrace.Schema
	places  []int
	row     *millrace.Row
	buf     []byte
}

var null = millrace.Datum{State: millrace.ColumnNull}

// set makes r read another row.
func (r *rowReader) set(schema *millrace.Schema, row *millrace.Row) {
	r.row = row
	if schema == r.written {
		return
	}
	r.written, r.places = schema, slices.Grow(r.places[:0], len(r.t.columns))
	for i := range r.t.schema.Columns {
		at := i
		if schema != r.t.schema {
			at = schema.Counterpart(&r.t.schema.Columns[i])
		}
		r.places = append(r.places, at)
	}
}

// datum returns the value of a column of the table's schema.
func (r *rowReader) datum(at int) *millrace.Datum {
	if at = r.places[at]; at < 0 {
		return &null
	}
	return &r.row.Columns[at]
}

// holds tells what the condition is of the row.
func (p *predicate) holds(r *rowReader) (truth, error) {
	t, err := p.plain(r)
	if p.not {
		t = t.not()
	}
	return t, err
}

// plain is holds without the not before it.
func (p *predicate) plain(r *rowReader) (truth, error) {
	switch p.op {
	case And, Or:
		// And is the least of its kids, Or the greatest.
		result := yes
		if p.op == Or {
			result = no
		}
		for i := range p.kids {
			t, err := p.kids[i].holds(r)
			if err != nil {
				return no, err
			}
			if p.op == And {
				result = min(result, t)
			} else {
				result = max(result, t)
			}
		}
		return result, nil
	}
	d := r.datum(p.col.at)
	missing := d.State == millrace.ColumnNull
	switch p.op {
	case IsNull, IsUnknown:
		return truthOf(missing), nil
	case IsNotNull:
		return truthOf(!missing), nil
	case IsTrue, IsFalse:
		return truthOf(!missing && string(d.Text) == p.text), nil
	case IsDistinct:
		if missing {
			return yes, nil
		}
	case In:
		if len(p.keys) == 0 {
			return no, nil // also of null
		}
	}
	if missing {
		return unknown, nil
	}
	if p.op == Like {
		return truthOf(p.like.matches(d.Text)), nil
	}
	return p.compare(r, d)
}

// compare holds a value against that of the condition.
func (p *predicate) compare(r *rowReader, d *millrace.Datum) (truth, error) {
	var err error
	switch p.op {
	case Gt, Gte, Lt, Lte:
		if r.buf, err = p.col.appendSort(r.buf[:0], d); err != nil {
			return no, err
		}
		c := bytes.Compare(r.buf, p.sortKey)
		return truthOf(p.op == Gt && c > 0 || p.op == Gte && c >= 0 || p.op == Lt && c < 0 || p.op == Lte && c <= 0), nil
	}
	if p.col.kind == kindText && p.op != In { // equal texts are equal bytes
		same := string(d.Text) == p.text
		return truthOf(same == (p.op == Eq)), nil
	}
	if r.buf, err = p.col.codec.Append(r.buf[:0], []millrace.Datum{*d}); err != nil {
		return no, err
	}
	if p.op == In {
		_, found := slices.BinarySearchFunc(p.keys, r.buf, bytes.Compare)
		return truthOf(found), nil
	}
	return truthOf(bytes.Equal(r.buf, p.key) == (p.op == Eq)), nil
}
