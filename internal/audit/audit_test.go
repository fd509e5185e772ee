package audit

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/control"
)

const items = millrace.TableID(7)

// world is three accounts of one small history.
type world struct {
	units  []*Unit
	rows   []*control.LedgerRow
	ticks  []control.Tick
	oldest uint64
	// index and tick are where the audit begins.
	index millrace.Index
	tick  uint64
}

// unit appends a unit of a tick.
func (w *world) unit(tick uint64, p Published) *Unit {
	u := &Unit{First: 1, Token: tick, Counts: make(control.Counts), Tables: map[millrace.TableID]Published{items: p}}
	if n := len(w.units); n > 0 {
		u.First = w.units[n-1].Last + 1
	}
	for kind, n := range map[millrace.Kind]uint64{millrace.KindPut: p.Puts + p.Loaded, millrace.KindDelete: p.Deletes, millrace.KindTruncate: p.Truncates} {
		if n > 0 {
			u.Counts.Add(items, kind, n)
		}
	}
	if u.Counts.Total() == 0 {
		u.Counts.Add(0, millrace.KindHeartbeat, 1)
	}
	u.Last = u.First + millrace.Index(u.Counts.Total()) - 1
	w.units = append(w.units, u)
	return u
}

// row enters the units from the given one on into the ledger.
func (w *world) row(from int) *control.LedgerRow {
	r := &control.LedgerRow{First: w.units[from].First, Last: w.units[len(w.units)-1].Last, Captured: make(control.Counts), ReadBack: make(control.Counts)}
	for _, u := range w.units[from:] {
		for id, kinds := range u.Counts {
			for kind, n := range kinds {
				addKind(r.Captured, id, kind, n)
				addKind(r.ReadBack, id, kind, n)
			}
		}
	}
	w.rows = append(w.rows, r)
	return r
}

// newWorld makes accounts that agree: a load, changes, a window that was never
// published, and a reign that ended before it wrote its row.
func newWorld() *world {
	w := &world{oldest: 1}
	w.unit(1, Published{})
	w.unit(1, Published{Loaded: 50})
	w.row(0)
	w.unit(2, Published{Puts: 3, Deletes: 1})
	w.unit(2, Published{Loaded: 20})
	w.row(2)
	w.unit(4, Published{Puts: 2, Truncates: 1}) // in no row
	w.unit(5, Published{Puts: 9})
	w.row(5)
	w.rows = append(w.rows, &control.LedgerRow{First: w.rows[2].Last + 1, Last: w.rows[2].Last}) // a state record only
	w.ticks = []control.Tick{
		{Number: 1, Tables: map[millrace.TableID]control.Logged{items: {}}},
		{Number: 2, Tables: map[millrace.TableID]control.Logged{items: {Inserted: 2, Updated: 3, Deleted: 1, Keys: 4}}},
		{Number: 3, Tables: map[millrace.TableID]control.Logged{items: {Inserted: 2, Keys: 2}}},
		{Number: 4, Tables: map[millrace.TableID]control.Logged{items: {Inserted: 2, Truncated: 2, Keys: 2}}},
		{Number: 5, Tables: map[millrace.TableID]control.Logged{items: {Updated: 30, Keys: 9}}},
	}
	return w
}

