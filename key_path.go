package millrace

import (
	"fmt"
	"net/url"
	"strings"
)

// ParseKeyPath reads a key as it stands in a URL or on a command line: the
// values of the key columns, percent-encoded and separated by commas. A comma
// within a value is written %2C. The empty string is one empty value.
func ParseKeyPath(s string) ([]string, error) {
	values := strings.Split(s, ",")
	for i, v := range values {
		text, err := url.PathUnescape(v)
		if err != nil {
			return nil, fmt.Errorf("%w: key value %q is not percent-encoded (a percent sign is written %%25)", ErrMalformed, v)
		}
		values[i] = text
	}
	return values, nil
}

// ParseKeyPrefix reads the leading columns of a key in the syntax of
// ParseKeyPath. A trailing * says that the last value is only the start of a
// text; a star that belongs to the value is written %2A. The empty string stands
// for no values at all.
func ParseKeyPrefix(s string) (values []string, partial bool, err error) {
	if s == "" {
		return nil, false, nil
	}
	s, partial = strings.CutSuffix(s, "*")
	values, err = ParseKeyPath(s)
	return values, partial, err
}

// FormatKeyPath writes key values in the syntax of ParseKeyPath.
func FormatKeyPath(values []string) string {
	var b strings.Builder
	for i, v := range values {
		if i > 0 {
			b.WriteByte(',')
		}
		// PathEscape escapes the comma and leaves the star alone.
		b.WriteString(strings.ReplaceAll(url.PathEscape(v), "*", "%2A"))
	}
	return b.String()
}
