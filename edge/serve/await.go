package serve

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/event"
)

// A reader names the place that its answer may be true for at the least, and how long it
// waits for that: min_index and wait in the query, or these headers, which the dialect of
// /rest leaves as the only way. A place is an index of the epoch that is served, or epoch
// and index as the IDs of events are; every place of a later epoch is behind it.
const (
	headerMinIndex = "X-Millrace-Min-Index"
	headerWait     = "X-Millrace-Wait"
)

// maxWait keeps a wait well within what an answer may take.
const maxWait = 30 * time.Second

// await returns when the stream has come to the index that the request asks for. With
// the time over it is an error that says where the stream is.
func (q *request) await(params url.Values) error {
	text, wait := header(q.r.Header, headerMinIndex), header(q.r.Header, headerWait)
	if v := params.Get("min_index"); v != "" {
		text = v
	}
	if v := params.Get("wait"); v != "" {
		wait = v
	}
	token, given, err := q.tokenOf(params)
	switch {
	case err != nil:
		return err
	case text != "" || given:
	case wait != "":
		return badRequest("bad_wait", "say for which index, with min_index, or for which token, with after_token", "wait is given without min_index or after_token")
	default:
		return nil
	}
	limit, err := parseWait(wait)
	if err != nil {
		return err
	}
	if given {
		if err := q.awaitToken(token, limit); err != nil || text == "" {
			return err
		}
	}
	least, err := event.ParseID(text)
	if err != nil {
		return badRequest("bad_index", "give what X-Millrace-Index showed, or that of X-Millrace-Epoch before it, as in 1-4711", "min_index is %q", text)
	}
	if q.stream.store.Place().Reaches(least.Epoch, least.Index) {
		q.least = least
		return nil
	}
	if limit > 0 {
		if err = q.wait(least, limit); err == nil {
			q.least = least
		}
		if err == nil || !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
	if limit == 0 {
		// A store that another process writes, before or after a handover, learns where it
		// stands by being read.
		if err := q.stream.store.View(q.r.Context(), func(*edge.View) error { return nil }); err != nil {
			return err
		}
	}
	q.place, q.hasPlace = q.stream.store.Place(), true
	if q.place.Reaches(least.Epoch, least.Index) {
		q.least = least
		return nil
	}
	at, wanted := q.place.Index.String(), least.Index.String()
	if least.Epoch != 0 {
		at, wanted = event.ID{Epoch: q.place.Epoch, Index: q.place.Index}.String(), least.String()
	}
	return &fault{
		http.StatusGatewayTimeout, "behind", fmt.Sprintf("the stream is at index %s, and %s was waited for", at, wanted),
		"ask again, wait longer (at most " + maxWait.String() + "), or read what is there without min_index",
	}
}

// wait waits, as one of a bounded number. It ends with the client, and with the server.
func (q *request) wait(place event.ID, limit time.Duration) error {
	if q.s.waiting.Add(1) > int64(q.s.config.MaxWaiters) {
		q.s.waiting.Add(-1)
		return unavailable("busy", "ask again, or without wait", "%d readers are waiting already", q.s.config.MaxWaiters)
	}
	defer q.s.waiting.Add(-1)
	ctx, cancel := context.WithTimeout(q.r.Context(), limit)
	defer cancel()
	defer context.AfterFunc(q.s.life, cancel)()
	err := q.stream.store.WaitPlace(ctx, place.Epoch, place.Index)
	if err != nil && q.s.life.Err() != nil {
		return unavailable("closed", "ask again, or another edge", "the edge is shutting down")
	}
	return err
}

// parseWait reads a duration, or a number of seconds.
func parseWait(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if n, numErr := strconv.ParseUint(text, 10, 16); numErr == nil {
		d, err = time.Duration(n)*time.Second, nil
	}
	if err != nil || d < 0 || d > maxWait {
		return 0, badRequest("bad_wait", "give a duration as 500ms or 2s", "wait is %q, want one from 0s to %v", text, maxWait)
	}
	return d, nil
}

// header returns the first value under a canonical name.
func header(h http.Header, name string) string {
	if v := h[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}
