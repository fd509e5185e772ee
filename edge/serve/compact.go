package serve

import (
	"errors"
	"mime"
	"net/http"
	"time"
)

// The states of a Compaction.
const (
	// CompactionWaiting: it begins at the next occasion.
	CompactionWaiting = "waiting"
	// CompactionCopying: the copy is being written.
	CompactionCopying = "copying"
	// CompactionChecking: the copy is being read through.
	CompactionChecking = "checking"
	// CompactionFollowing: the copy is brought up to date.
	CompactionFollowing = "following"
	// CompactionDone: readers have gone over to the copy.
	CompactionDone = "done"
	// CompactionFailed: the copy was given up; everything is as it was.
	CompactionFailed = "failed"
)

// Compaction says how far the compaction of a stream's store is, or how the last
// one has ended.
type Compaction struct {
	State string `json:"state"`
	// Items of Of have been copied: rows, pieces of large rows, entries of indexes.
	Items uint64 `json:"items"`
	Of    uint64 `json:"of"`
	// BytesBefore and BytesAfter are what the store took and takes; 0 until it is
	// done.
	BytesBefore int64 `json:"bytes_before"`
	BytesAfter  int64 `json:"bytes_after"`
	// Problem says why it has failed, and what mends it.
	Problem   string    `json:"problem,omitempty"`
	StartedAt time.Time `json:"started_at"`
	EndedAt   time.Time `json:"ended_at,omitzero"`
}

// Running reports whether the compaction has not ended.
func (c *Compaction) Running() bool {
	return c.State != CompactionDone && c.State != CompactionFailed
}

// ErrCompacting occurs when a compaction is to begin and one is under way.
var ErrCompacting = errors.New("a compaction of the stream's store is under way")

// Compactor compacts the stores of an edge. Its methods may be called
// concurrently.
type Compactor interface {
	// Compact asks for a compaction, which goes on in the background; ErrCompacting
	// tells that there is one already.
	Compact(stream string) error
	// Compaction returns the newest one, nil if there was none.
	Compaction(stream string) *Compaction
}

// compact begins a compaction, or answers how far it is.
func (q *request) compact() error {
	c := q.s.config.Compactor
	if c == nil {
		return notFound("no_compaction", "run millrace edge", "this server does not compact stores")
	}
	switch q.r.Method {
	case http.MethodPost:
		// A page in a browser cannot send this type to another host by itself.
		if kind, _, err := mime.ParseMediaType(q.r.Header.Get("Content-Type")); err != nil || kind != typeJSON[0] {
			return &fault{http.StatusUnsupportedMediaType, "bad_type", "the request is not of type " + typeJSON[0], "send {} with Content-Type: " + typeJSON[0]}
		}
		err := c.Compact(q.stream.name)
		if errors.Is(err, ErrCompacting) {
			return &fault{http.StatusConflict, "compacting", err.Error(), "wait until it has ended"}
		}
		if err != nil {
			return err
		}
	case http.MethodGet, http.MethodHead:
	default:
		return q.wrongMethod(http.MethodPost + ", " + http.MethodGet)
	}
	now := c.Compaction(q.stream.name)
	if now == nil {
		return notFound("no_compaction", "begin one with POST", "the store of stream %s has not been compacted since the edge was started", q.stream.name)
	}
	return q.sendJSON(now)
}
