package wal

import (
	"bytes"
	"fmt"

	"github.com/millrace-db/millrace"
)

// copyLine reads one row in COPY's text format, without its newline, into dst,
// which has as many elements as the row has columns. The texts alias line or
// scratch, which is returned for reuse.
func copyLine(line []byte, dst []millrace.Datum, scratch []byte) ([]byte, error) {
	scratch = scratch[:0]
	// A field never grows by unescaping, so scratch is not moved while texts
	// point into it.
	if cap(scratch) < len(line) {
		scratch = make([]byte, 0, 2*len(line))
	}
	for i := range dst {
		field := line
		end := bytes.IndexByte(line, '\t')
		if last := i == len(dst)-1; last != (end < 0) {
			return scratch, fmt.Errorf("%w: row of the copy has not %d columns", ErrProtocol, len(dst))
		}
		if end >= 0 {
			field, line = line[:end], line[end+1:]
		}
		switch {
		case len(field) == 2 && field[0] == '\\' && field[1] == 'N':
			dst[i] = millrace.Datum{State: millrace.ColumnNull}
			continue
		case bytes.IndexByte(field, '\\') >= 0:
			start := len(scratch)
			var ok bool
			if scratch, ok = unescape(scratch, field); !ok {
				return scratch, fmt.Errorf("%w: row of the copy ends in a backslash or has an unknown escape", ErrProtocol)
			}
			field = scratch[start:len(scratch):len(scratch)]
		}
		dst[i] = millrace.Datum{State: millrace.ColumnValue, Text: field}
	}
	return scratch, nil
}

// unescape appends field without COPY's backslash escapes. Only those that
// COPY TO writes are known: anything else would be another format.
func unescape(dst, field []byte) ([]byte, bool) {
	for {
		i := bytes.IndexByte(field, '\\')
		if i < 0 {
			return append(dst, field...), true
		}
		dst = append(dst, field[:i]...)
		if i+1 == len(field) {
			return dst, false
		}
		c := field[i+1]
		switch c {
		case 'b':
			c = '\b'
		case 'f':
			c = '\f'
		case 'n':
			c = '\n'
		case 'r':
			c = '\r'
		case 't':
			c = '\t'
		case 'v':
			c = '\v'
		case '\\':
		default:
			return dst, false
		}
		dst = append(dst, c)
		field = field[i+2:]
	}
}
