package wal

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
)

// Loads returns the loads under way and those that ended lately, in the order in
// which they began.
func (s *Source) Loads() []capture.LoadStatus {
	confirmed := millrace.LSN(s.confirmed.Load())
	s.loads.mu.Lock()
	defer s.loads.mu.Unlock()
	var all []capture.LoadStatus
	for _, e := range s.loads.recent {
		// A LoadEnd stands at the position of the unit before it.
		st := e.status
		st.Done = confirmed > e.at
		st.Waiting = !st.Done
		all = append(all, st)
	}
	for _, ld := range s.loads.inOrderLocked() {
		all = append(all, ld.statusLocked())
	}
	return all
}

func (ld *load) statusLocked() capture.LoadStatus {
	st := capture.LoadStatus{
		Table: ld.name, Reason: ld.reason, Initial: ld.initial, Rows: ld.work.Rows(), Restarts: ld.restarts,
		Waiting: ld.work.Finished(), StartedAt: ld.started,
	}
	leaf, _, block := ld.work.Place()
	st.Measure(ld.sizes, leaf, block, ld.before)
	return st
}

// PauseLoads holds all loads, or lets them go on. A chunk under way is finished.
// It lasts as long as the Source.
func (s *Source) PauseLoads(pause bool) {
	s.loads.mu.Lock()
	defer s.loads.mu.Unlock()
	s.loads.paused = pause
	s.loads.wakeLocked()
}

// LoadsPaused tells what PauseLoads was last told.
func (s *Source) LoadsPaused() bool {
	s.loads.mu.Lock()
	defer s.loads.mu.Unlock()
	return s.loads.paused
}

// tableNamed finds a table of the stream.
func (l *loads) tableNamed(name string) (millrace.TableID, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []string
	for id, s := range l.schemas {
		if s.QualifiedName() == name {
			return id, nil
		}
		names = append(names, s.QualifiedName())
	}
	slices.Sort(names)
	return 0, fmt.Errorf("%w: %s; it has %s", capture.ErrNoTable, name, strings.Join(names, ", "))
}

// RequestLoad asks for a load of a table of the stream. It begins where the stream
// comes to a message that is written for it. Errors: ErrNoTable, ErrLoading.
func (s *Source) RequestLoad(ctx context.Context, table, reason string) error {
	id, err := s.loads.tableNamed(table)
	if err != nil {
		return err
	}
	s.loads.mu.Lock()
	under := s.loads.byTable[id] != nil
	s.loads.mu.Unlock()
	if under {
		return fmt.Errorf("%w: %s", capture.ErrLoading, table)
	}
	content, err := json.Marshal(ddlMessage{Stream: s.c.cfg.Stream, Load: []millrace.TableID{id}, Reason: reason})
	if err != nil {
		return fmt.Errorf("ask for a load of %s: %w", table, err)
	}
	conn, err := s.c.connect(ctx, nil)
	if err != nil {
		return err
	}
	defer capture.Close(conn)
	if _, err := conn.Exec(ctx, "SELECT pg_logical_emit_message(true, $1, $2::text)", ddlPrefix, string(content)); err != nil {
		return fmt.Errorf("ask for a load of %s: %w", table, err)
	}
	return nil
}
