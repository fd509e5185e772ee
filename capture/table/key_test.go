package table

import (
	"strings"
	"testing"

	"github.com/millrace-db/millrace"
)

// The key is what each way of capturing can tell rows apart by.
func TestKey(t *testing.T) {
	index := func(name string, oid uint32, columns ...int16) Index {
		return Index{Name: name, OID: oid, Unique: true, Immediate: true, Valid: true, Columns: columns}
	}
	primary := index("pk", 10, 1)
	primary.Primary = true
	deferrable := primary
	deferrable.Immediate = false
	named := index("named", 13, 3)
	named.Identity = true
	generated := index("pk", 10, 4)
	generated.Primary = true
	partial := index("some", 9, 2)
	partial.Partial = true
	nullable := index("nullable", 8, 5)
	for name, c := range map[string]struct {
		identity     string
		indexes      []Index
		logged       []string
		wal, trigger string // names of the columns, or part of what is wrong
	}{
		"primary key":            {"d", []Index{index("a", 11, 2), primary}, nil, "id", "id"},
		"deferrable":             {"d", []Index{deferrable}, nil, "DEFERRABLE", "id"},
		"nothing":                {"n", []Index{primary}, nil, "NOTHING", "id"},
		"full":                   {"f", []Index{primary}, nil, "id", "id"},
		"named":                  {"i", []Index{primary, named}, nil, "c", "c"},
		"no primary key":         {"d", []Index{index("b", 11, 3), index("a", 12, 2)}, nil, "no primary key", "c"},
		"generated":              {"d", []Index{generated}, nil, "generated", "generated"},
		"generated, and another": {"d", []Index{generated, index("a", 12, 2)}, nil, "generated", "b"},
		"partial":                {"d", []Index{partial}, nil, "no primary key", "no primary key"},
		"nullable":               {"d", []Index{nullable}, nil, "no primary key", "no primary key"},
		"logged":                 {"d", []Index{index("a", 12, 2), primary}, []string{"b"}, "id", "b"},
		"logged, and gone":       {"d", []Index{primary}, []string{"b"}, "id", "id"},
		"logged in another order": {
			"d",
			[]Index{index("a", 12, 3, 2), index("b", 13, 2, 3)},
			[]string{"b", "c"},
			"no primary key", "b, c",
		},
	} {
		info := &Info{
			Name: Name{"public", "t"}, Kind: "r", Persistence: "p", Identity: c.identity, Indexes: c.indexes, Logged: c.logged,
			Columns: []Column{
				{Number: 1, Name: "id", Type: 23, NotNull: true},
				{Number: 2, Name: "b", Type: 23, NotNull: true},
				{Number: 3, Name: "c", Type: 23, NotNull: true},
				{Number: 4, Name: "g", Type: 23, NotNull: true, Generated: true},
				{Number: 5, Name: "n", Type: 23},
			},
		}
		for mode, want := range map[millrace.Mode]string{millrace.ModeWAL: c.wal, millrace.ModeTrigger: c.trigger} {
			numbers, problem, mend := info.Key(mode)
			got := strings.Join(info.names(numbers), ", ")
			if problem != "" {
				if mend == "" || !strings.Contains(problem, want) {
					t.Errorf("%s, %v: got %q, mend %q, want %s", name, mode, problem, mend, want)
				}
			} else if got != want {
				t.Errorf("%s, %v: got %s, want %s", name, mode, got, want)
			}
		}
	}
}
