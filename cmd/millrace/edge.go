package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/applier"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/serve"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/edgestatus"
	"github.com/millrace-db/millrace/internal/finding"
	"github.com/millrace-db/millrace/internal/topic"
)

// noViewLimit is the age limit of views where one reader reads everything.
const noViewLimit = 24 * time.Hour

func (a *app) edgeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "edge",
		Short: "Apply topics to local stores and answer reads",
		Long: `Apply topics to local stores and answer reads at edge.http. Reads are answered from the first moment on,
also while Kafka cannot be reached. It runs until it is told to end (SIGTERM, Ctrl-C) or until a stream needs
somebody to act (exit code 4; with edge.on_stop: serve it goes on answering reads instead).`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.load()
			if err != nil {
				return err
			}
			if err := c.NeedKafka(c.Edge.Streams); err != nil {
				return err
			}
			k, err := newKeeper(cmd.Context(), c, a.logger(c), 0)
			if err != nil {
				return err
			}
			return errors.Join(k.run(cmd.Context()), k.close())
		},
	}
}

// keeper is the edge process: a store and an applier a stream, and the listeners
// that answer reads.
type keeper struct {
	c        *config.Config
	log      *slog.Logger
	registry *prometheus.Registry
	streams  []*kept
	server   *serve.Server
}

// kept is one stream of an edge.
type kept struct {
	config  *config.Stream
	dir     string
	store   *edge.Store
	applier *applier.Applier
	// reporter is nil until the store is open.
	reporter *edgestatus.Reporter
}

// newKeeper opens stores and listeners; nothing is applied or answered yet. The
// caller calls run, if at all, and then close.
func newKeeper(ctx context.Context, c *config.Config, log *slog.Logger, viewAge time.Duration) (*keeper, error) {
	k := &keeper{c: c, log: log.With("edge", c.Edge.ID), registry: newRegistry()}
	if err := k.open(ctx, viewAge); err != nil {
		return nil, errors.Join(err, k.close())
	}
	return k, nil
}

