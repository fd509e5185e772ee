package postgrest

import (
	"bytes"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
)

// keyer encodes leading columns of a path: those of an index, then those of the key.
type keyer struct {
	index *millrace.IndexCodec // nil for the key alone
	own   int
	key   *millrace.KeyCodec
}

func (t *Table) keyer(c *candidate) (k keyer, err error) {
	k.own, k.key = c.own, t.codec
	if c.index == nil {
		return k, nil
	}
	k.index, err = millrace.NewIndexCodec(t.schema, c.index)
	return k, err
}

// append encodes the values of leading columns.
func (k *keyer) append(dst []byte, values []millrace.Datum) (_ []byte, err error) {
	own := values[:min(len(values), k.own)]
	if k.index != nil {
		if dst, err = k.index.Append(dst, own); err != nil {
			return dst, err
		}
	}
	rest := values[len(own):]
	if len(rest) == 0 {
		return dst, nil
	}
	texts := make([][]byte, len(rest))
	for i := range rest {
		texts[i] = rest[i].Text
	}
	return k.key.AppendPrefix(dst, texts, false)
}

// Marks before the values of an index.
const (
	markValue = 0x01
	markNull  = 0x02
)

// narrow puts the bounds of the next column, number at, into a range whose prefix is
// that of the columns before. It returns false where nothing can be in it.
func (k *keyer) narrow(r *edge.Range, at int, b *bound) bool {
	prefix := bytes.Clone(r.Prefix)
	indexed := at < k.own
	one := func(key []byte) []byte {
		if !indexed {
			key = key[1:] // the mark of values, which the key's columns have not
		}
		return append(bytes.Clone(prefix), key...)
	}
	switch {
	case b.lowKey == nil:
	case !b.lowOpen:
		r.From = one(b.lowKey)
	default:
		if r.From = edge.PrefixEnd(one(b.lowKey)); r.From == nil {
			return false
		}
	}
	switch {
	case b.highKey != nil && b.highOpen:
		r.To = one(b.highKey)
	case b.highKey != nil:
		r.To = edge.PrefixEnd(one(b.highKey))
	case indexed:
		r.To = append(bytes.Clone(prefix), markNull)
	}
	if len(b.prefix) > 0 {
		// A text's bytes stand in the key as they are: there is no zero in them.
		if indexed {
			r.Prefix = append(r.Prefix, markValue)
		}
		r.Prefix = append(r.Prefix, b.prefix...)
	}
	return len(r.To) == 0 || bytes.Compare(r.From, r.To) < 0
}
