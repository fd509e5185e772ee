package serve

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-db/millrace"
)

// lagLimits are how far a stream may be behind for the edge to be ready.
type lagLimits struct {
	age     time.Duration // negative for no limit
	entries int64         // negative for no limit
}

// old reports whether the newest unit of a stream is too old, many whether too much is to come.
func (l *lagLimits) old(st *readyStream) bool {
	return l.age >= 0 && (st.LagSeconds == nil || *st.LagSeconds > l.age.Seconds())
}

func (l *lagLimits) many(st *readyStream) bool {
	return st.LagEntries != nil && *st.LagEntries > uint64(l.entries)
}

// lagLimits reads max_lag and max_lag_entries.
func (q *request) lagLimits() (lagLimits, error) {
	limits := lagLimits{-1, -1}
	values, err := url.ParseQuery(q.r.URL.RawQuery)
	if err != nil {
		return limits, badRequest("bad_query", "write a percent sign as %25", "the query cannot be read: %v", err)
	}
	for name, all := range values {
		text := all[len(all)-1]
		switch name {
		case "max_lag":
			limits.age, err = time.ParseDuration(text)
			if seconds, numErr := strconv.ParseFloat(text, 64); numErr == nil && seconds < 1e9 {
				limits.age, err = time.Duration(seconds*float64(time.Second)), nil
			}
			if err != nil || limits.age < 0 {
				return limits, badRequest("bad_lag", "give seconds, or a duration as 500ms", "max_lag is %q", text)
			}
		case "max_lag_entries":
			if limits.entries, err = strconv.ParseInt(text, 10, 64); err != nil || limits.entries < 0 {
				return limits, badRequest("bad_lag", "give a number of entries", "max_lag_entries is %q", text)
			}
		default:
			// A limit that is misspelt would let everything through.
			return limits, badRequest("bad_query", "leave it out; there are max_lag and max_lag_entries", "readiness has no parameter %q", name)
		}
	}
	return limits, nil
}

// readyStream says how far a stream is behind.
type readyStream struct {
	Stream     string         `json:"stream"`
	Epoch      millrace.Epoch `json:"epoch"`
	Index      millrace.Index `json:"index"`
	LagSeconds *float64       `json:"lag_seconds"`
	// LagEntries is null where it was not asked for.
	LagEntries *uint64 `json:"lag_entries"`
}

// near answers whether each stream is within the limits.
func (q *request) near(limits lagLimits) error {
	const mend = "ask again later; /v1/streams shows what keeps a stream from going on"
	all := []readyStream{}
	var far []string
	for _, name := range q.s.names {
		st, err := q.lagOf(q.r.Context(), name, limits)
		if !q.who.Stream(name) { // it counts, and is not named
			if err != nil || limits.old(&st) || limits.many(&st) {
				far = append(far, "a stream is behind that is not shown here")
			}
			continue
		}
		if err != nil {
			far = append(far, fmt.Sprintf("how many entries stream %s is behind cannot be told: %v", name, err))
		}
		if limits.old(&st) {
			behind := "unknown"
			if st.LagSeconds != nil {
				behind = strconv.FormatFloat(*st.LagSeconds, 'f', 3, 64)
			}
			far = append(far, fmt.Sprintf("stream %s is %s seconds behind at index %v, the limit is %v", name, behind, st.Index, limits.age.Seconds()))
		}
		if limits.many(&st) {
			far = append(far, fmt.Sprintf("stream %s is %d entries behind at index %v, the limit is %d", name, *st.LagEntries, st.Index, limits.entries))
		}
		all = append(all, st)
	}
	if len(far) > 0 {
		return unavailable("lagging", mend, "%s", strings.Join(far, "; "))
	}
	return q.sendJSON(struct {
		Ready   bool          `json:"ready"`
		Streams []readyStream `json:"streams"`
	}{true, all})
}

func (q *request) lagOf(ctx context.Context, name string, limits lagLimits) (readyStream, error) {
	place := q.s.streams[name].store.Place()
	st := readyStream{Stream: name, Epoch: place.Epoch, Index: place.Index, LagSeconds: lagSeconds(place.Time, q.now)}
	if limits.entries < 0 {
		return st, nil
	}
	if q.s.config.Behind == nil {
		return st, fmt.Errorf("this server does not know how far the stream is")
	}
	n, err := q.s.config.Behind(ctx, name)
	if err == nil {
		st.LagEntries = &n
	}
	return st, err
}
