package millrace

import (
	"encoding/binary"
	"fmt"
)

// keyKind says how the values of a key column are encoded.
type keyKind uint8

const (
	keyInt2 keyKind = iota + 1
	keyInt4
	keyInt8
	keyOID
	keyBool
	keyChar // the one-byte type "char"
	keyUUID
	keyDate
	keyTime
	keyTimestamp
	keyTimestamptz
	keyNumeric
	keyFloat4
	keyFloat8
	// From here on texts, escaped and terminated.
	keyText
	keyBpchar
	keyBytea
	keyInet
	keyCIDR
	keyMacaddr
	keyMacaddr8
	keyBits
)

// isText tells the kinds of which the start of a value can be searched.
func (k keyKind) isText() bool { return k >= keyText }

// want says in a message what a value of the kind looks like.
func (k keyKind) want() string {
	return [...]string{
		keyInt2:        "a whole number from -32768 to 32767",
		keyInt4:        "a whole number from -2147483648 to 2147483647",
		keyInt8:        "a whole number of 64 bits",
		keyOID:         "a whole number from 0 to 4294967295",
		keyBool:        "t or f",
		keyChar:        "one byte",
		keyUUID:        "a UUID",
		keyDate:        "a date (2006-01-02, infinity)",
		keyTime:        "a time of day (15:04:05.999999)",
		keyTimestamp:   "a timestamp without time zone (2006-01-02 15:04:05.999999, infinity)",
		keyTimestamptz: "a timestamp with time zone (2006-01-02 15:04:05.999999+00, infinity)",
		keyNumeric:     "a number that numeric holds",
		keyFloat4:      "a number that real holds",
		keyFloat8:      "a number that double precision holds",
		keyText:        "a text",
		keyBpchar:      "a text",
		keyBytea:       `bytes in hexadecimal (\x0aff)`,
		keyInet:        "an IP address (10.0.0.1, 10.0.0.1/8, 2001:db8::1)",
		keyCIDR:        "a network (10.0.0.0/8, 2001:db8::/32)",
		keyMacaddr:     "a MAC address (08:00:2b:01:02:03)",
		keyMacaddr8:    "a MAC address of 8 bytes (08:00:2b:01:02:03:04:05)",
		keyBits:        "a string of 0 and 1",
	}[k]
}

// keyKinds are the base types that can be keys, by their OIDs, which are the
// same in every Postgres.
func keyKindOfOID(oid uint32) keyKind {
	switch oid {
	case 21:
		return keyInt2
	case 23:
		return keyInt4
	case 20:
		return keyInt8
	case 26:
		return keyOID
	case 16:
		return keyBool
	case 18:
		return keyChar
	case 2950:
		return keyUUID
	case 1082:
		return keyDate
	case 1083:
		return keyTime
	case 1114:
		return keyTimestamp
	case 1184:
		return keyTimestamptz
	case 1700:
		return keyNumeric
	case 700:
		return keyFloat4
	case 701:
		return keyFloat8
	case 19, 25, 1043: // name, text, varchar
		return keyText
	case 1042:
		return keyBpchar
	case 17:
		return keyBytea
	case 869:
		return keyInet
	case 650:
		return keyCIDR
	case 829:
		return keyMacaddr
	case 774:
		return keyMacaddr8
	case 1560, 1562: // bit, varbit
		return keyBits
	}
	return 0
}

// KeyTypeError occurs when a table's key has a column that cannot be part of an
// encoded key, because equal values can have different texts or their order
// does not show in the text. It stops the stream that has the table.
type KeyTypeError struct {
	// Table is the qualified name of the table, Column that of the key column
	// and Type that of its type.
	Table, Column, Type string
	// Reason says why the type cannot be a key.
	Reason string
}

// Error names table, column, type, reason and mend.
func (e *KeyTypeError) Error() string {
	return fmt.Sprintf("table %s: key column %s of type %s cannot be part of a key: %s: %s", e.Table, e.Column, e.Type, e.Reason, e.Mend())
}

// Mend says what makes the table acceptable.
func (e *KeyTypeError) Mend() string {
	return fmt.Sprintf("take another key: a unique index over NOT NULL columns of other types and "+
		"ALTER TABLE %s REPLICA IDENTITY USING INDEX that_index; or change the type of %s", e.Table, e.Column)
}

