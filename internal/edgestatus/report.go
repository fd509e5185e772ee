// Package edgestatus is what edges say of themselves, in a compacted topic beside
// the stream's own: the newest report of each edge, under the edge's name.
//
// It owns the form of a report, an edge's reporter, and the readers of all
// reports. It promises that a reporter never holds up or ends the edge it speaks
// of, that a report is bounded in size, and that a record which is no report is
// counted and otherwise ignored. Nothing that an edge or a publisher does to the
// stream depends on a report.
package edgestatus

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/millrace-db/millrace"
)

// TopicOf names the topic of reports of a stream whose first epoch's topic has
// the given name. Later epochs have the same one.
func TopicOf(topic string) string { return topic + ".status" }

// Format is the version of the form of a report. Fields may be added within it.
const Format = 1

// The states of an edge.
const (
	// StateConnecting: the topic is being opened, or nothing has come yet.
	StateConnecting = "connecting"
	// StateCopy: changes are applied, and a load of a table is under way.
	StateCopy = "copy"
	// StateStream: changes are applied as they come.
	StateStream = "stream"
	// StateRetry: an error occurred; the edge tries again.
	StateRetry = "retry"
	// StateFault: somebody has to act; the edge answers from its last rows.
	StateFault = "fault"
	// StateStopped: the process has ended in order.
	StateStopped = "stopped"
)

// Report is what an edge says of one stream. docs/FORMAT.md describes it for
// other readers.
type Report struct {
	Format int    `json:"v"`
	Edge   string `json:"edge"`
	Stream string `json:"stream"`
	// StreamID is empty before the edge has learnt it.
	StreamID string         `json:"stream_id"`
	Epoch    millrace.Epoch `json:"epoch"`
	// Index and Chain are of the newest unit that readers see there.
	Index millrace.Index `json:"index"`
	Chain string         `json:"chain"`
	Term  millrace.Term  `json:"term"`
	// LagSeconds is the age of that unit when the report was made, SourceTime
	// when it was committed at the source; null before the first.
	LagSeconds *float64   `json:"lag_seconds"`
	SourceTime *time.Time `json:"source_time"`
	State      string     `json:"state"`
	// Error is the newest error that keeps the edge from going on.
	Error string `json:"error,omitempty"`
	// Tables and Rows count what readers see.
	Tables int    `json:"tables"`
	Rows   uint64 `json:"rows"`
	// Holds are the tables that a partial edge holds; none where it holds everything.
	Holds []Held `json:"holds,omitempty"`
	// Verifying is the index of the oldest Verify entries that are not compared
	// yet; 0 if all up to Index are.
	Verifying millrace.Index `json:"verifying"`
	// Verify has the tables of which Verify entries have come.
	Verify []TableVerify `json:"verify"`
	// Diverged are tables that are known not to be what the source has.
	Diverged []Diverged `json:"diverged"`
	// LeftOut is how many tables are not in Verify to keep the report small.
	LeftOut int `json:"left_out,omitempty"`
	// Log is the edge's own log of the stream; nil if it keeps none.
	Log *Log `json:"log,omitempty"`
	// UnprovenSince is the index of the image that rows here came with which were not
	// compared with the source since; 0 if there are none.
	UnprovenSince millrace.Index `json:"unproven_since_image,omitempty"`
	// Bootstrap is how far the taking of an image is, or failed where the newest try was
	// in vain; empty otherwise.
	Bootstrap string `json:"bootstrap,omitempty"`
	// Next is how far the copy of a newer epoch is; nil if there is none.
	Next *Next `json:"next,omitempty"`
	// Space is the room of the edge's store; nil before it was looked at.
	Space *Space `json:"space,omitempty"`
	// Below sums up the edges that follow this one, and those that follow them; nil if
	// there are none.
	Below *Summary `json:"below,omitempty"`
	// Version is that of the program.
	Version    string    `json:"version"`
	StartedAt  time.Time `json:"started_at"`
	ReportedAt time.Time `json:"reported_at"`
	// Interval is how often the edge reports in any case, in seconds.
	Interval float64 `json:"interval_seconds"`

	// differs, tables and passes are kept of what a slim fleet leaves out.
	differs bool
	tables  []TableSummary
	passes  []PassSummary
}

