package resp

import (
	"strconv"
	"strings"
)

// reply is the answers that are to be written next. Numbers of the protocol's
// version 3 are told from those of 2 by proto.
type reply struct {
	b     []byte
	proto int
}

func (r *reply) crlf() { r.b = append(r.b, '\r', '\n') }

func (r *reply) head(mark byte, n int) {
	r.b = append(r.b, mark)
	r.b = strconv.AppendInt(r.b, int64(n), 10)
	r.crlf()
}

func (r *reply) ok() { r.b = append(r.b, "+OK\r\n"...) }

func (r *reply) simple(s string) {
	r.b = append(r.b, '+')
	r.b = append(r.b, s...)
	r.crlf()
}

func (r *reply) int(n int64) {
	r.b = append(r.b, ':')
	r.b = strconv.AppendInt(r.b, n, 10)
	r.crlf()
}

func (r *reply) bulk(p []byte) {
	r.head('$', len(p))
	r.b = append(r.b, p...)
	r.crlf()
}

func (r *reply) text(s string) {
	r.head('$', len(s))
	r.b = append(r.b, s...)
	r.crlf()
}

func (r *reply) null() {
	if r.proto == 3 {
		r.b = append(r.b, "_\r\n"...)
		return
	}
	r.b = append(r.b, "$-1\r\n"...)
}

func (r *reply) array(n int) { r.head('*', n) }

// pairs begins n pairs of names and values: a map, or before version 3 a flat
// array.
func (r *reply) pairs(n int) {
	if r.proto == 3 {
		r.head('%', n)
		return
	}
	r.head('*', 2*n)
}

// verbatim is a text for people.
func (r *reply) verbatim(s string) {
	if r.proto != 3 {
		r.text(s)
		return
	}
	r.head('=', len(s)+4)
	r.b = append(r.b, "txt:"...)
	r.b = append(r.b, s...)
	r.crlf()
}

// fail writes an error: its first word is for programs. An error is one line.
func (r *reply) fail(text string) {
	r.b = append(r.b, '-')
	r.b = append(r.b, strings.Map(func(c rune) rune {
		if c == '\r' || c == '\n' {
			return ' '
		}
		return c
	}, text)...)
	r.crlf()
}

// openBulk begins a bulk whose length is not known; guess is what it may be.
func (r *reply) openBulk(guess int) (at int) {
	at = len(r.b)
	r.head('$', guess)
	return at
}

// closeBulk ends what openBulk has begun at at, with the head that it said.
func (r *reply) closeBulk(at, start int) {
	size := len(r.b) - start
	var space [16]byte
	head := append(strconv.AppendInt(append(space[:0], '$'), int64(size), 10), '\r', '\n')
	if room := start - at; room != len(head) {
		// Another number of digits than was guessed.
		if more := len(head) - room; more > 0 {
			r.b = append(r.b, head[:more]...) // room for what moves
		}
		copy(r.b[at+len(head):], r.b[start:start+size])
		r.b = r.b[:at+len(head)+size]
	}
	copy(r.b[at:], head)
	r.crlf()
}