// audit gives pages of one, so that each is asked for.
func (w *world) audit(t *testing.T) *Report {
	t.Helper()
	a := New(Config{
		Rows: func(_ context.Context, after millrace.Index) ([]*control.LedgerRow, error) {
			for _, r := range w.rows {
				if r.Last > after {
					return []*control.LedgerRow{r}, nil
				}
			}
			return nil, nil
		},
		Ticks: func(_ context.Context, after uint64) ([]control.Tick, error) {
			for _, tick := range w.ticks {
				if tick.Number > after {
					return []control.Tick{tick}, nil
				}
			}
			return nil, nil
		},
		Oldest: func(context.Context) (uint64, error) { return w.oldest, nil },
	}, w.index, w.tick)
	for _, u := range w.units {
		if err := a.Unit(t.Context(), u); err != nil {
			t.Fatal(err)
		}
	}
	r, err := a.End(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestAccountsThatAgree(t *testing.T) {
	w := newWorld()
	r := w.audit(t)
	if !r.Equal() || r.Rows != 3 || r.Unledgered != 3 || r.Ticks != 4 || r.Void != 1 || r.Gone != 0 || r.First != 1 || r.Last != w.units[5].Last || r.Units != 6 {
		t.Errorf("got %+v", r)
	}
	want := Table{items, control.Logged{Inserted: 4, Updated: 33, Deleted: 1, Truncated: 2, Keys: 15}, Published{Puts: 14, Deletes: 1, Truncates: 1, Loaded: 70}}
	if len(r.Tables) != 1 || r.Tables[0] != want {
		t.Errorf("tables: got %+v, want %+v", r.Tables, want)
	}
	w.ticks, w.oldest = w.ticks[2:], 3
	if r := w.audit(t); !r.Equal() || r.Gone != 2 || r.Ticks != 2 {
		t.Errorf("ticks that are not kept any more: got %+v", r)
	}
}

// An audit that begins within a row of the ledger and a tick compares what begins
// after that.
func TestAuditFromWithin(t *testing.T) {
	w := newWorld()
	w.units, w.ticks = w.units[1:], w.ticks[1:]
	if r := w.audit(t); r.Equal() {
		t.Error("the row that lacks its first unit was taken for whole")
	}
	w.index, w.tick = 1, 1
	if r := w.audit(t); !r.Equal() || r.Rows != 2 || r.Ticks != 3 || r.First != 2 {
		t.Errorf("got %+v", r)
	}
}

// Each account that is altered is named.
func TestAccountsThatDiffer(t *testing.T) {
	for name, c := range map[string]struct {
		alter func(w *world)
		want  string
	}{
		"a key was logged and not published":    {func(w *world) { w.units[2].Tables[items] = Published{Puts: 3} }, "tick 2, table 7: the source logged 4 keys, and the topic has 3 puts and 0 deletes"},
		"a row was published and not logged":    {func(w *world) { w.ticks[4].Tables[items] = control.Logged{Keys: 8} }, "tick 5, table 7: the source logged 8 keys"},
		"a truncation is missing":               {func(w *world) { w.units[4].Tables[items] = Published{Puts: 2} }, "tick 4, table 7: the source logged 2 truncations"},
		"a table was logged and not published":  {func(w *world) { w.ticks[4].Tables[8] = control.Logged{Keys: 1} }, "tick 5, table 8: the source logged 1 keys"},
		"a tick is missing":                     {func(w *world) { w.ticks = append(w.ticks[:1:1], w.ticks[2:]...) }, "tick 2: the topic has its window"},
		"the first tick is missing":             {func(w *world) { w.ticks = w.ticks[1:] }, "tick 1: the topic has its window"},
		"the last tick is missing":              {func(w *world) { w.ticks = w.ticks[:4] }, "tick 5: the topic has its window"},
		"read back was other than captured":     {func(w *world) { w.rows[1].Captured.Add(items, millrace.KindPut, 1) }, "capture gave 25 entries and 24 were read back"},
		"the topic is other than was read back": {func(w *world) { w.units[1].Counts.Add(items, millrace.KindDelete, 1) }, "51 entries were read back, and the topic has 52"},
		"a row of the ledger is cut":            {func(w *world) { w.rows[0].Last-- }, "ends within a unit"},
		"a row of the ledger begins late":       {func(w *world) { w.rows[2].First++ }, "does not begin where a unit does"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			c.alter(w)
			r := w.audit(t)
			if all := strings.Join(r.Differences, "\n"); r.Equal() || !strings.Contains(all, c.want) {
				t.Errorf("got %d differences, %q, want %q", r.Different, all, c.want)
			}
		})
	}
}

// What a reign left open is void; units are counted over the records they span, and
// several in one record apart.
func TestCounter(t *testing.T) {
	stream := millrace.StreamID{1}
	chain := millrace.NewChain(stream, 1)
	c := NewCounter(millrace.NewFold(stream, 1))
	var units []*Unit
	term := millrace.Term(0)
	step := func(h millrace.Header, payload []byte) {
		t.Helper()
		h.Stream, h.Epoch, h.Term, h.Publisher = stream, 1, term, millrace.PublisherID{byte(term)}
		r := millrace.Record{Header: h, Payload: payload}
		if err := c.Step(t.Context(), &r, func(_ context.Context, u *Unit) error { units = append(units, u); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	reign := func() {
		term++
		step(millrace.Header{Kind: millrace.RecordTerm}, nil)
	}
	row := millrace.AppendRow(nil, 1, []millrace.Datum{{Text: []byte("1")}})
	var w millrace.UnitWriter
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	end := func(token uint64) []byte {
		t.Helper()
		payload, err := w.Finish(millrace.UnitEnd{Time: time.Unix(1, 0), Token: token})
		must(err)
		payload = append([]byte(nil), payload...)
		w.Reset()
		return payload
	}
	// hash takes the entries of a payload into a unit's hash.
	hash := func(u *millrace.UnitHash, payload []byte) (n uint32) {
		t.Helper()
		var h millrace.Head
		var run millrace.Run
		for rest := payload; len(rest) > 0; n++ {
			var err error
			rest, err = millrace.NextHead(rest, &h)
			must(err)
			run.Extend(u, &h)
		}
		run.Flush(u)
		return n
	}

	reign()
	must(w.Put(items, []byte("a"), nil, row, 0))
	must(w.Put(items, []byte("b"), nil, row, 0))
	first := append([]byte(nil), w.Take()...)
	var u millrace.UnitHash
	n := hash(&u, first)
	step(millrace.Header{Kind: millrace.RecordBatch, First: 1, Count: n, Prev: chain, Chain: u.Chain(chain)}, first)
	reign() // the unit is void, its indexes are free
	if len(units) != 0 {
		t.Fatalf("an open unit was given out: %+v", units)
	}
	w.Reset()
	must(w.Put(items, []byte("a"), nil, row, 0))
	must(w.Delete(items, []byte("b")))
	one := end(5)
	u.Reset()
	n = hash(&u, one)
	after := u.Chain(chain)
	must(w.Put(items, []byte("c"), nil, row, 9))
	two := end(5)
	u.Reset()
	n += hash(&u, two)
	step(millrace.Header{Kind: millrace.RecordBatch, First: 1, Count: n, Prev: chain, Chain: u.Chain(after)}, append(one, two...))
	if len(units) != 2 || units[0].First != 1 || units[0].Last != 2 || units[0].Token != 5 || units[0].Tables[items] != (Published{Puts: 1, Deletes: 1}) ||
		units[1].First != 3 || units[1].Last != 3 || units[1].Tables[items] != (Published{Loaded: 1}) || units[1].Counts.Total() != 1 {
		t.Errorf("got %+v", units)
	}
}
