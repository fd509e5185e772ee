package serve

import (
	"maps"
	"sync"
	"sync/atomic"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge/serve/postgrest"
)

// tables keeps what queries are compiled with, by the schema. Lookups take no lock.
type tables struct {
	mu  sync.Mutex // held to add one
	all atomic.Pointer[map[*millrace.Schema]*postgrest.Table]
}

func (t *tables) get(s *millrace.Schema) (*postgrest.Table, error) {
	if all := t.all.Load(); all != nil {
		if table := (*all)[s]; table != nil {
			return table, nil
		}
	}
	table, err := postgrest.NewTable(s)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	next := make(map[*millrace.Schema]*postgrest.Table)
	if all := t.all.Load(); all != nil && len(*all) < maxEncoders {
		maps.Copy(next, *all)
	}
	next[s] = table
	t.all.Store(&next)
	return table, nil
}
