package edgestatus

import (
	"cmp"
	"sort"
	"sync"

	"github.com/millrace-db/millrace"
)

// History remembers the chain at the newest places of a stream, for comparing. It is
// safe for concurrent use.
type History struct {
	mu     sync.Mutex
	epoch  millrace.Epoch
	places []historyPlace // a ring, in ascending order from next on once it is full
	next   int
	most   int
}

type historyPlace struct {
	index millrace.Index
	chain millrace.Chain
}

// NewHistory remembers so many places, 40 bytes each.
func NewHistory(places int) *History { return &History{most: max(places, 1)} }

// Add remembers a place. Indexes ascend within an epoch; a later epoch begins anew.
func (h *History) Add(epoch millrace.Epoch, index millrace.Index, chain millrace.Chain) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if epoch != h.epoch {
		h.epoch, h.places, h.next = epoch, h.places[:0], 0
	}
	if len(h.places) < h.most {
		h.places = append(h.places, historyPlace{index, chain})
		return
	}
	h.places[h.next] = historyPlace{index, chain}
	h.next = (h.next + 1) % h.most
}

// At returns the chain at an index, if that was a place that is remembered.
func (h *History) At(epoch millrace.Epoch, index millrace.Index) (chain string, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if epoch != h.epoch {
		return "", false
	}
	n := len(h.places)
	i, ok := sort.Find(n, func(i int) int { return cmp.Compare(index, h.places[(h.next+i)%n].index) })
	if !ok {
		return "", false
	}
	return h.places[(h.next+i)%n].chain.String(), true
}
