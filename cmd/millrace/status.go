package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/control"
	"github.com/millrace-db/millrace/internal/edgestatus"
	"github.com/millrace-db/millrace/internal/mend"
	"github.com/millrace-db/millrace/transfer"
)

// statusLimit bounds how long one place is asked: another one may answer.
const statusLimit = 5 * time.Second

// place says how far a stream has come somewhere.
type place struct {
	Stream   string `json:"stream"`
	StreamID string `json:"stream_id"`
	Epoch    uint64 `json:"epoch"`
	// Index is the last complete accepted one.
	Index      uint64   `json:"index"`
	Chain      string   `json:"chain"`
	Term       uint64   `json:"term"`
	LagSeconds *float64 `json:"lag_seconds"`
	// From says who was asked: transfer, edge or ledger.
	From  string `json:"from"`
	Phase string `json:"phase,omitempty"`
	// Problem is what transfer met, Fault what keeps an edge from going on.
	Problem string `json:"problem,omitempty"`
	Fault   string `json:"fault,omitempty"`
	// Warning is what is amiss at the source while transfer goes on.
	Warning string `json:"warning,omitempty"`
	// Next is a newer epoch that an edge copies while it serves this one.
	Next *nextPlace `json:"next,omitempty"`
	// Edge is this host's edge, where another place was asked for the rest.
	Edge *place `json:"edge,omitempty"`
	// Edges are the newest reports of edges of the stream, and EdgesMore how many there
	// are besides; EdgesProblem says why they could not be read. Summary is of all of
	// them, those below relays included.
	Edges        []edgestatus.Edge   `json:"edges,omitzero"`
	EdgesMore    int                 `json:"edges_more,omitempty"`
	EdgesProblem string              `json:"edges_problem,omitempty"`
	Summary      *edgestatus.Summary `json:"edges_summary,omitempty"`
	// Trim is the newest look of transfer at what may go of the topic, TrimProblem why
	// it failed.
	Trim        *transfer.Trim `json:"trim,omitempty"`
	TrimProblem string         `json:"trim_problem,omitempty"`
}

// nextPlace says how far the copy of a newer epoch is.
type nextPlace struct {
	Epoch uint64 `json:"epoch"`
	Index uint64 `json:"index"`
}

