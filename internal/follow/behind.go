package follow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge/relay"
	"github.com/millrace-db/millrace/internal/lineage"
	"github.com/millrace-db/millrace/internal/topic"
)

const (
	// headFresh is how long what the topic's end says is believed: probes come often.
	headFresh = time.Second
	// headLimit bounds a look.
	headLimit = 5 * time.Second
	// headRecords is from how many records before the end on the newest index is
	// looked for, if the last one says none: a Term record, or none of a stream at all.
	headRecords = 16
)

// head remembers how far the stream has come where it is published.
type head struct {
	mu    sync.Mutex
	at    time.Time
	epoch millrace.Epoch
	index millrace.Index
	err   error
}

// Behind returns how many entries of the stream are published and not yet in the store
// that readers use. What an upstream or the topic's newest record says decides.
func (f *Stream) Behind(ctx context.Context) (uint64, error) {
	if f.upstreams != nil {
		switch s := f.upstreams.Status(); s.URL {
		case "":
			return 0, errors.New("no upstream is followed")
		case relay.OriginName: // the topic is asked, below
		default:
			return uint64(s.Behind), nil
		}
	}
	h := &f.head
	h.mu.Lock()
	defer h.mu.Unlock()
	epoch := f.home.Place().Epoch
	if time.Since(h.at) > headFresh || h.epoch != epoch {
		h.epoch = epoch
		h.index, h.err = f.newest(ctx)
		h.at = time.Now()
	}
	if h.err != nil {
		return 0, h.err
	}
	if here := f.home.Place().Index; here < h.index {
		return uint64(h.index - here), nil
	}
	return 0, nil
}

// newest returns the index that the newest record of the topic ends at.
func (f *Stream) newest(ctx context.Context) (millrace.Index, error) {
	index, _, err := f.newestRecord(ctx)
	return index, err
}

// newestRecord is newest with the time that the record is of, at the source.
func (f *Stream) newestRecord(ctx context.Context) (millrace.Index, time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, headLimit)
	defer cancel()
	t, err := lineage.OpenTopic(ctx, f.config, f.topicName(), f.log)
	if err != nil {
		return 0, time.Time{}, err
	}
	defer func() { _ = t.Close() }() // nothing is appended
	info, err := t.Info(ctx)
	if err != nil {
		return 0, time.Time{}, err
	}
	for _, back := range []millrace.Offset{1, headRecords} {
		from := max(info.Start, info.End-back)
		if from >= info.End {
			return 0, time.Time{}, nil
		}
		newest, at, err := newestFrom(ctx, t, from, info.End)
		if err != nil || newest > 0 || from == info.Start {
			return newest, at, err
		}
	}
	return 0, time.Time{}, fmt.Errorf("topic %s: none of its last %d records says an index", t.Name(), headRecords)
}

func newestFrom(ctx context.Context, t *topic.Topic, from, end millrace.Offset) (newest millrace.Index, at time.Time, err error) {
	r, err := t.Read(ctx, from)
	if err != nil {
		return 0, at, err
	}
	defer r.Close()
	for {
		m, err := r.Until(ctx, end)
		if errors.Is(err, io.EOF) {
			return newest, at, nil
		}
		if err != nil {
			return 0, at, err
		}
		h, err := millrace.DecodeHeader(m.Value)
		if err != nil {
			return 0, at, err
		}
		switch h.Kind {
		case millrace.RecordBatch:
			newest, at = h.Last(), h.Time
		case millrace.RecordState:
			newest, at = h.First-1, h.Time
		case millrace.RecordTerm:
		}
	}
}
