package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/millrace-db/millrace/transfer"
)

func (a *app) trimCommand() *cobra.Command {
	var stream string
	var request transfer.TrimRequest
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "trim",
		Short: "Delete the records of a topic that nobody needs any more, now",
		Long: `Delete the records of a topic that kafka.retain lets go and nobody needs any more, now. The transfer that
publishes the stream does so once a minute by itself; with --dry-run it only says what would go, and which edges
hold it back. An edge that is gone for good holds nothing any more after millrace status --forget EDGE.

The command goes to this host's transfer, which must be publishing the stream.`,
		Example: "  millrace trim --dry-run",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.commander(stream, asJSON)
			if err != nil {
				return err
			}
			var found transfer.Trim
			if err := c.send(cmd.Context(), http.MethodPost, "/trim", request, &found); err != nil {
				return err
			}
			if asJSON {
				encoder := json.NewEncoder(a.stdout)
				encoder.SetIndent("", "  ")
				return encoder.Encode(&found)
			}
			return a.printTrim(&found)
		},
	}
	cmd.Flags().StringVar(&stream, "stream", "", "the stream, where transfer publishes several")
	cmd.Flags().BoolVar(&request.DryRun, "dry-run", false, "say what would go, and delete nothing")
	cmd.Flags().BoolVar(&request.Force, "force", false, "pass over what edges need: those that are behind stop, until they have got an image")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) printTrim(t *transfer.Trim) error {
	fmt.Fprintf(a.stdout, "stream %s, topic %s: offsets %v to before %v, from behind index %v on\n", t.Stream, t.Topic, t.Start, t.End, t.StartIndex)
	what := "would go"
	if t.Done {
		what = "are deleted"
	}
	switch {
	case t.To > t.Start:
		fmt.Fprintf(a.stdout, "%s, %s and older, %s: the topic begins behind index %v (offset %v)\n", size(t.Bytes), span(t.Seconds), what, t.ToIndex, t.To)
	case t.Why != "":
		fmt.Fprintf(a.stdout, "nothing goes: %s\n", t.Why)
	case t.Wanted > t.Start:
		fmt.Fprintln(a.stdout, "nothing goes: edges need it")
	default:
		fmt.Fprintln(a.stdout, "nothing goes: nothing is old enough, or there is no more than is kept")
	}
	if t.Passed > 0 {
		fmt.Fprintf(a.stdout, "%d edges are passed over: they have been absent for too long, or need what is gone already\n", t.Passed)
	}
	if len(t.Holders) == 0 {
		return nil
	}
	fmt.Fprintf(a.stdout, "held back by edges, up to index %v (offset %v):\n", t.WantedIndex, t.Wanted)
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "EDGE\tEPOCH\tINDEX\tREPORTS")
	for _, h := range t.Holders {
		reports := "yes"
		if h.AbsentSeconds > 0 {
			reports = "not for " + span(h.AbsentSeconds)
		}
		fmt.Fprintf(w, "%s\t%v\t%v\t%s\n", plain(h.Edge), h.Epoch, h.Index, reports)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if t.More > 0 {
		fmt.Fprintf(a.stdout, "and %d more\n", t.More)
	}
	return nil
}

// size says a number of bytes in the unit that fits.
func size(n uint64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	f, i := float64(n), 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", f), ".0") + " " + units[i]
}
