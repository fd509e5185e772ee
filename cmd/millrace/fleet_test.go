package main

import (
	"strings"
	"testing"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/edgestatus"
	"github.com/millrace-db/millrace/transfer"
)

// TestSummaryLines: what is said of many edges, and of a topic that they hold back.
func TestSummaryLines(t *testing.T) {
	if lines := (&place{Summary: edgestatus.Summarise(nil, nil)}).summaryLines(); len(lines) != 0 {
		t.Errorf("of no edge: %q", lines)
	}
	fast, slow := 0.02, 90.0
	edge := func(name string, index millrace.Index, change func(*edgestatus.Edge)) edgestatus.Edge {
		e := edgestatus.Edge{Report: edgestatus.Report{
			Edge: name, Epoch: 1, Index: index, Chain: millrace.NewChain(millrace.StreamID{1}, millrace.Epoch(index)).String(),
			State: edgestatus.StateStream, LagSeconds: &fast, Version: "1.0",
		}}
		if change != nil {
			change(&e)
		}
		return e
	}
	history := edgestatus.NewHistory(10)
	for _, index := range []millrace.Index{100, 200} {
		history.Add(1, index, millrace.NewChain(millrace.StreamID{1}, millrace.Epoch(index)))
	}
	below := edgestatus.Summarise([]edgestatus.Edge{edge("leaf-1", 100, nil), edge("leaf-2", 90, func(e *edgestatus.Edge) {
		e.LagSeconds, e.Version = &slow, "0.9"
		e.Diverged = []edgestatus.Diverged{{Table: "public.items", Reason: "an entry was kept back"}}
	})}, nil)
	edges := []edgestatus.Edge{
		edge("root", 200, func(e *edgestatus.Edge) { e.Below = below }),
		edge("fork", 100, func(e *edgestatus.Edge) { e.Chain = strings.Repeat("0", 64) }),
		edge("full\x1b[2J", 200, func(e *edgestatus.Edge) {
			e.Space = &edgestatus.Space{Alarm: "the store is nearly full"}
			e.Silent = true
		}),
	}
	p := &place{
		Edges: edges, Summary: edgestatus.Summarise(edges, history),
		Trim: &transfer.Trim{Wanted: 30, WantedIndex: 300, Holders: []transfer.Holder{{Edge: "fork", Index: 100}}, More: 2},
	}
	got := strings.Join(p.summaryLines(), "\n")
	for _, want := range []string{
		"5 edges (1 of them relays, 2 levels): all stream; lag within 0.1 s for half, within 300 s for 99 %; versions: 4 1.0, 1 0.9",
		"1 edge has another history",
		"edge fork has chain 000000000000 at index 100 of epoch 1, and the publisher has ",
		"1 edge is silent",
		"1 edge has little room left",
		"1 edge has rows that differ",
		"table public.items differs at 1 edge, leaf-2 among them: an entry was kept back; mend: millrace load public.items",
		"edge leaf-2 at index 90 (stream): rows differ",
		"3 edges hold back what kafka.retain would let go of its topic, up to index 300; the last is fork at 100",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("want %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "\x1b") {
		t.Error("an edge's name reaches the terminal as it is")
	}
	agree := []edgestatus.Edge{edge("a", 100, nil), edge("b", 150, nil)}
	p = &place{Edges: agree, Summary: edgestatus.Summarise(agree, history)}
	if got := strings.Join(p.summaryLines(), "\n"); !strings.Contains(got, "chains agree: 1 edge compared") || strings.Contains(got, "mend") {
		t.Errorf("of edges that are well:\n%s", got)
	}
}
