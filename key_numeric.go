package millrace

import (
	"encoding/binary"
	"math"
	"math/big"
	"slices"
	"strconv"
)

// parseKeyInt reads a decimal number that fits in the given bits.
func parseKeyInt(text []byte, bits uint) (int64, bool) {
	negative := false
	if len(text) > 0 && (text[0] == '-' || text[0] == '+') {
		negative = text[0] == '-'
		text = text[1:]
	}
	if len(text) == 0 {
		return 0, false
	}
	limit := uint64(1) << (bits - 1) // the absolute value of the lowest number
	var n uint64
	for _, c := range text {
		d := uint64(c - '0')
		if d > 9 || n > limit/10 {
			return 0, false
		}
		n = n*10 + d // at most limit + 9: no overflow
		if n > limit {
			return 0, false
		}
	}
	if negative {
		return -int64(n), true
	}
	return int64(n), n < limit
}

func appendInt(dst []byte, n int64) []byte { return strconv.AppendInt(dst, n, 10) }

// A numeric is one byte that tells its class; for numbers other than zero then
// follow the exponent and the digits. The number is 0.d1d2d3… times ten to the
// exponent, d1 not being zero; the exponent takes three bytes with its lowest
// value at 0; two digits make one byte (10·d1 + d2 + 1, the last digit being 0
// where their number is odd), and a zero byte ends them. Of negative numbers
// all bytes after the class are inverted.
const (
	numericMinusInfinity byte = 1 + iota
	numericNegative
	numericZero
	numericPositive
	numericInfinity
	numericNaN

	numericExponentBias = 1 << 23
	// Postgres holds up to 131072 digits before the point and 16383 after it.
	numericMaxWhole    = 131072
	numericMaxFraction = 16383
)

func appendKeyNumeric(dst, text []byte) ([]byte, bool) {
	switch string(text) {
	case "NaN":
		return append(dst, numericNaN), true
	case "Infinity":
		return append(dst, numericInfinity), true
	case "-Infinity":
		return append(dst, numericMinusInfinity), true
	}
	class := numericPositive
	if len(text) > 0 && (text[0] == '-' || text[0] == '+') {
		if text[0] == '-' {
			class = numericNegative
		}
		text = text[1:]
	}
	// The digits are text[:whole] and what follows the point; first and last
	// are the places among the digits of those that are not zero.
	exponent, digits := 0, len(text)
	if i := slices.IndexFunc(text, func(c byte) bool { return c == 'e' || c == 'E' }); i >= 0 {
		n, ok := parseKeyInt(text[i+1:], 32)
		if !ok || n > 2*numericMaxWhole || n < -2*numericMaxWhole {
			return dst, false
		}
		exponent, text, digits = int(n), text[:i], i
	}
	whole := digits
	first, last := -1, -1
	for i, c := range text {
		at := i
		if i > whole {
			at--
		}
		switch {
		case c == '.' && whole == len(text):
			whole = i
			digits--
		case c < '0' || c > '9':
			return dst, false
		case c != '0':
			if first < 0 {
				first = at
			}
			last = at
		}
	}
	if digits == 0 {
		return dst, false
	}
	if first < 0 {
		return append(dst, numericZero), true
	}
	exponent += whole - first
	if !numericFits(exponent, last-first+1) {
		return dst, false
	}
	digit := func(i int) byte {
		if i > last {
			return 0
		}
		if i >= whole {
			i++
		}
		return text[i] - '0'
	}
	dst = append(dst, class)
	start := len(dst)
	e := uint32(exponent + numericExponentBias)
	dst = append(dst, byte(e>>16), byte(e>>8), byte(e))
	for i := first; i <= last; i += 2 {
		dst = append(dst, 10*digit(i)+digit(i+1)+1)
	}
	dst = append(dst, 0)
	if class == numericNegative {
		for i := start; i < len(dst); i++ {
			dst[i] = ^dst[i]
		}
	}
	return dst, true
}

// numericFits tells whether Postgres can hold a number of so many digits from
// the first to the last that is not zero.
func numericFits(exponent, digits int) bool {
	return exponent <= numericMaxWhole && digits-exponent <= numericMaxFraction
}

func decodeKeyNumeric(dst, key []byte) (text, rest []byte, ok bool) {
	if len(key) == 0 {
		return dst, nil, false
	}
	class, key := key[0], key[1:]
	var invert byte
	switch class {
	case numericMinusInfinity:
		return append(dst, "-Infinity"...), key, true
	case numericZero:
		return append(dst, '0'), key, true
	case numericInfinity:
		return append(dst, "Infinity"...), key, true
	case numericNaN:
		return append(dst, "NaN"...), key, true
	case numericPositive:
	case numericNegative:
		invert = 0xFF
	default:
		return dst, nil, false
	}
	if len(key) < 3 {
		return dst, nil, false
	}
	exponent := (int(key[0]^invert)<<16 | int(key[1]^invert)<<8 | int(key[2]^invert)) - numericExponentBias
	key = key[3:]
	end := slices.Index(key, invert)
	if end <= 0 {
		return dst, nil, false
	}
	pairs, rest := key[:end], key[end+1:]
	digits := 2 * end
	switch low := int(pairs[end-1]^invert) - 1; {
	case low == 0: // the last two digits must not both be zero
		return dst, nil, false
	case low%10 == 0:
		digits--
	}
	if pairs[0]^invert < 11 || !numericFits(exponent, digits) {
		return dst, nil, false
	}
	if class == numericNegative {
		dst = append(dst, '-')
	}
	if exponent <= 0 {
		dst = append(dst, "0."...)
		for range -exponent {
			dst = append(dst, '0')
		}
	}
	for i, b := range pairs {
		n := b ^ invert - 1
		if n > 99 {
			return dst, nil, false
		}
		for j, d := range [2]byte{n / 10, n % 10} {
			at := 2*i + j
			if at == digits {
				break
			}
			if at == exponent && at > 0 {
				dst = append(dst, '.')
			}
			dst = append(dst, '0'+d)
		}
	}
	for range exponent - digits {
		dst = append(dst, '0')
	}
	return dst, rest, true
}

