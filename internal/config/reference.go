package config

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/goccy/go-yaml"
)

const referenceHead = `# Configuration

<!-- Made from the tags in internal/config: go test ./internal/config -update -->

millrace reads one YAML file, named with ` + "`-c FILE`" + ` or ` + "`MILLRACE_CONFIG`" + ` (default ` + "`millrace.yaml`" + `).
It is strict: an unknown key is refused, with its line and the nearest known key. One file can serve all
hosts: each command reads what it needs, and an edge needs nothing under ` + "`source`" + `.

Every key but those that name tables can be set by an environment variable, which wins over the file. The variable of a stream's key has
the stream's name in it: ` + "`MILLRACE_STREAMS_BANK_SOURCE_URL`" + ` for the stream ` + "`bank`" + `, which the file has to name.
Lists are comma-separated there. Any other variable that begins with ` + "`MILLRACE_`" + ` is refused, but for
%s, which are no configuration.

Durations are written 500ms, 10s, 24h; sizes in bytes, or with KiB, MiB, GiB, TiB. Relative paths start at the
working directory of the process.

` + "```yaml" + `
streams:
  - name: bank
    source: {url: "postgres://millrace@db.internal/bank", capture: wal, tables: [public.pgbench_accounts, public.pgbench_tellers]}
    kafka:  {brokers: ["127.0.0.1:9092"], topic: millrace.bank}
transfer: {admin: "127.0.0.1:7470"}
edge:
  id: edge-1
  streams: [bank]
  data_dir: ./data/edge
  http: {listen: "127.0.0.1:7480", unix: ./data/edge.sock}
` + "```" + `

Where logical decoding is not allowed, ` + "`capture: trigger`" + ` needs no setting of the server and no right of replication,
and ` + "`url`" + ` may lead through PgBouncer in transaction mode ([OPERATIONS](OPERATIONS.md#capture-by-triggers)):

` + "```yaml" + `
streams:
  - name: bank
    source:
      url: "postgres://millrace@pooler.internal:6432/bank"
      setup_url: "postgres://bank_owner@db.internal/bank"
      capture: trigger
      tables: [public.pgbench_accounts, public.pgbench_tellers]
    kafka:  {brokers: ["127.0.0.1:9092"], topic: millrace.bank}
` + "```" + `
`

// Reference is docs/CONFIGURATION.md.
func Reference() string {
	var b strings.Builder
	quoted := make([]string, len(Ignored))
	for i, name := range Ignored {
		quoted[i] = "`" + name + "`"
	}
	fmt.Fprintf(&b, referenceHead, strings.Join(quoted, ", "))
	t := reflect.TypeFor[Config]()
	for _, k := range keysOf(t) {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n| Key | Unit | Default | Variable | Meaning |\n| --- | --- | --- | --- | --- |\n", k.name, k.doc)
		f := t.Field(k.index).Type
		if isSectionList(f) {
			referenceRows(&b, f.Elem(), k.name+".<name>")
			continue
		}
		referenceRows(&b, f, k.name)
	}
	b.WriteString(migrationHead)
	migrationRows(&b, reflect.TypeFor[Migration](), "")
	return b.String()
}

const migrationHead = `
## Migration files

What ` + "`millrace migrate -f FILE`" + ` reads ([MIGRATIONS.md](MIGRATIONS.md)). No key has a variable, but for the two URLs.

| Key | Unit | Default | Meaning |
| --- | --- | --- | --- |
`

// migrationRows writes the keys of migration files.
func migrationRows(b *strings.Builder, t reflect.Type, path string) {
	for _, k := range keysOf(t) {
		f := t.Field(k.index).Type
		at, unit, preset := join(path, k.name), k.unit, "none"
		if k.preset != "" {
			preset = "`" + k.preset + "`"
		}
		switch {
		case isSection(f) || isSectionList(f):
			unit, preset = "", ""
		case isMap(f):
			unit += " by the target's column"
		case f.Kind() == reflect.Slice:
			unit = "list of " + unit
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", at, unit, preset, k.doc)
		switch {
		case isSectionList(f):
			migrationRows(b, f.Elem(), at+"[]")
		case isSection(f):
			migrationRows(b, f, at)
		}
	}
}

func referenceRows(b *strings.Builder, t reflect.Type, path string) {
	for _, k := range keysOf(t) {
		f := t.Field(k.index).Type
		at := join(path, k.name)
		if isSection(f) {
			fmt.Fprintf(b, "| `%s` | | | | %s |\n", strings.TrimPrefix(at, "streams.<name>."), k.doc)
			referenceRows(b, f, at)
			continue
		}
		preset := "none"
		if k.preset != "" {
			preset = "`" + k.preset + "`"
		}
		name := "`" + variable(at) + "`"
		if at == "streams.<name>.name" {
			name = ""
		}
		unit := k.unit
		switch {
		case isMap(f) && isMap(f.Elem()):
			name, unit = "", "lists of "+unit+" by stream and schema.table"
		case isMap(f) && f.Elem().Kind() == reflect.Slice:
			name, unit = "", "list of "+unit+" by schema.table"
		case isMap(f):
			name, unit = "", unit+" by schema.table"
		case f.Kind() == reflect.Slice:
			unit = "list of " + unit
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s | %s |\n", strings.TrimPrefix(at, "streams.<name>."), unit, preset, name, k.doc)
	}
}

// YAML writes the configuration in a form that Load reads, without the keys that
// have their defaults. Passwords are in it.
func (c *Config) YAML() ([]byte, error) {
	text, err := yaml.Marshal(mapOf(reflect.ValueOf(c).Elem()))
	if err != nil {
		return nil, fmt.Errorf("write configuration: %w", err)
	}
	return text, nil
}

func mapOf(v reflect.Value) yaml.MapSlice {
	preset := reflect.New(v.Type()).Elem()
	defaults(preset)
	var out yaml.MapSlice
	for _, k := range keysOf(v.Type()) {
		field := v.Field(k.index)
		var value any
		switch {
		case isSection(field.Type()):
			section := mapOf(field)
			if len(section) == 0 {
				continue
			}
			value = section
		case isSectionList(field.Type()):
			var list []yaml.MapSlice
			for i := range field.Len() {
				list = append(list, mapOf(field.Index(i)))
			}
			value = list
		case field.IsZero() || reflect.DeepEqual(field.Interface(), preset.Field(k.index).Interface()):
			continue
		default:
			switch x := field.Interface().(type) {
			case Secret:
				value = x.Reveal()
			case fmt.Stringer:
				value = x.String()
			default:
				value = x
			}
		}
		out = append(out, yaml.MapItem{Key: k.name, Value: value})
	}
	return out
}
