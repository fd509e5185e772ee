package wal

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
)

// planPrefix is that of the message with which a plan is carried out.
const planPrefix = reservedPrefix + "plan"

// plan is which tables join the stream and which leave it. It is made at Open,
// when the publication has just been found to be what is configured, and carried
// out where the stream comes to a message that Open writes then. So a table joins
// behind everything that was not sent while it was not published, and its load
// reads what came before.
//
// Until then changes of tables that join are left out, and those of tables that
// leave from the start: that a table's changes cannot be followed is a reason to
// take it out.
type plan struct {
	nonce   string // tells the message from those of others
	joining []millrace.TableID
	leaving []millrace.TableID
	// initial tells that the stream has no tables yet.
	initial bool
	done    bool
	// lsn is that of the message.
	lsn millrace.LSN
}

func (p *plan) leaves(id millrace.TableID) bool { return p != nil && slices.Contains(p.leaving, id) }

func (p *plan) isEmpty() bool { return len(p.joining) == 0 && len(p.leaving) == 0 }

// makePlan compares the tables of the stream with those that are configured. A
// table that was dropped and made again leaves, and joins under its new ID.
func makePlan(catalog *millrace.Catalog, tables []*table.Info) *plan {
	p := &plan{initial: len(catalog.Schemas) == 0}
	for _, t := range tables {
		if catalog.Schema(t.ID) == nil {
			p.joining = append(p.joining, t.ID)
		}
	}
	for _, s := range catalog.Schemas {
		if !slices.ContainsFunc(tables, func(t *table.Info) bool { return t.ID == s.Table }) {
			p.leaving = append(p.leaving, s.Table)
		}
	}
	return p
}

// nonce tells a message of ours from those of others.
func nonce() (string, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("make the name of a message: %w", err)
	}
	return hex.EncodeToString(b[:]), nil
}

// announce writes the plan's message.
func (p *plan) announce(ctx context.Context, conn *pgx.Conn) error {
	var err error
	if p.nonce, err = nonce(); err != nil {
		return err
	}
	var text string
	if err := conn.QueryRow(ctx, "SELECT pg_logical_emit_message(true, $1, $2::text)::text", planPrefix, p.nonce).Scan(&text); err != nil {
		return fmt.Errorf("announce joining and leaving tables: %w", err)
	}
	p.lsn, err = millrace.ParseLSN(text)
	return err
}

// carryOut takes the message of a plan: ours, or one of an earlier Open or of
// another stream.
func (d *decoder) carryOut(content []byte) error {
	p := d.plan
	if p == nil || p.done || string(content) != p.nonce {
		return nil
	}
	p.done = true
	for _, id := range p.leaving {
		if err := d.w.Append(&millrace.Entry{Kind: millrace.KindDrop, Table: id}); err != nil {
			return err
		}
		delete(d.schemas, id)
		if err := d.dropLoad(id); err != nil {
			return err
		}
	}
	for _, id := range p.joining {
		info, err := d.lookUp(id, nil)
		if err != nil {
			return err
		}
		if info == nil {
			return fmt.Errorf("%w: table with OID %v, which was to join the stream, was dropped at the source; mend: millrace check says which", capture.ErrTables, id)
		}
		s, err := info.Schema(millrace.ModeWAL)
		if err != nil {
			return err
		}
		if _, err := d.introduce(s); err != nil {
			return err
		}
		reason := "it joined the stream"
		if p.initial {
			reason = "first copy"
		}
		if err := d.beginLoad(id, cause{text: reason}, p.initial); err != nil {
			return err
		}
	}
	d.turn++
	return d.wrote()
}
