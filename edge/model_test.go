package edge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/millrace-db/millrace"
)

// modelTable is what a table must hold: rows by ID, each its two other columns.
type modelTable struct {
	feed   tableFeed
	live   map[string][2]string // nil before the first LoadEnd
	shadow map[string][2]string // nil without a load
	load   millrace.LoadID
	gone   bool // out of the stream, until it is described again
}

func (m *modelTable) clone() *modelTable {
	c := *m
	c.live, c.shadow = maps.Clone(m.live), maps.Clone(m.shadow)
	return &c
}

// lacking stands for a column of a shadow that is not known yet.
const lacking = "\x00missing"

// put does to one generation what a Put does.
func (m *modelTable) put(g map[string][2]string, from, id string, values [2]string) {
	base, ok := g[from]
	for i := range values {
		if values[i] != unchanged {
			continue
		}
		values[i] = lacking
		if ok {
			values[i] = base[i]
		}
	}
	g[id] = values
}

func (m *modelTable) dump() string {
	ids := slices.SortedFunc(maps.Keys(m.live), func(a, b string) int {
		x, _ := strconv.Atoi(a)
		y, _ := strconv.Atoi(b)
		return x - y
	})
	rows := make([]string, len(ids))
	for i, id := range ids {
		rows[i] = id + "=" + m.live[id][0] + "," + m.live[id][1]
	}
	return strings.Join(rows, " ")
}

// modelIndexes are declared for the tables of the model, one of them in vain.
var modelIndexes = map[string][][]string{
	"public.t0": {{"note"}, {"big", "note"}, {"nothing"}},
	"public.t1": {{"big"}},
}

