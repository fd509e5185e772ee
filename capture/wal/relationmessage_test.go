package wal

import (
	"errors"
	"testing"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
)

func TestSchemaOf(t *testing.T) {
	known, err := testInfo().Schema(millrace.ModeWAL)
	if err != nil {
		t.Fatal(err)
	}
	known.Version = 4
	m, err := parseRelation(relationMsg()[1:])
	if err != nil {
		t.Fatal(err)
	}
	t.Run("catalog agrees", func(t *testing.T) {
		s, err := schemaOf(m, testInfo(), nil)
		if err != nil || s.Columns[1].Collation != "default" || s.Columns[0].KeyOrdinal != 1 {
			t.Errorf("got %+v, %v", s, err)
		}
	})
	t.Run("table dropped", func(t *testing.T) {
		if s, err := schemaOf(m, nil, known); err != nil || s != known {
			t.Errorf("got %v, %v", s, err)
		}
		if _, err := schemaOf(m, nil, nil); !errors.Is(err, capture.ErrTableChanged) {
			t.Errorf("never known: %v", err)
		}
	})
	t.Run("column dropped since", func(t *testing.T) {
		info := testInfo()
		info.Columns = info.Columns[:1]
		s, err := schemaOf(m, info, nil)
		if err != nil || len(s.Columns) != 2 || s.Columns[1].Name != "v" || s.Columns[1].Collation != "" {
			t.Errorf("got %+v, %v", s, err)
		}
	})
	t.Run("key changed since", func(t *testing.T) {
		info := testInfo()
		info.Indexes[0].Columns = []int16{2}
		info.Columns[1].NotNull = true
		s, err := schemaOf(m, info, nil)
		if err != nil || s.Columns[0].KeyOrdinal != 1 || s.Columns[1].KeyOrdinal != 0 {
			t.Errorf("got %+v, %v", s, err)
		}
	})
	t.Run("key dropped since", func(t *testing.T) {
		info := testInfo()
		info.Indexes = nil
		s, err := schemaOf(m, info, known)
		if err != nil || s.Columns[0].KeyOrdinal != 1 {
			t.Errorf("got %+v, %v", s, err)
		}
	})
	t.Run("no replica identity", func(t *testing.T) {
		n := *m
		n.identity = 'n'
		info := testInfo()
		info.Identity = "n"
		if _, err := schemaOf(&n, info, known); !errors.Is(err, capture.ErrTable) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("type dropped since", func(t *testing.T) {
		n := *m
		n.columns = append([]relationColumn(nil), m.columns...)
		n.columns[1].typ = 9999
		if _, err := schemaOf(&n, testInfo(), known); !errors.Is(err, capture.ErrTableChanged) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("order of a composite key", func(t *testing.T) {
		n := *m
		n.columns = append([]relationColumn(nil), m.columns...)
		n.columns[1].key = true
		info := testInfo()
		info.Columns[1].NotNull = true
		info.Indexes[0].Columns = []int16{2, 1}
		info.Columns = append(info.Columns, table.Column{Number: 3, Name: "later", Type: 25, Typmod: -1})
		s, err := schemaOf(&n, info, nil)
		if err != nil || s.Columns[0].KeyOrdinal != 2 || s.Columns[1].KeyOrdinal != 1 {
			t.Errorf("got %+v, %v", s, err)
		}
	})
}
