package millrace

import (
	"bytes"
	"math"
)

// Dates are days and timestamps microseconds since 2000-01-01, as in Postgres,
// and infinity and -infinity the highest and lowest number.
const (
	// Postgres's ranges: 4714-11-24 BC to 5874897-12-31 and 294276-12-31.
	minDate      = -2451545
	endDate      = 2147483494 - 2451545
	minTimestamp = -211813488000000000
	endTimestamp = 9223371331200000000

	daySeconds = 24 * 60 * 60
	dayMicros  = daySeconds * 1_000_000
	// epochDays is 2000-01-01 in days of the civil calendar that begins on
	// 0000-03-01.
	epochDays = 730425
)

// cutBC takes the mark of years before 1 AD from the end.
func cutBC(text []byte) ([]byte, bool) { return bytes.CutSuffix(text, []byte(" BC")) }

// cutNumber reads between least and most digits.
func cutNumber(text []byte, least, most int) (n int64, rest []byte, ok bool) {
	i := 0
	for i < len(text) && i < most && text[i]-'0' <= 9 {
		n = n*10 + int64(text[i]-'0')
		i++
	}
	return n, text[i:], i >= least
}

func cutByte(text []byte, c byte) ([]byte, bool) {
	if len(text) == 0 || text[0] != c {
		return text, false
	}
	return text[1:], true
}

// cutDays reads year-month-day and returns it in days since 2000-01-01.
func cutDays(text []byte, bc bool) (days int64, rest []byte, ok bool) {
	year, text, ok := cutNumber(text, 4, 7)
	if !ok || year == 0 {
		return 0, nil, false
	}
	if bc {
		year = 1 - year
	}
	var month, day int64
	for _, n := range []*int64{&month, &day} {
		if text, ok = cutByte(text, '-'); !ok {
			return 0, nil, false
		}
		if *n, text, ok = cutNumber(text, 2, 2); !ok {
			return 0, nil, false
		}
	}
	if month < 1 || month > 12 || day < 1 || day > daysIn(year, month) {
		return 0, nil, false
	}
	return daysOf(year, month, day), text, true
}

func daysIn(year, month int64) int64 {
	switch month {
	case 4, 6, 9, 11:
		return 30
	case 2:
		if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
			return 29
		}
		return 28
	}
	return 31
}

// daysOf and civil convert between days since 2000-01-01 and the proleptic
// Gregorian calendar, in which the year before 1 is 0. The algorithm is Howard
// Hinnant's (chrono-compatible low-level date algorithms): years begin in March
// and come in eras of 400.
func daysOf(year, month, day int64) int64 {
	if month <= 2 {
		year--
	}
	era := floorDiv(year, 400)
	ofEra := year - era*400
	ofYear := (153*((month+9)%12)+2)/5 + day - 1
	return era*146097 + ofEra*365 + ofEra/4 - ofEra/100 + ofYear - epochDays
}

