package millrace

import (
	"bytes"
	"encoding/hex"
	"net/netip"
)

// A text is its bytes with 00 written as 00 FF, ended by 00 01: so it compares
// as the bytes do, and a text comes before all that begin with it.
const (
	keyTextEnd  = 0x01
	keyTextZero = 0xFF
)

func appendEscaped(dst, text []byte) []byte {
	for {
		i := bytes.IndexByte(text, 0)
		if i < 0 {
			return append(dst, text...)
		}
		dst = append(dst, text[:i+1]...)
		dst = append(dst, keyTextZero)
		text = text[i+1:]
	}
}

func decodeEscaped(dst, key []byte) (text, rest []byte, ok bool) {
	for {
		i := bytes.IndexByte(key, 0)
		if i < 0 || i+1 == len(key) {
			return dst, nil, false
		}
		dst = append(dst, key[:i]...)
		mark := key[i+1]
		key = key[i+2:]
		switch mark {
		case keyTextEnd:
			return dst, key, true
		case keyTextZero:
			dst = append(dst, 0)
		default:
			return dst, nil, false
		}
	}
}

func trimBlanks(text []byte) []byte { return bytes.TrimRight(text, " ") }

func nibble(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

func hexByte(text []byte) (byte, bool) {
	if len(text) < 2 {
		return 0, false
	}
	high, ok1 := nibble(text[0])
	low, ok2 := nibble(text[1])
	return high<<4 | low, ok1 && ok2
}

// appendEscapedHex reads bytea in the hex format.
func appendEscapedHex(dst, text []byte) ([]byte, bool) {
	text, ok := bytes.CutPrefix(text, []byte(`\x`))
	if !ok {
		return dst, false
	}
	for ; len(text) > 0; text = text[2:] {
		b, ok := hexByte(text)
		if !ok {
			return dst, false
		}
		if dst = append(dst, b); b == 0 {
			dst = append(dst, keyTextZero)
		}
	}
	return dst, true
}

func decodeEscapedHex(dst, key []byte) (text, rest []byte, ok bool) {
	dst = append(dst, `\x`...)
	start := len(dst)
	dst, rest, ok = decodeEscaped(dst, key)
	n := len(dst) - start
	dst = append(dst, dst[start:]...)
	hex.Encode(dst[start:], bytes.Clone(dst[start:start+n]))
	return dst, rest, ok
}

func appendKeyUUID(dst, text []byte) ([]byte, bool) {
	dashes := len(text) == 36
	if !dashes && len(text) != 32 {
		return dst, false
	}
	for i := range 16 {
		if dashes && (i == 4 || i == 6 || i == 8 || i == 10) {
			var ok bool
			if text, ok = cutByte(text, '-'); !ok {
				return dst, false
			}
		}
		b, ok := hexByte(text)
		if !ok {
			return dst, false
		}
		dst, text = append(dst, b), text[2:]
	}
	return dst, true
}

func appendKeyUUIDText(dst, b []byte) []byte {
	for i, c := range b {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			dst = append(dst, '-')
		}
		dst = hex.AppendEncode(dst, []byte{c})
	}
	return dst
}

// parseKeyChar reads the type "char": nothing for the zero byte, one byte, or
// \ooo for bytes outside of ASCII (from Postgres 16 on).
func parseKeyChar(text []byte) (byte, bool) {
	switch {
	case len(text) == 0:
		return 0, true
	case len(text) == 1:
		return text[0], true
	case len(text) == 4 && text[0] == '\\' && text[1] >= '2' && text[1] <= '3':
		n := 0
		for _, c := range text[1:] {
			if c < '0' || c > '7' {
				return 0, false
			}
			n = n<<3 | int(c-'0')
		}
		return byte(n), true
	}
	return 0, false
}

func appendKeyCharText(dst []byte, c byte) []byte {
	switch {
	case c == 0:
		return dst
	case c < 0x80:
		return append(dst, c)
	}
	return append(dst, '\\', '0'+c>>6, '0'+c>>3&7, '0'+c&7)
}

// appendKeyCanonical appends a network address or bit string in the one form in
// which Postgres prints it. None of them has a zero byte to escape.
func appendKeyCanonical(dst, text []byte, kind keyKind) ([]byte, bool) {
	switch kind {
	case keyInet, keyCIDR:
		return appendAddress(dst, text, kind == keyCIDR)
	case keyMacaddr:
		return appendMAC(dst, text, 6)
	case keyMacaddr8:
		return appendMAC(dst, text, 8)
	case keyBits:
		for _, c := range text {
			if c != '0' && c != '1' {
				return dst, false
			}
		}
		return append(dst, text...), true
	}
	return dst, false
}

func isKeyCanonical(text []byte, kind keyKind) bool {
	var space [64]byte
	got, ok := appendKeyCanonical(space[:0], text, kind)
	return ok && bytes.Equal(got, text)
}

func appendMAC(dst, text []byte, size int) ([]byte, bool) {
	if len(text) != 3*size-1 {
		return dst, false
	}
	for i := range size {
		b, ok := hexByte(text[3*i:])
		if !ok || i > 0 && text[3*i-1] != ':' && text[3*i-1] != '-' {
			return dst, false
		}
		if i > 0 {
			dst = append(dst, ':')
		}
		dst = hex.AppendEncode(dst, []byte{b})
	}
	return dst, true
}

// appendAddress prints address[/bits] as Postgres does: the bits are left out
// of an inet that names a single host, and a cidr has none set after them.
func appendAddress(dst, text []byte, network bool) ([]byte, bool) {
	host, mask, masked := bytes.Cut(text, []byte("/"))
	address, err := netip.ParseAddr(string(host))
	if err != nil || address.Zone() != "" {
		return dst, false
	}
	bits := int64(address.BitLen())
	if masked {
		n, rest, ok := cutNumber(mask, 1, 3)
		if !ok || len(rest) != 0 || n > bits {
			return dst, false
		}
		bits = n
	}
	if network && netip.PrefixFrom(address, int(bits)).Masked().Addr() != address {
		return dst, false
	}
	if mapped := address.As16(); address.Is6() && isCompatible(mapped) {
		// Postgres prints the last four bytes as IPv4, netip in hexadecimal.
		dst = append(dst, "::"...)
		dst = netip.AddrFrom4([4]byte(mapped[12:])).AppendTo(dst)
	} else {
		dst = address.AppendTo(dst)
	}
	if network || bits != int64(address.BitLen()) {
		dst = appendInt(append(dst, '/'), bits)
	}
	return dst, true
}

// isCompatible tells addresses that begin with exactly six zero words.
func isCompatible(a [16]byte) bool {
	return [12]byte(a[:12]) == [12]byte{} && (a[12] != 0 || a[13] != 0)
}
