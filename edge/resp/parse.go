package resp

import (
	"bytes"
	"fmt"
	"math"
)

// limits bound what one command may take.
type limits struct {
	// args is the largest number of arguments, the name among them; bytes that of
	// all their bytes, with what frames them.
	args, bytes int
}

const (
	// inlineLimit is the longest command that is given as a line.
	inlineLimit = 64 << 10
	// headLimit is the longest line that announces a number.
	headLimit = 32
)

// protocolError ends a connection: what follows cannot be told apart any more.
type protocolError string

func (e protocolError) Error() string { return "Protocol error: " + string(e) }

// parser reads a command that comes in pieces. What was read once is not read
// again, however small the pieces are.
type parser struct {
	limits limits
	// at is how far the command has been read, from its start.
	at int
	// want is how many arguments are to come; -1 before the command's first line.
	want int
	// size is that of the argument which is being read; -1 before its first line.
	size int
	// spans are the arguments that were read.
	spans []span
}

// span is where an argument lies, from the start of the command.
type span struct{ start, end int }

// reset prepares for the next command.
func (p *parser) reset() {
	p.at, p.want, p.size, p.spans = 0, -1, -1, p.spans[:0]
}

// next reads on in b, which begins where the command does, and reports whether the
// command is complete: then p.at is its length. A command without arguments is
// complete, and nothing to answer.
func (p *parser) next(b []byte) (bool, error) {
	if p.want < 0 {
		if len(b) == 0 {
			return false, nil
		}
		if b[0] != '*' {
			return p.inline(b)
		}
		n, ok, err := p.number(b, '*', "invalid multibulk length")
		if !ok {
			return false, err
		}
		if n > p.limits.args {
			return false, protocolError(fmt.Sprintf("the command has %d arguments, the limit is %d", n, p.limits.args))
		}
		p.want = max(n, 0)
	}
	for len(p.spans) < p.want {
		if p.size < 0 {
			if p.at == len(b) {
				return false, nil
			}
			if b[p.at] != '$' {
				return false, protocolError(fmt.Sprintf("expected '$', got %q", b[p.at]))
			}
			n, ok, err := p.number(b, '$', "invalid bulk length")
			if !ok {
				return false, err
			}
			if n < 0 {
				return false, protocolError("invalid bulk length")
			}
			if n > p.limits.bytes-p.at {
				return false, protocolError(fmt.Sprintf("the command has more than %d bytes", p.limits.bytes))
			}
			p.size = n
		}
		end := p.at + p.size
		if len(b) < end+2 {
			return false, nil
		}
		if b[end] != '\r' || b[end+1] != '\n' {
			return false, protocolError("an argument is longer than it was announced")
		}
		p.spans = append(p.spans, span{p.at, end})
		p.at, p.size = end+2, -1
	}
	return true, nil
}

// number reads a line of a number behind a mark.
func (p *parser) number(b []byte, mark byte, bad string) (n int, ok bool, err error) {
	line := b[p.at:]
	// The common case, of one or two digits, without a search.
	if len(line) >= 4 && line[2] == '\r' && line[3] == '\n' && line[1] >= '0' && line[1] <= '9' {
		p.at += 4
		return int(line[1] - '0'), true, nil
	}
	end := bytes.IndexByte(line, '\n')
	if end < 0 {
		if len(line) > headLimit {
			return 0, false, protocolError(bad)
		}
		return 0, false, nil
	}
	digits, cr := bytes.CutSuffix(line[1:end], []byte{'\r'})
	negative := len(digits) > 0 && digits[0] == '-'
	if negative {
		digits = digits[1:]
	}
	if !cr || len(digits) == 0 || len(digits) > 10 || line[0] != mark {
		return 0, false, protocolError(bad)
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false, protocolError(bad)
		}
		n = n*10 + int(c-'0')
	}
	if n > math.MaxInt32 {
		return 0, false, protocolError(bad)
	}
	if negative {
		n = -n
	}
	p.at += end + 1
	return n, true, nil
}

// inline reads a command that a person types: words in a line.
func (p *parser) inline(b []byte) (bool, error) {
	end := bytes.IndexByte(b[p.at:], '\n')
	if end < 0 {
		p.at = len(b)
		if len(b) > min(inlineLimit, p.limits.bytes) {
			return false, protocolError("too big inline request")
		}
		return false, nil
	}
	end += p.at
	if end > min(inlineLimit, p.limits.bytes) {
		return false, protocolError("too big inline request")
	}
	start := -1
	for i, c := range b[:end+1] {
		blank := c == ' ' || c == '\t' || c == '\r' || c == '\n'
		switch {
		case !blank && start < 0:
			start = i
		case blank && start >= 0:
			p.spans = append(p.spans, span{start, i})
			start = -1
		}
	}
	if len(p.spans) > p.limits.args {
		return false, protocolError(fmt.Sprintf("the command has %d arguments, the limit is %d", len(p.spans), p.limits.args))
	}
	p.at = end + 1
	return true, nil
}
