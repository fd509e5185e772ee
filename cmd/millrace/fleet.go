package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/millrace-db/millrace/internal/edgestatus"
)

// summaryLines say what is to be said of all edges of a stream, and of its topic.
func (p *place) summaryLines() []string {
	var lines []string
	if s := p.Summary; s != nil && s.Edges > 0 {
		lines = append(lines, fmt.Sprintf("%s: %s; %s; versions: %s", edgesText(s), counted(s.States, s.Edges), lagText(s), counted(s.Versions, s.Edges)))
		lines = append(lines, p.agreement(s)...)
		lines = append(lines, troubled(s)...)
		if len(p.Edges) < s.Edges { // the others say it themselves
			for _, t := range s.Tables {
				lines = append(lines, fmt.Sprintf("table %s differs at %s, %s among them: %s; mend: millrace load %[1]s", plain(t.Table), many(t.Edges, "edge", "edges"), plain(t.Edge), plain(t.Reason)))
			}
			for _, l := range s.Worst {
				if !slices.ContainsFunc(p.Edges, func(e edgestatus.Edge) bool { return e.Edge == l.Edge }) {
					lines = append(lines, fmt.Sprintf("edge %s at index %v (%s): %s", plain(l.Edge), l.Index, plain(l.State), plain(l.Why)))
				}
			}
		}
	}
	switch t := p.Trim; {
	case p.TrimProblem != "":
		lines = append(lines, "its topic is not trimmed: "+plain(p.TrimProblem))
	case t != nil && t.To < t.Wanted:
		lines = append(lines, fmt.Sprintf("%s back what kafka.retain would let go of its topic, up to index %v; the last is %s at %v; mend: millrace trim --dry-run names them",
			many(len(t.Holders)+t.More, "edge holds", "edges hold"), t.WantedIndex, plain(t.Holders[0].Edge), t.Holders[0].Index))
	}
	return lines
}

func edgesText(s *edgestatus.Summary) string {
	text := many(s.Edges, "edge", "edges")
	if s.Relays > 0 {
		text += fmt.Sprintf(" (%d of them relays, %d levels)", s.Relays, s.Levels+1)
	}
	return text
}

// many says a number with the words for one, or for several.
func many(n int, one, several string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, several)
}

// counted lists counters, the largest first; one of all edges needs no number.
func counted(counts map[string]int, all int) string {
	names := slices.Sorted(maps.Keys(counts))
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Compare(counts[b], counts[a]) })
	var parts []string
	for _, name := range names {
		shown := plain(name)
		if shown == "" {
			shown = "unknown"
		}
		if counts[name] == all {
			return "all " + shown
		}
		parts = append(parts, fmt.Sprintf("%d %s", counts[name], shown))
	}
	return strings.Join(parts, ", ")
}

// lagText says within which lag half of the edges, and 95 and 99 % of them, were.
func lagText(s *edgestatus.Summary) string {
	total := 0
	for _, n := range s.Lag {
		total += n
	}
	if total == 0 {
		return "lag unknown"
	}
	bounds := edgestatus.LagBounds()
	within := func(part float64) string {
		sum := 0
		for i, n := range s.Lag {
			if sum += n; i < len(bounds) && float64(sum) >= part*float64(total) {
				return "within " + strconv.FormatFloat(bounds[i], 'g', -1, 64) + " s"
			}
		}
		return "more than " + span(bounds[len(bounds)-1])
	}
	text := fmt.Sprintf("lag %s for half, %s for 99 %%", within(0.5), within(0.99))
	if total == 1 {
		text = "lag " + within(1)
	}
	if s.LagUnknown > 0 {
		text += fmt.Sprintf(", unknown for %d", s.LagUnknown)
	}
	return text
}

// agreement says whether edges have the history that the publisher has.
func (p *place) agreement(s *edgestatus.Summary) []string {
	if s.Forked == 0 {
		if s.Compared == 0 {
			return nil
		}
		return []string{"chains agree: " + many(s.Compared, "edge", "edges") + " compared"}
	}
	lines := []string{many(s.Forked, "edge has", "edges have") + " another history; mend: stop them, keep their stores for whoever looks into it, and start them with new ones"}
	for _, f := range s.Forks {
		lines = append(lines, fmt.Sprintf("edge %s has chain %.12s at index %v of epoch %v, and %s has %.12s", plain(f.Edge), plain(f.Chain), f.Index, f.Epoch, plain(f.With), plain(f.Other)))
	}
	return lines
}

// troubled says what is wrong with how many edges.
func troubled(s *edgestatus.Summary) []string {
	var lines []string
	say := func(n int, one, several, text string) {
		if n > 0 {
			lines = append(lines, many(n, one, several)+text)
		}
	}
	say(s.Silent, "edge is", "edges are", " silent: no report for three intervals, or below one of which that is true")
	say(s.Gone, "edge", "edges", " followed a relay within the last hour and no more; they may follow another one")
	say(s.Room, "edge has", "edges have", " little room left for the store")
	say(s.Different, "edge has", "edges have", " rows that differ from the source's")
	return lines
}
