package trigger

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/chunk"
)

// wantedLoad is a load that somebody asked for.
type wantedLoad struct {
	table  millrace.TableID
	by     chunk.XID
	reason string
}

// wantedQuery reads which loads were asked for.
func wantedQuery(stream string) string {
	return "SELECT table_id::bigint, txid, reason FROM millrace.wanted_load WHERE stream = " + literal(stream)
}

// want takes a row of wantedQuery.
func (w *window) want(row [][]byte) error {
	id, err := strconv.ParseUint(string(row[0]), 10, 32)
	if err != nil {
		return fmt.Errorf("read which loads were asked for: %w", err)
	}
	by, err := strconv.ParseUint(string(row[1]), 10, 64)
	if err != nil {
		return fmt.Errorf("read which loads were asked for: %w", err)
	}
	w.wanted = append(w.wanted, wantedLoad{millrace.TableID(id), chunk.XID(by), string(row[2])})
	return nil
}

// RequestLoad asks for a load of a table of the stream, in the source: the next window
// begins it, whoever makes that. Errors: capture.ErrNoTable, capture.ErrLoading.
func (s *Source) RequestLoad(ctx context.Context, table, reason string) error {
	id, err := s.loads.named(table)
	if err != nil {
		return err
	}
	if reason = capture.Text(reason); reason == "" {
		reason = "somebody asked for it"
	}
	s.loads.mu.Lock()
	under := s.loads.under[id] != nil || s.loads.requested[id]
	s.loads.mu.Unlock()
	if under {
		return fmt.Errorf("%w: %s", capture.ErrLoading, table)
	}
	conn, err := s.c.connect(ctx)
	if err != nil {
		return err
	}
	defer capture.Close(conn)
	err = ask(ctx, conn.PgConn(), fmt.Sprintf(`BEGIN READ WRITE; %s;
INSERT INTO millrace.wanted_load (stream, table_id, reason) VALUES (%s, %d, %s)
ON CONFLICT (stream, table_id) DO UPDATE SET txid = excluded.txid, reason = excluded.reason, wanted_at = excluded.wanted_at;
COMMIT`, settings(conn.PgConn()), literal(s.c.cfg.Stream), id, literal(reason)))
	if err != nil {
		return fmt.Errorf("ask for a load of %s: %w", table, err)
	}
	s.loads.mu.Lock()
	s.loads.requested[id] = true
	s.loads.mu.Unlock()
	s.wake()
	return nil
}

// named finds a table of the stream.
func (l *loads) named(name string) (millrace.TableID, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []string
	for id, t := range l.tables {
		if t.schema.QualifiedName() == name {
			return id, nil
		}
		names = append(names, t.schema.QualifiedName())
	}
	slices.Sort(names)
	return 0, fmt.Errorf("%w: %s; it has %s", capture.ErrNoTable, name, strings.Join(names, ", "))
}

// Loads returns the loads under way and those that ended lately, in the order in
// which they began.
func (s *Source) Loads() []capture.LoadStatus {
	confirmed := s.confirmedTick()
	s.loads.mu.Lock()
	defer s.loads.mu.Unlock()
	var all []capture.LoadStatus
	for _, e := range s.loads.recent {
		// A LoadEnd stands at the position of the window before it, so only a later
		// one tells.
		st := e.status
		st.Done = confirmed > e.tick
		st.Waiting = !st.Done
		all = append(all, st)
	}
	for _, ld := range s.loads.inOrderLocked() {
		all = append(all, ld.status())
	}
	return all
}

// PauseLoads holds all loads, or lets them go on. It lasts as long as the Source.
func (s *Source) PauseLoads(pause bool) {
	s.loads.mu.Lock()
	s.loads.paused = pause
	s.loads.mu.Unlock()
	s.wake()
}

// LoadsPaused tells what PauseLoads was last told.
func (s *Source) LoadsPaused() bool {
	s.loads.mu.Lock()
	defer s.loads.mu.Unlock()
	return s.loads.paused
}

// confirmedTick is the newest tick that was published, 0 for none.
func (s *Source) confirmedTick() uint64 {
	if p := s.confirmed.Load(); p != nil {
		return p.Tick
	}
	return 0
}
