package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/edgestatus"
	"github.com/millrace-db/millrace/internal/loopback"
	"github.com/millrace-db/millrace/transfer"
)

// TestTrimAndReceipt: an edge follows another one, which reports for both; millrace wait
// tells when a row has come to both. The topic is trimmed behind them, and every command
// that reads it goes on with what is left.
func TestTrimAndReceipt(t *testing.T) {
	t.Parallel()
	w := newWorldApart(t)
	retained := strings.Replace(w.config(w.db.URL, ""), "kafka: {", "kafka: {retain: {time: 10m}, ", 1)
	w.file = w.write(t, "millrace.yaml", retained)
	ports, err := loopback.FreePorts(2)
	if err != nil {
		t.Fatal(err)
	}
	other := func(name string, port int, extra string) string {
		text := strings.NewReplacer("id: here", "id: "+name+extra, "data_dir: edge", "data_dir: "+name, w.edge, fmt.Sprintf("127.0.0.1:%d", port), "edge.sock", name+".sock").Replace(retained)
		return w.write(t, name+".yaml", text)
	}
	run := func(args ...string) string {
		t.Helper()
		return program(t, w.dir, append(args, "-c", w.file)...)
	}
	run("init")
	publisher := spawn(t, w.dir, nil, "transfer", "-c", w.file)
	root := spawn(t, w.dir, nil, "edge", "-c", w.file)
	w.ready(t)
	leaf := spawn(t, w.dir, nil, "edge", "-c", other("leaf", ports[0], "\n  upstream: [\"http://"+w.edge+"\"]"))

	if got := run("wait", "--of", "2", "--timeout", "2m"); !strings.Contains(got, "2 of 2 edges hold index") {
		t.Errorf("wait: %s", got)
	}
	w.db.Exec(`INSERT INTO items VALUES ('new', 1, 'row')`)
	if got := run("wait", "--edges", "2", "--timeout", "2m"); !strings.Contains(got, "2 of 2 edges hold index") {
		t.Errorf("wait: %s", got)
	}
	refusal(t, w.dir, nil, exitFailure, []string{"0 of 2 edges", "here at", "leaf at", "millrace status"}, "wait", "--index", "99999999", "--timeout", "1s", "-c", w.file)
	for _, wrong := range []string{"0%", "101%", "-1", "0", "many"} {
		refusal(t, w.dir, nil, exitUsage, []string{"--edges", wrong}, "wait", "--edges", wrong, "-c", w.file)
	}
	until(t, "the status sums both up", func() error {
		var all []place
		if err := json.Unmarshal([]byte(run("status", "--json")), &all); err != nil {
			return err
		}
		s := all[0].Summary
		if s == nil || s.Edges != 2 || s.Relays != 1 || s.Levels != 1 || s.Forked != 0 || s.Compared == 0 || len(all[0].Edges) != 1 || all[0].Edges[0].Space == nil {
			return fmt.Errorf("summary %+v of edges %+v", s, all[0].Edges)
		}
		return nil
	})
	until(t, "the status says so", func() error {
		if got := run("status"); !strings.Contains(got, "2 edges (1 of them relays, 2 levels)") || !strings.Contains(got, "chains agree") {
			return errors.New(got)
		}
		return nil
	})

	// A state record is written where a reign begins. What was then is said to be old.
	grow := func(edges string) {
		t.Helper()
		publisher.stop(syscall.SIGTERM)
		last := w.db.String(`SELECT coalesce(max(log_offset), -1)::text FROM millrace.mark`)
		publisher = spawn(t, w.dir, nil, "transfer", "-c", w.file)
		until(t, "a mark of the new reign", func() error {
			if n := w.db.String(`SELECT count(*)::text FROM millrace.mark WHERE last_index > 0 AND log_offset > $1::text::bigint`, last); n == "0" {
				return fmt.Errorf("there is none behind offset %s", last)
			}
			return nil
		})
		if edges != "" {
			run("wait", "--edges", edges, "--timeout", "2m")
		}
		w.db.Exec(`UPDATE millrace.mark SET marked_at = marked_at - interval '1 hour'`)
	}
	grow("2")
	grow("2")
	var plan transfer.Trim
	until(t, "edges are behind no mark", func() error {
		if err := json.Unmarshal([]byte(run("trim", "--dry-run", "--json")), &plan); err != nil {
			return err
		}
		if plan.To != plan.Wanted || plan.To == plan.Start || plan.Done {
			return fmt.Errorf("%+v", plan)
		}
		return nil
	})
	if got := run("trim", "--dry-run"); !strings.Contains(got, "would go: the topic begins behind index "+plan.ToIndex.String()) {
		t.Errorf("trim --dry-run: %s", got)
	}
	if got := run("trim"); !strings.Contains(got, "are deleted") {
		t.Errorf("trim: %s", got)
	}
	if got := run("trim"); !strings.Contains(got, "nothing goes") {
		t.Errorf("trim again: %s", got)
	}
	if got := run("epoch", "show"); !strings.Contains(got, plan.To.String()+" to before") {
		t.Errorf("epoch show: %s", got)
	}
	first := strings.SplitN(run("tail"), "\n", 2)[0]
	var line struct{ Index uint64 }
	if err := json.Unmarshal([]byte(first), &line); err != nil || line.Index != 0 && line.Index <= uint64(plan.ToIndex) {
		t.Errorf("tail begins with %s", first)
	}
	if got := run("audit", "--since", "2h"); !strings.Contains(got, "was trimmed") || !strings.HasSuffix(got, "equal\n") {
		t.Errorf("audit: %s", got)
	}
	if got := run("check"); !strings.Contains(got, "no problems") {
		t.Errorf("check: %s", got)
	}

	// Edges that have stopped hold back what they need, until they are forgotten.
	leaf.stop(syscall.SIGTERM)
	root.stop(syscall.SIGTERM)
	w.db.Exec(`INSERT INTO items VALUES ('new', 2, 'row')`)
	grow("")
	grow("")
	if got := run("trim"); !strings.Contains(got, "held back by edges") || !strings.Contains(got, "not for") || !strings.Contains(got, "here") {
		t.Errorf("trim while an edge has stopped: %s", got)
	}
	if got := run("status"); !strings.Contains(got, "back what kafka.retain would let go") {
		t.Errorf("status while an edge has stopped: %s", got)
	}
	run("status", "--forget", "here")
	if got := run("trim"); !strings.Contains(got, "are deleted") {
		t.Errorf("trim once the edge is forgotten: %s", got)
	}
	if err := json.Unmarshal([]byte(run("trim", "--dry-run", "--json")), &plan); err != nil {
		t.Fatal(err)
	}
	back := spawn(t, w.dir, nil, "edge", "-c", w.file)
	until(t, "the edge that is back says what it needs", func() error {
		if said := back.err(); !strings.Contains(said, "behind index "+plan.StartIndex.String()) || !strings.Contains(said, "edge.images.from") {
			return errors.New(said)
		}
		return nil
	})
	if got := run("get", "public.items", "new,1"); !strings.Contains(got, "row") {
		t.Errorf("it answers no more: %s", got)
	}
	fresh := spawn(t, w.dir, nil, "edge", "-c", other("fresh", ports[1], ""))
	until(t, "the new edge says what it needs", func() error {
		if said := fresh.err(); !strings.Contains(said, "image") || !strings.Contains(said, "begins at index "+strconv.FormatUint(uint64(plan.StartIndex)+1, 10)) {
			return errors.New(said)
		}
		return nil
	})
	fresh.stop(syscall.SIGTERM)
	run("status", "--forget", "fresh")
	refusal(t, w.dir, nil, exitFailure, []string{"fresh"}, "status", "--forget", "fresh", "-c", w.file)
}