// Unwrap makes the error one that no retry mends.
func (e *KeyTypeError) Unwrap() error { return ErrStop }

// keyKindOf resolves domains and returns how the column is encoded, with the
// type's name for messages.
func keyKindOf(s *Schema, c *Column) (keyKind, string, error) {
	t := s.Type(c.Type)
	if t == nil {
		return 0, "", fmt.Errorf("%w: table %s: key column %s: type %d has no descriptor", ErrMalformed, s.QualifiedName(), c.Name, c.Type)
	}
	name := t.Name
	refuse := func(reason string) (keyKind, string, error) {
		return 0, "", &KeyTypeError{Table: s.QualifiedName(), Column: c.Name, Type: name, Reason: reason}
	}
	for depth := 0; t.Kind == TypeDomain; depth++ {
		base := s.Type(t.Elem)
		if base == nil || depth > len(s.Types) {
			return 0, "", fmt.Errorf("%w: table %s: key column %s: domain %s has no base type", ErrMalformed, s.QualifiedName(), c.Name, t.Name)
		}
		t = base
		name = c.typeName(s, t)
	}
	if c.Nondeterministic {
		return refuse(fmt.Sprintf("its collation %s takes different texts for equal", c.Collation))
	}
	switch t.Kind {
	case TypeEnum:
		return keyText, name, nil
	case TypeArray:
		return refuse("arrays that are equal can have different texts")
	case TypeComposite:
		return refuse("composite values that are equal can have different texts")
	case TypeRange, TypeMultirange:
		return refuse("ranges that are equal can have different texts")
	case TypeBase, TypeDomain: // below; a domain was resolved above
	}
	if kind := keyKindOfOID(t.OID); kind != 0 {
		return kind, name, nil
	}
	return refuse(whyNotKey(t.Name))
}

// typeName names a domain together with what it is a domain over.
func (c *Column) typeName(s *Schema, base *TypeDesc) string {
	return s.Type(c.Type).Name + " (" + base.Name + ")"
}

func whyNotKey(typ string) string {
	switch typ {
	case "citext":
		return "texts that differ only in case are equal"
	case "interval":
		return "equal intervals can have different texts (1 day, 24:00:00)"
	case "json", "xml":
		return "the type has no equality"
	case "jsonb":
		return "equal values can have different texts (1.0, 1.00)"
	case "timetz":
		return "its order does not show in its text"
	case "money":
		return "its text depends on the server's locale"
	}
	return "whether values are equal cannot be told from the texts of this type"
}

func (p *keyPart) append(dst, text []byte) ([]byte, bool) {
	switch p.kind {
	case keyInt2:
		n, ok := parseKeyInt(text, 16)
		return binary.BigEndian.AppendUint16(dst, uint16(n)^1<<15), ok
	case keyInt4:
		n, ok := parseKeyInt(text, 32)
		return binary.BigEndian.AppendUint32(dst, uint32(n)^1<<31), ok
	case keyInt8:
		n, ok := parseKeyInt(text, 64)
		return binary.BigEndian.AppendUint64(dst, uint64(n)^1<<63), ok
	case keyOID:
		n, ok := parseKeyInt(text, 64)
		return binary.BigEndian.AppendUint32(dst, uint32(n)), ok && n >= 0 && n <= 1<<32-1
	case keyBool:
		switch string(text) {
		case "f", "false":
			return append(dst, 0), true
		case "t", "true":
			return append(dst, 1), true
		}
		return dst, false
	case keyChar:
		c, ok := parseKeyChar(text)
		return append(dst, c), ok
	case keyUUID:
		return appendKeyUUID(dst, text)
	case keyDate:
		n, ok := parseKeyDate(text)
		return binary.BigEndian.AppendUint32(dst, uint32(n)^1<<31), ok
	case keyTime:
		n, ok := parseKeyTime(text)
		return binary.BigEndian.AppendUint64(dst, uint64(n)^1<<63), ok
	case keyTimestamp, keyTimestamptz:
		n, ok := parseKeyTimestamp(text, p.kind == keyTimestamptz)
		return binary.BigEndian.AppendUint64(dst, uint64(n)^1<<63), ok
	case keyNumeric:
		return appendKeyNumeric(dst, text)
	case keyFloat4:
		return appendKeyFloat4(dst, text)
	case keyFloat8:
		return appendKeyFloat8(dst, text)
	case keyText:
		return append(appendEscaped(dst, text), 0, keyTextEnd), true
	case keyBpchar:
		return append(appendEscaped(dst, trimBlanks(text)), 0, keyTextEnd), true
	case keyBytea:
		dst, ok := appendEscapedHex(dst, text)
		return append(dst, 0, keyTextEnd), ok
	case keyInet, keyCIDR, keyMacaddr, keyMacaddr8, keyBits:
		dst, ok := appendKeyCanonical(dst, text, p.kind)
		return append(dst, 0, keyTextEnd), ok
	}
	return dst, false
}

