package follow

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	edgelog "github.com/millrace-db/millrace/edge/log"
	"github.com/millrace-db/millrace/edge/watch"
	"github.com/millrace-db/millrace/internal/config"
)

// newWatch makes what watchers of the stream are told from; nil where no log is kept.
func (f *Stream) newWatch(metrics prometheus.Registerer) (*watch.Hub, error) {
	if f.edge.Log.Dir == config.Off {
		return nil, nil
	}
	return watch.New(watch.Config{
		Log: func() *edgelog.Log {
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.logs.current
		},
		Checkpoint: func(ctx context.Context) (c *millrace.Checkpoint, err error) {
			err = f.home.View(ctx, func(v *edge.View) error {
				c, err = v.Checkpoint()
				return err
			})
			return c, err
		},
		Holds: f.home.Filter, MaxWatchers: f.edge.Serve.MaxWatchers,
		Logger: f.log, Registerer: metrics,
	})
}

// Watch is where watchers of the stream are told from; nil where no log is kept. It is
// closed with the Stream.
func (f *Stream) Watch() *watch.Hub { return f.hub }
