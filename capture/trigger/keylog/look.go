package keylog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
)

// Log is the log of a captured table, as a look found it.
type Log struct {
	// ID is in the names of segments, triggers and functions.
	ID int
	// Table has the name that the table has now, and the columns of the key
	// that is logged. The name is the last known where the table is gone.
	Table Table
	// InstalledName is schema.table as it was when the log was made. A renamed
	// table is captured on.
	InstalledName string
	Mode          Mode
	// Period is how many seconds a segment is written to before the next.
	Period int64
	// CompleteSince is the 64-bit number of the transaction from which on every
	// change is in the log. Where the snapshot in which the table's newest load
	// began does not see it, the table has to be loaded again; Reason then says
	// why, and is empty for a log that is new.
	CompleteSince uint64
	Reason        string
	// File is the table's relfilenode, 0 for a partitioned one. It changes when
	// rows are rewritten or truncated.
	File uint32
	// Problems is empty while the log is complete from CompleteSince on.
	Problems []Problem

	definition                      string
	kind                            string
	partition, inherits, subscribed bool
	touched                         []touchedPartition
}

// touchedPartition is a partition whose triggers are not as they were made.
type touchedPartition struct {
	Name      string
	Always    int // triggers that are ENABLE ALWAYS
	Untouched int // triggers that nobody has altered since
}

// Segment returns the name of a segment, 0 to 2, as SQL writes it.
func (l *Log) Segment(segment int) string { return Segment(l.ID, segment) }

// Renamed reports whether the table has another name than when its log was made.
func (l *Log) Renamed() bool { return l.kind != "" && l.Table.String() != l.InstalledName }

// Fits says what is amiss if the key of the table is key now, nil if it is the
// one that is logged.
func (l *Log) Fits(key []string) *Problem {
	same := len(key) == len(l.Table.Key)
	for i := 0; same && i < len(key); i++ {
		same = key[i] == l.Table.Key[i]
	}
	if same {
		return nil
	}
	return &Problem{KeyChanged, fmt.Sprintf("the table's key is %q, the log has %q", key, l.Table.Key)}
}

// Looker looks at the logs of a stream. It is safe for concurrent use.
type Looker struct {
	query  string
	stream string
}

// NewLooker returns a Looker for a stream.
func NewLooker(stream string) (*Looker, error) {
	t, err := parseTexts()
	if err != nil {
		return nil, err
	}
	query, err := t.render("look.sql", nil)
	if err != nil {
		return nil, err
	}
	return &Looker{query: query, stream: stream}, nil
}

// Query returns the one statement of a look, which gives a row for each log; its
// only argument is the stream. For whoever sends several statements at once.
func (l *Looker) Query() (query, stream string) { return l.query, l.stream }

// Look returns the logs of the stream in ascending order of ID, as the snapshot
// of q has them; problems with them are in the result. The control schema must be
// there. Where nothing is amiss it says nothing about rows that were written below
// SQL.
func (l *Looker) Look(ctx context.Context, q Querier) ([]Log, error) {
	rows, err := q.Query(ctx, l.query, l.stream)
	if err != nil {
		return nil, lookError(err)
	}
	logs, err := CollectLogs(rows)
	if err != nil {
		return nil, lookError(err)
	}
	return logs, nil
}

// lookError names the error of a database without control schema.
func lookError(err error) error {
	if c := code(err); c == "42P01" || c == "3F000" { // undefined_table, invalid_schema_name
		return fmt.Errorf("look at the logs: %w: %w; mend: millrace init", ErrNotInstalled, err)
	}
	return fmt.Errorf("look at the logs: %w", err)
}

// CollectLogs reads the rows of a Looker's query.
func CollectLogs(rows pgx.Rows) ([]Log, error) {
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (l Log, err error) {
		var (
			table, file, since int64
			left, now, touched *string
		)
		err = row.Scan(&l.ID, &table, &l.InstalledName, &l.Mode, &l.Table.Key, &l.Period, &l.definition, &since, &l.Reason,
			&l.Table.Schema, &l.Table.Name, &l.kind, &file, &l.partition, &l.inherits, &l.subscribed, &left, &now, &touched)
		if err != nil {
			return l, err
		}
		l.Table.ID, l.File, l.CompleteSince = millrace.TableID(table), uint32(file), uint64(since)
		if l.kind == "" {
			l.Table.Schema, l.Table.Name = splitName(l.InstalledName)
		}
		var before, after *mark
		if err := errors.Join(decode(left, &before), decode(now, &after), decode(touched, &l.touched)); err != nil {
			return l, fmt.Errorf("read the marks of log %d: %w", l.ID, err)
		}
		l.Problems = l.problems(before, after)
		return l, nil
	})
}

func decode[T any](text *string, into *T) error {
	if text == nil {
		return nil
	}
	return json.Unmarshal([]byte(*text), into)
}

// splitName takes schema.table apart, as far as that can be told.
func splitName(name string) (schema, table string) {
	for i := range name {
		if name[i] == '.' {
			return name[:i], name[i+1:]
		}
	}
	return "", name
}
