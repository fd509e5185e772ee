package wal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture/table"
)

// edge applies units to tables in memory by the rules of the format.
type edge struct {
	at      millrace.Checkpoint
	tables  map[millrace.TableID]map[string]storedRow
	shadows map[millrace.LoadID]map[string]storedRow
	schemas map[millrace.SchemaVersion]*millrace.Schema
	// reasons are those of loads, as "table: reason".
	reasons []string
	// verified has the ranges of each pass by table; differing those of them in
	// which the rows are others.
	verified  map[millrace.TableID]int
	leftOut   int
	differing []string
}

// copying reports whether the first copy has not ended.
func (e *edge) copying() bool { return len(e.tables) == 0 }

type storedRow struct {
	version millrace.SchemaVersion
	columns []millrace.Datum
}

// applied is a unit after it was applied.
type applied struct {
	position millrace.Position
	time     time.Time
	entries  []millrace.Entry
	bytes    int
}

func (a *applied) has(kind millrace.Kind) bool { return a.count(kind) > 0 }

func (a *applied) count(kind millrace.Kind) (n int) {
	for i := range a.entries {
		if a.entries[i].Kind == kind {
			n++
		}
	}
	return n
}

// kinds names the entries' kinds.
func (a *applied) kinds() string {
	var names []string
	for i := range a.entries {
		names = append(names, a.entries[i].Kind.String())
	}
	return strings.Join(names, " ")
}

func newEdge() *edge {
	return &edge{
		tables: make(map[millrace.TableID]map[string]storedRow), shadows: make(map[millrace.LoadID]map[string]storedRow),
		schemas: make(map[millrace.SchemaVersion]*millrace.Schema), verified: make(map[millrace.TableID]int),
	}
}

func (e *edge) apply(u *millrace.Unit) (*applied, error) {
	a := &applied{position: u.Position, time: u.Time}
	for {
		run, err := u.Body.Next(1 << 20)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		run = slices.Clone(run)
		a.bytes += len(run)
		for len(run) > 0 {
			var h millrace.Head
			if run, err = millrace.NextHead(run, &h); err != nil {
				return nil, err
			}
			var entry millrace.Entry
			if err := millrace.DecodeEntry(h.Body, &entry); err != nil {
				return nil, err
			}
			if entry.Ordinal != uint64(len(a.entries)) || entry.Last != (entry.Ordinal+1 == u.Entries) {
				return nil, fmt.Errorf("entry %d of %d: ordinal %d, last %v", len(a.entries), u.Entries, entry.Ordinal, entry.Last)
			}
			a.entries = append(a.entries, entry)
			if err := e.entry(&entry); err != nil {
				return nil, err
			}
		}
	}
	if uint64(len(a.entries)) != u.Entries {
		return nil, fmt.Errorf("unit has %d entries and says %d", len(a.entries), u.Entries)
	}
	end := a.entries[len(a.entries)-1].End
	if end.Token != u.Position.Token() || !end.Time.Equal(u.Time) {
		return nil, fmt.Errorf("unit's end is %+v, its position %v, its time %v", end, u.Position, u.Time)
	}
	if live := len(e.at.Catalog.Loads) == 0 && !a.has(millrace.KindLoadEnd) && !a.has(millrace.KindVerify) && !a.has(millrace.KindSchema); live && u.Position.LSN <= e.at.Position.LSN {
		return nil, fmt.Errorf("unit at %v comes after %v", u.Position, e.at.Position)
	}
	e.at.Position, e.at.Time = u.Position, u.Time
	return a, u.Body.Close()
}