func (a *app) statusCommand() *cobra.Command {
	var stream, forget string
	var asJSON, everyEdge bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say how far each stream has come",
		Long: `Say how far each stream has come: the index of its last complete accepted entry, the chain there, and
the lag behind the source. This host's transfer is asked; where it does not run, this host's edge; and where
there is none either, the ledger at the source. The column FROM says which one has answered.

Where the stream's brokers are configured, what all its edges have reported of themselves is shown too: how far
each is, how far behind, and whether its rows were found to be those of the source. An edge that has not
reported for three intervals is shown as silent. Edges that follow other edges are summed up by those. Of many
edges a hundred are listed, those first that somebody should look at; --all lists every one that reports to the
topic.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.load()
			if err != nil {
				return err
			}
			all := streamNames(c)
			names, err := selected(c, stream, all)
			if err != nil {
				return err
			}
			if forget != "" {
				return a.forgetEdge(cmd.Context(), c, names, forget)
			}
			places, err := status(cmd.Context(), c, names)
			if err != nil {
				return err
			}
			for i := range places {
				places[i].addEdges(cmd.Context(), c, c.Stream(places[i].Stream), everyEdge)
			}
			if asJSON {
				encoder := json.NewEncoder(a.stdout)
				encoder.SetIndent("", "  ")
				return encoder.Encode(places)
			}
			return a.printStatus(places)
		},
	}
	cmd.Flags().StringVar(&stream, "stream", "", "only this stream")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array, one object a stream")
	cmd.Flags().BoolVar(&everyEdge, "all", false, "list all edges, however many there are")
	cmd.Flags().StringVar(&forget, "forget", "", "take the `EDGE`, which is gone for good, off the list; one that runs comes back")
	return cmd
}

// status asks for the named streams.
func status(ctx context.Context, c *config.Config, names []string) ([]place, error) {
	published, adminErr := askTransfer(ctx, c)
	places := make([]place, 0, len(names))
	for _, name := range names {
		here, edgeErr := askEdge(ctx, c, name)
		if p, ok := published[name]; ok {
			p.Edge = here
			places = append(places, p)
			continue
		}
		if here != nil {
			places = append(places, *here)
			continue
		}
		p, ledgerErr := askLedger(ctx, c, c.Stream(name))
		if ledgerErr != nil {
			// The last place that was asked is the one whose trouble counts.
			return nil, fmt.Errorf("stream %s: nobody can say how far it is: %w", name, errors.Join(adminErr, edgeErr, ledgerErr))
		}
		places = append(places, p)
	}
	return places, nil
}

func askTransfer(ctx context.Context, c *config.Config) (map[string]place, error) {
	admin := adminClient(c)
	if admin == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, statusLimit)
	defer cancel()
	var answer []place
	if err := admin.get(ctx, "/v1/streams", &answer); err != nil {
		return nil, err
	}
	places := make(map[string]place, len(answer))
	for _, p := range answer {
		p.From = "transfer"
		places[p.Stream] = p
	}
	return places, nil
}

func askEdge(ctx context.Context, c *config.Config, stream string) (*place, error) {
	ctx, cancel := context.WithTimeout(ctx, statusLimit)
	defer cancel()
	var p place
	if err := edgeClient(c).get(ctx, streamPath(stream)+"/status", &p); err != nil {
		return nil, err
	}
	p.From = "edge"
	return &p, nil
}

func askLedger(ctx context.Context, c *config.Config, s *config.Stream) (place, error) {
	if s.Source.URL == "" {
		return place{}, errors.New("the configuration has no source.url to ask the ledger")
	}
	p := place{Stream: s.Name, From: "ledger"}
	err := withSource(ctx, s, func(conn *pgx.Conn) error {
		registered, err := control.LoadStream(ctx, conn, s.Name)
		if err != nil {
			return err
		}
		p.StreamID, p.Epoch = registered.ID.String(), uint64(registered.Epoch)
		row, err := control.NewestLedger(ctx, conn, s.Name, registered.Epoch)
		if err != nil || row == nil {
			return err
		}
		p.Index, p.Chain, p.Term = uint64(row.Last), row.Chain.String(), uint64(row.Term)
		if !row.SourceTime.IsZero() {
			lag := time.Since(row.SourceTime).Seconds()
			p.LagSeconds = &lag
		}
		return nil
	})
	return p, err
}

func (a *app) printStatus(places []place) error {
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "STREAM\tEPOCH\tINDEX\tCHAIN\tTERM\tLAG\tFROM")
	for i := range places {
		printPlace(w, &places[i])
		if e := places[i].Edge; e != nil {
			printPlace(w, e)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return a.printEdges(places)
}

func printPlace(w *tabwriter.Writer, p *place) {
	lag, from := "unknown", p.From
	if p.LagSeconds != nil {
		lag = strconv.FormatFloat(*p.LagSeconds, 'f', 3, 64) + " s"
	}
	if p.Phase != "" {
		from += " (" + p.Phase + ")"
	}
	if p.Next != nil {
		from += fmt.Sprintf(" (copies epoch %d, index %d)", p.Next.Epoch, p.Next.Index)
	}
	if trouble := p.Problem + p.Fault; trouble != "" {
		from += ": " + mend.OneLine(trouble)
	}
	if p.Warning != "" {
		from += "; warning: " + mend.OneLine(p.Warning)
	}
	fmt.Fprintf(w, "%s\t%d\t%d\t%.12s\t%d\t%s\t%s\n", p.Stream, p.Epoch, p.Index, p.Chain, p.Term, lag, from)
}
