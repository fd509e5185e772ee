package millrace

import (
	"fmt"
	"strconv"
	"strings"
)

// Token names a moment at a source, as millrace.token() gives it there: an edge whose
// Position covers it has everything that was committed before. In text it is
// 1-<system>-<LSN>-<snapshot>, as in 1-7401234567890123456-16/B374D848-742:745:742; the
// snapshot may be missing.
// An LSN alone is a Token too, of any system.
type Token struct {
	// SystemID is that of the source cluster; 0 for any.
	SystemID uint64
	// LSN is where its WAL ended.
	LSN LSN
	// Snapshot is what pg_current_snapshot() printed; empty where it is not known.
	Snapshot string
}

// ParseToken reads a token or an LSN.
func ParseToken(text string) (Token, error) {
	bad := func(what string) (Token, error) {
		return Token{}, fmt.Errorf("%w: token %.80q: %s; want what SELECT millrace.token() gives, or an LSN", ErrMalformed, text, what)
	}
	if !strings.Contains(text, "-") {
		lsn, err := ParseLSN(text)
		if err != nil || lsn == 0 {
			return bad("it is neither")
		}
		return Token{LSN: lsn}, nil
	}
	parts := strings.Split(text, "-")
	// The system's number is an unsigned one in a signed column.
	if len(parts) == 5 && parts[1] == "" {
		parts = append([]string{parts[0], "-" + parts[2]}, parts[3:]...)
	}
	if len(parts) != 4 {
		return bad("it has not four parts")
	}
	if parts[0] != "1" {
		return bad("it is of an unknown form, of a newer version")
	}
	system, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil || system == 0 {
		return bad("its system is no number")
	}
	lsn, err := ParseLSN(parts[2])
	if err != nil || lsn == 0 {
		return bad("its LSN is none")
	}
	if _, err := parseVisible(parts[3]); err != nil && parts[3] != "" {
		return bad("its snapshot is none")
	}
	return Token{SystemID: uint64(system), LSN: lsn, Snapshot: parts[3]}, nil
}

// String returns the text form.
func (t Token) String() string {
	if t.SystemID == 0 {
		return t.LSN.String()
	}
	return fmt.Sprintf("1-%d-%v-%s", int64(t.SystemID), t.LSN, t.Snapshot)
}

// Covers reports whether everything that was committed at the source before t was taken
// is in the stream up to p. It may say no where it is, for as long as the source does
// nothing else; it never says yes where it is not. The error says why p can never cover t.
func (p Position) Covers(t Token) (bool, error) {
	if p.IsZero() {
		return false, nil
	}
	if t.SystemID != 0 && t.SystemID != p.SystemID {
		return false, fmt.Errorf("%w: token of system %d, the stream is of system %d: it was taken at another server", ErrMalformed, t.SystemID, p.SystemID)
	}
	if p.Mode != ModeTrigger {
		// Units come in the order in which their commits end in the WAL.
		return p.LSN >= t.LSN, nil
	}
	if t.Snapshot == "" {
		return false, fmt.Errorf("%w: it says nothing about a stream that is captured by triggers; give what SELECT millrace.token() gives under READ COMMITTED", ErrMalformed)
	}
	if p.Snapshot == "" {
		return false, nil
	}
	here, err := parseVisible(p.Snapshot)
	if err != nil {
		return false, err
	}
	there, err := parseVisible(t.Snapshot)
	if err != nil {
		return false, err
	}
	return here.covers(there), nil
}

// visible is which transactions a snapshot sees as ended: all below next but those that
// run.
type visible struct {
	next    uint64
	running map[uint64]bool
}

func parseVisible(text string) (v visible, err error) {
	bad := func() (visible, error) { return visible{}, fmt.Errorf("%w: snapshot %.80q", ErrMalformed, text) }
	parts := strings.Split(text, ":")
	if len(parts) != 3 {
		return bad()
	}
	low, err := strconv.ParseUint(parts[0], 10, 64)
	if err != nil {
		return bad()
	}
	if v.next, err = strconv.ParseUint(parts[1], 10, 64); err != nil || v.next == 0 || low > v.next {
		return bad()
	}
	v.running = make(map[uint64]bool)
	if parts[2] == "" {
		return v, nil
	}
	for part := range strings.SplitSeq(parts[2], ",") {
		n, err := strconv.ParseUint(part, 10, 64)
		if err != nil || n < low || n >= v.next {
			return bad()
		}
		v.running[n] = true
	}
	return v, nil
}

// covers reports whether v sees all that o sees.
func (v visible) covers(o visible) bool {
	for n := range v.running {
		if n < o.next && !o.running[n] {
			return false
		}
	}
	if v.next >= o.next {
		return true
	}
	// What began after v must run for o too.
	running := uint64(0)
	for n := range o.running {
		if n >= v.next {
			running++
		}
	}
	return running == o.next-v.next
}
