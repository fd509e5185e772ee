package postgrest

import (
	"bytes"
	"net/http"
	"unicode/utf8"
)

// pattern is one of LIKE: pieces of text with % (any text) and _ (any character)
// between them. The whole of a text has to match.
type pattern struct {
	parts []part
	// prefix is the text that everything that matches begins with; whole tells that
	// nothing else matches.
	prefix []byte
	whole  bool
}

// part is one element: a text, or where it is empty one character or any text.
type part struct {
	text []byte
	any  bool
}

// maxPattern keeps the time that a text of many megabytes takes short.
const maxPattern = 1000

// parsePattern reads a pattern, in which * stands for % and a backslash takes the
// next character as it is.
func parsePattern(s string) (p pattern, err error) {
	if len(s) > maxPattern {
		return p, refused("", "a pattern of more than %d bytes is not served", maxPattern)
	}
	var text []byte
	flush := func() {
		if len(text) > 0 {
			p.parts = append(p.parts, part{text: text})
			text = nil
		}
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '*', '%':
			flush()
			if n := len(p.parts); n == 0 || !p.parts[n-1].any {
				p.parts = append(p.parts, part{any: true})
			}
		case '_':
			flush()
			p.parts = append(p.parts, part{})
		case '\\':
			if i++; i == len(s) {
				return p, sqlError(http.StatusBadRequest, "22025", "LIKE pattern must not end with escape character")
			}
			if c = s[i]; c == '*' {
				c = '%' // PostgREST puts % for it there too
			}
			text = append(text, c)
		default:
			text = append(text, c)
		}
	}
	flush()
	p.whole = len(p.parts) == 0
	if len(p.parts) > 0 {
		p.prefix = p.parts[0].text
		p.whole = len(p.parts) == 1 && len(p.prefix) > 0
	}
	return p, nil
}

// matches holds a text against the pattern. Only the last % seen is tried again, so
// the time is at most the product of both lengths.
func (p *pattern) matches(text []byte) bool {
	at, again, from := 0, -1, 0
	for {
		if at == len(p.parts) {
			if len(text[from:]) == 0 {
				return true
			}
		} else if next, size, ok := p.parts[at].step(text[from:]); ok {
			if p.parts[at].any {
				again = at
				if at+1 == len(p.parts) {
					return true
				}
				text, from = text[from:], 0
				at++
				continue
			}
			at, from = at+next, from+size
			continue
		}
		if again < 0 || len(text) == 0 {
			return false
		}
		_, size := utf8.DecodeRune(text)
		text, from, at = text[size:], 0, again+1
	}
}

// step returns how many parts and bytes one step takes.
func (p *part) step(text []byte) (parts, size int, ok bool) {
	switch {
	case p.any:
		return 1, 0, true
	case len(p.text) > 0:
		return 1, len(p.text), bytes.HasPrefix(text, p.text)
	case len(text) == 0:
		return 0, 0, false
	}
	_, size = utf8.DecodeRune(text)
	return 1, size, true
}
