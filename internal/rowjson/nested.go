package rowjson

import (
	"bytes"
)

// maxDimensions is Postgres's limit on those of an array.
const maxDimensions = 6

// appendArray reads what array_out prints, such as {1,NULL,"a b"} or
// [2:3]={{1,2},{3,4}}. to_jsonb does not show lower bounds either.
func (e *encoder) appendArray(dst, text []byte, s *scratch) ([]byte, error) {
	rest := text
	if len(rest) > 0 && rest[0] == '[' {
		i := bytes.IndexByte(rest, '=')
		if i < 0 {
			return dst, notA("array", text)
		}
		rest = rest[i+1:]
	}
	p := arrayParser{encoder: e, rest: rest, s: s}
	dst, err := p.dimension(dst, 1)
	if err == nil && (p.bad || len(p.rest) > 0) {
		err = notA("array", text)
	}
	return dst, err
}

// arrayParser walks one array. It sets bad and stops where the text does not
// follow the syntax.
type arrayParser struct {
	*encoder
	rest []byte
	s    *scratch
	bad  bool
}

func (p *arrayParser) take(c byte) bool {
	if len(p.rest) > 0 && p.rest[0] == c {
		p.rest = p.rest[1:]
		return true
	}
	return false
}

// dimension writes what stands between two braces.
func (p *arrayParser) dimension(dst []byte, depth int) ([]byte, error) {
	if !p.take('{') || depth > maxDimensions {
		p.bad = true
		return dst, nil
	}
	dst = append(dst, '[')
	if p.take('}') {
		return append(dst, ']'), nil
	}
	for {
		var err error
		if len(p.rest) > 0 && p.rest[0] == '{' {
			dst, err = p.dimension(dst, depth+1)
		} else {
			dst, err = p.element(dst)
		}
		switch {
		case err != nil || p.bad:
			return dst, err
		case p.take(p.delim):
			dst = append(dst, ',')
		case p.take('}'):
			return append(dst, ']'), nil
		default:
			p.bad = true
			return dst, nil
		}
	}
}

func (p *arrayParser) element(dst []byte) ([]byte, error) {
	if p.take('"') {
		start := len(p.s.buf)
		text, rest, ok := p.s.unquote(p.rest, false)
		if !ok {
			p.bad = true
			return dst, nil
		}
		p.rest = rest
		dst, err := p.elem.append(dst, text, p.s)
		p.s.buf = p.s.buf[:start]
		return dst, err
	}
	n := 0
	for n < len(p.rest) && p.rest[n] != p.delim && p.rest[n] != '}' {
		if c := p.rest[n]; c == '"' || c == '\\' || c == '{' {
			p.bad = true
			return dst, nil
		}
		n++
	}
	text := p.rest[:n]
	p.rest = p.rest[n:]
	switch {
	case n == 0: // array_out quotes the empty text
		p.bad = true
		return dst, nil
	case string(text) == "NULL":
		return append(dst, "null"...), nil
	}
	return p.elem.append(dst, text, p.s)
}

// unquote reads to the closing quote and returns the text and what follows. A
// backslash takes the next byte as it is; with doubled, a doubled quote is a
// quote. The text is a part of quoted where that has nothing to unquote, and
// otherwise lies on the stack.
func (s *scratch) unquote(quoted []byte, doubled bool) (text, rest []byte, ok bool) {
	n := 0
	for n < len(quoted) && quoted[n] != '"' && quoted[n] != '\\' {
		n++
	}
	if n < len(quoted) && quoted[n] == '"' && (!doubled || n+1 == len(quoted) || quoted[n+1] != '"') {
		return quoted[:n], quoted[n+1:], true
	}
	start := len(s.buf)
	s.buf = append(s.buf, quoted[:n]...)
	for n < len(quoted) {
		c := quoted[n]
		n++
		switch {
		case c == '\\':
			if n == len(quoted) {
				return nil, nil, false
			}
			c = quoted[n]
			n++
		case c == '"' && doubled && n < len(quoted) && quoted[n] == '"':
			n++
		case c == '"':
			return s.buf[start:len(s.buf):len(s.buf)], quoted[n:], true
		}
		s.buf = append(s.buf, c)
	}
	return nil, nil, false
}

// appendVector reads int2vector and oidvector: elements between blanks.
func (e *encoder) appendVector(dst, text []byte, s *scratch) ([]byte, error) {
	dst = append(dst, '[')
	for first := true; len(text) > 0; first = false {
		var word []byte
		word, text, _ = bytes.Cut(text, []byte(" "))
		if !first {
			dst = append(dst, ',')
		}
		var err error
		if dst, err = e.elem.append(dst, word, s); err != nil {
			return dst, err
		}
	}
	return append(dst, ']'), nil
}

// appendComposite reads what record_out prints, such as (1,,"a ""b"" c"): a
// field that is empty without quotes is NULL.
func (e *encoder) appendComposite(dst, text []byte, s *scratch) ([]byte, error) {
	bad := func() ([]byte, error) { return dst, notA("composite value of its type", text) }
	if len(text) < 2 || text[0] != '(' || text[len(text)-1] != ')' {
		return bad()
	}
	rest := text[1 : len(text)-1]
	for i := range e.fields {
		f := &e.fields[i]
		dst = append(dst, f.lead...)
		if i > 0 {
			if len(rest) == 0 || rest[0] != ',' {
				return bad()
			}
			rest = rest[1:]
		}
		if len(rest) == 0 || rest[0] == ',' {
			dst = append(dst, "null"...)
			continue
		}
		start := len(s.buf)
		var value []byte
		if rest[0] == '"' {
			var ok bool
			if value, rest, ok = s.unquote(rest[1:], true); !ok {
				return bad()
			}
		} else {
			n := bytes.IndexByte(rest, ',')
			if n < 0 {
				n = len(rest)
			}
			if value, rest = rest[:n], rest[n:]; bytes.ContainsAny(value, `"\()`) {
				return bad()
			}
		}
		var err error
		if dst, err = f.enc.append(dst, value, s); err != nil {
			return dst, err
		}
		s.buf = s.buf[:start]
	}
	if len(rest) > 0 {
		return bad()
	}
	if len(e.fields) == 0 {
		dst = append(dst, '{')
	}
	return append(dst, '}'), nil
}