// Held is a table that a partial edge holds.
type Held struct {
	Table string `json:"table"`
	// Prefixes is under how many prefixes it holds keys; 0 if it holds all.
	Prefixes int `json:"prefixes,omitempty"`
}

// Held returns what the edge holds of a table. held is false where that is nothing.
func (r *Report) Held(table string) (h Held, held bool) {
	if len(r.Holds) == 0 {
		return Held{Table: table}, true
	}
	for _, h := range r.Holds {
		if h.Table == table {
			return h, true
		}
	}
	return Held{}, false
}

// Log says what an edge's own log holds.
type Log struct {
	// Oldest and Newest are the first and last index; 0 if it holds none.
	Oldest millrace.Index `json:"oldest"`
	Newest millrace.Index `json:"newest"`
}

// Next says how far the copy of a newer epoch is.
type Next struct {
	Epoch millrace.Epoch `json:"epoch"`
	Index millrace.Index `json:"index"`
}

// Space is the room of an edge's store, in bytes.
type Space struct {
	File     int64 `json:"file_bytes"`
	Map      int64 `json:"map_bytes"`
	DiskFree int64 `json:"disk_free_bytes"`
	// Growth is in bytes a second, over the last hour.
	Growth float64 `json:"growth_bytes_per_second"`
	// Alarm says what will keep the store from being written; empty while there is
	// room.
	Alarm string `json:"alarm,omitempty"`
}

// Diverged is a table that is not what the source has.
type Diverged struct {
	Table  string `json:"table"`
	Reason string `json:"reason"`
}

// TableVerify says what became of the Verify entries of a table.
type TableVerify struct {
	Table string           `json:"table"`
	ID    millrace.TableID `json:"id"`
	// Index and Time are those of the newest range that was compared.
	Index millrace.Index `json:"index"`
	Time  *time.Time     `json:"time"`
	// Equal, Different and Skipped count ranges since the process started.
	Equal      uint64 `json:"equal"`
	Different  uint64 `json:"different"`
	Skipped    uint64 `json:"skipped"`
	SkipReason string `json:"skip_reason,omitempty"`
	Pass       Pass   `json:"pass"`
	// Differences are ranges whose rows differ, at most three; More is how many
	// there are besides.
	Differences []Difference `json:"differences,omitempty"`
	More        int          `json:"more,omitempty"`
}

// Pass is one pass over a table: the Verify entries that share an ID.
type Pass struct {
	ID        uint64         `json:"id"`
	Equal     uint64         `json:"equal"`
	Different uint64         `json:"different"`
	Skipped   uint64         `json:"skipped"`
	Rows      uint64         `json:"rows"`
	From      millrace.Index `json:"from"`
	To        millrace.Index `json:"to"`
}

// Difference is a range of keys whose rows differ from the source's.
type Difference struct {
	Low        string         `json:"low"`
	High       string         `json:"high"`
	Buckets    uint32         `json:"buckets,omitempty"`
	Bucket     uint32         `json:"bucket,omitempty"`
	Since      millrace.Index `json:"since"`
	Index      millrace.Index `json:"index"`
	Time       time.Time      `json:"time"`
	Rows       uint64         `json:"rows"`
	SourceRows uint64         `json:"source_rows"`
	Reason     string         `json:"reason"`
}

const (
	// MaxReport is the size of the largest report in bytes.
	MaxReport = 256 << 10
	maxError  = 2000
	maxText   = 300
)

