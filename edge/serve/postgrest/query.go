package postgrest

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Query is a request that was parsed and does not know its table yet.
type Query struct {
	// All tells that every column is shown; otherwise those of Select are.
	All    bool
	Select []Item
	// Embedded is the first relation that select embeds, empty for none.
	Embedded string
	// Where are conditions that must all hold.
	Where []Node
	Order []Term
	// Limit is the most rows to give, -1 for no limit. Offset is how many to leave
	// out before.
	Limit, Offset int64
	// Count tells that the number of all rows is wanted.
	Count bool
	// Media is the form of the answer.
	Media Media
	// Profile is the schema asked for, empty if none is.
	Profile string
	// BigInt tells that bigint is given as strings.
	BigInt bool
	// Applied are the preferences that are followed, as the answer lists them.
	Applied string
}

// Item is one column of an answer.
type Item struct {
	// Column is the name, or * for all.
	Column string
	// As is the name in the answer, empty for that of the column. Cast is a type, or
	// empty.
	As, Cast string
}

// Term is one term of an order.
type Term struct {
	Column string
	Desc   bool
	// NullsFirst says where null comes: before all values or after them.
	NullsFirst bool
}

// Op is what a Node does.
type Op uint8

// The operators.
const (
	And Op = iota
	Or
	Eq
	Neq
	Gt
	Gte
	Lt
	Lte
	In
	Like
	IsNull
	IsNotNull
	IsTrue
	IsFalse
	IsUnknown
	IsDistinct
)

// opNames are those that stand before a value.
var opNames = map[string]Op{
	"eq": Eq, "neq": Neq, "gt": Gt, "gte": Gte, "lt": Lt, "lte": Lte, "in": In, "like": Like, "isdistinct": IsDistinct,
}

// String is the operator's name in queries.
func (o Op) String() string {
	return [...]string{"and", "or", "eq", "neq", "gt", "gte", "lt", "lte", "in", "like", "is", "is", "is", "is", "is", "isdistinct"}[o]
}

// Node is a condition: And or Or of Kids, or an operator over a column.
type Node struct {
	Op  Op
	Not bool
	// Kids are those of And and Or, at least one.
	Kids   []Node
	Column string
	Value  string
	// List are the values of In.
	List []string
}

// Limits of what a query may be made of. A header has 128 KiB at most anyway.
const (
	maxDepth = 64
	maxNodes = 2000
)

// Parse reads a query string and the headers that belong to a request. Its errors
// are of type *Error. The result does not alias the headers.
func Parse(method, rawQuery string, h http.Header) (*Query, error) {
	q := &Query{All: true, Limit: -1}
	var err error
	if q.Media, err = parseAccept(h["Accept"]); err != nil {
		return nil, err
	}
	if err := q.parsePrefer(h["Prefer"]); err != nil {
		return nil, err
	}
	if profile := h["Accept-Profile"]; len(profile) > 0 {
		q.Profile = profile[0]
	}
	p := paramReader{rest: rawQuery}
	nodes := 0
	given := make([]string, 0, 4)
	for {
		name, value, ok, err := p.next()
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		switch name {
		case "select", "order", "limit", "offset":
			// PostgREST takes the first of some and the last of others.
			if slices.Contains(given, name) {
				return nil, refused("Give it once.", "parameter %s given twice is not served", name)
			}
			given = append(given, name)
		}
		if err := q.param(name, value, &nodes); err != nil {
			return nil, err
		}
	}
	if method == http.MethodGet {
		if ranges := h["Range"]; len(ranges) > 0 {
			if err := q.parseRange(ranges[0]); err != nil {
				return nil, err
			}
		}
	}
	return q, nil
}

// param takes one parameter of the query string.
func (q *Query) param(name, value string, nodes *int) error {
	switch name {
	case "select":
		return q.parseSelect(value)
	case "order":
		return q.parseOrder(value)
	case "limit", "offset":
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			return unparsed(name, value, 1, "want a whole number")
		}
		switch {
		case name == "offset":
			q.Offset = max(n, 0)
		case n < 0:
			return badRange("Limit should be greater than or equal to zero.")
		default:
			q.Limit = n
		}
		return nil
	case "and", "or", "not.and", "not.or":
		n, err := parseLogic(name, value, nodes)
		if err == nil {
			q.Where = append(q.Where, n)
		}
		return err
	case "columns", "on_conflict":
		return nil // of writes
	}
	n, err := parseFilter(name, value, nodes)
	if err == nil {
		q.Where = append(q.Where, n)
	}
	return err
}

