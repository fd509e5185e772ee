package control

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
)

const maxName = 40

func validName(name string) bool {
	for i, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (i == 0 || (c < '0' || c > '9') && c != '_') {
			return false
		}
	}
	return name != "" && len(name) <= maxName
}

// ValidateName says what is wrong with a stream's name: it becomes part of the
// names of a publication, a slot, a topic and a directory.
func ValidateName(name string) error {
	if !validName(name) {
		return fmt.Errorf("stream name %q: want a lower-case letter and then at most 39 lower-case letters, digits or underscores", name)
	}
	return nil
}

// The ways to capture changes, as the registry writes them.
const (
	CaptureWAL     = "wal"
	CaptureTrigger = "trigger"
)

// Stream is one row of the registry.
type Stream struct {
	// Name follows ValidateName.
	Name string
	// ID is the stream's identity for all its epochs.
	ID millrace.StreamID
	// Epoch counts from 1.
	Epoch millrace.Epoch
	// Capture is how changes are captured: wal or trigger.
	Capture string
	// Topic is the name of this epoch's topic, TopicID Kafka's identity of it.
	Topic, TopicID string
	// Publication and Slot are those of capture wal.
	Publication, Slot string
	// CreatedAt is when init registered the stream.
	CreatedAt time.Time
}

// DefaultPublication and DefaultSlot name what a stream uses at the source.
func DefaultPublication(stream string) string { return "millrace_" + stream }

// DefaultSlot names the replication slot of a stream.
func DefaultSlot(stream string) string { return "millrace_" + stream }

const (
	streamColumns = `name, id, epoch, capture, topic, topic_id, coalesce(publication, ''), coalesce(slot, ''), created_at`
	streamInsert  = `
INSERT INTO millrace.stream (name, id, epoch, capture, topic, topic_id, publication, slot)
VALUES ($1, $2, $3, $4, $5, $6, nullif($7, ''), nullif($8, ''))
ON CONFLICT (name) DO NOTHING`
	streamByName = `SELECT ` + streamColumns + ` FROM millrace.stream WHERE name = $1`
	streamAll    = `SELECT ` + streamColumns + ` FROM millrace.stream ORDER BY name`
	streamDelete = `DELETE FROM millrace.stream WHERE name = $1`
)

// CreateStream registers a stream and returns its row. A zero ID is replaced by
// a random one, a zero Epoch by 1. A stream of that name that is already
// registered is returned as it is: compare what matters. Errors:
// ErrNotInitialised.
func CreateStream(ctx context.Context, conn *pgx.Conn, s Stream) (Stream, error) {
	if err := ValidateName(s.Name); err != nil {
		return Stream{}, err
	}
	if s.ID.IsZero() {
		if _, err := rand.Read(s.ID[:]); err != nil {
			return Stream{}, fmt.Errorf("make stream ID: %w", err)
		}
	}
	s.Epoch = max(s.Epoch, 1)
	if s.Topic == "" || s.TopicID == "" || s.Capture == "" {
		return Stream{}, fmt.Errorf("register stream %s: capture, topic and topic ID must be set", s.Name)
	}
	_, err := conn.Exec(ctx, streamInsert, s.Name, [16]byte(s.ID), int64(s.Epoch), s.Capture, s.Topic, s.TopicID, s.Publication, s.Slot)
	if err != nil {
		return Stream{}, explain("register stream "+s.Name, err)
	}
	return LoadStream(ctx, conn, s.Name)
}

// LoadStream reads a stream's row. Errors: ErrNoStream, ErrNotInitialised.
func LoadStream(ctx context.Context, conn *pgx.Conn, name string) (Stream, error) {
	s, err := scanStream(conn.QueryRow(ctx, streamByName, name))
	if errors.Is(err, pgx.ErrNoRows) {
		return Stream{}, fmt.Errorf("load stream %s: %w", name, ErrNoStream)
	}
	if err != nil {
		return Stream{}, explain("load stream "+name, err)
	}
	return s, nil
}

// ListStreams reads all rows in the order of their names. Errors:
// ErrNotInitialised.
func ListStreams(ctx context.Context, conn *pgx.Conn) ([]Stream, error) {
	rows, err := conn.Query(ctx, streamAll)
	if err != nil {
		return nil, explain("list streams", err)
	}
	streams, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Stream, error) { return scanStream(row) })
	if err != nil {
		return nil, explain("list streams", err)
	}
	return streams, nil
}

func scanStream(row pgx.Row) (Stream, error) {
	var s Stream
	var id [16]byte
	var epoch int64
	err := row.Scan(&s.Name, &id, &epoch, &s.Capture, &s.Topic, &s.TopicID, &s.Publication, &s.Slot, &s.CreatedAt)
	s.ID, s.Epoch = id, millrace.Epoch(epoch)
	return s, err
}

// DropStream removes a stream with its hold and its ledger. With the last stream
// the whole control schema goes, by the files that take it back. A stream that is
// not there is no error. dropped tells whether the schema went. Errors:
// ErrForeignObjects, ErrInUse, ErrNewer; nothing is removed then.
func DropStream(ctx context.Context, conn *pgx.Conn, name string) (dropped bool, err error) {
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if err := lockSchema(ctx, tx); err != nil {
			return err
		}
		var exists, others bool
		if err := tx.QueryRow(ctx, schemaExists).Scan(&exists); err != nil || !exists {
			return err
		}
		if _, err := tx.Exec(ctx, streamDelete, name); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM millrace.stream)`).Scan(&others); err != nil || others {
			return err
		}
		dropped = true
		_, err := downgrade(ctx, tx, 0)
		return err
	})
	if err != nil {
		return false, explainDowngrade("drop stream "+name, err)
	}
	return dropped, nil
}
