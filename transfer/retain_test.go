package transfer

import (
	"fmt"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/control"
)

// TestTrimPlan decides without a topic. Marks stand at the offsets 10, 20 … 90, behind
// the indexes 100, 200 … 900, after 1,000, 2,000 … 9,000 bytes, and are 90, 80 … 10
// minutes old. 10,000 bytes were counted.
func TestTrimPlan(t *testing.T) {
	var marks []control.Mark
	for i := range 9 {
		n := i + 1
		marks = append(marks, control.Mark{
			Offset: millrace.Offset(10 * n), Index: millrace.Index(100 * n), Bytes: uint64(1000 * n), Age: time.Duration(100-10*n) * time.Minute,
		})
	}
	edge := func(name string, index millrace.Index) Reader { return Reader{Name: name, Epoch: 2, Index: index} }
	absent := func(name string, index millrace.Index, d time.Duration) Reader {
		return Reader{Name: name, Epoch: 2, Index: index, Absent: d}
	}
	hour := Retain{Time: time.Hour}
	for name, c := range map[string]struct {
		retain     Retain
		start      millrace.Offset
		startIndex millrace.Index
		newest     millrace.Offset
		readers    []Reader
		forced     bool
		wanted, to millrace.Offset
		bytes      uint64
		held       string
		passed     int
	}{
		"nothing is to go":                        {retain: Retain{}, newest: 90},
		"by time":                                 {retain: hour, newest: 90, wanted: 40, to: 40, bytes: 4000},
		"by bytes":                                {retain: Retain{Bytes: 5000}, newest: 90, wanted: 50, to: 50, bytes: 5000},
		"what one of both lets go":                {retain: Retain{Time: time.Hour, Bytes: 8000}, newest: 90, wanted: 40, to: 40, bytes: 4000},
		"more bytes than there are":               {retain: Retain{Bytes: 20000}, newest: 90},
		"nothing is old enough":                   {retain: Retain{Time: 24 * time.Hour}, newest: 90},
		"never past what the ledger attests":      {retain: Retain{Time: time.Minute}, newest: 60, wanted: 60, to: 60, bytes: 6000},
		"the ledger attests nothing":              {retain: Retain{Time: time.Minute}, newest: millrace.NoOffset},
		"never what is younger than the least":    {retain: Retain{Bytes: 1, Least: 25 * time.Minute}, newest: 90, wanted: 70, to: 70, bytes: 7000},
		"from a start on":                         {retain: hour, start: 20, startIndex: 200, newest: 90, wanted: 40, to: 40, bytes: 2000},
		"the start is as late already":            {retain: hour, start: 40, startIndex: 400, newest: 90, wanted: 40, to: 40},
		"edges that are further":                  {retain: hour, newest: 90, readers: []Reader{edge("a", 401), edge("b", 900)}, wanted: 40, to: 40, bytes: 4000},
		"an edge at the state's own index":        {retain: hour, newest: 90, readers: []Reader{edge("a", 400)}, wanted: 40, to: 30, bytes: 3000, held: "a@400"},
		"an edge that is behind":                  {retain: hour, newest: 90, readers: []Reader{edge("b", 250), edge("a", 150), edge("c", 901)}, wanted: 40, to: 10, bytes: 1000, held: "a@150 b@250"},
		"an edge that has nothing":                {retain: hour, newest: 90, readers: []Reader{edge("a", 0)}, wanted: 40, to: 0, held: "a@0"},
		"an edge of an older epoch":               {retain: hour, newest: 90, readers: []Reader{{Name: "a", Epoch: 1, Index: 7000}}, wanted: 40, to: 0, held: "a@0"},
		"an edge that knows no epoch yet":         {retain: hour, newest: 90, readers: []Reader{{Name: "a"}}, wanted: 40, to: 0, held: "a@0"},
		"a silent edge holds for ever":            {retain: hour, newest: 90, readers: []Reader{absent("a", 150, 1000*time.Hour)}, wanted: 40, to: 10, bytes: 1000, held: "a@150"},
		"a silent edge holds for a while":         {retain: Retain{Time: time.Hour, Absent: 24 * time.Hour}, newest: 90, readers: []Reader{absent("a", 150, 23*time.Hour)}, wanted: 40, to: 10, bytes: 1000, held: "a@150"},
		"a silent edge is passed over":            {retain: Retain{Time: time.Hour, Absent: 24 * time.Hour}, newest: 90, readers: []Reader{absent("a", 150, 25*time.Hour), edge("b", 350)}, wanted: 40, to: 30, bytes: 3000, held: "b@350", passed: 1},
		"an edge that the topic is of no use to":  {retain: hour, start: 20, startIndex: 200, newest: 90, readers: []Reader{edge("new", 0), edge("b", 350)}, wanted: 40, to: 30, bytes: 1000, held: "b@350", passed: 1},
		"an edge at the start of a trimmed topic": {retain: hour, start: 20, startIndex: 200, newest: 90, readers: []Reader{edge("b", 200)}, wanted: 40, to: 20, held: "b@200"},
		"whatever edges need":                     {retain: hour, newest: 60, readers: []Reader{edge("a", 0)}, forced: true, wanted: 40, to: 40, bytes: 4000},
	} {
		t.Run(name, func(t *testing.T) {
			if c.retain.Least == 0 {
				c.retain.Least = time.Minute
			}
			if c.wanted == 0 {
				c.wanted, c.to = c.start, c.start
			}
			trim := &Trim{Start: c.start, StartIndex: c.startIndex, End: 100}
			trim.plan(&grounds{retain: &c.retain, epoch: 2, newest: c.newest, marks: marks, total: 10_000, readers: c.readers, forced: c.forced})
			held := ""
			for _, h := range trim.Holders {
				held += fmt.Sprintf(" %s@%v", h.Edge, h.Index)
			}
			if held != "" {
				held = held[1:]
			}
			if trim.Wanted != c.wanted || trim.To != c.to || trim.Bytes != c.bytes || held != c.held || trim.Passed != c.passed {
				t.Errorf("wanted %v, to %v, %d bytes, held by %q, %d passed over; want %v, %v, %d, %q, %d",
					trim.Wanted, trim.To, trim.Bytes, held, trim.Passed, c.wanted, c.to, c.bytes, c.held, c.passed)
			}
			if trim.To > 0 && trim.ToIndex != millrace.Index(10*trim.To) || trim.goes() != (trim.To > c.start) || trim.held() != (trim.To < trim.Wanted) {
				t.Errorf("plan is %+v", trim)
			}
		})
	}
}

// TestTrimNamesFewEdges: the edges that are furthest behind are named, the others
// counted.
func TestTrimNamesFewEdges(t *testing.T) {
	var readers []Reader
	for i := range 1000 {
		readers = append(readers, Reader{Name: fmt.Sprintf("e%03d", 999-i), Epoch: 1, Index: 1})
	}
	trim := &Trim{End: 100}
	trim.plan(&grounds{
		retain: &Retain{Time: time.Second}, epoch: 1, newest: 50, readers: readers,
		marks: []control.Mark{{Offset: 50, Index: 5, Age: time.Hour}},
	})
	if len(trim.Holders) != maxHolders || trim.More != 1000-maxHolders || trim.Holders[0].Edge != "e000" || trim.goes() {
		t.Errorf("%d named, %d more, first %v", len(trim.Holders), trim.More, trim.Holders[0])
	}
}
