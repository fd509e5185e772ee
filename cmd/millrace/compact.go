package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/millrace-db/millrace/edge/serve"
	"github.com/millrace-db/millrace/internal/config"
)

func (a *app) compactCommand() *cobra.Command {
	var stream string
	var asJSON, wait bool
	cmd := &cobra.Command{
		Use:   "compact",
		Short: "Give the room that a store no longer uses back to the disk",
		Long: `Give the room that a store no longer uses back to the disk. This host's edge, which must be running, makes a
copy beside the store, in which nothing is free, reads it through, brings it up to date and goes over to it;
applying and answering go on meanwhile. The disk needs room for both. Interrupted or failed, everything is as
it was.`,
		Example: "  millrace edge compact --stream bank",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.load()
			if err != nil {
				return err
			}
			s, err := one(c, stream, c.Edge.Streams)
			if err != nil {
				return err
			}
			return (&compactor{app: a, edge: edgeClient(c), stream: s, asJSON: asJSON}).run(cmd.Context(), wait)
		},
	}
	cmd.Flags().StringVar(&stream, "stream", "", "the stream, where the edge keeps several")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&wait, "wait", true, "show progress, and return when the compaction has ended")
	return cmd
}

// compactor asks this host's edge for a compaction.
type compactor struct {
	*app
	edge   *httpClient
	stream *config.Stream
	asJSON bool
}

func (c *compactor) ask(ctx context.Context, method string) (*serve.Compaction, error) {
	var body []byte
	if method == http.MethodPost {
		body = []byte("{}")
	}
	text, _, err := c.edge.ask(ctx, method, streamPath(c.stream.Name)+"/compact", body)
	if err != nil {
		return nil, err
	}
	now := new(serve.Compaction)
	if err := json.Unmarshal(text, now); err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", c.edge.who, err)
	}
	return now, nil
}

func (c *compactor) run(ctx context.Context, wait bool) error {
	now, err := c.ask(ctx, http.MethodPost)
	if err != nil {
		return err
	}
	if wait {
		if now, err = c.wait(ctx, now); err != nil {
			return err
		}
	}
	if c.asJSON {
		encoder := json.NewEncoder(c.stdout)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(now); err != nil {
			return err
		}
	}
	switch {
	case now.State == serve.CompactionFailed:
		return errors.New("the store was not compacted, and everything is as it was: " + now.Problem)
	case c.asJSON:
	case now.State == serve.CompactionDone:
		fmt.Fprintf(c.stdout, "store of stream %s took %s and takes %s\n", c.stream.Name, mebibytes(now.BytesBefore), mebibytes(now.BytesAfter))
	default:
		fmt.Fprintf(c.stdout, "store of stream %s is being compacted\n", c.stream.Name)
	}
	return nil
}

// wait shows the compaction to its end.
func (c *compactor) wait(ctx context.Context, now *serve.Compaction) (*serve.Compaction, error) {
	var bar *progressbar.ProgressBar
	if isTerminal(c.stderr) && !c.asJSON {
		bar = progressbar.NewOptions(barSteps, progressbar.OptionSetWriter(c.stderr), progressbar.OptionSetPredictTime(false),
			progressbar.OptionSetElapsedTime(false), progressbar.OptionClearOnFinish(), progressbar.OptionFullWidth())
		defer func() { _ = bar.Finish() }() // a terminal that went away wants no more of it
	}
	tick := time.NewTicker(commandPoll)
	defer tick.Stop()
	var shown string
	var next time.Time
	for now.Running() {
		done := float64(now.Items) / float64(max(now.Of, 1))
		switch at := time.Now(); {
		case bar != nil:
			bar.Describe(now.State)
			_ = bar.Set(int(done * barSteps)) // as above
		case !c.asJSON && (now.State != shown || !at.Before(next)):
			shown, next = now.State, at.Add(lineEvery)
			fmt.Fprintf(c.stderr, "%s, %d of %d items, %.0f %%\n", now.State, now.Items, now.Of, 100*done)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
		var err error
		if now, err = c.ask(ctx, http.MethodGet); err != nil {
			return nil, err
		}
	}
	return now, nil
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
