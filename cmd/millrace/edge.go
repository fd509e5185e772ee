package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/resp"
	"github.com/millrace-db/millrace/edge/serve"
	"github.com/millrace-db/millrace/edge/watch"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/follow"
	"github.com/millrace-db/millrace/internal/sockets"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
)

// noViewLimit is the age limit of views where one reader reads everything.
const noViewLimit = 24 * time.Hour

func (a *app) edgeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "edge",
		Short: "Apply topics to local stores and answer reads",
		Long: `Apply topics to local stores and answer reads at edge.http. Reads are answered from the first moment on,
also while Kafka cannot be reached. It runs until it is told to end (SIGTERM, Ctrl-C) or until a stream needs
somebody to act (exit code 4; with edge.on_stop: serve it goes on answering reads instead). SIGUSR2 starts the
program anew, which takes over sockets, connections and streams; no request fails meanwhile.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.load()
			if err != nil {
				return err
			}
			if c.Edge.UsesKafka() {
				if err := c.NeedKafka(c.Edge.Streams); err != nil {
					return err
				}
			}
			begin, err := newStart(a.environ)
			if err != nil {
				return err
			}
			k, err := newKeeper(cmd.Context(), c, a.logger(c), 0, begin)
			if err != nil {
				return err
			}
			return errors.Join(k.run(cmd.Context()), k.close())
		},
	}
	cmd.AddCommand(a.compactCommand())
	return cmd
}

// keeper is the edge process: what follows each stream, and the listeners that answer
// reads.
type keeper struct {
	c        *config.Config
	log      *slog.Logger
	registry *prometheus.Registry
	streams  []*follow.Stream
	images   *imageMakers
	start    *start
	sockets  *sockets.Set
	server   *serve.Server
	resp     *resp.Server // nil where nobody is answered
}

// newKeeper opens stores and listeners; nothing is applied or answered yet. The
// caller calls run, if at all, and then close.
func newKeeper(ctx context.Context, c *config.Config, log *slog.Logger, viewAge time.Duration, begin *start) (*keeper, error) {
	k := &keeper{c: c, log: log.With("edge", c.Edge.ID), registry: newRegistry(), start: begin, sockets: begin.sockets}
	if err := k.open(ctx, viewAge); err != nil {
		return nil, errors.Join(err, k.close())
	}
	return k, nil
}

func (k *keeper) open(ctx context.Context, viewAge time.Duration) error {
	for _, name := range k.c.Edge.Streams {
		metrics := prometheus.WrapRegistererWith(prometheus.Labels{"stream": name}, k.registry)
		stream := k.c.Stream(name)
		ring, err := trusted(stream)
		if err != nil {
			return err
		}
		f, err := follow.New(follow.Config{
			Whole: k.c, Stream: stream, Trusted: ring, ViewAge: viewAge, Version: version, Logger: k.log.With("stream", name), Metrics: metrics, Standby: k.start.from != nil,
		})
		if err != nil {
			return err
		}
		k.streams = append(k.streams, f)
	}
	readers := make(map[string]serve.Reader, len(k.streams))
	for _, one := range k.streams {
		readers[one.Name()] = one.Home()
	}
	where, err := k.network()
	if err != nil {
		return err
	}
	if k.images, err = k.newImageMakers(); err != nil {
		return err
	}
	k.server, err = serve.New(serve.Config{
		Streams: readers, Listen: where.http, Unix: k.c.Edge.HTTP.Unix, Secure: where.secureHTTP, TLS: where.tls, Access: where.access,
		Sockets: k.sockets, Fault: k.fault, Next: k.next, Log: k.logStatus, Compactor: k, Relays: relays{k},
		Watch:  func(stream string) *watch.Hub { return k.follower(stream).Watch() },
		Behind: func(ctx context.Context, stream string) (uint64, error) { return k.follower(stream).Behind(ctx) },
		Images: k.images.of, Bootstrap: k.bootstrap, MaxScan: k.c.Edge.Serve.MaxScan, MaxWaiters: k.c.Edge.Serve.MaxWaiters,
		MaxConns: readConns + k.c.Edge.Serve.MaxWatchers*len(readers),
		Gatherer: k.registry, Registerer: k.registry, Logger: k.log,
	})
	if err != nil {
		return err
	}
	if err := k.server.Listen(ctx); err != nil {
		return err
	}
	return k.listenRESP(ctx, where)
}

// readConns is how many connections each HTTP listener takes beside those of watchers.
const readConns = 1024

func (k *keeper) follower(stream string) *follow.Stream {
	for _, one := range k.streams {
		if one.Name() == stream {
			return one
		}
	}
	return nil
}

// fault says what keeps a stream from going on.
func (k *keeper) fault(stream string) error { return k.follower(stream).Fault() }

// next says which newer epoch is being copied.
func (k *keeper) next(stream string) (millrace.Epoch, edge.Place) {
	return k.follower(stream).Home().Following()
}

// Compact asks for a compaction of a stream's store.
func (k *keeper) Compact(stream string) error { return k.follower(stream).Compact() }

// Compaction says how far it is.
func (k *keeper) Compaction(stream string) *serve.Compaction {
	return k.follower(stream).Compaction()
}

// bootstrap says how far the taking of an image of a stream is.
func (k *keeper) bootstrap(stream string) *serve.Bootstrap { return k.follower(stream).Bootstrap() }

// logStatus is what the log of a stream holds.
func (k *keeper) logStatus(stream string) *serve.LogStatus { return k.follower(stream).LogStatus() }

// close releases listeners and stores, once nothing runs any more.
func (k *keeper) close() error {
	var errs []error
	if k.server != nil {
		errs = append(errs, k.server.Close())
	}
	if k.resp != nil {
		errs = append(errs, k.resp.Close())
	}
	for _, one := range k.streams {
		errs = append(errs, one.Close())
	}
	return errors.Join(errs...)
}
