package applier

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	edgelog "github.com/millrace-db/millrace/edge/log"
)

// node is an edge of a chain of them: its store, its log, and what it is sent.
type node struct {
	t      testing.TB
	home   *edge.Home
	log    *edgelog.Log
	filter *millrace.Filter
	open   func(context.Context, *millrace.Checkpoint) (Source, error)
	run    *running
	// sent counts the bytes that it was sent.
	sent int
}

func newNode(t testing.TB, filter *millrace.Filter) *node {
	dir := t.TempDir()
	h, err := edge.OpenHome(edge.Options{Dir: filepath.Join(dir, "store"), MapSize: 1 << 30, MaxDBs: 32, Filter: filter})
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, home: h, log: openLog(t, filepath.Join(dir, "log")), filter: filter}
	t.Cleanup(func() {
		n.stop()
		if err := h.Store().Check(context.Background()); err != nil {
			t.Errorf("Check: %v", err)
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func (n *node) start() {
	n.run = run(n.t, n.home.Store(), nil, with(n.log), func(c *Config) { c.OpenSource = n.open })
}

func (n *node) stop() {
	if n.run != nil {
		n.run.quit()
		n.run = nil
	}
}

// follow makes n get from up's log what it holds.
func (n *node) follow(up *node) {
	n.open = func(_ context.Context, after *millrace.Checkpoint) (Source, error) {
		var index millrace.Index
		if after != nil {
			index = after.Index
		}
		r, err := up.log.Reader(index)
		if err != nil {
			return nil, err
		}
		rewrite, err := up.home.ForChild(millrace.AppendFilter(nil, n.filter))
		if err != nil {
			return nil, err
		}
		return &logSource{n: n, r: r, rewrite: rewrite}, nil
	}
}

// logSource is what an upstream's log has, rewritten for a child.
type logSource struct {
	n       *node
	r       *edgelog.Reader
	rewrite func([]byte) ([]byte, error)
}

func (s *logSource) TopicID() string { return "topic-1" }
func (s *logSource) Close() error    { return s.r.Close() }

func (s *logSource) Next(ctx context.Context) (millrace.Offset, []byte, error) {
	record, err := s.r.Next(ctx)
	if err != nil {
		return 0, nil, err
	}
	b, err := s.rewrite(append([]byte(nil), record.Value...))
	s.n.sent += len(b)
	return record.Offset, b, err
}

// rows are those of a table that a node holds, "id=v", under the prefixes that it holds.
func (n *node) rows(name string) (rows []string) {
	err := n.home.View(context.Background(), func(v *edge.View) error {
		table, err := v.Table(name)
		if err != nil {
			return err
		}
		prefixes := table.Held()
		if prefixes == nil {
			prefixes = [][]byte{nil}
		}
		for _, p := range prefixes {
			err := table.Scan(p, nil, 0, func(_ []byte, row *edge.Row) error {
				rows = append(rows, fmt.Sprintf("%s=%s", row.Columns[0].Text, row.Columns[1].Text))
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		n.t.Fatalf("read %s: %v", name, err)
	}
	return rows
}

// An edge that follows Kafka, one behind it that holds two tables and some keys of a
// third, and one behind that which holds less still come to the same chain, and to the
// rows of the first, over restarts, reigns and units that span batches.
func TestPartialEdges(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 4))
	filter := func(tables []string, prefixes map[string][][]string) *millrace.Filter {
		f, err := millrace.NewFilter(tables, prefixes)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	topic := newMemoryTopic()
	top := newNode(t, nil)
	top.open = topic.open
	near := newNode(t, filter([]string{"public.t0", "public.t1"}, map[string][][]string{"public.t2": {{"1"}, {"2"}, {"3"}}}))
	near.follow(top)
	far := newNode(t, filter([]string{"public.t1"}, map[string][][]string{"public.t2": {{"2"}}}))
	far.follow(near)
	nodes := []*node{top, near, far}
	p := newPublisher(t, topic, 1)
	p.reign()
	schemas := make([]*millrace.Schema, 5)
	for i := range schemas {
		s := *testSchema()
		s.Table, s.Name, s.Version = testTable+millrace.TableID(i), fmt.Sprintf("t%d", i), millrace.SchemaVersion(i+1)
		schemas[i] = &s
		p.unit(&millrace.Entry{Kind: millrace.KindSchema, Table: s.Table, Schema: &s}, &millrace.Entry{Kind: millrace.KindLoadBegin, Table: s.Table, Load: millrace.LoadID(i + 1)})
	}
	var ends []*millrace.Entry
	for i, s := range schemas {
		ends = append(ends, &millrace.Entry{Kind: millrace.KindLoadEnd, Table: s.Table, Load: millrace.LoadID(i + 1)})
	}
	p.unit(ends...)
	for _, n := range nodes {
		n.start()
	}
	for round := range 60 {
		var unit []*millrace.Entry
		for range 1 + r.IntN(12) {
			s := schemas[r.IntN(len(schemas))]
			id := 1 + r.IntN(6)
			e := p.put(id, "")
			e.Table = s.Table
			e.Row = millrace.AppendRow(nil, s.Version, []millrace.Datum{{Text: []byte(strconv.Itoa(id))}, {Text: []byte(strings.Repeat(strconv.Itoa(r.IntN(10)), r.IntN(1500)))}})
			unit = append(unit, e)
		}
		size := 1 + r.IntN(4)
		reigns := round%10 == 3 && len(unit) > 1
		if reigns {
			size = 1
		}
		if next := p.parts(size, unit...); reigns {
			// A reign ends within a unit, which the next one begins anew.
			index := p.index - millrace.Index(len(unit))
			next(1)
			record, err := millrace.DecodeRecord(topic.records[len(topic.records)-1], nil)
			if err != nil {
				t.Fatal(err)
			}
			p.index, p.chain = index, record.Prev
			p = p.successor()
			p.reign()
			p.parts(2, unit...)(1 << 30)
		} else {
			next(1 << 30)
		}
		if round%15 == 7 {
			n := nodes[1+r.IntN(2)]
			n.stop()
			n.start()
		}
	}
	for _, n := range nodes {
		n.run.reached(p.index)
		if got := n.home.Place(); got.Index != p.index || got.Chain != p.chain {
			t.Errorf("holding %v: index %v chain %v, want %v %v", n.filter, got.Index, got.Chain, p.index, p.chain)
		}
	}
	for _, n := range nodes[1:] {
		for _, table := range n.filter.Tables {
			var want []string
			for _, row := range top.rows(table.Name) {
				held := len(table.Prefixes) == 0
				for _, p := range table.Prefixes {
					held = held || strings.HasPrefix(row, p[0]+"=")
				}
				if held {
					want = append(want, row)
				}
			}
			if got := n.rows(table.Name); !slices.Equal(got, want) {
				t.Errorf("holding %v: %s has\n%.200q\nwant\n%.200q", n.filter, table.Name, got, want)
			}
		}
	}
	if far.sent >= near.sent || near.sent == 0 {
		t.Errorf("%d and %d bytes were sent", near.sent, far.sent)
	}
	// What holds less cannot give what holds more.
	if _, err := far.home.ForChild(millrace.AppendFilter(nil, near.filter)); !errors.Is(err, edge.ErrWider) {
		t.Errorf("more than it holds: %v", err)
	}
	if _, err := far.home.ForChild(nil); !errors.Is(err, edge.ErrWider) {
		t.Errorf("everything: %v", err)
	}
}

// An edge that holds everything stops at hashes in the place of entries, and one that
// holds some tables stops where what it holds is missing.
func TestPartialRefused(t *testing.T) {
	filter, err := millrace.NewFilter([]string{"public.other"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	topic, sent := newMemoryTopic(), newMemoryTopic()
	p := newPublisher(t, topic, 1)
	p.reign()
	p.copied(30, strings.Repeat("v", 40))
	w := millrace.NewRewriter(filter, nil)
	for _, record := range topic.records {
		b, err := w.Rewrite(record)
		if err != nil {
			t.Fatal(err)
		}
		sent.append(b)
	}
	r := run(t, openStore(t, t.TempDir()), sent)
	r.ended(millrace.ErrFilter, "everything is held here")
	mine, err := millrace.NewFilter([]string{"public.t"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := edge.Open(edge.Options{Dir: t.TempDir(), MapSize: 1 << 30, MaxDBs: 16, Filter: mine})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	r = run(t, s, sent, func(c *Config) { c.Stall = time.Second })
	r.ended(millrace.ErrFilter, "public.t")
}
