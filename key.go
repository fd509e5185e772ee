package millrace

import (
	"crypto/sha256"
	"fmt"
	"slices"
)

// KeyCodec turns the values of a table's key columns into one byte string and
// back. The bytes of two keys are equal exactly if Postgres takes the values
// for equal, and they compare column by column as the values do, so that the
// rows of a store lie in key order and all rows with the same leading columns
// lie together. Text compares by its bytes (COLLATE "C"), enums by label, inet
// and cidr by their text.
//
// No key is the start of another one of the same table: every column either has
// a fixed width or ends in a mark of its own.
//
// A KeyCodec is not changed after it was made; any number of goroutines may use
// it at once.
type KeyCodec struct {
	columns []int
	parts   []keyPart
}

// keyPart is one column of the key.
type keyPart struct {
	kind   keyKind
	column int
	// name and typ are for messages.
	name, typ string
	// enum tells texts that are labels, which the source sorts by their ordinals.
	enum bool
}

// NewKeyCodec returns the codec for the key of s. Where a key column has a type
// whose equality cannot be told from its text, the error is a *KeyTypeError,
// which names column, type, reason and mend.
func NewKeyCodec(s *Schema) (*KeyCodec, error) {
	k := &KeyCodec{columns: s.KeyColumns()}
	if len(k.columns) == 0 {
		return nil, fmt.Errorf("%w: table %s has no key", ErrMalformed, s.QualifiedName())
	}
	for _, i := range k.columns {
		c := &s.Columns[i]
		kind, typ, err := keyKindOf(s, c)
		if err != nil {
			return nil, err
		}
		k.parts = append(k.parts, keyPart{kind: kind, column: i, name: c.Name, typ: typ, enum: s.isEnum(c.Type)})
	}
	return k, nil
}

// Columns returns the places of the key columns in Schema.Columns, in key
// order. The caller must not change it.
func (k *KeyCodec) Columns() []int { return k.columns }

// SourceOrder tells how the source is asked for rows in the order of their encoded
// keys: by its own order of the key columns, those under COLLATE "C" for which
// collate says so, in key order. ok is false where no order of its does it.
func (k *KeyCodec) SourceOrder() (collate []bool, ok bool) {
	collate = make([]bool, len(k.parts))
	for i := range k.parts {
		switch k.parts[i].kind {
		case keyInt2, keyInt4, keyInt8, keyOID, keyBool, keyUUID, keyDate, keyTime, keyTimestamp, keyTimestamptz, keyNumeric, keyBytea:
		case keyText:
			if k.parts[i].enum {
				return nil, false
			}
			collate[i] = true
		default:
			return nil, false
		}
	}
	return collate, true
}

// Append appends the encoded key of the given values, one text for each key
// column in key order, as Postgres prints them. It does not keep the texts.
func (k *KeyCodec) Append(dst []byte, texts [][]byte) ([]byte, error) {
	if len(texts) != len(k.parts) {
		return dst, fmt.Errorf("%w: key has %d columns (%s), got %d values", ErrMalformed, len(k.parts), k.names(), len(texts))
	}
	start := len(dst)
	for i := range k.parts {
		var ok bool
		if dst, ok = k.parts[i].append(dst, texts[i]); !ok {
			return dst[:start], k.parts[i].bad(texts[i])
		}
	}
	return dst, nil
}

// AppendRowKey appends the encoded key of a row, given all of its columns. A key
// column without a value is an error: keys are NOT NULL, and the source always
// sends them.
func (k *KeyCodec) AppendRowKey(dst []byte, columns []Datum) ([]byte, error) {
	start := len(dst)
	for i := range k.parts {
		p := &k.parts[i]
		if p.column >= len(columns) {
			return dst[:start], fmt.Errorf("%w: row has %d columns, key column %s is number %d", ErrMalformed, len(columns), p.name, p.column+1)
		}
		d := &columns[p.column]
		if d.State != ColumnValue {
			return dst[:start], fmt.Errorf("%w: key column %s is %v, want a value", ErrMalformed, p.name, d.State)
		}
		var ok bool
		if dst, ok = p.append(dst, d.Text); !ok {
			return dst[:start], p.bad(d.Text)
		}
	}
	return dst, nil
}

