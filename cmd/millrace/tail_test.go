package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	mr "github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/topic"
)

// history writes records as publishers do.
type history struct {
	t       *testing.T
	fold    *mr.Fold
	records []*mr.Record
}

var (
	tailStream = mr.StreamID{7}
	alice, bob = mr.PublisherID{0xa}, mr.PublisherID{0xb}
)

func (h *history) add(header mr.Header, payload []byte) {
	h.t.Helper()
	header.Stream, header.Epoch, header.Time = tailStream, 1, time.UnixMicro(1).UTC()
	stored, err := mr.AppendRecord(nil, &header, payload, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	r, err := mr.DecodeRecord(stored, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := h.fold.Step(r); err != nil {
		h.t.Fatal(err)
	}
	h.records = append(h.records, r)
}

func (h *history) term(term mr.Term, publisher mr.PublisherID) {
	h.add(mr.Header{Kind: mr.RecordTerm, Term: term, Publisher: publisher}, nil)
}

// messages appends a batch of a unit of n messages: those from first to last.
func (h *history) messages(term mr.Term, publisher mr.PublisherID, n, first, last int) {
	h.t.Helper()
	var w mr.UnitWriter
	for i := range n {
		if err := w.Append(&mr.Entry{Kind: mr.KindMessage, Message: &mr.LogicalMessage{Prefix: fmt.Sprint("m", i)}}); err != nil {
			h.t.Fatal(err)
		}
	}
	payload, err := w.Finish(mr.UnitEnd{Time: time.UnixMicro(1), Token: 5})
	if err != nil {
		h.t.Fatal(err)
	}
	var part []byte
	var hash mr.UnitHash
	var head mr.Head
	for i, rest := 0, payload; len(rest) > 0; i++ {
		if rest, err = mr.NextHead(rest, &head); err != nil {
			h.t.Fatal(err)
		}
		if i <= last {
			hash.Add(0, head.Raw)
			hash.Absorb()
		}
		if i >= first && i <= last {
			part = append(part, head.Raw...)
		}
	}
	h.add(mr.Header{
		Kind: mr.RecordBatch, Term: term, Publisher: publisher, First: h.fold.Next(), Count: uint32(last - first + 1),
		Prev: h.fold.Chain(), Chain: hash.Chain(h.fold.Chain()),
	}, part)
}

// TestTailMarks: provisional entries, the void that ends them, and what a fenced
// publisher still wrote.
func TestTailMarks(t *testing.T) {
	h := &history{t: t, fold: mr.NewFold(tailStream, 1)}
	h.term(1, alice)
	h.messages(1, alice, 1, 0, 0) // index 1
	h.messages(1, alice, 3, 0, 1) // 2 and 3, provisional
	h.term(2, bob)                // makes them void
	stale := h.records[2]
	h.records = append(h.records, stale)
	h.messages(2, bob, 2, 0, 0) // 2, provisional
	h.messages(2, bob, 2, 1, 1) // 3, the end of its unit

	show := func(all bool, from mr.Index) []map[string]any {
		var b bytes.Buffer
		p := &tailPrinter{out: bufio.NewWriter(&b), from: from, all: all, schemas: map[mr.SchemaVersion]*shown{}}
		for i, r := range h.records {
			if err := p.record(&config.Stream{Name: "s"}, r, topic.Message{Offset: mr.Offset(i)}); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.out.Flush(); err != nil {
			t.Fatal(err)
		}
		var lines []map[string]any
		for line := range strings.Lines(b.String()) {
			var m map[string]any
			if err := json.Unmarshal([]byte(line), &m); err != nil {
				t.Fatal(err)
			}
			lines = append(lines, m)
		}
		return lines
	}
	short := func(m map[string]any) string {
		text := fmt.Sprint(m["kind"])
		for _, name := range []string{"index", "first", "last", "term"} {
			if m[name] != nil {
				text += fmt.Sprintf(" %s=%v", name, m[name])
			}
		}
		for _, name := range []string{"provisional", "unit_end"} {
			if m[name] == true {
				text += " " + name
			}
		}
		return text
	}
	want := []string{
		"term term=1", "message index=1 unit_end", "message index=2 provisional", "message index=3 provisional",
		"void first=2 last=3 term=2", "term term=2", "stale first=2 last=3 term=1", "message index=2 provisional", "message index=3 unit_end",
	}
	var got []string
	for _, m := range show(true, 1) {
		got = append(got, short(m))
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	got = nil
	for _, m := range show(false, 3) {
		got = append(got, short(m))
	}
	if text := strings.Join(got, "\n"); strings.Contains(text, "stale") || strings.Contains(text, "index=2") || !strings.Contains(text, "index=3 unit_end") {
		t.Errorf("from 3, without all: got\n%s", text)
	}
	// A stream that the configuration does not mean is refused.
	p := &tailPrinter{out: bufio.NewWriter(&bytes.Buffer{}), schemas: map[mr.SchemaVersion]*shown{}}
	if err := p.record(&config.Stream{Name: "s", ID: mr.StreamID{8}.String()}, h.records[0], topic.Message{}); exitCode(err) != exitOperator {
		t.Errorf("topic of another stream: got %v", err)
	}
}
