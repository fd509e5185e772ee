package rowjson

import (
	"fmt"

	"github.com/millrace-db/millrace"
)

// form says what JSON a value becomes.
type form uint8

const (
	formString form = iota
	formBool
	formNumber
	formJSON
	formTimestamp
	formTimestamptz
	formArray
	formVector
	formComposite
	formHstore
)

// encoder writes the values of one type.
type encoder struct {
	form form
	// elem and delim are those of an array or vector.
	elem  *encoder
	delim byte
	// fields are those of a composite.
	fields []field
}

// field is one attribute of a composite type.
type field struct {
	lead string // as in column
	enc  *encoder
}

// builder makes the encoders of a schema's types, one for each type.
type builder struct {
	schema *millrace.Schema
	done   map[uint32]*encoder
	// bigIntText makes bigint a string.
	bigIntText bool
}

// encoder returns the encoder of a type. Types built of themselves do not exist
// in Postgres; a schema that has one would have no end.
func (b *builder) encoder(oid uint32, depth int) (*encoder, error) {
	if e := b.done[oid]; e != nil {
		return e, nil
	}
	t := b.schema.Type(oid)
	if t == nil {
		return nil, fmt.Errorf("type %d has no descriptor", oid)
	}
	if depth > millrace.MaxTypeNesting {
		return nil, fmt.Errorf("type %s is built of itself, or nested more than %d deep", t.Name, millrace.MaxTypeNesting)
	}
	e, err := b.build(t, depth)
	if err != nil {
		return nil, err
	}
	b.done[oid] = e
	return e, nil
}

func (b *builder) build(t *millrace.TypeDesc, depth int) (*encoder, error) {
	switch t.OID {
	case 22: // int2vector: an array to to_jsonb, but printed in another way
		return &encoder{form: formVector, elem: &encoder{form: formNumber}}, nil
	case 30: // oidvector
		return &encoder{form: formVector, elem: &encoder{form: formString}}, nil
	}
	switch t.Kind {
	case millrace.TypeDomain:
		return b.encoder(t.Elem, depth+1)
	case millrace.TypeArray:
		elem, err := b.encoder(t.Elem, depth+1)
		if err != nil {
			return nil, err
		}
		delim := b.schema.Type(t.Elem).Delim
		if delim == 0 {
			delim = ','
		}
		return &encoder{form: formArray, elem: elem, delim: delim}, nil
	case millrace.TypeComposite:
		e := &encoder{form: formComposite, fields: make([]field, len(t.Attributes))}
		for i, a := range t.Attributes {
			enc, err := b.encoder(a.Type, depth+1)
			if err != nil {
				return nil, err
			}
			lead := []byte{','}
			if i == 0 {
				lead[0] = '{'
			}
			if lead, err = appendString(lead, []byte(a.Name)); err != nil {
				return nil, fmt.Errorf("type %s: name of attribute %d: %w", t.Name, i+1, err)
			}
			e.fields[i] = field{lead: string(append(lead, ':')), enc: enc}
		}
		return e, nil
	case millrace.TypeBase:
		if isHstore(t) {
			return &encoder{form: formHstore}, nil
		}
		if t.OID == oidInt8 && b.bigIntText {
			return &encoder{form: formString}, nil
		}
		return &encoder{form: baseForm(t.OID)}, nil
	}
	return &encoder{form: formString}, nil // enums, ranges and multiranges
}

const oidInt8 = 20

// baseForm goes by the OIDs of the built-in types, which never change.
func baseForm(oid uint32) form {
	switch oid {
	case 16: // bool
		return formBool
	case 20, 21, 23, 700, 701, 1700: // int8, int2, int4, float4, float8, numeric
		return formNumber
	case 114, 3802: // json, jsonb
		return formJSON
	case 1114:
		return formTimestamp
	case 1184:
		return formTimestamptz
	}
	return formString
}

// append appends the value that is printed as text.
func (e *encoder) append(dst, text []byte, s *scratch) ([]byte, error) {
	switch e.form {
	case formBool:
		return appendBool(dst, text)
	case formNumber:
		return appendNumber(dst, text)
	case formJSON:
		return append(dst, text...), nil
	case formTimestamp:
		return appendTimestamp(dst, text, false)
	case formTimestamptz:
		return appendTimestamp(dst, text, true)
	case formArray:
		return e.appendArray(dst, text, s)
	case formVector:
		return e.appendVector(dst, text, s)
	case formComposite:
		return e.appendComposite(dst, text, s)
	case formHstore:
		return appendHstore(dst, text, s)
	}
	return appendString(dst, text)
}
