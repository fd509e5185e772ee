package postgrest

import (
	"net/http"
	"strings"
)

// Dates and times are read in the ISO style, as Postgres and its JSON print them and
// as JavaScript does. Postgres reads many more; those are refused, because what they
// mean depends on settings at the source.

// infinity reads infinity and -infinity in any case.
func infinity(s string) string {
	switch strings.ToLower(s) {
	case "infinity":
		return "infinity"
	case "-infinity":
		return "-infinity"
	}
	return ""
}

func (c *column) fieldRange(text string) error {
	return sqlError(http.StatusBadRequest, "22008", "date/time field value out of range: %q", text)
}

// calendar tells year-month-day in digits.
func calendar(s string) bool {
	parts := strings.Split(s, "-")
	return len(parts) == 3 && digits(parts[0]) && digits(parts[1]) && digits(parts[2]) &&
		len(parts[0]) >= 4 && len(parts[0]) <= 7 && len(parts[1]) == 2 && len(parts[2]) == 2
}

// wholeClock tells hh:mm[:ss[.ffffff]] and completes it to seconds.
func wholeClock(s string) (string, bool) {
	clock, fraction, hasFraction := strings.Cut(s, ".")
	parts := strings.Split(clock, ":")
	for _, p := range parts {
		if len(p) != 2 || !digits(p) {
			return "", false
		}
	}
	switch {
	case len(parts) == 2 && !hasFraction:
		return s + ":00", true
	case len(parts) != 3, hasFraction && (!digits(fraction) || len(fraction) > 6):
		return "", false
	}
	return s, true
}

func (c *column) date(text string) (string, error) {
	s := strings.Trim(text, blanks)
	if name := infinity(s); name != "" {
		return name, nil
	}
	day, bc := strings.CutSuffix(s, " BC")
	if !calendar(day) {
		return "", c.unread(text)
	}
	if bc {
		day += " BC"
	}
	if !c.encodes(day) {
		return "", c.fieldRange(text)
	}
	return day, nil
}

func (c *column) clock(text string) (string, error) {
	s, ok := wholeClock(strings.Trim(text, blanks))
	if !ok {
		return "", c.unread(text)
	}
	if !c.encodes(s) {
		return "", c.fieldRange(text)
	}
	return s, nil
}

// timestamp reads date, blank or T, time and zone; a date alone is its midnight.
// Without a zone timestamptz is in UTC, as it is shown; with one timestamp leaves it
// out, as Postgres does.
func (c *column) timestamp(text string) (string, error) {
	s := strings.Trim(text, blanks)
	if name := infinity(s); name != "" {
		return name, nil
	}
	s, bc := strings.CutSuffix(s, " BC")
	day, rest := s, ""
	if i := strings.IndexAny(s, " Tt"); i >= 0 {
		day, rest = s[:i], s[i+1:]
		if rest == "" {
			return "", c.unread(text)
		}
	}
	if !calendar(day) {
		return "", c.unread(text)
	}
	clock, zone := rest, ""
	if i := strings.IndexAny(rest, "Zz+-"); i >= 0 {
		clock, zone = rest[:i], rest[i:]
		if clock == "" {
			return "", c.unread(text)
		}
	}
	if clock == "" {
		clock = "00:00:00"
	}
	clock, ok := wholeClock(clock)
	if !ok {
		return "", c.unread(text)
	}
	if zone, ok = wholeZone(zone); !ok {
		return "", c.unread(text)
	}
	out := day + " " + clock
	if c.kind == kindTimestamptz {
		out += zone
	}
	if bc {
		out += " BC"
	}
	if !c.encodes(out) {
		return "", c.fieldRange(text)
	}
	return out, nil
}

// wholeZone reads Z, ±hh, ±hhmm and ±hh:mm, or nothing for UTC.
func wholeZone(s string) (string, bool) {
	if s == "" || s == "Z" || s == "z" {
		return "+00", true
	}
	number := s[1:]
	if hour, minute, ok := strings.Cut(number, ":"); ok {
		if len(hour) != 2 || len(minute) != 2 {
			return "", false
		}
		number = hour + minute
	}
	if !digits(number) || len(number) != 2 && len(number) != 4 || number[:2] > "15" {
		return "", false
	}
	out := s[:1] + number[:2]
	if len(number) == 4 {
		if number[2:] > "59" {
			return "", false
		}
		out += ":" + number[2:]
	}
	return out, true
}