// parseRange narrows limit and offset to what a Range header says. One of another
// form asks for nothing.
func (q *Query) parseRange(text string) error {
	text = strings.TrimPrefix(text, "items=")
	low, high, ok := strings.Cut(text, "-")
	from, known := rowNumber(low)
	if !ok || !known {
		return nil
	}
	end := int64(-1) // behind the last one
	if high != "" {
		to, known := rowNumber(high)
		if !known {
			return nil
		}
		end = to + 1
		if to < from {
			return badRange("The lower boundary must be lower than or equal to the upper boundary in the Range header.")
		}
	}
	if q.Limit == 0 {
		return nil
	}
	if q.Limit > 0 {
		if q.Offset > 1<<62 || q.Limit > 1<<62 {
			return badRange("The range is larger than any table.")
		}
		if limited := q.Offset + q.Limit; end < 0 || limited < end {
			end = limited
		}
	}
	q.Offset = max(q.Offset, from)
	if end >= 0 {
		if q.Limit = end - q.Offset; q.Limit <= 0 {
			return badRange("The lower boundary must be lower than or equal to the upper boundary in the Range header.")
		}
	}
	return nil
}

// rowNumber reads the number of a row that a table could have.
func rowNumber(text string) (n int64, ok bool) {
	n, err := strconv.ParseInt(text, 10, 64)
	return n, err == nil && digits(text) && n < 1<<62
}

// parsePrefer reads preferences. Those that are not known are left out, or refused
// where handling=strict asks for that.
func (q *Query) parsePrefer(headers []string) error {
	if len(headers) == 0 {
		return nil
	}
	var applied, unknown []string
	strict := false
	seen := make(map[string]bool)
	for _, header := range headers {
		for text := range strings.SplitSeq(header, ",") {
			text = strings.TrimSpace(text)
			name, _, _ := strings.Cut(text, "=")
			if text == "" || seen[name] {
				continue // the first one counts
			}
			switch text {
			case "count=exact", "count=planned", "count=estimated":
				// The number that is counted is as good as any estimate.
				q.Count = true
			case "handling=strict":
				strict = true
			case "bigint=string":
				q.BigInt = true
			case "bigint=number", "handling=lenient", "timezone=UTC":
			default:
				switch name {
				case "return", "resolution", "missing", "tx", "max-affected":
					continue // of writes
				}
				unknown = append(unknown, text)
				continue
			}
			seen[name] = true
			applied = append(applied, text)
		}
	}
	if strict && len(unknown) > 0 {
		return &Error{
			Status: http.StatusBadRequest, Code: "PGRST122", Message: "Invalid preferences given with handling=strict",
			Details: "Invalid preferences: " + strings.Join(unknown, ", "),
		}
	}
	q.Applied = strings.Join(applied, ", ")
	return nil
}

// paramReader takes a query string apart, in its order.
type paramReader struct{ rest string }

func (p *paramReader) next() (name, value string, ok bool, err error) {
	for p.rest != "" {
		var pair string
		pair, p.rest, _ = strings.Cut(p.rest, "&")
		text, encoded, hasValue := strings.Cut(pair, "=")
		if !hasValue {
			continue // as PostgREST does with a name alone
		}
		if name, err = unescape(text); err == nil {
			value, err = unescape(encoded)
		}
		return name, value, err == nil, err
	}
	return "", "", false, nil
}

// unescape takes percent signs and plus signs out.
func unescape(s string) (string, error) {
	if strings.IndexByte(s, '%') >= 0 || strings.IndexByte(s, '+') >= 0 {
		b := make([]byte, 0, len(s))
		for i := 0; i < len(s); i++ {
			switch s[i] {
			case '+':
				b = append(b, ' ')
			case '%':
				if i+2 >= len(s) {
					return "", badEscape(s)
				}
				n, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
				if err != nil {
					return "", badEscape(s)
				}
				b = append(b, byte(n))
				i += 2
			default:
				b = append(b, s[i])
			}
		}
		s = string(b)
	}
	if !utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0 {
		return "", sqlError(http.StatusBadRequest, "22021", "invalid byte sequence for encoding \"UTF8\": %s", hexOf(s))
	}
	return s, nil
}

func badEscape(s string) error {
	return unparsed("query string", s, 1+strings.IndexByte(s, '%'), "a percent sign is written %%25")
}

// hexOf shows the first byte that is not text.
func hexOf(s string) string {
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == 0 || r == utf8.RuneError && size == 1 {
			return fmt.Sprintf("0x%02x", s[i])
		}
		i += size
	}
	return "0x"
}
