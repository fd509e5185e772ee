package table

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/millrace-db/millrace/capture"
)

// Choice is which columns and rows of a table are captured.
type Choice struct {
	Columns []string // nil for all, in no order
	Where   string   // SQL, without parentheses; empty for all
	// Key are the columns of the key, in its order, where whoever chooses them knows
	// that they tell rows apart although no index over the whole table says so; nil for
	// the catalog's. (Of a capture by triggers alone.)
	Key []string
}

// IsAll reports whether all columns and rows are captured.
func (c *Choice) IsAll() bool { return c.Columns == nil && c.Where == "" }

// Chooses reports whether a column is captured, so far as that is chosen.
func (c *Choice) Chooses(column string) bool {
	return c.Columns == nil || slices.Contains(c.Columns, column)
}

// Choices are those of a configuration, by the tables' names as it writes them.
// Tables that are not named have all columns and rows.
type Choices struct {
	Columns map[string][]string
	Where   map[string]string
	Key     map[string][]string
}

// Of returns the choice for a table.
func (c *Choices) Of(name Name) Choice {
	return Choice{Columns: c.Columns[name.String()], Where: strings.TrimSpace(c.Where[name.String()]), Key: c.Key[name.String()]}
}

// Check refuses choices for tables that are not captured.
func (c *Choices) Check(tables []string) error {
	for _, name := range slices.Sorted(maps.Keys(c.Columns)) {
		if !slices.Contains(tables, name) {
			return fmt.Errorf("columns of table %q, which is not captured", name)
		}
		if len(c.Columns[name]) == 0 {
			return fmt.Errorf("no columns of table %q; name at least those of its key", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Where)) {
		if !slices.Contains(tables, name) {
			return fmt.Errorf("rows of table %q, which is not captured", name)
		}
	}
	return nil
}

// CheckChoice says what is wrong with the columns chosen of a table.
func (t *Info) CheckChoice() []capture.Problem {
	subject := "table " + t.Name.String()
	var problems []capture.Problem
	for _, name := range t.Choice.Columns {
		i := slices.IndexFunc(t.Columns, func(c Column) bool { return c.Name == name })
		switch {
		case i < 0:
			problems = append(problems, capture.Refuse(capture.ErrTable, subject, "source.columns names column "+name+", which it does not have", "correct source.columns"))
		case t.Columns[i].Generated:
			problems = append(problems, capture.Refuse(capture.ErrTable, subject, "source.columns names column "+name+", which is generated and not captured", "remove it from source.columns"))
		}
	}
	return problems
}