// Encode returns the bytes of a report. What makes it too large is shortened or
// left out: texts, then tables of which nothing is wrong, then others.
func (r *Report) Encode() ([]byte, error) {
	e := *r
	e.Format = Format
	e.Error = short(e.Error, maxError)
	if r.Space != nil {
		space := *r.Space
		space.Alarm = short(space.Alarm, maxText)
		e.Space = &space
	}
	e.Verify = make([]TableVerify, 0, len(r.Verify))
	for _, v := range r.Verify {
		v.SkipReason = short(v.SkipReason, maxText)
		v.Differences = append([]Difference(nil), v.Differences...)
		for i := range v.Differences {
			d := &v.Differences[i]
			d.Low, d.High, d.Reason = short(d.Low, maxText), short(d.High, maxText), short(d.Reason, maxText)
		}
		e.Verify = append(e.Verify, v)
	}
	e.Diverged = make([]Diverged, 0, len(r.Diverged))
	for _, d := range r.Diverged {
		e.Diverged = append(e.Diverged, Diverged{d.Table, short(d.Reason, maxText)})
	}
	for {
		b, err := json.Marshal(&e)
		if err != nil {
			return nil, fmt.Errorf("encode report: %w", err)
		}
		if len(b) <= MaxReport {
			return b, nil
		}
		if !e.shrink() {
			return nil, fmt.Errorf("encode report: %w: %d bytes", millrace.ErrTooLarge, len(b))
		}
	}
}

// shrink leaves out some more, and reports whether there was something.
func (r *Report) shrink() bool {
	var wrong []TableVerify
	for _, v := range r.Verify {
		if len(v.Differences) > 0 {
			wrong = append(wrong, v)
		}
	}
	before := len(r.Verify)
	if len(wrong) < before {
		// The last ones first; half of them each time.
		fine := before - len(wrong)
		keep := fine / 2
		left := r.Verify[:0]
		for _, v := range r.Verify {
			if len(v.Differences) > 0 || keep > 0 {
				if len(v.Differences) == 0 {
					keep--
				}
				left = append(left, v)
			}
		}
		r.Verify = left
	} else {
		r.Verify = r.Verify[:before/2]
	}
	r.LeftOut += before - len(r.Verify)
	if len(r.Verify) < before {
		return true
	}
	if n := len(r.Diverged); n > 0 {
		r.Diverged = r.Diverged[:n/2]
		return true
	}
	if b := r.Below; b != nil && len(b.Worst)+len(b.Last)+len(b.Tables)+len(b.Forks)+len(b.Passes) > 0 {
		short := *b // the counts stay
		short.Worst, short.Last, short.Tables, short.Forks, short.Passes = nil, nil, nil, nil, nil
		r.Below = &short
		return true
	}
	return false
}

// short cuts a text to a number of bytes, but not within a character.
func short(s string, most int) string {
	if len(s) <= most {
		return s
	}
	most = max(most-len(cut), 0)
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most] + cut
}

// cut stands at the end of a text that was cut.
const cut = "…"

// errNoReport occurs when a record is not a report of this format.
var errNoReport = errors.New("not a report of an edge")

// Decode reads a record of the topic.
func Decode(key, value []byte) (*Report, error) {
	if len(value) > MaxReport {
		return nil, fmt.Errorf("%w: %d bytes", errNoReport, len(value))
	}
	r := new(Report)
	if err := json.Unmarshal(value, r); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoReport, err)
	}
	switch {
	case r.Format != Format:
		return nil, fmt.Errorf("%w: format %d, this program reads %d", errNoReport, r.Format, Format)
	case r.Edge == "" || r.Edge != string(key):
		return nil, fmt.Errorf("%w: it is of edge %q and stands under %q", errNoReport, r.Edge, key)
	case r.State == "" || r.ReportedAt.IsZero():
		return nil, fmt.Errorf("%w: it has no state or no time", errNoReport)
	case r.Below != nil && !r.Below.valid():
		return nil, fmt.Errorf("%w: what it sums up has numbers that cannot be", errNoReport)
	}
	r.State, r.Version, r.Chain = short(r.State, maxText), short(r.Version, maxText), short(r.Chain, maxText)
	if r.Below != nil {
		r.Below.clip()
	}
	return r, nil
}

// Differs reports whether rows at the edge differ from the source's.
func (r *Report) Differs() bool {
	for i := range r.Verify {
		if len(r.Verify[i].Differences) > 0 {
			return true
		}
	}
	return r.differs || len(r.Diverged) > 0
}
