package millrace

import (
	"fmt"
	"math"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// The protobuf messages of the topic are written and walked field by field, in
// ascending field order with defaults left out: the bytes that a generated
// encoder writes too. A field that this version does not know is an error,
// because skipping it could skip a change; so are fields out of order and a
// second value for a field that has one, because decoders differ in what they
// make of them.

func appendVarintField(dst []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return dst
	}
	dst = protowire.AppendTag(dst, num, protowire.VarintType)
	return protowire.AppendVarint(dst, v)
}

func appendBoolField(dst []byte, num protowire.Number, v bool) []byte {
	if !v {
		return dst
	}
	return appendVarintField(dst, num, 1)
}

func appendStringField(dst []byte, num protowire.Number, v string) []byte {
	if v == "" {
		return dst
	}
	dst = protowire.AppendTag(dst, num, protowire.BytesType)
	return protowire.AppendString(dst, v)
}

func appendBytesField(dst []byte, num protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return dst
	}
	dst = protowire.AppendTag(dst, num, protowire.BytesType)
	return protowire.AppendBytes(dst, v)
}

// appendMessageField writes a length-delimited field whose content fill
// appends. The content is written even when it is empty.
func appendMessageField(dst []byte, num protowire.Number, fill func([]byte) []byte) []byte {
	dst = protowire.AppendTag(dst, num, protowire.BytesType)
	start := len(dst)
	return prefixLength(fill(dst), start)
}

// prefixLength moves what stands in dst from start on to make room for its
// length as a varint before it.
func prefixLength(dst []byte, start int) []byte {
	n := len(dst) - start
	size := protowire.SizeVarint(uint64(n))
	for range size {
		dst = append(dst, 0)
	}
	copy(dst[start+size:], dst[start:start+n])
	protowire.AppendVarint(dst[:start], uint64(n))
	return dst
}

// field is one field of a message under decoding. Its bytes alias the message.
type field struct {
	message string
	num     protowire.Number
	typ     protowire.Type
	// again tells that the field before had the same number.
	again bool
	n     uint64
	b     []byte
}

// eachField calls fn with every field of b, in the order of the bytes.
func eachField(b []byte, message string, fn func(*field) error) error {
	var last protowire.Number
	f := field{message: message}
	for len(b) > 0 {
		n, err := f.consume(b, &last)
		if err != nil {
			return err
		}
		if err := fn(&f); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// consume reads one field from the start of b and returns its size. last holds
// the number of the field before it.
func (f *field) consume(b []byte, last *protowire.Number) (int, error) {
	num, typ, n := protowire.ConsumeTag(b)
	if n < 0 {
		return 0, fmt.Errorf("%w: %s: bad field tag", ErrMalformed, f.message)
	}
	if num < *last {
		return 0, fmt.Errorf("%w: %s: field %d comes after field %d", ErrMalformed, f.message, num, *last)
	}
	f.num, f.typ, f.again, f.n, f.b = num, typ, num == *last, 0, nil
	*last = num
	var m int
	switch typ {
	case protowire.VarintType:
		f.n, m = protowire.ConsumeVarint(b[n:])
	case protowire.BytesType:
		f.b, m = protowire.ConsumeBytes(b[n:])
		// Whoever appends to it must not write into what follows.
		f.b = f.b[:len(f.b):len(f.b)]
	default:
		return 0, fmt.Errorf("%w: %s: field %d has wire type %d, which this version does not write", ErrMalformed, f.message, num, typ)
	}
	if m < 0 {
		return 0, fmt.Errorf("%w: %s: field %d is cut off", ErrMalformed, f.message, num)
	}
	return n + m, nil
}

func (f *field) unknown() error {
	return fmt.Errorf("%w: %s: unknown field %d: written by a newer version of millrace; upgrade this process", ErrMalformed, f.message, f.num)
}

func (f *field) bad(want string) error {
	if f.again {
		return fmt.Errorf("%w: %s: field %d stands twice", ErrMalformed, f.message, f.num)
	}
	return fmt.Errorf("%w: %s: field %d is not %s", ErrMalformed, f.message, f.num, want)
}

func (f *field) varint(dst *uint64) error {
	if f.typ != protowire.VarintType || f.again {
		return f.bad("a varint")
	}
	*dst = f.n
	return nil
}

func (f *field) uint32(dst *uint32) error {
	if f.typ != protowire.VarintType || f.again || f.n > math.MaxUint32 {
		return f.bad("a 32-bit number")
	}
	*dst = uint32(f.n)
	return nil
}

func (f *field) int32(dst *int32) error {
	if f.typ != protowire.VarintType || f.again || int64(f.n) > math.MaxInt32 || int64(f.n) < math.MinInt32 {
		return f.bad("a 32-bit number")
	}
	*dst = int32(f.n)
	return nil
}

func (f *field) bool(dst *bool) error {
	if f.typ != protowire.VarintType || f.again || f.n > 1 {
		return f.bad("a bool")
	}
	*dst = f.n == 1
	return nil
}

func (f *field) bytes(dst *[]byte) error {
	if f.again {
		return f.bad("a byte string")
	}
	return f.element(dst)
}

// time reads microseconds since 1970; 0 stands for no time.
func (f *field) time(dst *time.Time) error {
	if f.typ != protowire.VarintType || f.again {
		return f.bad("a time")
	}
	*dst = time.Time{}
	if f.n != 0 {
		*dst = time.UnixMicro(int64(f.n)).UTC()
	}
	return nil
}

// element reads one of the values of a repeated field.
func (f *field) element(dst *[]byte) error {
	if f.typ != protowire.BytesType {
		return f.bad("a byte string")
	}
	*dst = f.b
	return nil
}

func (f *field) string(dst *string) error {
	if f.again {
		return f.bad("a text in UTF-8")
	}
	return f.textElement(dst)
}

// textElement reads one of the texts of a repeated field.
func (f *field) textElement(dst *string) error {
	if f.typ != protowire.BytesType || !utf8.Valid(f.b) {
		return f.bad("a text in UTF-8")
	}
	*dst = string(f.b)
	return nil
}

func (f *field) fixedBytes(dst []byte) error {
	if f.typ != protowire.BytesType || f.again || len(f.b) != len(dst) {
		return f.bad(fmt.Sprintf("a string of %d bytes", len(dst)))
	}
	copy(dst, f.b)
	return nil
}

// decodeSmall reads an enum.
func decodeSmall[T ~uint8](f *field, dst *T) error {
	if f.typ != protowire.VarintType || f.again || f.n > math.MaxUint8 {
		return f.bad("a small number")
	}
	*dst = T(f.n)
	return nil
}
