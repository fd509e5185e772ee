package config

import (
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// Duration is a time.Duration written as 500ms, 10s, 5m, 24h.
type Duration time.Duration

func (d *Duration) parse(text string) error {
	v, err := time.ParseDuration(text)
	if err != nil {
		return fmt.Errorf("%q is not a duration; write for instance 500ms, 10s or 24h", text)
	}
	*d = Duration(v)
	return nil
}

// String writes what parse reads.
func (d Duration) String() string {
	s := time.Duration(d).String()
	// time writes 1h0m0s.
	s = strings.Replace(s, "m0s", "m", 1)
	return strings.Replace(s, "h0m", "h", 1)
}

// Size is a number of bytes, written plain or with B, KiB, MiB, GiB, TiB.
type Size int64

var sizeUnits = []struct {
	name  string
	bytes int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

func (s *Size) parse(text string) error {
	digits, unit := text, int64(1)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(text, u.name); ok {
			digits, unit = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/unit {
		return fmt.Errorf("%q is not a size; write bytes, or for instance 512KiB, 64MiB or 64GiB", text)
	}
	*s = Size(n * unit)
	return nil
}

// String writes the largest unit that is exact.
func (s Size) String() string {
	for _, u := range sizeUnits {
		if s != 0 && int64(s)%u.bytes == 0 && u.bytes > 1 {
			return strconv.FormatInt(int64(s)/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// Choice is a single value, or a list of some.
type Choice []string

// Secret is a connection string. Printed or logged, it shows where it leads and
// no password; Reveal gives all of it.
type Secret string

// Reveal returns the connection string for whoever connects.
func (s Secret) Reveal() string { return string(s) }

// String shows user, host, port and database.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	c, err := pgconn.ParseConfig(string(s))
	if err != nil {
		return "(a connection string that cannot be read)"
	}
	return fmt.Sprintf("postgres://%s@%s:%d/%s", c.User, c.Host, c.Port, c.Database)
}

// GoString keeps the password out of %#v.
func (s Secret) GoString() string { return strconv.Quote(s.String()) }

// LogValue keeps the password out of logs.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalJSON keeps the password out of JSON.
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(strconv.Quote(s.String())), nil }
