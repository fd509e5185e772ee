package resp

// room makes room to read into, or says why there is none.
func (c *conn) room() bool {
	if c.start == c.end {
		c.start, c.end = 0, 0
		if len(c.in) > inSize {
			c.in = make([]byte, inSize)
			c.releaseIn()
		}
		return true
	}
	if c.end < len(c.in) {
		return true
	}
	if c.start > 0 {
		c.end = copy(c.in, c.in[c.start:c.end])
		c.start = 0
		return true
	}
	size := 2 * len(c.in)
	if more := int64(size) - freeBuffer - c.reservedIn; more > 0 {
		if !c.s.reserve(more) {
			c.out.fail("BUSY too many large commands are being read at once; send it again, or ask for less at once")
			return false
		}
		c.reservedIn += more
	}
	fresh := make([]byte, size)
	c.end = copy(fresh, c.in[:c.end])
	c.in = fresh
	return true
}

func (c *conn) releaseIn() {
	c.s.buffered.Add(-c.reservedIn)
	c.reservedIn = 0
}

func (c *conn) releaseOut() {
	c.s.buffered.Add(-c.reservedOut)
	c.reservedOut = 0
}

// reserveOut makes room for more bytes of an answer.
func (c *conn) reserveOut(more int) bool {
	n := int64(len(c.out.b)+more) - freeBuffer - c.reservedOut
	if n <= 0 {
		return true
	}
	n = max(n, freeBuffer)
	if !c.s.reserve(n) {
		return false
	}
	c.reservedOut += n
	return true
}