func (k *keeper) open(ctx context.Context, viewAge time.Duration) error {
	for _, name := range k.c.Edge.Streams {
		if err := k.keep(k.c.Stream(name), viewAge); err != nil {
			return err
		}
	}
	where := k.c.Edge.HTTP
	if where.Listen == config.Off {
		where.Listen = ""
	}
	stores := make(map[string]*edge.Store, len(k.streams))
	for _, one := range k.streams {
		stores[one.config.Name] = one.store
	}
	var err error
	k.server, err = serve.New(serve.Config{
		Streams: stores, Listen: where.Listen, Unix: where.Unix, Fault: k.fault,
		Gatherer: k.registry, Registerer: k.registry, Logger: k.log,
	})
	if err != nil {
		return err
	}
	if err := k.server.Listen(ctx); err != nil {
		key := "edge.http.listen"
		if where.Unix != "" && strings.Contains(err.Error(), where.Unix) {
			key = "edge.http.unix"
		}
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}

// fault says what keeps a stream from going on.
func (k *keeper) fault(stream string) error {
	for _, one := range k.streams {
		if one.config.Name == stream {
			return one.applier.Status().Err
		}
	}
	return nil
}

func (k *keeper) keep(s *config.Stream, viewAge time.Duration) error {
	one := &kept{config: s, dir: storeDir(k.c, s)}
	log := k.log.With("stream", s.Name)
	metrics := prometheus.WrapRegistererWith(prometheus.Labels{"stream": s.Name}, k.registry)
	var id millrace.StreamID
	if s.ID != "" {
		id, _ = millrace.ParseStreamID(s.ID) // the configuration has checked it
	}
	var err error
	one.store, err = edge.Open(edge.Options{
		Dir: one.dir, Stream: id, MapSize: int64(k.c.Edge.MapSize), MaxViewAge: viewAge, Logger: log, Registerer: metrics,
	})
	if err != nil {
		return err
	}
	k.streams = append(k.streams, one)
	one.applier, err = applier.New(applier.Config{
		Store: one.store, Stream: id, Logger: log, Registerer: metrics,
		OpenSource: func(ctx context.Context, after millrace.Offset) (applier.Source, error) {
			return one.openSource(ctx, after, log)
		},
	})
	if err != nil {
		return err
	}
	one.reporter, err = k.reports(one, log, metrics)
	return err
}

// topicSource reads a topic for an applier.
type topicSource struct {
	topic  *topic.Topic
	reader *topic.Reader
	id     string
}

func (s *topicSource) TopicID() string { return s.id }

func (s *topicSource) Next(ctx context.Context) (millrace.Offset, []byte, error) {
	message, err := s.reader.Next(ctx)
	return message.Offset, message.Value, gone(err)
}

func (s *topicSource) Close() error {
	s.reader.Close()
	return s.topic.Close()
}

// gone gives the applier's name to a place that the topic does not have.
func gone(err error) error {
	if errors.Is(err, topic.ErrOffsetGone) || errors.Is(err, topic.ErrNoTopic) {
		return fmt.Errorf("%w: %w", applier.ErrSourceGone, err)
	}
	return err
}

// openSource opens the topic behind an offset. A topic that may lose records,
// or is another stream's, is refused each time.
func (k *kept) openSource(ctx context.Context, after millrace.Offset, log *slog.Logger) (applier.Source, error) {
	t, err := openTopic(ctx, k.config, "", log)
	if err != nil {
		return nil, err
	}
	source, err := k.readTopic(ctx, t, after)
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return source, nil
}

func (k *kept) readTopic(ctx context.Context, t *topic.Topic, after millrace.Offset) (*topicSource, error) {
	info, err := t.Info(ctx)
	if errors.Is(err, topic.ErrNoTopic) && after == millrace.NoOffset {
		return nil, err // it may still be made
	}
	if err != nil {
		return nil, gone(err)
	}
	found, err := t.Check(ctx)
	if err != nil {
		return nil, err
	}
	if err := finding.Error(found); err != nil {
		return nil, fmt.Errorf("%w: %w", millrace.ErrStop, err)
	}
	if err := k.sameStream(ctx, t, info); err != nil {
		return nil, err
	}
	from := info.Start
	if after != millrace.NoOffset {
		from = after + 1
	}
	reader, err := t.Read(ctx, from)
	if err != nil {
		return nil, gone(err)
	}
	return &topicSource{topic: t, reader: reader, id: info.ID}, nil
}

// sameStream refuses a topic of another stream than the store's, before the
// applier finds that it is another topic at all: this says more.
func (k *kept) sameStream(ctx context.Context, t *topic.Topic, info topic.Info) error {
	id, ok, err := topicIdentity(ctx, t, info)
	if err != nil || !ok {
		return err
	}
	if err := wantStream(k.config, "topic "+t.Name(), id.stream); err != nil {
		return fmt.Errorf("%w: %w", millrace.ErrStop, err)
	}
	if held := k.store.Stream(); !held.IsZero() && held != id.stream {
		return fmt.Errorf("%w: store %s holds another stream (%v) than topic %s does (%v); mend: give each stream a data_dir of its own, or correct kafka.topic",
			edge.ErrOtherStream, k.dir, held, t.Name(), id.stream)
	}
	return nil
}

// run applies and answers until ctx ends or a stream stops.
func (k *keeper) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	k.log.Info("edge answers reads", "address", k.server.Addr(), "socket", k.c.Edge.HTTP.Unix)
	group.Go(func() error { return k.server.Run(ctx) })
	for _, one := range k.streams {
		group.Go(func() error { return k.follow(ctx, one) })
	}
	return group.Wait()
}

// follow applies a stream and reports on it. The last report comes after the
// last commit.
func (k *keeper) follow(ctx context.Context, one *kept) error {
	reporting, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	reported := make(chan struct{})
	go func() {
		defer close(reported)
		one.reporter.Run(reporting)
	}()
	err := k.apply(ctx, one)
	stop()
	<-reported
	return err
}

func (k *keeper) apply(ctx context.Context, one *kept) error {
	err := one.applier.Run(ctx)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("stream %s, topic %s, store %s: %w", one.config.Name, one.config.Kafka.Topic, one.dir, err)
	if k.c.Edge.OnStop != config.OnStopServe {
		return err
	}
	k.log.Error("stream stopped; its last rows are still answered", "stream", one.config.Name, "error", err)
	<-ctx.Done()
	return err
}

// close releases listeners and stores, once nothing runs any more.
func (k *keeper) close() error {
	var errs []error
	if k.server != nil {
		errs = append(errs, k.server.Close())
	}
	for _, one := range k.streams {
		errs = append(errs, one.store.Close())
	}
	return errors.Join(errs...)
}
