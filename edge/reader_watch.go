package edge

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// readerWatch looks at LMDB's table of readers, in which all processes that have
// the store open have their snapshots. A snapshot keeps the pages that were freed
// since from being used again, so the file grows while an old one is held; those
// of this process are bounded by their age, those of others are told of.
type readerWatch struct {
	s *Store
	// places are in use in the table. behind is how many commits the oldest
	// snapshot is behind the newest.
	places, behind atomic.Int64
	// foreign are the snapshots of other processes, by line of the table.
	foreign map[string]*foreignReader
}

type foreignReader struct {
	since  time.Time
	seen   bool
	warned bool
}

// look reads the table.
func (w *readerWatch) look(now time.Time) error {
	info, err := w.s.env.Info()
	if err != nil {
		return err
	}
	places, oldest := 0, info.LastTxnID
	own := strconv.Itoa(os.Getpid())
	if w.foreign == nil {
		w.foreign = make(map[string]*foreignReader)
	}
	err = w.s.env.ReaderList(func(line string) error {
		// PID, thread, and the transaction or a dash.
		fields := strings.Fields(line)
		if len(fields) != 3 {
			return nil
		}
		if _, err := strconv.Atoi(fields[0]); err != nil {
			return nil //nolint:nilerr // the headline
		}
		places++
		id, err := strconv.ParseInt(fields[2], 10, 64)
		if err != nil {
			return nil //nolint:nilerr // it holds no snapshot
		}
		oldest = min(oldest, id)
		if fields[0] == own || id >= info.LastTxnID {
			return nil
		}
		key := strings.Join(fields, " ")
		f := w.foreign[key]
		if f == nil {
			f = &foreignReader{since: now}
			w.foreign[key] = f
		}
		f.seen = true
		if age := now.Sub(f.since); age > w.s.opts.MaxViewAge && !f.warned {
			f.warned = true
			w.s.log.Warn("another process holds an old snapshot; the file grows until it ends",
				"dir", w.s.dir, "pid", fields[0], "age", age, "commits_behind", info.LastTxnID-id)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for key, f := range w.foreign {
		if !f.seen {
			delete(w.foreign, key)
		}
		f.seen = false
	}
	w.places.Store(int64(places))
	w.behind.Store(info.LastTxnID - oldest)
	return nil
}
