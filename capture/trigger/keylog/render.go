package keylog

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"text/template"

	"github.com/millrace-db/millrace/sql"
)

// texts are the statements of sql/trigger.
type texts struct{ *template.Template }

func parseTexts() (texts, error) {
	t, err := template.New("").Option("missingkey=error").ParseFS(sql.Trigger, "trigger/*.sql")
	if err != nil {
		return texts{}, fmt.Errorf("read sql/trigger: %w", err)
	}
	return texts{t}, nil
}

func (t texts) render(name string, data any) (string, error) {
	var b strings.Builder
	if err := t.ExecuteTemplate(&b, name, data); err != nil {
		return "", fmt.Errorf("write out sql/trigger/%s: %w", name, err)
	}
	return strings.TrimSpace(b.String()) + "\n", nil
}

// logTexts is what the statements about one log are filled with.
type logTexts struct {
	ID          int
	Stream      string // a constant
	Table       string // quoted
	TableOwner  string // quoted
	Name        string // a constant: schema.table
	TableID     uint32
	Mode        Mode
	Period      int64 // seconds
	Keys        []keyText
	KeyNames    string // an array constant
	Comment     string // a constant
	Definition  string
	Hole        bool
	Reason      string   // a constant
	Partitions  []string // quoted, of all levels
	Exists      bool
	Partitioned bool
	Roles       roleTexts
	Except      []string // conditions
}

// keyText is a key column in the table and in the log.
type keyText struct {
	Column string // quoted
	Log    string // k1, k2, …
	Type   string // of the array in the log, with its collation
	Last   bool
}

// functionText is a function that a trigger runs.
type functionText struct {
	Name   string
	Action string // what it logs
	Rows   string // the set of rows it reads, "" for one row
	Source string // the row it reads keys from
	Log    *logTexts
}

func (l *logTexts) Segments() []string {
	var all []string
	for i := range Segments {
		all = append(all, Segment(l.ID, i))
	}
	return all
}

func (l *logTexts) Trigger(kind string) string  { return triggerName(l.ID, kind) }
func (l *logTexts) Function(kind string) string { return "millrace." + functionName(l.ID, kind) }

func (l *logTexts) Triggers() []string    { return l.triggers(kinds[:]) }
func (l *logTexts) RowTriggers() []string { return l.triggers(rowKinds) }

func (l *logTexts) triggers(kinds []string) []string {
	var all []string
	for _, kind := range kinds {
		all = append(all, triggerName(l.ID, kind))
	}
	return all
}

// Functions says which rows each function logs, and as what. The old key of a row
// whose key changed is logged as deleted.
func (l *logTexts) Functions() []functionText {
	all := []functionText{
		{l.Function(kindInsert), "I", "", "NEW", l},
		{l.Function(kindUpdate), "U", "", "NEW", l},
		{l.Function(kindKeyUpdate), "D", "", "OLD", l},
		{l.Function(kindDelete), "D", "", "OLD", l},
		{l.Function(kindTruncate), "T", "", "", l},
	}
	if l.Mode == Statement {
		for i := range all {
			if f := &all[i]; i != 2 && f.Source != "" {
				f.Rows, f.Source = "millrace_rows", "changed"
			}
		}
	}
	return all
}

func (l *logTexts) join(part func(*keyText) string, separator string) string {
	var all []string
	for i := range l.Keys {
		all = append(all, part(&l.Keys[i]))
	}
	return strings.Join(all, separator)
}

func (l *logTexts) KeyColumns() string {
	return l.join(func(k *keyText) string { return k.Column }, ", ")
}

func (l *logTexts) LogColumns() string {
	return l.join(func(k *keyText) string { return k.Log }, ", ")
}

// Unnested selects the keys one by one.
func (l *logTexts) Unnested() string { return UnnestKeys(len(l.Keys)) }

// Run is how many keys a row of the log has at most.
func (l *logTexts) Run() int { return run }

// ArrayOfEach makes an array of each key of one row. A key column of the table may be
// called k1 too.
func (l *logTexts) ArrayOfEach() string {
	return l.join(func(k *keyText) string { return "ARRAY[key." + k.Log + "]" }, ", ")
}

// ArrayOfAll makes an array of each key of all rows.
func (l *logTexts) ArrayOfAll() string {
	return l.join(func(k *keyText) string { return "array_agg(" + k.Log + ")" }, ", ")
}

func (l *logTexts) KeyChanged() string {
	return l.join(func(k *keyText) string { return "OLD." + k.Column + " IS DISTINCT FROM NEW." + k.Column }, " OR ")
}

// newLogTexts fills in all but the definition.
func newLogTexts(id int, stream string, period int64, f *facts) *logTexts {
	t := &f.table
	l := &logTexts{
		ID: id, Stream: literal(stream), Table: t.quoted(), TableOwner: quote(f.owner), Name: literal(t.String()), TableID: uint32(t.ID), Mode: f.mode(), Period: period,
		KeyNames: textArray(t.Key), Partitions: f.partitions,
		Comment: literal("keys of changed rows of " + t.String() + " (" + strings.Join(t.Key, ", ") + "), stream " + stream),
		Exists:  true, Partitioned: f.kind == "p",
	}
	for i, name := range t.Key {
		of := f.keyTypes[i]
		l.Keys = append(l.Keys, keyText{
			Column: quote(name), Log: KeyColumn(i), Type: of.Name + "[]" + of.Collate, Last: i == len(t.Key)-1,
		})
	}
	return l
}

// defining returns the statements that make functions and triggers, and sets the
// definition, which is the same as long as those are.
func (t texts) defining(l *logTexts) ([]string, error) {
	functions, err := t.render("functions.sql", l)
	if err != nil {
		return nil, err
	}
	triggers, err := t.render("triggers_"+string(l.Mode)+".sql", l)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(functions + triggers))
	l.Definition = hex.EncodeToString(sum[:8])
	return []string{functions, triggers}, nil
}