// AppendPrefix appends what all keys begin with that have the given values in
// their leading columns. With partialText the last value is only the start of a
// text: of text, varchar, char, name, an enum, a network address or a bit
// string, or of bytea in whole bytes; an empty last value then stands for any
// value of any type. No values at all give the empty prefix.
func (k *KeyCodec) AppendPrefix(dst []byte, texts [][]byte, partialText bool) ([]byte, error) {
	if len(texts) > len(k.parts) {
		return dst, fmt.Errorf("%w: key has %d columns (%s), the prefix has %d", ErrMalformed, len(k.parts), k.names(), len(texts))
	}
	start := len(dst)
	for i := range texts {
		p := &k.parts[i]
		var ok bool
		if partialText && i == len(texts)-1 {
			if len(texts[i]) == 0 {
				break
			}
			if !p.kind.isText() {
				return dst[:start], fmt.Errorf("%w: key column %s is of type %s: only a text can be given by its start", ErrMalformed, p.name, p.typ)
			}
			dst, ok = p.appendPartial(dst, texts[i])
		} else {
			dst, ok = p.append(dst, texts[i])
		}
		if !ok {
			return dst[:start], p.bad(texts[i])
		}
	}
	return dst, nil
}

// Decode returns the values of an encoded key, in key order, in the one text
// form that all equal values share (numeric without trailing zeros, char(n)
// without trailing blanks, zero without a sign; otherwise as Postgres prints
// them). It reuses dst and the capacity of its elements, and does not alias
// key. Only what Append writes is accepted.
func (k *KeyCodec) Decode(key []byte, dst [][]byte) ([][]byte, error) {
	dst = slices.Grow(dst[:0], len(k.parts))[:len(k.parts)]
	for i := range k.parts {
		var ok bool
		if dst[i], key, ok = k.parts[i].decode(dst[i][:0], key); !ok {
			return nil, fmt.Errorf("%w: key column %s: not an encoded %s", ErrMalformed, k.parts[i].name, k.parts[i].typ)
		}
	}
	if len(key) != 0 {
		return nil, fmt.Errorf("%w: key: %d bytes follow the last column", ErrMalformed, len(key))
	}
	return dst, nil
}

// DecodePrefix returns the values of the leading columns that the keys which begin with
// prefix have. ok is false where prefix ends within a value.
func (k *KeyCodec) DecodePrefix(prefix []byte) (values []string, ok bool) {
	for i := 0; len(prefix) > 0; i++ {
		if i == len(k.parts) {
			return nil, false
		}
		text, rest, ok := k.parts[i].decode(nil, prefix)
		if !ok {
			return nil, false
		}
		values, prefix = append(values, string(text)), rest
	}
	return values, true
}

func (k *KeyCodec) names() string {
	names := k.parts[0].name
	for _, p := range k.parts[1:] {
		names += ", " + p.name
	}
	return names
}

// bad is the error for a text that is not a value of the column's type.
func (p *keyPart) bad(text []byte) error {
	const most = 64
	more := ""
	if len(text) > most {
		text, more = text[:most], "…"
	}
	return fmt.Errorf("%w: key column %s: %q%s is not %s", ErrMalformed, p.name, text, more, p.kind.want())
}

const (
	// maxWholeKey is the longest encoded key in bytes that a store keeps as it
	// is.
	maxWholeKey = 472
	// longKeyHead is how much of a longer key stands before the mark.
	longKeyHead = 440
	longKeyMark = 0xFF
	longKeySize = longKeyHead + 1 + sha256.Size
)

// StoreKey appends the form of an encoded key under which a store whose keys end
// at 511 bytes keeps the row: the key itself up to 472 bytes; of a longer one
// the first 440, the byte FF and the SHA-256 of the whole. The store then keeps
// the whole key beside the row. Among long keys that are equal in their first
// 440 bytes the order is that of the hashes.
func StoreKey(dst, key []byte) []byte {
	if len(key) <= maxWholeKey {
		return append(dst, key...)
	}
	sum := sha256.Sum256(key)
	dst = append(dst, key[:longKeyHead]...)
	dst = append(dst, longKeyMark)
	return append(dst, sum[:]...)
}

// IsLongKey reports whether a key of a store, made by StoreKey, stands for a
// longer one.
func IsLongKey(storeKey []byte) bool { return len(storeKey) == longKeySize }
