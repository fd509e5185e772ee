package rowjson

import (
	"maps"
	"sync"
	"sync/atomic"

	"github.com/millrace-db/millrace"
)

// schemaPair is the schema that a row was written with and the one as which it
// is shown. Schemas are shared and never changed, so the pointers name them.
type schemaPair struct{ row, as *millrace.Schema }

// Encoders keeps the encoders of a stream. The zero value is ready; look-ups take no
// lock, and any number of goroutines may make them.
type Encoders struct {
	mu  sync.Mutex // held to add one
	all atomic.Pointer[map[schemaPair]*Encoder]
}

// maxEncoders bounds what tables with a long history of schemas leave behind.
const maxEncoders = 4096

// Get returns what NewAs does, made once.
func (e *Encoders) Get(row, as *millrace.Schema) (*Encoder, error) {
	pair := schemaPair{row, as}
	if all := e.all.Load(); all != nil {
		if enc := (*all)[pair]; enc != nil {
			return enc, nil
		}
	}
	enc, err := NewAs(row, as)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	next := make(map[schemaPair]*Encoder)
	if all := e.all.Load(); all != nil && len(*all) < maxEncoders {
		maps.Copy(next, *all)
	}
	next[pair] = enc
	e.all.Store(&next)
	return enc, nil
}