// wantIndexes compares the whole indexes of a table with its rows.
func wantIndexes(s *Store, m *modelTable) error {
	return s.View(context.Background(), func(v *View) error {
		table, err := v.Table(m.feed.schema.QualifiedName())
		if err != nil {
			return err
		}
		for _, info := range table.Indexes() {
			if !info.Whole {
				continue
			}
			ix, err := table.Index(info.Columns...)
			if err != nil {
				return err
			}
			var last []byte
			n := 0
			err = ix.Scan(Range{}, 0, func(key []byte, row *Row) error {
				id := string(row.Columns[0].Text)
				if got, want := rowString(row), id+"="+m.live[id][0]+","+m.live[id][1]; got != want {
					return fmt.Errorf("index %v gives %.60s, want %.60s", info.Columns, got, want)
				}
				stored := millrace.StoreKey(nil, key)
				if bytes.Compare(last, stored) >= 0 {
					return fmt.Errorf("index %v: key %x comes after %x", info.Columns, stored, last)
				}
				last = stored
				n++
				return nil
			})
			if err == nil && n != len(m.live) {
				err = fmt.Errorf("index %v gives %d rows, want %d", info.Columns, n, len(m.live))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// TestModel applies random units of several tables, with loads, truncates, moved
// keys and unchanged columns, some of them given up, and compares the store with
// maps after each.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir := t.TempDir()
		indexed := func(o *Options) { o.Indexes = modelIndexes }
		s := openStore(t, dir, indexed)
		f := newFeed(t, s)
		tables := make([]*modelTable, 2)
		version := millrace.SchemaVersion(0)
		load := millrace.LoadID(0)
		for i := range tables {
			version++
			tables[i] = &modelTable{feed: tableFeed{t, testSchema(millrace.TableID(i+1), version, fmt.Sprint("t", i), oidInt8, "note", "big")}}
			f.must(tables[i].feed.describe())
		}
		id := rapid.Custom(func(rt *rapid.T) string { return strconv.Itoa(rapid.IntRange(1, 12).Draw(rt, "id")) })
		value := rapid.SampledFrom([]string{"a", "b", "NULL", strings.Repeat("x", 3000), strings.Repeat("y", 20_000)})

		step := func(m *modelTable) *millrace.Entry {
			visible := slices.Sorted(maps.Keys(m.live))
			what := rapid.IntRange(0, 14).Draw(rt, "step")
			if m.gone {
				what = 6
			}
			switch what {
			case 0:
				load++
				m.load, m.shadow = load, make(map[string][2]string)
				return m.feed.control(millrace.KindLoadBegin, load)
			case 1:
				if m.shadow == nil {
					return nil
				}
				for _, row := range m.shadow {
					if row[0] == lacking || row[1] == lacking {
						return nil // capture does not end a load so
					}
				}
				m.live, m.shadow = m.shadow, nil
				return m.feed.control(millrace.KindLoadEnd, m.load)
			case 2, 3, 4:
				if m.shadow == nil {
					return nil
				}
				i, v := id.Draw(rt, "loaded"), [2]string{value.Draw(rt, "note"), value.Draw(rt, "big")}
				m.shadow[i] = v
				return m.feed.load(m.load, i, v[0], v[1])
			case 5:
				if m.live == nil && m.shadow == nil || rapid.IntRange(0, 4).Draw(rt, "truncate") > 0 {
					return nil
				}
				for _, g := range []map[string][2]string{m.live, m.shadow} {
					clear(g)
				}
				return m.feed.control(millrace.KindTruncate, 0)
			case 6:
				version++
				m.gone = false
				m.feed.schema = testSchema(m.feed.schema.Table, version, m.feed.schema.Name, oidInt8, "note", "big")
				return m.feed.describe()
			case 14:
				if rapid.IntRange(0, 3).Draw(rt, "drop") > 0 {
					return nil
				}
				m.live, m.shadow, m.gone = nil, nil, true
				return m.feed.control(millrace.KindDrop, 0)
			case 7, 8:
				if len(visible) == 0 {
					return nil
				}
				i := rapid.SampledFrom(visible).Draw(rt, "deleted")
				delete(m.live, i)
				delete(m.shadow, i)
				return m.feed.delete(i)
			case 9, 10:
				if len(visible) == 0 {
					return nil
				}
				from, to := rapid.SampledFrom(visible).Draw(rt, "from"), id.Draw(rt, "to")
				if rapid.Bool().Draw(rt, "in place") {
					to = from
				}
				v := [2]string{value.Draw(rt, "note"), unchanged}
				m.put(m.live, from, to, v)
				if m.shadow != nil {
					m.put(m.shadow, from, to, v)
				}
				return m.feed.move(from, to, v[0], v[1])
			default:
				if m.live == nil && m.shadow == nil {
					return nil
				}
				i, v := id.Draw(rt, "put"), [2]string{value.Draw(rt, "note"), value.Draw(rt, "big")}
				for _, g := range []map[string][2]string{m.live, m.shadow} {
					if g != nil {
						m.put(g, i, i, v)
					}
				}
				return m.feed.put(i, v[0], v[1])
			}
		}
		for range rapid.IntRange(1, 15).Draw(rt, "units") {
			before := []*modelTable{tables[0].clone(), tables[1].clone()}
			index, loads := f.index, maps.Clone(f.loads)
			var unit []*millrace.Entry
			for range rapid.IntRange(1, 12).Draw(rt, "entries") {
				if e := step(tables[rapid.IntRange(0, 1).Draw(rt, "table")]); e != nil {
					unit = append(unit, e)
				}
			}
			for _, e := range unit {
				if err := f.apply(e); err != nil {
					rt.Fatalf("apply %v: %v", e.Kind, err)
				}
				if rapid.IntRange(0, 5).Draw(rt, "flush") == 0 {
					if err := f.w.Flush(); err != nil {
						rt.Fatalf("Flush: %v", err)
					}
				}
			}
			switch {
			case len(unit) == 0:
			case rapid.IntRange(0, 4).Draw(rt, "give up") == 0:
				f.w.Abort()
				copy(tables, before)
				f.index, f.loads = index, loads
			default:
				if err := f.w.Commit(f.checkpoint()); err != nil {
					rt.Fatalf("Commit: %v", err)
				}
			}
			if rapid.IntRange(0, 3).Draw(rt, "sweep") == 0 {
				if _, err := f.w.Chore(); err != nil {
					rt.Fatalf("Chore: %v", err)
				}
			}
			if err := s.Check(context.Background()); err != nil {
				rt.Fatalf("Check: %v", err)
			}
			for _, m := range tables {
				name := m.feed.schema.QualifiedName()
				if m.live == nil {
					err := s.View(context.Background(), func(v *View) error { _, err := v.Table(name); return err })
					if !errors.Is(err, ErrNoTable) {
						rt.Fatalf("table %s before its first LoadEnd: %v", name, err)
					}
					continue
				}
				if got, want := dump(t, s, name), m.dump(); got != want {
					rt.Fatalf("table %s holds\n%s, want\n%s", name, got, want)
				}
				if err := wantIndexes(s, m); err != nil {
					rt.Fatalf("table %s: %v", name, err)
				}
			}
		}
		f.sweep()
		f.w.Close()
		closeStore(t, s)
		if rapid.Bool().Draw(rt, "other indexes") {
			indexed = func(o *Options) { o.Indexes = map[string][][]string{"public.t0": {{"note", "id"}, {"note"}}} }
		}
		s = openStore(t, dir, indexed)
		f = newFeed(t, s)
		f.sweep()
		f.w.Close()
		for _, m := range tables {
			if m.live != nil {
				if err := wantIndexes(s, m); err != nil {
					rt.Fatalf("opened again, table %s: %v", m.feed.schema.QualifiedName(), err)
				}
			}
		}
		for _, m := range tables {
			if m.live != nil {
				if got, want := dump(t, s, m.feed.schema.QualifiedName()), m.dump(); got != want {
					rt.Fatalf("opened again, table %s holds\n%s, want\n%s", m.feed.schema.QualifiedName(), got, want)
				}
			}
		}
		closeStore(t, s)
	})
}
