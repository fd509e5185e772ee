package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/control"
	"github.com/millrace-db/millrace/internal/edgestatus"
	"github.com/millrace-db/millrace/internal/lineage"
	"github.com/millrace-db/millrace/internal/mend"
	"github.com/millrace-db/millrace/internal/topic"
	"github.com/millrace-db/millrace/transfer"
	"github.com/millrace-db/millrace/transfer/admin"
)

func (a *app) transferCommand() *cobra.Command {
	var stream string
	cmd := &cobra.Command{
		Use:   "transfer",
		Short: "Publish: capture changes at the sources and append them to the topics",
		Long: `Publish streams: make the first copy of their tables, then capture every change and append it to the
topic. Of several transfers of a stream one publishes and the others wait to take over. It runs until it is
told to end (SIGTERM, Ctrl-C), is fenced by another publisher (exit code 3), or a stream needs somebody to
act (exit code 4).`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, names, err := a.published(stream)
			if err != nil {
				return err
			}
			if err := c.NeedKafka(names); err != nil {
				return err
			}
			p, err := newPublisher(cmd.Context(), c, names, a.logger(c))
			if err != nil {
				return err
			}
			return p.run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&stream, "stream", "", "only this stream; all of transfer.streams otherwise")
	return cmd
}

// publisher is the transfer process: its streams and its admin listener.
type publisher struct {
	log       *slog.Logger
	registry  *prometheus.Registry
	admin     *admin.Server // nil where it is off
	transfers []*transfer.Transfer
	captures  []capturing // of the transfers, in their order
	topics    []string    // the same
	watchers  []*edgestatus.Watcher
	commands  map[string]admin.Commands // by stream
	edges     map[string]func() *edgestatus.Summary
}

// newPublisher prepares the streams and opens the listener; it publishes
// nothing yet. The caller calls run, or close.
func newPublisher(ctx context.Context, c *config.Config, names []string, log *slog.Logger) (*publisher, error) {
	p := &publisher{log: log, registry: newRegistry(), commands: make(map[string]admin.Commands), edges: make(map[string]func() *edgestatus.Summary)}
	var shown []admin.Stream
	for _, name := range names {
		t, err := p.prepare(ctx, c, c.Stream(name))
		if err != nil {
			return nil, err
		}
		p.transfers, shown = append(p.transfers, t), append(shown, t)
	}
	if c.Transfer.Admin == config.Off {
		return p, nil
	}
	var err error
	p.admin, err = admin.New(ctx, admin.Config{Listen: c.Transfer.Admin, Streams: shown, Commands: p.commands, Edges: p.edges, Gatherer: p.registry, Logger: log})
	return p, err
}

func newRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

func (p *publisher) prepare(ctx context.Context, c *config.Config, s *config.Stream) (*transfer.Transfer, error) {
	var registered control.Stream
	err := withSource(ctx, s, func(conn *pgx.Conn) (err error) {
		registered, err = control.LoadStream(ctx, conn, s.Name)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := sameStream(s, registered); err != nil {
		return nil, err
	}
	// Capture names the stream in its metrics and log lines itself.
	capture, err := newCapture(s, registered, p.log, p.registry)
	if err != nil {
		return nil, err
	}
	p.captures, p.topics = append(p.captures, capture), append(p.topics, registered.Topic)
	key, ring, err := signing(s)
	if err != nil {
		return nil, err
	}
	asked := new(commands)
	w, err := p.watch(s, registered)
	if err != nil {
		return nil, err
	}
	t, err := transfer.New(transfer.Config{
		Stream: registered, SourceURL: s.Source.URL.Reveal(),
		Topic: topic.Config{Brokers: s.Kafka.Brokers, Topic: registered.Topic, ClientID: "millrace-transfer-" + s.Name, Logger: p.log},
		OpenSource: func(ctx context.Context, after *millrace.Checkpoint) (transfer.Source, error) {
			return asked.open(ctx, capture, after)
		},
		Warning: capture.Warning,
		Key:     key, Trusted: ring,
		Lease: duration(c.Transfer.Lease), LedgerKeep: duration(c.Transfer.LedgerKeep),
		Accepted: func(index millrace.Index, chain millrace.Chain) { w.History.Add(registered.Epoch, index, chain) },
		Retain:   retain(s, registered.Epoch, w),
		Logger:   p.log, Registerer: p.registry,
	})
	if err != nil {
		return nil, err
	}
	asked.status = t.Status
	p.commands[s.Name] = asked
	p.edges[s.Name] = func() *edgestatus.Summary { return w.Summary(time.Now()) }
	return t, nil
}

// comparable is how many of the newest places the publisher remembers to compare edges
// with: 2.5 MiB for what an edge may be behind.
const comparable = 1 << 16

// watch prepares to follow what the edges of a stream report.
func (p *publisher) watch(s *config.Stream, registered control.Stream) (*edgestatus.Watcher, error) {
	w, err := edgestatus.NewWatcher(lineage.Reports(s, "millrace-transfer-", p.log), registered.ID.String(),
		func() millrace.Epoch { return registered.Epoch }, p.log.With("stream", s.Name),
		prometheus.WrapRegistererWith(prometheus.Labels{"stream": s.Name}, p.registry))
	if err != nil {
		return nil, err
	}
	w.History = edgestatus.NewHistory(comparable)
	p.watchers = append(p.watchers, w)
	return w, nil
}

// transferError says of which stream and topic an error is, and what mends it
// where the topic is at fault.
func transferError(stream, topic string, err error) error {
	err = mend.Error(stream, fmt.Errorf("stream %s, topic %s: %w", stream, topic, err))
	for _, kind := range []error{millrace.ErrMalformed, millrace.ErrForeign, millrace.ErrGap, millrace.ErrDiverged, millrace.ErrUnknownTerm} {
		if errors.Is(err, kind) && !strings.Contains(err.Error(), "mend:") {
			return fmt.Errorf("%w; mend: find out who else writes to the topic (millrace tail shows the record); what cannot be undone there needs a new epoch: %s", err, mend.EpochCommand(stream))
		}
	}
	return err
}

// close gives up the listener where run is not called.
func (p *publisher) close() error {
	if p.admin == nil {
		return nil
	}
	return p.admin.Close()
}

// run publishes until ctx ends or a stream stops.
func (p *publisher) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	if p.admin != nil {
		p.log.Info("transfer shows status and metrics", "address", p.admin.Address())
		group.Go(func() error { return p.admin.Run(ctx) })
	}
	for _, w := range p.watchers {
		group.Go(func() error {
			w.Run(ctx)
			return nil
		})
	}
	for i, t := range p.transfers {
		// The source keeps WAL for the stream also while it cannot be published.
		group.Go(func() error {
			if err := p.captures[i].Watch(ctx); err != nil {
				return transferError(t.Status().Stream, p.topics[i], err)
			}
			return nil
		})
		group.Go(func() error {
			if err := t.Run(ctx); err != nil {
				return transferError(t.Status().Stream, p.topics[i], err)
			}
			return nil
		})
	}
	return group.Wait()
}
