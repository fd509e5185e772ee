package audit

import (
	"context"

	"github.com/millrace-db/millrace/internal/control"
)

// ledger adds a unit to the row of the ledger that it is in, and compares the row
// when its last unit is there.
func (a *Audit) ledger(ctx context.Context, u *Unit) error {
	for a.row == nil || a.row.Last < u.First {
		a.endRow()
		row, err := a.nextRow(ctx, u)
		if err != nil {
			return err
		}
		if row == nil || row.First > u.Last {
			a.report.Unledgered += uint64(u.Last - u.First + 1)
			return nil
		}
		a.rows = a.rows[1:]
		a.row, a.sum, a.cut = row, make(control.Counts), row.First <= a.index
		if row.First != u.First && !a.cut {
			a.differ("the ledger's row of indexes %v to %v does not begin where a unit does: the topic has one from %v to %v", row.First, row.Last, u.First, u.Last)
		}
	}
	if u.Last > a.row.Last {
		a.differ("the ledger's row of indexes %v to %v ends within a unit of the topic, %v to %v", a.row.First, a.row.Last, u.First, u.Last)
	}
	for id, kinds := range u.Counts {
		for kind, n := range kinds {
			if n > 0 {
				addKind(a.sum, id, kind, n)
			}
		}
	}
	return nil
}

// nextRow returns the first row that does not end before the unit, nil if there is
// none. It stays in a.rows.
func (a *Audit) nextRow(ctx context.Context, u *Unit) (*control.LedgerRow, error) {
	for {
		for len(a.rows) > 0 && a.rows[0].Last < u.First {
			a.rows = a.rows[1:] // before the range, or a row without entries
		}
		if len(a.rows) > 0 {
			return a.rows[0], nil
		}
		if a.rowsEnd {
			return nil, nil
		}
		rows, err := a.config.Rows(ctx, u.First-1)
		if err != nil {
			return nil, err
		}
		a.rows, a.rowsEnd = rows, len(rows) == 0
	}
}

// endRow compares the row at hand with what the topic has.
func (a *Audit) endRow() {
	row := a.row
	if row == nil {
		return
	}
	a.row = nil
	if a.cut {
		return
	}
	a.report.Rows++
	if !row.ReadBack.Equal(a.sum) {
		a.differ("indexes %v to %v: the ledger says that %d entries were read back, and the topic has %d, or of other tables and kinds", row.First, row.Last, row.ReadBack.Total(), a.sum.Total())
	}
	if !row.Captured.Equal(row.ReadBack) {
		a.differ("indexes %v to %v: the ledger says that capture gave %d entries and %d were read back, or of other tables and kinds", row.First, row.Last, row.Captured.Total(), row.ReadBack.Total())
	}
}
