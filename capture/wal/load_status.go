package wal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/millrace-db/millrace"
)

// ErrLoading occurs when a load is asked for of a table that is being loaded.
var ErrLoading = errors.New("table is being loaded already")

// ErrNoTable occurs when a table is named that the stream does not have.
var ErrNoTable = errors.New("the stream does not have the table")

// LoadStatus says how far a load has come, for people.
type LoadStatus struct {
	Table  string
	Reason string
	// Initial loads end together.
	Initial bool
	// Rows were read; Blocks is the length of the table's heaps, BlocksDone what
	// was read of them. Blocks is 0 until they have been measured.
	Rows, Blocks, BlocksDone uint64
	// Restarts counts how often the table was rewritten meanwhile.
	Restarts int
	// BlocksBefore were read before this process took the load up.
	BlocksBefore uint64
	// Done tells that it has ended, and all of it was published and read back.
	Done bool
	// Waiting tells that all is read, and the load waits for others.
	Waiting bool
	// StartedAt is when this process took the load up.
	StartedAt time.Time
}

// Loads returns the loads under way and those that ended lately, in the order in
// which they began.
func (s *Source) Loads() []LoadStatus {
	confirmed := millrace.LSN(s.confirmed.Load())
	s.loads.mu.Lock()
	defer s.loads.mu.Unlock()
	var all []LoadStatus
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

func (ld *load) statusLocked() LoadStatus {
	st := LoadStatus{
		Table: ld.name, Reason: ld.reason, Initial: ld.initial, Rows: ld.work.Rows(), Restarts: ld.restarts,
		Waiting: ld.work.Finished(), StartedAt: ld.started,
	}
	leaf, _, block := ld.work.Place()
	for i, size := range ld.sizes {
		st.Blocks += uint64(size)
		switch {
		case i < leaf:
			st.BlocksDone += uint64(size)
		case i == leaf:
			st.BlocksDone += min(uint64(block), uint64(size))
		}
	}
	st.BlocksBefore = min(ld.before, st.BlocksDone)
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
	return 0, fmt.Errorf("%w: %s; it has %s", ErrNoTable, name, strings.Join(names, ", "))
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
		return fmt.Errorf("%w: %s", ErrLoading, table)
	}
	content, err := json.Marshal(ddlMessage{Stream: s.c.cfg.Stream, Load: []millrace.TableID{id}, Reason: reason})
	if err != nil {
		return fmt.Errorf("ask for a load of %s: %w", table, err)
	}
	conn, err := s.c.connect(ctx, nil)
	if err != nil {
		return err
	}
	defer closeConn(conn)
	if _, err := conn.Exec(ctx, "SELECT pg_logical_emit_message(true, $1, $2::text)", ddlPrefix, string(content)); err != nil {
		return fmt.Errorf("ask for a load of %s: %w", table, err)
	}
	return nil
}
