// Package audit holds three accounts of a stream against each other: what the
// source counted by SQL when it was read (the ticks of trigger capture), what the
// topic holds as the fold accepts it, and what the publisher wrote into the ledger.
//
// It promises that each entry between two indexes is counted once in each account,
// and that accounts which do not agree are named. It does no I/O of its own: ticks
// and rows of the ledger come from two functions, in pages, so that memory does not
// grow with the range, and the topic's units in order from the caller.
package audit

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/control"
)

// maxDifferences bounds the list of differences, not their number.
const maxDifferences = 20

// Published are the entries of a table in the topic that changes gave, apart from
// the rows of loads.
type Published struct {
	Puts      uint64 `json:"puts"`
	Deletes   uint64 `json:"deletes"`
	Truncates uint64 `json:"truncates"`
	// Loaded are rows of loads.
	Loaded uint64 `json:"loaded"`
}

// Unit is a complete unit of the topic.
type Unit struct {
	First, Last millrace.Index
	// Token is the comparable part of its Position: the tick.
	Token  uint64
	Counts control.Counts
	Tables map[millrace.TableID]Published
}

// Config says what the topic is held against.
type Config struct {
	// Rows returns the next rows of the ledger that end after an index, in their
	// order, and none at the end.
	Rows func(ctx context.Context, after millrace.Index) ([]*control.LedgerRow, error)
	// Ticks returns the next ticks after a number, in their order, and none at the
	// end. nil where capture has none.
	Ticks func(ctx context.Context, after uint64) ([]control.Tick, error)
	// Oldest returns the lowest number that the source keeps by now, 0 for none. It is
	// asked when a tick is missing: it may have been cleared away meanwhile.
	Oldest func(ctx context.Context) (uint64, error)
}

// Table is what was found of a table.
type Table struct {
	ID millrace.TableID `json:"id"`
	// Logged and Published are sums over the ticks that were compared.
	Logged    control.Logged `json:"logged"`
	Published Published      `json:"published"`
}

// Report is what an audit has found.
type Report struct {
	// First and Last are the indexes that were looked at, 0 for none.
	First millrace.Index `json:"first"`
	Last  millrace.Index `json:"last"`
	// Entries and Units were in the topic.
	Entries uint64 `json:"entries"`
	Units   uint64 `json:"units"`
	// Rows of the ledger were compared; Unledgered entries are in none, because
	// the reign that published them ended before it wrote its row.
	Rows       uint64 `json:"ledger_rows"`
	Unledgered uint64 `json:"unledgered"`
	// Ticks were compared. Void ticks are of windows that were never published;
	// Gone ones are not kept at the source any more.
	Ticks uint64 `json:"ticks"`
	Void  uint64 `json:"ticks_void"`
	Gone  uint64 `json:"ticks_gone"`
	// Tables are in the order of their IDs.
	Tables []Table `json:"tables"`
	// Different counts what does not agree, Differences names the first of it.
	Different   uint64   `json:"different"`
	Differences []string `json:"differences"`
}

// Equal reports whether all that was compared agrees.
func (r *Report) Equal() bool { return r.Different == 0 }

// Audit takes in a topic's units and compares. It is used by one goroutine.
type Audit struct {
	config Config
	index  millrace.Index // after which it began
	report Report
	tables map[millrace.TableID]*Table

	rows    []*control.LedgerRow // of the newest page, not yet passed
	rowsEnd bool
	// row is the one that units are summed up for, nil outside of rows; cut tells
	// that it began before the audit.
	row *control.LedgerRow
	cut bool
	sum control.Counts

	ticks    []control.Tick
	ticksEnd bool
	asked    uint64 // number after which the next page of ticks begins
	tick     uint64 // of the units at hand
	live     map[millrace.TableID]Published
}

// New begins an audit after an index and the tick at it.
func New(config Config, index millrace.Index, tick uint64) *Audit {
	return &Audit{config: config, index: index, tables: make(map[millrace.TableID]*Table), tick: tick, asked: tick}
}

// Unit takes in the next unit.
func (a *Audit) Unit(ctx context.Context, u *Unit) error {
	if a.report.First == 0 {
		a.report.First = u.First
	}
	a.report.Last = u.Last
	a.report.Entries += uint64(u.Last - u.First + 1)
	a.report.Units++
	if err := a.ledger(ctx, u); err != nil {
		return err
	}
	if a.config.Ticks == nil {
		for id, p := range u.Tables {
			add(&a.table(id).Published, p)
		}
		return nil
	}
	if u.Token != a.tick {
		if err := a.endTick(ctx); err != nil {
			return err
		}
		a.tick, a.live = u.Token, make(map[millrace.TableID]Published)
	}
	for id, p := range u.Tables {
		sum := a.live[id]
		add(&sum, p)
		if a.live != nil {
			a.live[id] = sum
		}
		a.table(id).Published.Loaded += p.Loaded
	}
	return nil
}

// End compares what is left and returns the report. The units have to end where a row
// of the ledger does.
func (a *Audit) End(ctx context.Context) (*Report, error) {
	a.endRow()
	if a.config.Ticks != nil {
		if err := a.endTick(ctx); err != nil {
			return nil, err
		}
	}
	r := a.report
	if r.Differences == nil {
		r.Differences = []string{} // in JSON a list all the same
	}
	r.Tables = make([]Table, 0, len(a.tables))
	for _, id := range slices.Sorted(maps.Keys(a.tables)) {
		r.Tables = append(r.Tables, *a.tables[id])
	}
	return &r, nil
}

func (a *Audit) table(id millrace.TableID) *Table {
	t := a.tables[id]
	if t == nil {
		t = &Table{ID: id}
		a.tables[id] = t
	}
	return t
}

func (a *Audit) differ(format string, args ...any) {
	a.report.Different++
	if len(a.report.Differences) < maxDifferences {
		a.report.Differences = append(a.report.Differences, fmt.Sprintf(format, args...))
	}
}

func add(to *Published, p Published) {
	to.Puts += p.Puts
	to.Deletes += p.Deletes
	to.Truncates += p.Truncates
	to.Loaded += p.Loaded
}
