package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge/event"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/edgestatus"
	"github.com/millrace-db/millrace/internal/lineage"
)

// waitLook is how often what edges have reported is looked at.
const waitLook = 500 * time.Millisecond

// receipt says how many edges have come to an index.
type receipt struct {
	Stream  string         `json:"stream"`
	Epoch   millrace.Epoch `json:"epoch"`
	Index   millrace.Index `json:"index"`
	Reached bool           `json:"reached"`
	// Have of Edges hold the index; Want of them was asked for.
	Have    int     `json:"have"`
	Want    int     `json:"want"`
	Edges   int     `json:"edges"`
	Seconds float64 `json:"seconds"`
	// Lacking are edges that do not, at most twenty, and those furthest behind first.
	Lacking []edgestatus.Line `json:"lacking"`
}

func (a *app) waitCommand() *cobra.Command {
	var stream, edges string
	var index string
	var epoch uint64
	var of int
	var limit time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "wait",
		Short: "Wait until edges have come to an index: a receipt that what was written has arrived",
		Long: `Wait until edges have reported that they hold an index, that is that readers see it there: a receipt that what
was written has arrived. All edges that are on the list of millrace status count, also those that are silent or
have stopped, until they are forgotten; relays report for those below them. Exit code 0 when enough edges have
come to the index, 1 when the time is over; then those that lack it are named.`,
		Example: "  millrace wait --index 4711 --edges 95% --timeout 1m",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			enough, err := parseQuorum(edges)
			if err != nil {
				return err
			}
			if limit <= 0 || of < 0 {
				return usage("--timeout %v, --of %d: want a time above 0, and 0 or more", limit, of)
			}
			place, err := waitFor(index, epoch)
			if err != nil {
				return err
			}
			c, err := a.load()
			if err != nil {
				return err
			}
			all := streamNames(c)
			s, err := one(c, stream, all)
			if err != nil {
				return err
			}
			if err := c.NeedKafka([]string{s.Name}); err != nil {
				return err
			}
			w := &waiting{app: a, stream: s, enough: enough, of: of, limit: limit}
			found, err := w.run(cmd.Context(), c, place.Epoch, place.Index)
			if err != nil {
				return err
			}
			return a.printReceipt(found, asJSON)
		},
	}
	cmd.Flags().StringVar(&stream, "stream", "", "the stream, where there are several")
	cmd.Flags().StringVar(&index, "index", "", "the `INDEX` to wait for, or its epoch and it as in 1-4711; how far the stream is now otherwise")
	cmd.Flags().Uint64Var(&epoch, "epoch", 0, "the `EPOCH` of the index; the one that the stream has now otherwise")
	cmd.Flags().StringVar(&edges, "edges", "100%", "how many edges are enough: a `SHARE` such as 95%, or a number")
	cmd.Flags().IntVar(&of, "of", 0, "`COUNT` of edges that a share is of, where some have never reported; those on the list otherwise")
	cmd.Flags().DurationVar(&limit, "timeout", 5*time.Minute, "give up after this `TIME`")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// waitFor reads which place is to be waited for; what is zero of it is to be found out.
func waitFor(index string, epoch uint64) (event.ID, error) {
	place := event.ID{Epoch: millrace.Epoch(epoch)}
	if index == "" {
		return place, nil
	}
	id, err := event.ParseID(index)
	if err != nil {
		return place, usage("--index: %v", err)
	}
	if id.Epoch != 0 && epoch != 0 && id.Epoch != place.Epoch {
		return place, usage("--index %s and --epoch %d name two epochs; leave one of them out", index, epoch)
	}
	if id.Epoch == 0 {
		id.Epoch = place.Epoch
	}
	return id, nil
}

// quorum is a number of edges, or a part of them.
type quorum struct {
	part  float64 // 0 to 1
	count int     // where part is 0
}

