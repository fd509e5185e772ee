package benchmarks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	words "github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture/trigger"
	"github.com/millrace-db/millrace/capture/wal"
	"github.com/millrace-db/millrace/internal/control"
	"github.com/millrace-db/millrace/internal/pgtest"
	"github.com/millrace-db/millrace/internal/testdir"

	"github.com/jackc/pgx/v5"
)

// source is a capture's open source.
type source interface {
	Next(context.Context) (*words.Unit, error)
	Confirm(words.Position)
	Close() error
}

// taker takes what one capture gives, in this process, and throws it away.
type taker struct {
	b    *testing.B
	open func(context.Context, *words.Checkpoint) (source, error)
	src  source
	at   words.Checkpoint
}

// newTaker installs a capture of tables, in a mode of the harness.
func newTaker(b *testing.B, db *pgtest.DB, mode string, heartbeat time.Duration, tables ...string) *taker {
	b.Helper()
	t := &taker{b: b, at: words.Checkpoint{Epoch: 1}}
	name := mode + "_" + db.Name[:min(len(db.Name), 20)]
	var install func(context.Context) error
	if mode == "trigger" {
		c, err := trigger.New(trigger.Config{URL: db.URL, Stream: name, Tables: tables, Heartbeat: heartbeat, SpoolDir: testdir.For(b)})
		if err != nil {
			b.Fatal(err)
		}
		install = c.Install
		t.open = func(ctx context.Context, at *words.Checkpoint) (source, error) { return c.Open(ctx, at) }
	} else {
		c, err := wal.New(wal.Config{URL: db.URL, Stream: name, Tables: tables, Heartbeat: heartbeat, SpoolDir: testdir.For(b)})
		if err != nil {
			b.Fatal(err)
		}
		install = c.Install
		t.open = func(ctx context.Context, at *words.Checkpoint) (source, error) { return c.Open(ctx, at) }
	}
	ctx, cancel := context.WithTimeout(b.Context(), stopLimit)
	defer cancel()
	conn, err := pgx.Connect(ctx, db.URL)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }() // nothing is lost with it
	if err := control.Migrate(ctx, conn); err != nil {
		b.Fatal(err)
	}
	if err := install(ctx); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(t.close)
	return t
}

// begin opens the source and takes the first copy.
func (t *taker) begin() {
	t.b.Helper()
	t.start()
	for copied := false; !copied || len(t.at.Catalog.Loads) > 0; copied = true {
		if err := t.note(t.next()); err != nil {
			t.b.Fatal(err)
		}
		for t.b.Context().Err() == nil && len(t.at.Catalog.Loads) > 0 {
			if err := t.note(t.next()); err != nil {
				t.b.Fatal(err)
			}
		}
	}
}

// start opens the source after what was noted.
func (t *taker) start() {
	t.b.Helper()
	src, err := t.open(t.b.Context(), &t.at)
	if err != nil {
		t.b.Fatal(err)
	}
	t.src = src
}

func (t *taker) close() {
	if t.src == nil {
		return
	}
	if err := t.src.Close(); err != nil {
		t.b.Error(err)
	}
	t.src = nil
}

func (t *taker) next() *words.Unit {
	t.b.Helper()
	ctx, cancel := context.WithTimeout(t.b.Context(), backlogLimit)
	defer cancel()
	u, err := t.src.Next(ctx)
	if err != nil {
		t.b.Fatal(err)
	}
	return u
}

// note reads a unit and enters what a later start depends on.
func (t *taker) note(u *words.Unit) error {
	c := &t.at.Catalog
	err := read(u, func(run []byte) error {
		for len(run) > 0 {
			var h words.Head
			var err error
			if run, err = words.NextHead(run, &h); err != nil {
				return err
			}
			if h.Kind == words.KindPut {
				continue
			}
			var e words.Entry
			if err := words.DecodeEntry(bytes.Clone(h.Body), &e); err != nil {
				return err
			}
			switch e.Kind {
			case words.KindSchema:
				c.LastVersion = e.Schema.Version
				c.Schemas = append(c.Schemas, e.Schema)
				slices.SortFunc(c.Schemas, func(a, b *words.Schema) int { return int(int64(a.Table) - int64(b.Table)) })
			case words.KindLoadBegin:
				c.LastLoad = e.Load
				c.Loads = append(c.Loads, words.Load{ID: e.Load, Table: e.Table})
			case words.KindLoadEnd:
				c.Loads = slices.DeleteFunc(c.Loads, func(l words.Load) bool { return l.ID == e.Load })
			}
		}
		return nil
	})
	t.at.Position, t.at.Time = u.Position, u.Time
	t.src.Confirm(u.Position)
	return err
}

// take reads a unit and throws it away.
func take(u *words.Unit) error { return read(u, func([]byte) error { return nil }) }

func read(u *words.Unit, each func(run []byte) error) error {
	for {
		run, err := u.Body.Next(1 << 20)
		if errors.Is(err, io.EOF) {
			return u.Body.Close()
		}
		if err == nil {
			err = each(run)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("read unit at %v: %w", u.Position, err), u.Body.Close())
		}
	}
}
