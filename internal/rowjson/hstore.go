package rowjson

import (
	"bytes"

	"github.com/millrace-db/millrace"
)

// firstUserOID is the least that a type can have which did not come with the
// server.
const firstUserOID = 16384

// isHstore tells hstore by its name: extensions have no numbers of their own. It
// is the one type of the extensions that come with Postgres for which to_jsonb
// does not give the text.
func isHstore(t *millrace.TypeDesc) bool { return t.Name == "hstore" && t.OID >= firstUserOID }

// appendHstore writes an object of strings and nulls. The text is a list of
// "key"=>"value" or "key"=>NULL with a comma and a space between them.
func appendHstore(dst, text []byte, s *scratch) ([]byte, error) {
	open := byte('{')
	for rest := text; len(rest) > 0; {
		var ok bool
		if open == ',' {
			if rest, ok = bytes.CutPrefix(rest, []byte(", ")); !ok {
				return dst, notA("hstore", text)
			}
		}
		dst = append(dst, open)
		open = ','
		var err error
		if dst, rest, err = appendQuoted(dst, rest, text, s); err != nil {
			return dst, err
		}
		if rest, ok = bytes.CutPrefix(rest, []byte("=>")); !ok {
			return dst, notA("hstore", text)
		}
		dst = append(dst, ':')
		if value, null := bytes.CutPrefix(rest, []byte("NULL")); null {
			dst, rest = append(dst, "null"...), value
			continue
		}
		if dst, rest, err = appendQuoted(dst, rest, text, s); err != nil {
			return dst, err
		}
	}
	if open == '{' {
		dst = append(dst, open)
	}
	return append(dst, '}'), nil
}

// appendQuoted writes the quoted text that rest, a part of text, begins with, and
// returns what follows it.
func appendQuoted(dst, rest, text []byte, s *scratch) ([]byte, []byte, error) {
	if len(rest) == 0 || rest[0] != '"' {
		return dst, nil, notA("hstore", text)
	}
	start := len(s.buf)
	value, rest, ok := s.unquote(rest[1:], false)
	if !ok {
		return dst, nil, notA("hstore", text)
	}
	dst, err := appendString(dst, value)
	s.buf = s.buf[:start]
	return dst, rest, err
}
