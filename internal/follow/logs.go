package follow

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/applier"
	edgelog "github.com/millrace-db/millrace/edge/log"
	"github.com/millrace-db/millrace/edge/serve"
	"github.com/millrace-db/millrace/internal/config"
)

// logKeep are the logs that an edge keeps of a stream: one of the epoch that readers
// use, and while a newer one is copied one of that. Both are nil where the
// configuration says that none is kept.
type logKeep struct {
	options       edgelog.Options
	current, next *edgelog.Log
}

// logDir is where an edge keeps the logs of a stream.
func logDir(c *config.Config, s *config.Stream) string {
	dir := c.Edge.Log.Dir
	if dir == "" {
		dir = c.Edge.DataDir
	}
	return filepath.Join(dir, s.Name, "log")
}

// openLogs opens the log of readers' epoch, and removes those of epochs before it.
func (f *Stream) openLogs(epoch millrace.Epoch) (logKeep, error) {
	c := &f.edge.Log
	if c.Dir == config.Off {
		return logKeep{}, nil
	}
	k := logKeep{options: edgelog.Options{
		Dir: logDir(f.whole, f.config), Retain: time.Duration(c.Retain), MaxBytes: int64(c.MaxBytes), Logger: f.log, Registerer: f.metrics,
	}}
	renewed, err := holdLog(k.options.Dir, f.home.Filter())
	if err != nil {
		return logKeep{}, fmt.Errorf("open log of what the edge holds: %w", err)
	}
	if renewed {
		f.log.Warn("the log begins anew: its records lack what the edge holds now", "dir", k.options.Dir)
	}
	return k, k.open(epoch)
}

func (k *logKeep) open(epoch millrace.Epoch) (err error) {
	if err := edgelog.Forget(k.options.Dir, epoch); err != nil {
		k.options.Logger.Warn("logs of epochs that are over cannot be removed", "dir", k.options.Dir, "error", err)
	}
	k.current, err = edgelog.Open(k.options)
	return err
}

// follow opens the log of an epoch that is being copied. Its metrics would be those of
// the other one.
func (k *logKeep) follow() (applier.Log, error) {
	if k.current == nil {
		return nil, nil
	}
	o := k.options
	o.Registerer = nil
	var err error
	k.next, err = edgelog.Open(o)
	return k.next, err
}

// drop closes the log of an epoch that is no longer copied. Its applier has ended.
func (k *logKeep) drop() error {
	if k.next == nil {
		return nil
	}
	err := k.next.Close()
	k.next = nil
	return err
}

// goOver makes the epoch that was copied the one of readers. Both appliers have ended;
// readers of the logs have to ask again.
func (k *logKeep) goOver(epoch millrace.Epoch) error {
	if k.current == nil {
		return nil
	}
	return errors.Join(k.close(), k.open(epoch))
}

func (k *logKeep) close() error {
	err := k.drop()
	if k.current != nil {
		err = errors.Join(err, k.current.Close())
	}
	return err
}

// ofReaders is what the applier of readers' epoch is given.
func (k *logKeep) ofReaders() applier.Log {
	if k.current == nil {
		return nil
	}
	return k.current
}

// readersLog is that log, whose places are remembered for edges that follow this one.
func (f *Stream) readersLog() applier.Log {
	l := f.logs.ofReaders()
	if l == nil || f.relay == nil {
		return l
	}
	return remembering{l, f.tree.history}
}

// LogStatus says what the log of readers' epoch holds; nil if none is kept.
func (f *Stream) LogStatus() *serve.LogStatus {
	f.mu.Lock()
	current := f.logs.current
	f.mu.Unlock()
	if current == nil {
		return nil
	}
	s := current.Status()
	status := &serve.LogStatus{Oldest: s.Oldest, Newest: s.Newest, Bytes: s.Bytes}
	if s.Fault != nil {
		status.Fault = fmt.Sprintf("%v; the store goes on without it", s.Fault)
	}
	return status
}