func (e *edge) entry(entry *millrace.Entry) error {
	cat := &e.at.Catalog
	at := slices.IndexFunc(cat.Loads, func(l millrace.Load) bool { return l.Table == entry.Table })
	if of := entry.Kind; entry.Load != 0 && of != millrace.KindLoadBegin && (at < 0 || cat.Loads[at].ID != entry.Load) {
		return fmt.Errorf("%v of load %v of table %v, which is not under way", of, entry.Load, entry.Table)
	}
	switch entry.Kind {
	case millrace.KindSchema:
		s := entry.Schema
		if s.Version != cat.LastVersion+1 {
			return fmt.Errorf("schema version %v after %v", s.Version, cat.LastVersion)
		}
		cat.LastVersion = s.Version
		cat.Schemas = slices.DeleteFunc(cat.Schemas, func(o *millrace.Schema) bool { return o.Table == s.Table })
		cat.Schemas = append(cat.Schemas, s)
		slices.SortFunc(cat.Schemas, func(a, b *millrace.Schema) int { return int(a.Table) - int(b.Table) })
		e.schemas[s.Version] = s
	case millrace.KindLoadBegin:
		if entry.Load != cat.LastLoad+1 {
			return fmt.Errorf("load %v after %v", entry.Load, cat.LastLoad)
		}
		cat.LastLoad = entry.Load
		cat.Loads = slices.DeleteFunc(cat.Loads, func(l millrace.Load) bool { return l.Table == entry.Table })
		cat.Loads = append(cat.Loads, millrace.Load{ID: entry.Load, Table: entry.Table, Progress: entry.LoadInfo.Progress})
		e.shadows[entry.Load] = make(map[string]storedRow)
		if entry.LoadInfo.Reason != "first copy" {
			e.reasons = append(e.reasons, cat.Schema(entry.Table).Name+": "+entry.LoadInfo.Reason)
		}
	case millrace.KindLoadProgress:
		l := &cat.Loads[at]
		if len(entry.LoadInfo.Added) == 0 {
			l.Progress = entry.LoadInfo.Progress
		} else {
			l.Progress = append(slices.Clip(l.Progress), entry.LoadInfo.Added...)
		}
	case millrace.KindLoadEnd:
		cat.Loads = slices.Delete(cat.Loads, at, at+1)
		for _, row := range e.shadows[entry.Load] {
			if slices.ContainsFunc(row.columns, func(d millrace.Datum) bool { return d.State == millrace.ColumnMissing }) {
				return fmt.Errorf("load %v ends, and a row lacks columns", entry.Load)
			}
		}
		e.tables[entry.Table] = e.shadows[entry.Load]
		delete(e.shadows, entry.Load)
	case millrace.KindDrop:
		if cat.Schema(entry.Table) == nil {
			return fmt.Errorf("drop of table %v, of which there is no schema", entry.Table)
		}
		cat.Schemas = slices.DeleteFunc(cat.Schemas, func(o *millrace.Schema) bool { return o.Table == entry.Table })
		cat.Loads = slices.DeleteFunc(cat.Loads, func(l millrace.Load) bool { return l.Table == entry.Table })
		delete(e.tables, entry.Table)
	case millrace.KindVerify:
		return e.verify(entry)
	case millrace.KindPut, millrace.KindDelete, millrace.KindTruncate:
		if entry.Load == 0 && e.tables[entry.Table] != nil {
			if err := e.change(entry, e.tables[entry.Table], at >= 0, false); err != nil {
				return err
			}
		}
		if at >= 0 {
			return e.change(entry, e.shadows[cat.Loads[at].ID], true, true)
		}
		if e.tables[entry.Table] == nil {
			return fmt.Errorf("%v of table %v, which has neither rows nor a load", entry.Kind, entry.Table)
		}
	}
	return nil
}

// verify compares the rows of a range with what the entry says of them.
func (e *edge) verify(entry *millrace.Entry) error {
	v := entry.Verify
	var sum millrace.VerifySum
	for key, row := range e.tables[entry.Table] {
		leftOut := slices.ContainsFunc(v.LeftOut, func(k []byte) bool { return string(k) == key })
		if leftOut || !v.Holds([]byte(key)) {
			continue
		}
		if err := sum.Add(millrace.NewVerifyPlan(e.schemas[row.version]), []byte(key), row.columns); err != nil {
			return err
		}
	}
	e.verified[entry.Table]++
	e.leftOut += len(v.LeftOut)
	if sum.Rows != v.Rows || sum.Sum() != v.Hash {
		e.differing = append(e.differing, fmt.Sprintf("table %v from %x to %x: %d rows here, %d at the source, snapshot %s", entry.Table, v.Low, v.High, sum.Rows, v.Rows, v.Snapshot))
	}
	return nil
}

// change brings a change into one generation of a table.
func (e *edge) change(entry *millrace.Entry, table map[string]storedRow, loading, shadow bool) error {
	switch entry.Kind {
	case millrace.KindPut:
		return e.put(entry, table, loading, shadow)
	case millrace.KindDelete:
		if _, ok := table[string(entry.Key)]; !ok && !shadow && !loading {
			return fmt.Errorf("delete of a row that is not there, key %x", entry.Key)
		}
		delete(table, string(entry.Key))
	case millrace.KindTruncate:
		clear(table)
	}
	return nil
}