func civil(days int64) (year, month, day int64) {
	days += epochDays
	era := floorDiv(days, 146097)
	d := days - era*146097
	ofEra := (d - d/1460 + d/36524 - d/146096) / 365
	ofYear := d - (365*ofEra + ofEra/4 - ofEra/100)
	m := (5*ofYear + 2) / 153
	day = ofYear - (153*m+2)/5 + 1
	month = (m+2)%12 + 1
	year = ofEra + era*400
	if month <= 2 {
		year++
	}
	return year, month, day
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// cutMicros reads a time of day up to 24:00:00.
func cutMicros(text []byte) (micros int64, rest []byte, ok bool) {
	hour, text, ok := cutNumber(text, 2, 2)
	if !ok {
		return 0, nil, false
	}
	var minute, second int64
	for _, n := range []*int64{&minute, &second} {
		if text, ok = cutByte(text, ':'); !ok {
			return 0, nil, false
		}
		if *n, text, ok = cutNumber(text, 2, 2); !ok || *n > 59 {
			return 0, nil, false
		}
	}
	micros = ((hour*60+minute)*60 + second) * 1_000_000
	if fraction, ok := cutByte(text, '.'); ok {
		n, rest, ok := cutNumber(fraction, 1, 6)
		if !ok {
			return 0, nil, false
		}
		for range 6 - (len(fraction) - len(rest)) {
			n *= 10
		}
		micros += n
		text = rest
	}
	return micros, text, micros <= dayMicros
}

// cutOffset reads Z or ±hh[:mm[:ss]] and returns it in microseconds.
func cutOffset(text []byte) (micros int64, rest []byte, ok bool) {
	if rest, ok := cutByte(text, 'Z'); ok {
		return 0, rest, true
	}
	if len(text) == 0 || text[0] != '+' && text[0] != '-' {
		return 0, nil, false
	}
	sign := int64(1)
	if text[0] == '-' {
		sign = -1
	}
	hour, text, ok := cutNumber(text[1:], 2, 2)
	if !ok {
		return 0, nil, false
	}
	seconds := hour * 3600
	for unit := int64(60); unit >= 1; unit /= 60 {
		more, found := cutByte(text, ':')
		if !found {
			break
		}
		var n int64
		if n, text, ok = cutNumber(more, 2, 2); !ok || n > 59 {
			return 0, nil, false
		}
		seconds += n * unit
	}
	return sign * seconds * 1_000_000, text, true
}

func parseKeyDate(text []byte) (int32, bool) {
	switch string(text) {
	case "infinity":
		return math.MaxInt32, true
	case "-infinity":
		return math.MinInt32, true
	}
	text, bc := cutBC(text)
	days, rest, ok := cutDays(text, bc)
	return int32(days), ok && len(rest) == 0 && days >= minDate && days < endDate
}

func parseKeyTime(text []byte) (int64, bool) {
	micros, rest, ok := cutMicros(text)
	return micros, ok && len(rest) == 0
}

func parseKeyTimestamp(text []byte, zone bool) (int64, bool) {
	switch string(text) {
	case "infinity":
		return math.MaxInt64, true
	case "-infinity":
		return math.MinInt64, true
	}
	text, bc := cutBC(text)
	days, text, ok := cutDays(text, bc)
	if !ok || len(text) == 0 || text[0] != ' ' && text[0] != 'T' {
		return 0, false
	}
	micros, text, ok := cutMicros(text[1:])
	if !ok {
		return 0, false
	}
	if zone {
		var offset int64
		if offset, text, ok = cutOffset(text); !ok {
			return 0, false
		}
		micros -= offset
	}
	// One day of slack keeps the product within 64 bits.
	if len(text) != 0 || days < minTimestamp/dayMicros-2 || days > endTimestamp/dayMicros {
		return 0, false
	}
	at := days*dayMicros + micros
	return at, at >= minTimestamp && at < endTimestamp
}

func appendPadded(dst []byte, n int64, width int) []byte {
	for limit := int64(10); width > 1; width-- {
		if n < limit {
			for range width - 1 {
				dst = append(dst, '0')
			}
			break
		}
		limit *= 10
	}
	return appendInt(dst, n)
}

func appendDays(dst []byte, days int64) (text []byte, bc bool) {
	year, month, day := civil(days)
	if bc = year <= 0; bc {
		year = 1 - year
	}
	dst = appendPadded(dst, year, 4)
	dst = appendPadded(append(dst, '-'), month, 2)
	return appendPadded(append(dst, '-'), day, 2), bc
}

func appendMicros(dst []byte, micros int64) []byte {
	seconds, fraction := micros/1_000_000, micros%1_000_000
	dst = appendPadded(dst, seconds/3600, 2)
	dst = appendPadded(append(dst, ':'), seconds/60%60, 2)
	dst = appendPadded(append(dst, ':'), seconds%60, 2)
	if fraction == 0 {
		return dst
	}
	width := 6
	for ; fraction%10 == 0; fraction /= 10 {
		width--
	}
	return appendPadded(append(dst, '.'), fraction, width)
}

func appendDateText(dst []byte, days int32) ([]byte, bool) {
	switch days {
	case math.MaxInt32:
		return append(dst, "infinity"...), true
	case math.MinInt32:
		return append(dst, "-infinity"...), true
	}
	dst, bc := appendDays(dst, int64(days))
	if bc {
		dst = append(dst, " BC"...)
	}
	return dst, days >= minDate && days < endDate
}

func appendTimeText(dst []byte, micros int64) ([]byte, bool) {
	if micros < 0 || micros > dayMicros {
		return dst, false
	}
	return appendMicros(dst, micros), true
}

func appendTimestampText(dst []byte, at int64, zone bool) ([]byte, bool) {
	switch at {
	case math.MaxInt64:
		return append(dst, "infinity"...), true
	case math.MinInt64:
		return append(dst, "-infinity"...), true
	}
	days := floorDiv(at, dayMicros)
	dst, bc := appendDays(dst, days)
	dst = appendMicros(append(dst, ' '), at-days*dayMicros)
	if zone {
		dst = append(dst, "+00"...)
	}
	if bc {
		dst = append(dst, " BC"...)
	}
	return dst, at >= minTimestamp && at < endTimestamp
}
