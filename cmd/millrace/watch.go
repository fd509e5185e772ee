package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace-db/millrace/client"
	"github.com/millrace-db/millrace/edge/event"
	"github.com/millrace-db/millrace/internal/config"
)

func (a *app) watchCommand() *cobra.Command {
	var from string
	var progress bool
	var beat time.Duration
	cmd := &cobra.Command{
		Use:   "watch STREAM [TABLE [PREFIX]]",
		Short: "Print what changes at this host's edge, as JSON lines, until it is told to end",
		Long: `Print what changes at this host's edge: one JSON object a line, in order, each change once. It goes on by itself
over restarts of the edge. TABLE keeps it to one table, PREFIX to rows by leading key columns, joined by commas; with a
trailing * the last one is the start of a text. --from goes back: an index, or epoch and index as in 1-4711, behind
which to begin. It ends with exit code 1 when the edge's log no longer reaches back to its place.`,
		Example: "  millrace watch shop public.line_items 17 --from 1-4711",
		Args:    minArgs(1, "a stream"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 3 {
				return usage("%s takes a stream, a table and a prefix, got %s more", cmd.CommandPath(), quote(args[3]))
			}
			o := client.WatchOptions{Progress: progress, Heartbeat: beat}
			if from != "" {
				id, err := event.ParseID(from)
				if err != nil {
					return usage("--from: %v", err)
				}
				o.From = &id
			}
			if len(args) > 1 {
				o.Tables = args[1:2]
			}
			if len(args) > 2 {
				o.Prefix = args[2]
			}
			c, err := a.load()
			if err != nil {
				return err
			}
			s, err := one(c, args[0], c.Edge.Streams)
			if err != nil {
				return err
			}
			return a.watch(cmd, c, s.Name, o)
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "begin behind this `PLACE`; now otherwise")
	cmd.Flags().BoolVar(&progress, "progress", false, "print also how far the stream is when nothing changes")
	cmd.Flags().DurationVar(&beat, "heartbeat", 15*time.Second, "how often the edge says that it is there, 100ms to 1m")
	cmd.Flags().Bool("json", true, "events are always printed as JSON")
	return cmd
}

func (a *app) watch(cmd *cobra.Command, c *config.Config, stream string, o client.WatchOptions) error {
	ask := client.Config{Stream: stream, Unix: c.Edge.HTTP.Unix}
	if listen := c.Edge.HTTP.Listen; listen != "" && listen != config.Off {
		ask.Peers = []string{"http://" + listen}
	}
	edge, err := client.New(ask)
	if err != nil {
		return err
	}
	defer edge.Close()
	w := edge.Watch(o)
	defer w.Close()
	for {
		e, err := w.Next(cmd.Context())
		if err != nil {
			if cmd.Context().Err() != nil {
				return nil // it was told to end
			}
			if errors.Is(err, client.ErrPruned) {
				err = fmt.Errorf("%w; mend: read the rows again, or watch from there", err)
			}
			return err
		}
		text, err := json.Marshal(e)
		if err != nil {
			return fmt.Errorf("print event %v: %w", e.ID(), err)
		}
		if err := printLine(a.stdout, text); err != nil {
			return err
		}
	}
}