// A float is its IEEE 754 bits, with the sign bit inverted for positive numbers
// and all bits for negative ones. Minus zero is zero, and there is one NaN,
// above all numbers.

func parseKeyFloat(text []byte, bits int) (float64, bool) {
	switch string(text) {
	case "NaN":
		return math.NaN(), true
	case "Infinity":
		return math.Inf(1), true
	case "-Infinity":
		return math.Inf(-1), true
	}
	for _, c := range text {
		switch {
		case c >= '0' && c <= '9', c == '.', c == '-', c == '+', c == 'e', c == 'E':
		default: // ParseFloat reads hexadecimal and more besides
			return 0, false
		}
	}
	f, err := strconv.ParseFloat(string(text), bits)
	if f == 0 {
		f = 0 // without a sign
	}
	return f, err == nil
}

func appendKeyFloat8(dst, text []byte) ([]byte, bool) {
	f, ok := parseKeyFloat(text, 64)
	b := uint64(0x7FF8_0000_0000_0000)
	if f == f { // false for NaN only
		b = math.Float64bits(f)
	}
	return binary.BigEndian.AppendUint64(dst, b^(uint64(int64(b)>>63)|1<<63)), ok
}

func appendKeyFloat4(dst, text []byte) ([]byte, bool) {
	f, ok := parseKeyFloat(text, 32)
	b := uint32(0x7FC0_0000)
	if f == f { // false for NaN only
		b = math.Float32bits(float32(f))
	}
	return binary.BigEndian.AppendUint32(dst, b^(uint32(int32(b)>>31)|1<<31)), ok
}

func decodeKeyFloat8(dst []byte, b uint64) ([]byte, bool) {
	if b>>63 != 0 {
		b ^= 1 << 63
	} else {
		b = ^b
	}
	f := math.Float64frombits(b)
	ok := b != 1<<63 && (!math.IsNaN(f) || b == 0x7FF8_0000_0000_0000)
	return appendFloatText(dst, f, 64, 15), ok
}

func decodeKeyFloat4(dst []byte, b uint32) ([]byte, bool) {
	if b>>31 != 0 {
		b ^= 1 << 31
	} else {
		b = ^b
	}
	f := math.Float32frombits(b)
	ok := b != 1<<31 && (f == f || b == 0x7FC0_0000) // f == f is false for NaN only
	return appendFloatText(dst, float64(f), 32, 6), ok
}

// appendFloatText prints a float as Postgres does: with the fewest digits that
// read back the same under any rounding, and with an exponent below 10^-4 and
// from 10^most on.
func appendFloatText(dst []byte, f float64, bits, most int) []byte {
	switch {
	case math.IsNaN(f):
		return append(dst, "NaN"...)
	case math.IsInf(f, 1):
		return append(dst, "Infinity"...)
	case math.IsInf(f, -1):
		return append(dst, "-Infinity"...)
	}
	start := len(dst)
	dst = strconv.AppendFloat(dst, f, 'e', -1, bits)
	// mantissa returns the number of digits after the point, and the exponent.
	mantissa := func() (fraction int, exponent int) {
		i := start + slices.Index(dst[start:], 'e')
		n, _ := parseKeyInt(dst[i+1:], 32)
		if point := slices.Index(dst[start:i], '.'); point >= 0 {
			fraction = i - start - point - 1
		}
		return fraction, int(n)
	}
	fraction, exponent := mantissa()
	for isMidway(string(dst[start:]), f, bits) {
		dst = strconv.AppendFloat(dst[:start], f, 'e', fraction+1, bits)
		fraction, exponent = mantissa()
	}
	if exponent < -4 || exponent >= most {
		return dst
	}
	return strconv.AppendFloat(dst[:start], f, 'f', max(0, fraction-exponent), bits)
}

// isMidway tells whether a decimal that reads as f under rounding to even lies
// exactly between f and one of its neighbours, so that it could as well be read
// as that one. Postgres does not print such decimals, strconv does.
func isMidway(decimal string, f float64, bits int) bool {
	// Such a decimal of at most 17 digits is a whole number below 2^54 times a
	// power of ten up to 10^23, or of 10^-1: 256 bits hold it exactly.
	const precision = 256
	x, _, err := big.ParseFloat(decimal, 10, precision, big.ToNearestEven)
	if err != nil {
		return false
	}
	for _, to := range [2]float64{math.Inf(-1), math.Inf(1)} {
		next := math.Nextafter(f, to)
		if bits == 32 {
			next = float64(math.Nextafter32(float32(f), float32(to)))
		}
		if math.IsInf(next, 0) {
			continue
		}
		sum := new(big.Float).SetPrec(precision).SetFloat64(f)
		sum.Add(sum, new(big.Float).SetFloat64(next))
		if sum.Cmp(new(big.Float).SetPrec(precision).Add(x, x)) == 0 {
			return true
		}
	}
	return false
}
