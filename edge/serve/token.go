package serve

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/event"
)

// headerToken is the parameter after_token, for those who cannot give it in the query: a
// token of the source, which the answer has to cover.
const headerToken = "X-Millrace-Token"

// positions remembers where a stream's store stands, because tokens are compared with it
// far more often than it changes.
type positions struct{ newest atomic.Pointer[placed] }

type placed struct {
	place    edge.Place
	position millrace.Position
}

// of returns the position of the newest unit that readers see, and its place.
func (p *positions) of(ctx context.Context, store Reader) (*placed, error) {
	now := store.Place()
	if at := p.newest.Load(); at != nil && at.place.Epoch == now.Epoch && at.place.Index == now.Index {
		return at, nil
	}
	at := new(placed)
	err := store.View(ctx, func(v *edge.View) error {
		c, err := v.Checkpoint()
		if err == nil && c != nil {
			at.place, at.position = v.Place(), c.Position
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	p.newest.Store(at)
	return at, nil
}

// tokenOf returns the token that a request gives, if it gives one.
func (q *request) tokenOf(params url.Values) (t millrace.Token, given bool, err error) {
	text := header(q.r.Header, headerToken)
	if v := params.Get("after_token"); v != "" {
		text = v
	}
	if text == "" {
		return t, false, nil
	}
	if t, err = millrace.ParseToken(text); err != nil {
		return t, true, badRequest("bad_token", "give what SELECT millrace.token() gave at the source after the commit", "%v", err)
	}
	return t, true, nil
}

// awaitToken returns when readers see everything that was committed before a token was
// taken. The answer must then be of the epoch that was looked at, or a later look.
func (q *request) awaitToken(t millrace.Token, limit time.Duration) error {
	over := q.now.Add(limit)
	for {
		at, err := q.stream.positions.of(q.r.Context(), q.stream.store)
		if err != nil {
			return err
		}
		covered, err := at.position.Covers(t)
		if err != nil {
			return badRequest("bad_token", "take the token at the stream's source", "%v", err)
		}
		if covered {
			q.covered = at.place.Epoch
			return nil
		}
		left := time.Until(over)
		if left > 0 {
			if err = q.wait(event.ID{Epoch: at.place.Epoch, Index: at.place.Index + 1}, left); err == nil {
				continue
			}
			if !errors.Is(err, context.DeadlineExceeded) {
				return err
			}
		}
		q.place, q.hasPlace = q.stream.store.Place(), true
		return &fault{
			http.StatusGatewayTimeout, "behind",
			fmt.Sprintf("the stream is at index %v, position %v, which does not cover token %v", q.place.Index, at.position, t),
			"ask again, wait longer (at most " + maxWait.String() + "), or read what is there without the token",
		}
	}
}

// moved says that readers have gone over to another epoch since a token was found covered,
// or an index reached: the store that is read now may not have come as far.
func (q *request) moved() error {
	if !q.hasPlace || (q.covered == 0 || q.place.Epoch == q.covered) && q.place.Reaches(q.least.Epoch, q.least.Index) {
		return nil
	}
	return unavailable("moved", "ask again", "readers have gone over to epoch %v in the meantime", q.place.Epoch)
}

// token answers which index covers a token.
func (q *request) token() error {
	params, err := q.params([]string{})
	if err != nil {
		return err
	}
	if _, given, err := q.tokenOf(params); err != nil || !given {
		if err == nil {
			err = badRequest("bad_token", "give after_token", "no token is given")
		}
		return err
	}
	at, err := q.stream.positions.of(q.r.Context(), q.stream.store)
	if err != nil {
		return err
	}
	q.place, q.hasPlace = at.place, true
	return q.sendJSON(struct {
		Epoch millrace.Epoch `json:"epoch"`
		Index millrace.Index `json:"index"`
	}{at.place.Epoch, at.place.Index})
}
