package trigger

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
)

// requests are the loads that were asked for and are not in the stream for good
// yet. They outlive a source, because what it has given out may be void.
type requests struct {
	mu      sync.Mutex
	reasons map[millrace.TableID]string
}

// add notes a request. It returns false if there is one already.
func (r *requests) add(id millrace.TableID, reason string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, there := r.reasons[id]; there {
		return false
	}
	if r.reasons == nil {
		r.reasons = make(map[millrace.TableID]string)
	}
	r.reasons[id] = reason
	return true
}

func (r *requests) has(id millrace.TableID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, there := r.reasons[id]
	return there
}

func (r *requests) remove(id millrace.TableID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.reasons, id)
}

func (r *requests) all() map[millrace.TableID]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make(map[millrace.TableID]string, len(r.reasons))
	maps.Copy(all, r.reasons)
	return all
}

// RequestLoad asks for a load of a table of the stream. It begins with the next
// window, also with that of another Source of the Capture; a process that ends
// before forgets it. Errors: capture.ErrNoTable, capture.ErrLoading.
func (s *Source) RequestLoad(_ context.Context, table, reason string) error {
	id, err := s.loads.named(table)
	if err != nil {
		return err
	}
	if reason = capture.Text(reason); reason == "" {
		reason = "somebody asked for it"
	}
	s.loads.mu.Lock()
	under := s.loads.under[id] != nil
	s.loads.mu.Unlock()
	if under || !s.c.requests.add(id, reason) {
		return fmt.Errorf("%w: %s", capture.ErrLoading, table)
	}
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
