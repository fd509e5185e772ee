package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/edgestatus"
	"github.com/millrace-db/millrace/internal/lineage"
	"github.com/millrace-db/millrace/internal/mend"
	"github.com/millrace-db/millrace/internal/topic"
)

// readEdges reads what the edges of a stream have reported. streamID may be
// empty.
func readEdges(ctx context.Context, s *config.Stream, streamID string) ([]edgestatus.Edge, error) {
	ctx, cancel := context.WithTimeout(ctx, statusLimit)
	defer cancel()
	t, err := lineage.OpenTopic(ctx, s, edgestatus.TopicOf(s.Kafka.Topic), slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	defer func() { _ = t.Close() }() // nothing is appended
	fleet, err := edgestatus.Read(ctx, t, streamID)
	if errors.Is(err, topic.ErrNoTopic) {
		return nil, fmt.Errorf("topic %s, which edges report to, does not exist; mend: millrace init", t.Name())
	}
	if err != nil {
		return nil, err
	}
	return fleet.Edges(time.Now()), nil
}

// forgetEdge removes the reports of an edge.
func (a *app) forgetEdge(ctx context.Context, c *config.Config, streams []string, edge string) error {
	if err := c.NeedKafka(streams); err != nil {
		return err
	}
	found := 0
	for _, name := range streams {
		s := c.Stream(name)
		edges, err := readEdges(ctx, s, "")
		if err != nil {
			return fmt.Errorf("stream %s: %w", name, err)
		}
		if !slices.ContainsFunc(edges, func(e edgestatus.Edge) bool { return e.Edge == edge }) {
			continue
		}
		found++
		t, err := lineage.OpenTopic(ctx, s, edgestatus.TopicOf(s.Kafka.Topic), slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		if err := errors.Join(t.Put(ctx, []byte(edge), nil), t.Close()); err != nil {
			return err
		}
		fmt.Fprintf(a.stdout, "stream %s: edge %s is off the list\n", name, edge)
	}
	if found == 0 {
		return fmt.Errorf("no edge %s has reported; millrace status lists those that have", edge)
	}
	return nil
}

// shownEdges is how many edges are listed.
const shownEdges = 100

// addEdges adds the reports of the stream's edges where its brokers are
// configured. That they cannot be read takes nothing from the rest.
func (p *place) addEdges(ctx context.Context, c *config.Config, s *config.Stream, all bool) {
	p.Edges = []edgestatus.Edge{}
	if len(s.Kafka.Brokers) == 0 {
		return
	}
	edges, err := readEdges(ctx, s, p.StreamID)
	if err != nil {
		p.EdgesProblem = mend.OneLine(err.Error())
		return
	}
	p.Summary = p.summary(ctx, c, edges)
	if !all && len(edges) > shownEdges {
		edgestatus.WorstFirst(edges)
		p.EdgesMore = len(edges) - shownEdges
		edges = edges[:shownEdges]
	}
	p.Edges = edges
}

// summary is transfer's, which knows the history of chains, or made here from the one
// place that is known.
func (p *place) summary(ctx context.Context, c *config.Config, edges []edgestatus.Edge) *edgestatus.Summary {
	if p.From == "transfer" {
		ctx, cancel := context.WithTimeout(ctx, statusLimit)
		defer cancel()
		var s edgestatus.Summary
		if err := adminClient(c).get(ctx, streamPath(p.Stream)+"/edges", &s); err == nil {
			return &s
		}
	}
	history := edgestatus.NewHistory(1)
	if chain, err := millrace.ParseChain(p.Chain); err == nil {
		history.Add(millrace.Epoch(p.Epoch), millrace.Index(p.Index), chain)
	}
	return edgestatus.Summarise(edges, history)
}

func (a *app) printEdges(places []place) error {
	edges := 0
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for i := range places {
		p := &places[i]
		for j := range p.Edges {
			e := &p.Edges[j]
			if edges++; edges == 1 {
				fmt.Fprintln(w, "\nEDGE\tSTREAM\tSTATE\tINDEX\tBEHIND\tLAG\tLOG\tBELOW\tVERIFIED\tREPORTED")
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s ago\n", plain(e.Edge), p.Stream, plain(edgeState(e)), e.Index, behind(p, e), seconds(e.LagSeconds),
				held(e.Log), below(e.Below), verdict(e), span(e.AgeSeconds))
		}
		if p.EdgesMore > 0 {
			fmt.Fprintf(w, "and %d more\t%s\n", p.EdgesMore, p.Stream)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for i := range places {
		p := &places[i]
		if p.EdgesProblem != "" {
			fmt.Fprintf(a.stdout, "stream %s: what its edges report cannot be read: %s\n", p.Stream, p.EdgesProblem)
		}
		for _, line := range p.summaryLines() {
			fmt.Fprintf(a.stdout, "stream %s: %s\n", p.Stream, line)
		}
		for j := range p.Edges {
			for _, line := range troubles(&p.Edges[j]) {
				fmt.Fprintf(a.stdout, "edge %s, stream %s: %s\n", plain(p.Edges[j].Edge), p.Stream, line)
			}
		}
	}
	return nil
}

// below says how many edges an edge reports for.
func below(s *edgestatus.Summary) string {
	if s == nil {
		return "-"
	}
	return strconv.Itoa(s.Edges)
}

func edgeState(e *edgestatus.Edge) string {
	state := e.State
	if e.Silent {
		state = "silent (" + state + ")"
	}
	if len(e.Holds) > 0 {
		state += ", partial"
	}
	if e.Bootstrap != "" {
		state += ", image: " + e.Bootstrap
	}
	return state
}

// plain is a text that came from an edge, in one line and without what a terminal
// would take for a command.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, mend.OneLine(text))
}

// behind says how many entries an edge has to go.
func behind(p *place, e *edgestatus.Edge) string {
	if e.Epoch != 0 && uint64(e.Epoch) != p.Epoch {
		return "epoch " + e.Epoch.String()
	}
	if uint64(e.Index) >= p.Index {
		return "0"
	}
	return strconv.FormatUint(p.Index-uint64(e.Index), 10)
}

// held says what an edge's log holds.
func held(l *edgestatus.Log) string {
	if l == nil || l.Newest == 0 {
		return "-"
	}
	return fmt.Sprintf("%d to %d", l.Oldest, l.Newest)
}

func seconds(s *float64) string {
	if s == nil {
		return "unknown"
	}
	return strconv.FormatFloat(*s, 'f', 3, 64) + " s"
}

// span says a number of seconds in the unit that fits.
func span(seconds float64) string {
	switch {
	case seconds < 120:
		return strconv.FormatFloat(seconds, 'f', 0, 64) + " s"
	case seconds < 2*3600:
		return strconv.FormatFloat(seconds/60, 'f', 0, 64) + " min"
	case seconds < 48*3600:
		return strconv.FormatFloat(seconds/3600, 'f', 0, 64) + " h"
	}
	return strconv.FormatFloat(seconds/86400, 'f', 0, 64) + " days"
}

// verdict sums up what verifying has found at an edge.
func verdict(e *edgestatus.Edge) string {
	different, compared, skipped := 0, uint64(0), uint64(0)
	var at uint64
	for i := range e.Verify {
		v := &e.Verify[i]
		different += len(v.Differences) + v.More
		compared += v.Equal + v.Different
		skipped += v.Skipped
		at = max(at, uint64(v.Index))
	}
	text := "-"
	switch {
	case different == 1:
		text = "1 range differs"
	case different > 1:
		text = fmt.Sprintf("%d ranges differ", different)
	case compared > 0:
		text = fmt.Sprintf("equal at %d", at)
	}
	if skipped > 0 {
		text += fmt.Sprintf(", %d skipped", skipped)
	}
	return text
}

// troubles are what is wrong at an edge, a line each.
func troubles(e *edgestatus.Edge) []string {
	var lines []string
	if e.Error != "" {
		lines = append(lines, plain(e.Error))
	}
	if e.UnprovenSince > 0 {
		lines = append(lines, fmt.Sprintf("rows unproven since image at index %d; the next pass of verification compares them", e.UnprovenSince))
	}
	if e.Space != nil && e.Space.Alarm != "" {
		lines = append(lines, plain(e.Space.Alarm))
	}
	for _, d := range e.Diverged {
		lines = append(lines, fmt.Sprintf("table %s is not what the source has: %s; mend: millrace load %[1]s", plain(d.Table), plain(d.Reason)))
	}
	for i := range e.Verify {
		v := &e.Verify[i]
		for j := range v.Differences {
			lines = append(lines, fmt.Sprintf("table %s differs %s at index %d: %s; mend: millrace load %[1]s",
				plain(v.Table), keyRange(&v.Differences[j]), v.Differences[j].Index, plain(v.Differences[j].Reason)))
		}
		if v.More > 0 {
			lines = append(lines, fmt.Sprintf("table %s differs in %d more ranges", plain(v.Table), v.More))
		}
	}
	return lines
}

// keyRange says which keys a difference is about.
func keyRange(d *edgestatus.Difference) string {
	text, low, high := "somewhere", plain(d.Low), plain(d.High)
	switch {
	case low != "" && high != "":
		text = fmt.Sprintf("from key %s to before %s", low, high)
	case low != "":
		text = "from key " + low + " on"
	case high != "":
		text = "before key " + high
	}
	if d.Buckets > 0 {
		text += fmt.Sprintf(", bucket %d of %d", d.Bucket, d.Buckets)
	}
	return text
}
