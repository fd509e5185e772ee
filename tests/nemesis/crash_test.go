package nemesis

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/tests/harness"
)

const (
	// restartLimit is how long the server may take to come back.
	restartLimit = 2 * time.Minute
	// seenLimit is how long a crash waits for the newest row to be at an edge.
	seenLimit = 3 * time.Second
)

// async lets the transaction that s begins be acknowledged before it is durable.
const async = "BEGIN; SET LOCAL synchronous_commit = off"

// crash ends the server, all its sessions with it, behind commits that were
// acknowledged and may not be durable. What it knows of the tables' shape stays
// true: what alters a table waits until its commit is durable.
func (w *walker) crash() bool {
	if w.faults["crash"] == 1 {
		return false
	}
	for range w.r.IntN(6) {
		s, table := w.change()
		if s == nil || s.open {
			continue
		}
		from, id := w.few(s)
		switch w.r.IntN(3) {
		case 0:
			w.say(s, "%s; DELETE FROM %s WHERE %s; COMMIT", async, table, w.mine(s, 5))
		case 1:
			w.say(s, "%s; UPDATE %s SET n = coalesce(n, 0) + 1 WHERE %s; COMMIT", async, table, w.mine(s, 10))
		default:
			w.say(s, "%s; %s; COMMIT", async, insertRows(table, from, id, w.regions(), w.r.IntN(1000)))
		}
	}
	w.fault("crash", 1)
	for _, s := range w.sessions {
		if s.open {
			w.restore(s, s.saved[0])
			s.forget()
		}
	}
	return true
}

// crash kills the server and starts it again. What it had acknowledged without
// being durable may be gone from it, and must be gone everywhere then: the next
// check wants the edges to have what the source has.
func (r *run) crash(s step) error {
	e := r.edges[0]
	// The newest commit is one that nothing has made durable since.
	r.checks++
	r.s.DB.Exec(fmt.Sprintf("%s; INSERT INTO public.journal VALUES (-2, %d, 'acknowledged'); COMMIT", async, r.checks))
	if s.MS%3 == 0 && r.g.mode == byTrigger {
		// Capture sees it, and may give it on once it is durable. An edge that is down
		// at the moment does not matter.
		_ = harness.Wait(r.t.Context(), seenLimit, func(ctx context.Context) error {
			_, err := e.Row(ctx, harness.JournalTable, "-2", fmt.Sprint(r.checks))
			return err
		})
	}
	if err := r.g.server.Kill(); err != nil {
		return fmt.Errorf("kill Postgres: %w", err)
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), restartLimit)
	defer cancel()
	if err := r.g.server.Restart(ctx); err != nil {
		return fmt.Errorf("start Postgres again: %w", err)
	}
	r.s.DB.Pool.Reset()
	if r.s.DB.String("SELECT count(*) FROM public.journal WHERE client = -2 AND seq = $1", r.checks) == "0" {
		r.counts["lost with the server"]++
		r.g.lost.Add(1)
		if _, err := e.Row(ctx, harness.JournalTable, "-2", fmt.Sprint(r.checks)); err == nil {
			return fmt.Errorf("%s has a row that the source has lost with its server: it was published before it was durable", e.ID)
		}
	}
	r.connect()
	return nil
}

// connect opens the sessions of the walk.
func (r *run) connect() {
	r.t.Helper()
	for i := range r.sessions {
		conn, err := pgx.Connect(r.t.Context(), r.s.DB.URL)
		if err != nil {
			r.t.Fatal(err)
		}
		r.sessions[i] = conn
	}
}

func (r *run) disconnect() {
	ctx, cancel := context.WithTimeout(context.Background(), sqlLimit)
	defer cancel()
	for _, conn := range r.sessions {
		_ = conn.Close(ctx) // what it had open is rolled back
	}
}
