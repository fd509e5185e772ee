package trigger

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
)

// tickNote is what a tick says beside its snapshots, in JSON.
type tickNote struct {
	// Database is the OID of the database: a copy of the tick, in another one, does
	// not make that the stream's.
	Database uint32 `json:"database"`
	// Tables are what the window found, by the tables' OIDs.
	Tables map[string]tickTable `json:"tables"`
}

// tickTable is what a window found of a table: logged changes, distinct keys, and
// what the table looked like.
type tickTable struct {
	Inserted  uint64 `json:"inserted,omitempty"`
	Updated   uint64 `json:"updated,omitempty"`
	Deleted   uint64 `json:"deleted,omitempty"`
	Truncated uint64 `json:"truncated,omitempty"`
	Keys      uint64 `json:"keys,omitempty"`
	Marks     *marks `json:"marks"`
}

// endQuery writes the tick and ends the transaction. Whoever else has written one of
// that number publishes the stream too: it is an error, and the source ends.
func (w *window) endQuery() string {
	s := w.s
	note := tickNote{Database: w.facts.Database, Tables: make(map[string]tickTable, len(s.tables))}
	for _, t := range s.tables {
		n := w.newsOf(t)
		note.Tables[strconv.FormatUint(uint64(t.id), 10)] = tickTable{
			Inserted: n.inserted, Updated: n.updated, Deleted: n.deleted, Truncated: n.truncated, Keys: n.keys, Marks: t.marks,
		}
	}
	text, err := json.Marshal(note)
	if err != nil {
		panic(fmt.Sprintf("trigger: a tick's note has no JSON: %v", err)) // it is made of texts and numbers
	}
	before := ""
	if !s.position.IsZero() {
		before = s.before.String()
	}
	if s.c.planted.tickless() {
		return "COMMIT"
	}
	return fmt.Sprintf("INSERT INTO millrace.tick (stream, epoch, tick, before, snapshot, counts) VALUES (%s, %d, %d, %s, %s, %s); COMMIT",
		literal(s.c.cfg.Stream), s.epoch, w.position.Tick, literal(before), literal(w.position.Snapshot), literal(string(text)))
}

// readTick returns the note of a tick, or nil if there is none, and the highest
// number that was used.
func readTick(ctx context.Context, tx pgx.Tx, stream string, epoch millrace.Epoch, tick uint64) (note *tickNote, highest uint64, err error) {
	var text *string
	var high int64
	err = tx.QueryRow(ctx, `SELECT coalesce(max(tick), 0), (SELECT counts::text FROM millrace.tick WHERE stream = $1 AND epoch = $2 AND tick = $3)
		FROM millrace.tick WHERE stream = $1 AND epoch = $2`, stream, int64(epoch), int64(tick)).Scan(&high, &text)
	if err != nil {
		return nil, 0, fmt.Errorf("read ticks: %w", err)
	}
	if text != nil {
		note = new(tickNote)
		if err := json.Unmarshal([]byte(*text), note); err != nil {
			return nil, 0, fmt.Errorf("read tick %d: %w", tick, err)
		}
	}
	return note, uint64(high), nil
}
