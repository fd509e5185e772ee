package rowjson

import (
	"bytes"
	"errors"
	"fmt"
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

var errNotUTF8 = errors.New("the text is not UTF-8, which JSON must be: give the database at the source an encoding other than SQL_ASCII")

// AppendString appends text as a JSON string. On error, of text that is not UTF-8, what
// it returns is of no use.
func AppendString(dst, text []byte) ([]byte, error) { return appendString(dst, text) }

// appendString appends text as a JSON string.
func appendString(dst, text []byte) ([]byte, error) {
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(text); {
		c := text[i]
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRune(text[i:])
			if r == utf8.RuneError && size == 1 {
				return dst, errNotUTF8
			}
			i += size
			continue
		}
		if c >= ' ' && c != '"' && c != '\\' {
			i++
			continue
		}
		dst = append(dst, text[start:i]...)
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\t':
			dst = append(dst, '\\', 't')
		case '\r':
			dst = append(dst, '\\', 'r')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
		i++
		start = i
	}
	dst = append(dst, text[start:]...)
	return append(dst, '"'), nil
}

func appendBool(dst, text []byte) ([]byte, error) {
	switch string(text) {
	case "t":
		return append(dst, "true"...), nil
	case "f":
		return append(dst, "false"...), nil
	}
	return dst, notA("boolean", text)
}

// appendNumber appends what JSON takes for a number as it is, and NaN and the
// infinities as strings.
func appendNumber(dst, text []byte) ([]byte, error) {
	if isNumber(text) {
		if len(text) == 2 && text[0] == '-' && text[1] == '0' {
			text = text[1:] // jsonb has no minus zero
		}
		return append(dst, text...), nil
	}
	switch string(text) {
	case "NaN", "Infinity", "-Infinity":
		return appendString(dst, text)
	}
	return dst, notA("number", text)
}

// isNumber holds text against the grammar of JSON numbers.
func isNumber(text []byte) bool {
	digits := func() bool {
		n := 0
		for n < len(text) && text[n]-'0' <= 9 {
			n++
		}
		text = text[n:]
		return n > 0
	}
	if len(text) > 0 && text[0] == '-' {
		text = text[1:]
	}
	if len(text) > 1 && text[0] == '0' && text[1]-'0' <= 9 || !digits() {
		return false
	}
	if len(text) > 0 && text[0] == '.' {
		if text = text[1:]; !digits() {
			return false
		}
	}
	if len(text) > 0 && (text[0] == 'e' || text[0] == 'E') {
		text = text[1:]
		if len(text) > 0 && (text[0] == '+' || text[0] == '-') {
			text = text[1:]
		}
		return digits() && len(text) == 0
	}
	return len(text) == 0
}

// appendTimestamp writes the T between date and time, and the zone in full.
func appendTimestamp(dst, text []byte, zone bool) ([]byte, error) {
	i := bytes.IndexByte(text, ' ')
	if i < 0 {
		if string(text) != "infinity" && string(text) != "-infinity" {
			return dst, notA("timestamp in the ISO style", text)
		}
		return appendString(dst, text)
	}
	date := text[:i]
	clock, bc := bytes.CutSuffix(text[i+1:], []byte(" BC"))
	if !isClock(date) || !isClock(clock) {
		return dst, notA("timestamp in the ISO style", text)
	}
	dst = append(dst, '"')
	dst = append(dst, date...)
	dst = append(dst, 'T')
	dst = append(dst, clock...)
	if zone && len(clock) > 3 {
		if sign := clock[len(clock)-3]; sign == '+' || sign == '-' {
			dst = append(dst, ":00"...)
		}
	}
	if bc {
		dst = append(dst, " BC"...)
	}
	return append(dst, '"'), nil
}

// isClock tells whether text has only what dates, times and zones are made of.
func isClock(text []byte) bool {
	for _, c := range text {
		if c-'0' > 9 && c != ':' && c != '.' && c != '+' && c != '-' {
			return false
		}
	}
	return true
}

// notA is the error for a text that Postgres does not print for the type.
func notA(what string, text []byte) error {
	const most = 64
	more := ""
	if len(text) > most {
		text, more = text[:most], "…"
	}
	return fmt.Errorf("%q%s is not a %s", text, more, what)
}