// appendPartial appends the start of a text, without its end.
func (p *keyPart) appendPartial(dst, text []byte) ([]byte, bool) {
	if p.kind == keyBytea {
		return appendEscapedHex(dst, text)
	}
	return appendEscaped(dst, text), true
}

// decode appends to dst the text that stands at the start of key and returns
// what follows.
func (p *keyPart) decode(dst, key []byte) (text, rest []byte, ok bool) {
	if width := p.kind.width(); width > 0 {
		if len(key) < width {
			return dst, nil, false
		}
		text, ok = p.decodeFixed(dst, key[:width])
		return text, key[width:], ok
	}
	if p.kind == keyNumeric {
		return decodeKeyNumeric(dst, key)
	}
	if p.kind == keyBytea {
		return decodeEscapedHex(dst, key)
	}
	start := len(dst)
	if text, rest, ok = decodeEscaped(dst, key); !ok {
		return text, rest, false
	}
	switch p.kind {
	case keyBpchar:
		ok = len(text) == start || text[len(text)-1] != ' '
	case keyInet, keyCIDR, keyMacaddr, keyMacaddr8, keyBits:
		ok = isKeyCanonical(text[start:], p.kind)
	}
	return text, rest, ok
}

// width is the size of the encoded value in bytes, or 0 if it varies.
func (k keyKind) width() int {
	switch k {
	case keyBool, keyChar:
		return 1
	case keyInt2:
		return 2
	case keyInt4, keyOID, keyDate, keyFloat4:
		return 4
	case keyInt8, keyTime, keyTimestamp, keyTimestamptz, keyFloat8:
		return 8
	case keyUUID:
		return 16
	}
	return 0
}

func (p *keyPart) decodeFixed(dst, b []byte) ([]byte, bool) {
	switch p.kind {
	case keyBool:
		return append(dst, "ft"[b[0]&1]), b[0] <= 1
	case keyChar:
		return appendKeyCharText(dst, b[0]), true
	case keyInt2:
		return appendInt(dst, int64(int16(binary.BigEndian.Uint16(b)^1<<15))), true
	case keyInt4:
		return appendInt(dst, int64(int32(binary.BigEndian.Uint32(b)^1<<31))), true
	case keyInt8:
		return appendInt(dst, int64(binary.BigEndian.Uint64(b)^1<<63)), true
	case keyOID:
		return appendInt(dst, int64(binary.BigEndian.Uint32(b))), true
	case keyUUID:
		return appendKeyUUIDText(dst, b), true
	case keyDate:
		return appendDateText(dst, int32(binary.BigEndian.Uint32(b)^1<<31))
	case keyTime:
		return appendTimeText(dst, int64(binary.BigEndian.Uint64(b)^1<<63))
	case keyTimestamp, keyTimestamptz:
		return appendTimestampText(dst, int64(binary.BigEndian.Uint64(b)^1<<63), p.kind == keyTimestamptz)
	case keyFloat4:
		return decodeKeyFloat4(dst, binary.BigEndian.Uint32(b))
	case keyFloat8:
		return decodeKeyFloat8(dst, binary.BigEndian.Uint64(b))
	}
	return dst, false
}

// isEnum reports whether a type is an enum or a domain over one.
func (s *Schema) isEnum(oid uint32) bool {
	t := s.Type(oid)
	for depth := 0; t != nil && t.Kind == TypeDomain && depth <= len(s.Types); depth++ {
		t = s.Type(t.Elem)
	}
	return t != nil && t.Kind == TypeEnum
}
