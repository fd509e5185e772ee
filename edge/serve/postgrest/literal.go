package postgrest

import (
	"encoding/hex"
	"math"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/millrace-db/millrace"
)

// literal reads a value as the input function of the column's type does, and returns
// it in the form that Postgres prints, or one that encodes to the same.
func (c *column) literal(text string) (string, error) {
	switch c.kind {
	case kindInt2, kindInt4, kindInt8, kindOID:
		return c.integer(text)
	case kindNumeric:
		return c.numeric(text)
	case kindFloat4, kindFloat8:
		return c.float(text)
	case kindBool:
		return c.boolean(text)
	case kindText, kindBpchar:
		return text, nil
	case kindName:
		return truncateName(text), nil
	case kindChar:
		if len(text) > 1 || text != "" && text[0] >= utf8.RuneSelf {
			return "", c.unread(text)
		}
		return text, nil
	case kindBytea:
		return c.bytea(text)
	case kindUUID:
		return c.uuid(text)
	case kindDate:
		return c.date(text)
	case kindTime:
		return c.clock(text)
	case kindTimestamp, kindTimestamptz:
		return c.timestamp(text)
	case kindInet, kindCIDR:
		return c.address(text)
	case kindMAC:
		text = strings.ToLower(strings.Trim(text, blanks))
		if !c.encodes(text) {
			return "", c.unread(text)
		}
		return text, nil
	case kindBits:
		if i := strings.IndexFunc(text, func(r rune) bool { return r != '0' && r != '1' }); i >= 0 {
			if text[0] == 'b' || text[0] == 'B' || text[0] == 'x' || text[0] == 'X' {
				return "", c.unread(text)
			}
			r, _ := utf8.DecodeRuneInString(text[i:])
			return "", sqlError(http.StatusBadRequest, "22P02", "%q is not a valid binary digit", string(r))
		}
		return text, nil
	case kindEnum:
		if !slices.Contains(c.labels, text) {
			return "", sqlError(http.StatusBadRequest, "22P02", "invalid input value for enum %s: %q", c.typ, text)
		}
		return text, nil
	case kindOther:
	}
	return "", c.unread(text)
}

// encodes reports whether the type takes the text.
func (c *column) encodes(text string) bool {
	_, err := c.codec.Append(nil, []millrace.Datum{{Text: []byte(text)}})
	return err == nil
}

// unread is the error for what Postgres may well read, in forms that are not read
// here.
func (c *column) unread(text string) error {
	return refused("Write it as Postgres prints it.", "column %s: %q is not read as a value of type %s", c.name, text, c.typ)
}

func (c *column) outOfRange(text string) error {
	return sqlError(http.StatusBadRequest, "22003", "value %q is out of range for type %s", text, c.typ)
}

// blanks are what isspace takes for blank in Postgres.
const blanks = " \t\n\v\f\r"

func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

func (c *column) integer(text string) (string, error) {
	s := strings.Trim(text, blanks)
	unsigned := strings.TrimPrefix(s, "-")
	if unsigned == s {
		unsigned = strings.TrimPrefix(s, "+")
	}
	if !digits(unsigned) {
		return "", c.badNumber(s, text)
	}
	bits := map[kind]int{kindInt2: 16, kindInt4: 32, kindInt8: 64, kindOID: 64}[c.kind]
	n, err := strconv.ParseInt(s, 10, bits)
	if err != nil || c.kind == kindOID && (n < 0 || n > math.MaxUint32) {
		return "", c.outOfRange(text)
	}
	return strconv.FormatInt(n, 10), nil
}

// newerNumber tells numbers that some versions of Postgres read and others do not: with
// a prefix for another base, or underscores between digits.
var newerNumber = regexp.MustCompile(`^[+-]*(0[xXoObB][0-9a-fA-F_.pP+-]*|[0-9._eE+-]*[0-9]_[0-9][0-9._eE+-]*)$`)

// badNumber is the error for what is no decimal number. s is text without blanks.
func (c *column) badNumber(s, text string) error {
	if newerNumber.MatchString(s) {
		return c.unread(text)
	}
	return badInput(c.typ, text)
}

// special reads the names of numbers that are none. Signs are given to infinity alone.
func special(s string) string {
	switch lower := strings.ToLower(s); lower {
	case "nan":
		return "NaN"
	case "inf", "infinity", "+inf", "+infinity":
		return "Infinity"
	case "-inf", "-infinity":
		return "-Infinity"
	}
	return ""
}

