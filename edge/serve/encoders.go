package serve

import (
	"maps"
	"sync"
	"sync/atomic"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/rowjson"
)

// schemaPair is the schema that a row was written with and the one as which it
// is shown. Schemas are shared and never changed, so the pointers name them.
type schemaPair struct {
	row, as *millrace.Schema
	// bigInt tells that bigint is given as strings.
	bigInt bool
}

// encoders keeps the encoders of a stream. Lookups take no lock.
type encoders struct {
	mu  sync.Mutex // held to add one
	all atomic.Pointer[map[schemaPair]*rowjson.Encoder]
}

// maxEncoders bounds what tables with a long history of schemas leave behind.
const maxEncoders = 4096

func (e *encoders) get(row, as *millrace.Schema, bigInt bool) (*rowjson.Encoder, error) {
	pair := schemaPair{row, as, bigInt}
	if all := e.all.Load(); all != nil {
		if enc := (*all)[pair]; enc != nil {
			return enc, nil
		}
	}
	newEncoder := rowjson.NewAs
	if bigInt {
		newEncoder = rowjson.NewBigIntText
	}
	enc, err := newEncoder(row, as)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	next := make(map[schemaPair]*rowjson.Encoder)
	if all := e.all.Load(); all != nil && len(*all) < maxEncoders {
		maps.Copy(next, *all)
	}
	next[pair] = enc
	e.all.Store(&next)
	return enc, nil
}