// TestReceipt judges what edges have reported.
func TestReceipt(t *testing.T) {
	for text, want := range map[string][2]int{"95%": {19, 20}, "100%": {20, 20}, "0.1%": {1, 20}, "7": {7, 20}, "33.4%": {2, 3}, "33.3%": {1, 3}} {
		q, err := parseQuorum(text)
		if err != nil || q.of(want[1]) != want[0] {
			t.Errorf("%s of %d: %d, %v, want %d", text, want[1], q.of(want[1]), err, want[0])
		}
	}
	var edges []edgestatus.Edge
	for i := range 20 {
		edges = append(edges, edgestatus.Edge{Report: edgestatus.Report{Edge: fmt.Sprintf("e%02d", i), Epoch: 2, Index: 100, State: edgestatus.StateStream}})
	}
	edges[3].Index, edges[4].Epoch = 99, 1
	s := edgestatus.Summarise(edges, nil)
	w := &waiting{stream: new(config.Stream), enough: quorum{part: 0.9}}
	if r := w.look(s, 2, 100); !r.Reached || r.Have != 18 || r.Want != 18 || len(r.Lacking) != 2 || r.Lacking[0].Edge != "e04" {
		t.Errorf("got %+v", r)
	}
	w.of = 21
	if r := w.look(s, 2, 100); r.Reached || r.Want != 19 || r.Edges != 21 {
		t.Errorf("of 21: %+v", r)
	}
	if r := (&waiting{stream: new(config.Stream), enough: quorum{part: 1}}).look(edgestatus.Summarise(nil, nil), 1, 1); r.Reached {
		t.Errorf("of none: %+v", r)
	}
}