func (e *edge) put(entry *millrace.Entry, table map[string]storedRow, loading, shadow bool) error {
	var row millrace.Row
	if err := millrace.DecodeRow(entry.Row, &row); err != nil {
		return err
	}
	s := e.at.Catalog.Schema(entry.Table)
	if s == nil || s.Version != row.Version {
		return fmt.Errorf("row of version %v, the newest is %v", row.Version, s)
	}
	base := entry.Key
	if entry.From != nil {
		base = entry.From
	}
	old, known := table[string(base)]
	for i, c := range row.Columns {
		if c.State != millrace.ColumnUnchanged {
			continue
		}
		j := i
		if !known {
			j = -1
		} else if old.version != row.Version {
			j = e.schemas[old.version].Counterpart(&s.Columns[i])
		}
		switch {
		case j >= 0:
			row.Columns[i] = old.columns[j]
		case shadow:
			row.Columns[i] = millrace.Datum{State: millrace.ColumnMissing}
		case loading:
			row.Columns[i] = millrace.Datum{State: millrace.ColumnNull}
		default:
			return fmt.Errorf("column %d is unchanged, and there is no row before", i)
		}
	}
	table[string(entry.Key)] = storedRow{row.Version, slices.Clone(row.Columns)}
	return nil
}

// equalTable compares one table with the source. Rows of older versions are
// mapped by column name.
func (e *edge) equalTable(ctx context.Context, conn *pgx.Conn, name table.Name, where string) error {
	info, err := table.ByName(ctx, conn, name)
	if err != nil || info == nil {
		return fmt.Errorf("look up %v: %w", name, err)
	}
	s := e.at.Catalog.Schema(info.ID)
	if s == nil {
		return fmt.Errorf("%v: the edge has no schema", name)
	}
	of, err := sourceRows(ctx, conn, s, where)
	if err != nil {
		return err
	}
	want := make(map[string]string)
	for key, row := range of {
		want[key] = rowText(s, row)
	}
	got := make(map[string]string)
	for key, row := range e.tables[info.ID] {
		mapped := make([]millrace.Datum, len(s.Columns))
		old := e.schemas[row.version]
		for i, c := range s.Columns {
			mapped[i] = millrace.Datum{State: millrace.ColumnNull}
			if j := old.Counterpart(&c); j >= 0 {
				mapped[i] = row.columns[j]
			}
		}
		got[key] = rowText(s, mapped)
	}
	if maps.Equal(got, want) {
		return nil
	}
	differing := 0
	example := ""
	for key := range want {
		if got[key] != want[key] {
			differing++
			example = fmt.Sprintf("got %.300s\nwant %.300s", got[key], want[key])
		}
	}
	for key := range got {
		if _, ok := want[key]; !ok {
			differing++
			example = fmt.Sprintf("got %.300s\nwant none", got[key])
		}
	}
	return fmt.Errorf("%v: edge has %d rows, source %d, %d differ: %s", name, len(got), len(want), differing, example)
}

// sourceRows reads the rows of a table, by key. where may be empty.
func sourceRows(ctx context.Context, conn *pgx.Conn, s *millrace.Schema, where string) (map[string][]millrace.Datum, error) {
	codec, err := millrace.NewKeyCodec(s)
	if err != nil {
		return nil, err
	}
	var columns []string
	for _, c := range s.Columns {
		columns = append(columns, table.Quote(c.Name))
	}
	query := "select " + strings.Join(columns, ", ") + " from " + table.Name{Schema: s.Namespace, Name: s.Name}.Quoted()
	if where != "" {
		query += " where " + where
	}
	rows, err := conn.Query(ctx, query, pgx.QueryResultFormats{pgx.TextFormatCode})
	if err != nil {
		return nil, err
	}
	all := make(map[string][]millrace.Datum)
	for rows.Next() {
		var row []millrace.Datum
		for _, v := range rows.RawValues() {
			d := millrace.Datum{State: millrace.ColumnNull}
			if v != nil {
				d = millrace.Datum{Text: bytes.Clone(v)}
			}
			row = append(row, d)
		}
		key, err := codec.AppendRowKey(nil, row)
		if err != nil {
			return nil, err
		}
		all[string(key)] = row
	}
	return all, rows.Err()
}

func rowText(s *millrace.Schema, row []millrace.Datum) string {
	var b strings.Builder
	for i, c := range s.Columns {
		if row[i].State == millrace.ColumnValue {
			fmt.Fprintf(&b, "%s=%q ", c.Name, row[i].Text)
		} else {
			fmt.Fprintf(&b, "%s %v ", c.Name, row[i].State)
		}
	}
	return b.String()
}