func parseQuorum(text string) (quorum, error) {
	refuse := usage("--edges %q: want a share above 0%% and up to 100%%, or a number of edges above 0", text)
	if percent, ok := strings.CutSuffix(text, "%"); ok {
		p, err := strconv.ParseFloat(percent, 64)
		if err != nil || !(p > 0 && p <= 100) {
			return quorum{}, refuse
		}
		return quorum{part: p / 100}, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n <= 0 {
		return quorum{}, refuse
	}
	return quorum{count: n}, nil
}

// of returns how many edges are enough of so many.
func (q quorum) of(edges int) int {
	if q.part == 0 {
		return q.count
	}
	// 95 % of 20 are 19, whatever binary fractions make of it.
	return max(1, int(math.Ceil(q.part*float64(edges)-1e-9)))
}

// waiting waits for the edges of one stream.
type waiting struct {
	*app
	stream *config.Stream
	enough quorum
	of     int
	limit  time.Duration
}

func (w *waiting) run(ctx context.Context, c *config.Config, epoch millrace.Epoch, index millrace.Index) (*receipt, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, w.limit)
	defer cancel()
	streamID := ""
	if index == 0 || epoch == 0 {
		places, err := status(ctx, c, []string{w.stream.Name})
		if err != nil {
			return nil, fmt.Errorf("%w; mend: name what to wait for with --index and --epoch", err)
		}
		p := &places[0]
		streamID = p.StreamID
		if epoch == 0 {
			epoch = millrace.Epoch(p.Epoch)
		}
		if index == 0 {
			index = millrace.Index(p.Index)
		}
	}
	watcher, err := edgestatus.NewWatcher(lineage.Reports(w.stream, "millrace-wait-", slog.New(slog.DiscardHandler)), streamID,
		func() millrace.Epoch { return epoch }, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	defer func() { <-ended }()
	defer cancel()
	go func() {
		defer close(ended)
		watcher.Run(ctx)
	}()
	// Nothing is said before all that is there has been read.
	if _, err := watcher.Fresh(ctx); err != nil {
		return nil, err
	}
	tick := time.NewTicker(waitLook)
	defer tick.Stop()
	for {
		r := w.look(watcher.Summary(time.Now()), epoch, index)
		r.Seconds = time.Since(began).Seconds()
		if r.Reached {
			return r, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
				return r, nil
			}
			return nil, context.Cause(ctx)
		}
	}
}

// look judges what edges have reported.
func (w *waiting) look(s *edgestatus.Summary, epoch millrace.Epoch, index millrace.Index) *receipt {
	r := &receipt{Stream: w.stream.Name, Epoch: epoch, Index: index, Have: s.Reached(epoch, index), Edges: max(s.Edges, w.of), Lacking: []edgestatus.Line{}}
	r.Want = w.enough.of(r.Edges)
	r.Reached = r.Edges > 0 && r.Have >= r.Want
	for _, l := range s.Last {
		if l.Epoch < epoch || l.Epoch == epoch && l.Index < index {
			r.Lacking = append(r.Lacking, l)
		}
	}
	return r
}

func (a *app) printReceipt(r *receipt, asJSON bool) error {
	if asJSON {
		encoder := json.NewEncoder(a.stdout)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(r); err != nil {
			return err
		}
	}
	text := fmt.Sprintf("stream %s: %d of %d edges hold index %v of epoch %v after %.1f s", r.Stream, r.Have, r.Edges, r.Index, r.Epoch, r.Seconds)
	if r.Reached {
		if !asJSON {
			fmt.Fprintln(a.stdout, text)
		}
		return nil
	}
	var names []string
	for _, l := range r.Lacking {
		name := fmt.Sprintf("%s at %v (%s)", plain(l.Edge), l.Index, plain(l.State))
		if l.Epoch != r.Epoch {
			name = fmt.Sprintf("%s in epoch %v (%s)", plain(l.Edge), l.Epoch, plain(l.State))
		}
		names = append(names, name)
	}
	const shown = 10
	if more := r.Edges - r.Have - min(len(names), shown); more > 0 && len(names) > 0 {
		names = append(slices.Clip(names[:min(len(names), shown)]), fmt.Sprintf("%d more", more))
	}
	if len(names) == 0 {
		names = []string{"none has reported"}
		if r.Edges > 0 {
			names = []string{"those that lack it have not reported"}
		}
	}
	return fmt.Errorf("%s, and %d are wanted; lacking: %s; mend: millrace status shows what is wrong with them", text, r.Want, strings.Join(names, ", "))
}
