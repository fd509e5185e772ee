package image

import "google.golang.org/protobuf/encoding/protowire"

// field is one field of a message that is being read.
type field struct {
	message string
	num     protowire.Number
	again   bool // the one before it had the same number
	varint  bool
	n       uint64
	bytes   []byte
}

// eachField calls fn with the fields of a message, which stand in the order of
// their numbers.
func eachField(b []byte, message string, fn func(*field) error) error {
	f := field{message: message}
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return malformed("%s: bad field tag", message)
		}
		if num < f.num {
			return malformed("%s: field %d comes after field %d", message, num, f.num)
		}
		b = b[n:]
		f.again, f.num, f.n, f.bytes, f.varint = num == f.num, num, 0, nil, typ == protowire.VarintType
		switch typ {
		case protowire.VarintType:
			f.n, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			f.bytes, n = protowire.ConsumeBytes(b)
		default:
			return malformed("%s: field %d is of an unknown type", message, num)
		}
		if n < 0 {
			return malformed("%s: field %d is cut off", message, num)
		}
		b = b[n:]
		if f.varint == isText(f.message, num) {
			return malformed("%s: field %d is of the wrong type", message, num)
		}
		if err := fn(&f); err != nil {
			return err
		}
	}
	return nil
}

// isText tells the fields that are byte strings.
func isText(message string, num protowire.Number) bool {
	switch message {
	case "manifest":
		return num != manifestCreated
	case "divergence":
		return num == divergedReason
	case "frame":
		return num == frameSum
	}
	return false
}

// once refuses a field that stands twice.
func (f *field) once() error {
	if f.again {
		return malformed("%s: field %d stands twice", f.message, f.num)
	}
	return nil
}

func (f *field) unknown() error {
	return malformed("%s: field %d is unknown: a newer version of millrace wrote it; mend: upgrade this process", f.message, f.num)
}

// number reads a number up to most.
func number[T ~int | ~uint32 | ~uint64](f *field, dst *T, most uint64) error {
	if f.n > most {
		return malformed("%s: field %d is %d, at most %d is possible", f.message, f.num, f.n, most)
	}
	*dst = T(f.n)
	return f.once()
}
