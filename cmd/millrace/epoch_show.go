package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/control"
	"github.com/millrace-db/millrace/internal/lineage"
	"github.com/millrace-db/millrace/internal/mend"
)

// shownEpoch is an epoch of a stream, as its topic and the registry tell.
type shownEpoch struct {
	Epoch   uint64 `json:"epoch"`
	Topic   string `json:"topic"`
	TopicID string `json:"topic_id"`
	// First and End are the offset of the topic's first record and that which the
	// next one will get.
	First int64 `json:"first_offset"`
	End   int64 `json:"end_offset"`
	// Registered tells that it is the epoch of the registry.
	Registered bool `json:"registered"`
	// Note says what is odd about it.
	Note string `json:"note,omitempty"`
}

// shownStream is the answer of epoch show.
type shownStream struct {
	Stream   string       `json:"stream"`
	StreamID string       `json:"stream_id"`
	Epoch    uint64       `json:"epoch"`
	Topic    string       `json:"topic"`
	Slot     string       `json:"slot"`
	Epochs   []shownEpoch `json:"epochs"`
	// Publisher is who publishes it now, and PID its server process.
	Publisher string `json:"publisher,omitempty"`
	PID       uint32 `json:"pid,omitempty"`
}

func (a *app) epochShowCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show [STREAM]",
		Short: "Show a stream's epoch in the registry, and the topics of its epochs",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, s, err := a.streamArg(cmd, args)
			if err != nil {
				return err
			}
			shown, err := a.showEpochs(cmd.Context(), c, s)
			if err != nil {
				return mend.Error(s.Name, err)
			}
			if asJSON {
				encoder := json.NewEncoder(a.stdout)
				encoder.SetIndent("", "  ")
				return encoder.Encode(shown)
			}
			return a.printEpochs(shown)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) showEpochs(ctx context.Context, c *config.Config, s *config.Stream) (*shownStream, error) {
	var registered control.Stream
	var holder *control.Holder
	err := withSource(ctx, s, func(conn *pgx.Conn) (err error) {
		if registered, err = control.LoadStream(ctx, conn, s.Name); err == nil {
			holder, err = control.LookHolder(ctx, conn, s.Name)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	topics, err := epochTopics(ctx, s, a.logger(c))
	if err != nil {
		return nil, err
	}
	shown := &shownStream{
		Stream: registered.Name, StreamID: registered.ID.String(), Epoch: uint64(registered.Epoch), Topic: registered.Topic, Slot: registered.Slot,
		Epochs: []shownEpoch{},
	}
	if holder != nil && holder.Silent < duration(c.Transfer.Lease) {
		shown.Publisher, shown.PID = holder.Publisher, holder.PID
	}
	found := false
	for _, t := range topics {
		e := shownEpoch{Epoch: uint64(t.epoch), Topic: t.name, TopicID: t.info.ID, First: int64(t.info.Start), End: int64(t.info.End), Registered: t.epoch == registered.Epoch}
		if e.Note, err = a.noteOn(ctx, c, s, &registered, &t); err != nil {
			return nil, err
		}
		found = found || e.Registered
		shown.Epochs = append(shown.Epochs, e)
	}
	if !found {
		shown.Epochs = append(shown.Epochs, shownEpoch{
			Epoch: uint64(registered.Epoch), Topic: registered.Topic, TopicID: registered.TopicID, Registered: true,
			Note: "the topic is gone; mend: " + mend.EpochCommand(s.Name),
		})
	}
	return shown, nil
}

// noteOn says what is odd about a topic.
func (a *app) noteOn(ctx context.Context, c *config.Config, s *config.Stream, registered *control.Stream, t *epochTopic) (string, error) {
	if t.epoch == registered.Epoch && t.info.ID != registered.TopicID {
		return "the topic was deleted and made again; mend: " + mend.EpochCommand(s.Name), nil
	}
	if t.info.End == 0 {
		return "empty", nil
	}
	log, err := lineage.OpenTopic(ctx, s, t.name, a.logger(c))
	if err != nil {
		return "", err
	}
	defer func() { _ = log.Close() }() // nothing is appended
	id, ok, err := lineage.IdentityOf(ctx, log, t.info)
	var needed *operatorError
	switch {
	case millrace.NeedsOperator(err), errors.As(err, &needed):
		return "its records are none of millrace's", nil
	case err != nil:
		return "", err
	case !ok:
		return "it was emptied", nil
	case id.Stream != registered.ID:
		return "its records are of stream " + id.Stream.String(), nil
	case id.Epoch != t.epoch:
		return "its records are of epoch " + id.Epoch.String(), nil
	case t.epoch > registered.Epoch:
		return "the registry does not know of it: was the source restored?", nil
	}
	return "", nil
}

func (a *app) printEpochs(s *shownStream) error {
	fmt.Fprintf(a.stdout, "stream %s, ID %s: epoch %d in topic %s, slot %s\n", s.Stream, s.StreamID, s.Epoch, s.Topic, s.Slot)
	if s.Publisher != "" {
		fmt.Fprintf(a.stdout, "published by %s (server process %d)\n", s.Publisher, s.PID)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "EPOCH\tTOPIC\tOFFSETS\tNOTE")
	for _, e := range s.Epochs {
		mark := ""
		if e.Registered {
			mark = " *"
		}
		fmt.Fprintf(w, "%d%s\t%s\t%d to before %d\t%s\n", e.Epoch, mark, e.Topic, e.First, e.End, e.Note)
	}
	return w.Flush()
}