// decimal tells the common form of numbers: digits with at most one point among them,
// and an exponent.
func decimal(s string) bool {
	s = strings.TrimLeft(s, "+-")
	mantissa, exponent, scientific := s, "", false
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		mantissa, exponent, scientific = s[:i], s[i+1:], true
	}
	if scientific {
		unsigned := strings.TrimPrefix(exponent, "-")
		if unsigned == exponent {
			unsigned = strings.TrimPrefix(exponent, "+")
		}
		if !digits(unsigned) {
			return false
		}
	}
	whole, fraction, _ := strings.Cut(mantissa, ".")
	return digits(whole + fraction)
}

func signs(s string) int { return len(s) - len(strings.TrimLeft(s, "+-")) }

func (c *column) numeric(text string) (string, error) {
	s := strings.Trim(text, blanks)
	if name := special(s); name != "" {
		return name, nil
	}
	if signs(s) > 1 || !decimal(s) {
		return "", c.badNumber(s, text)
	}
	if !c.encodes(s) {
		// What is too small for numeric is rounded by Postgres.
		return "", refused("", "column %s: %.40q has more digits than are read", c.name, text)
	}
	return s, nil
}

func (c *column) float(text string) (string, error) {
	s := strings.Trim(text, blanks)
	if name := special(s); name != "" {
		return name, nil
	}
	if signs(s) > 1 || !decimal(s) {
		return "", c.badNumber(s, text)
	}
	bits := 64
	if c.kind == kindFloat4 {
		bits = 32
	}
	f, err := strconv.ParseFloat(s, bits)
	mantissa, _, _ := strings.Cut(strings.ToLower(s), "e")
	if err != nil || f == 0 && strings.ContainsAny(mantissa, "123456789") {
		return "", sqlError(http.StatusBadRequest, "22003", "%q is out of range for type %s", text, c.typ)
	}
	return strconv.FormatFloat(f, 'g', -1, bits), nil
}

func (c *column) boolean(text string) (string, error) {
	s := strings.ToLower(strings.Trim(text, blanks))
	begins := func(word string, least int) bool { return len(s) >= least && strings.HasPrefix(word, s) }
	switch {
	case begins("true", 1), begins("yes", 1), s == "on", s == "1":
		return "t", nil
	case begins("false", 1), begins("no", 1), begins("off", 2), s == "0":
		return "f", nil
	}
	return "", badInput(c.typ, text)
}

// truncateName cuts a name where Postgres does, between characters.
func truncateName(s string) string {
	const most = 63
	if len(s) <= most {
		return s
	}
	n := most
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

func (c *column) bytea(text string) (string, error) {
	if rest, ok := strings.CutPrefix(text, `\x`); ok {
		if _, err := hex.DecodeString(rest); err != nil {
			return "", c.unread(text)
		}
		return `\x` + strings.ToLower(rest), nil
	}
	if strings.IndexByte(text, '\\') >= 0 {
		return "", c.unread(text)
	}
	return `\x` + hex.EncodeToString([]byte(text)), nil
}

// uuid reads 16 bytes in hexadecimal: a dash may follow every second one, and braces
// may be around all.
func (c *column) uuid(text string) (string, error) {
	s := text
	if inner, ok := strings.CutPrefix(s, "{"); ok {
		if s, ok = strings.CutSuffix(inner, "}"); !ok {
			return "", badInput(c.typ, text)
		}
	}
	var b [16]byte
	for i := range b {
		if len(s) < 2 {
			return "", badInput(c.typ, text)
		}
		if _, err := hex.Decode(b[i:i+1], []byte(s[:2])); err != nil {
			return "", badInput(c.typ, text)
		}
		if s = s[2:]; i%2 == 1 && i < 15 {
			s = strings.TrimPrefix(s, "-")
		}
	}
	if s != "" {
		return "", badInput(c.typ, text)
	}
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:], nil
}

// address reads a whole address with or without the number of its bits.
func (c *column) address(text string) (string, error) {
	host, bits, masked := strings.Cut(text, "/")
	a, err := netip.ParseAddr(host)
	if err != nil || a.Zone() != "" || masked && (!digits(bits) || len(bits) > 3) {
		return "", c.unread(text)
	}
	if n, _ := strconv.Atoi(bits); masked && n > a.BitLen() {
		return "", badInput("inet", text)
	}
	if !c.encodes(text) {
		return "", c.unread(text) // a network with bits behind its mask, which equals none
	}
	return text, nil
}
