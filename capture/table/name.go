package table

import (
	"fmt"
	"strings"
)

// Name is a table's name, exactly as the catalog writes it.
type Name struct{ Schema, Name string }

// String returns schema.table, as configurations write it.
func (t Name) String() string { return t.Schema + "." + t.Name }

// Quoted returns the name as SQL writes it.
func (t Name) Quoted() string { return Quote(t.Schema) + "." + Quote(t.Name) }

// Quote returns an identifier as SQL writes it.
func Quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// ParseNames reads the names of a configuration. It refuses those that are none,
// that stand there twice, and tables that are never captured.
func ParseNames(texts []string) ([]Name, error) {
	var names []Name
	seen := make(map[Name]bool, len(texts))
	for _, text := range texts {
		schema, name, ok := strings.Cut(text, ".")
		t := Name{schema, name}
		switch {
		case !ok || schema == "" || name == "":
			return nil, fmt.Errorf("table %q: want schema.table, as in public.accounts", text)
		case seen[t]:
			return nil, fmt.Errorf("table %q is named twice; remove one", text)
		case isSystemSchema(schema):
			return nil, fmt.Errorf("table %q: schema %s is not captured; remove the table", text, schema)
		}
		seen[t] = true
		names = append(names, t)
	}
	return names, nil
}

// isSystemSchema reports whether tables of the schema are never captured. Our
// own is among them, or the ledger would feed itself.
func isSystemSchema(schema string) bool {
	return schema == "millrace" || schema == "information_schema" || strings.HasPrefix(schema, "pg_")
}
