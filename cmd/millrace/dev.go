package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/embeddedkafka"
	"github.com/millrace-db/millrace/internal/mend"
	"github.com/millrace-db/millrace/internal/pgbench"
	"github.com/millrace-db/millrace/internal/pgserver"
	"github.com/millrace-db/millrace/internal/proof"
	"github.com/millrace-db/millrace/internal/sockets"
)

// devOptions are the flags of dev.
type devOptions struct {
	source, dataDir, workload, listen, stream, capture string
	brokers, tables                                    []string
	scale, clients, rate                               int
	span                                               time.Duration
}

const (
	workloadNone    = "none"
	workloadPgbench = "pgbench"
)

func (a *app) devCommand() *cobra.Command {
	var o devOptions
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run all of it on this machine: Postgres, broker, transfer and an edge",
		Long: `Run all of it on this machine, in one process: a private Postgres and an embedded broker, unless yours are
named, transfer, and one edge. A database without tables gets pgbench's. Once the first copy is at the edge, and
again at the end, every row of the source is compared with every row of the edge, while writers go on.

Data is kept in --data-dir, and the next start goes on where this one was; so is the configuration, which other
commands take: millrace status -c data/dev/millrace.yaml. Exit code 1 if any row differs.`,
		Example: "  millrace dev --workload pgbench --for 30s\n  millrace dev --capture trigger --workload pgbench\n  millrace dev --source postgres://localhost/shop --tables public.orders,public.items",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.validate(); err != nil {
				return err
			}
			return a.dev(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.source, "source", "", "`URL` of a Postgres database to capture, with wal_level = logical unless --capture trigger; a private one otherwise")
	f.StringVar(&o.capture, "capture", config.CaptureWAL, "`HOW` changes are captured: wal or trigger")
	f.StringSliceVar(&o.brokers, "brokers", nil, "`LIST` of Kafka brokers, host:port; an embedded broker otherwise")
	f.StringVar(&o.dataDir, "data-dir", filepath.Join("data", "dev"), "`DIRECTORY` for everything that is kept")
	f.StringSliceVar(&o.tables, "tables", nil, "`LIST` of tables to capture, schema.table; all with a primary key otherwise")
	f.StringVar(&o.stream, "stream", "dev", "`NAME` of the stream")
	f.StringVar(&o.workload, "workload", workloadNone, "load to put on the source: none or pgbench")
	f.IntVar(&o.scale, "scale", 1, "scale of pgbench's tables where they are made, 100,000 accounts each")
	f.IntVar(&o.clients, "clients", 4, "connections of the load")
	f.IntVar(&o.rate, "rate", 200, "transactions a second of the load; 0 for as many as go")
	f.StringVar(&o.listen, "listen", "", "loopback `ADDRESS` of the edge; 127.0.0.1:7480, or a free port if that is taken")
	f.DurationVar(&o.span, "for", 0, "end after this `TIME`, though not before the first copy was compared; at Ctrl-C otherwise")
	return cmd
}

func (o *devOptions) validate() error {
	switch {
	case o.workload != workloadNone && o.workload != workloadPgbench:
		return usage("--workload %s: want none or pgbench", o.workload)
	case o.capture != config.CaptureWAL && o.capture != config.CaptureTrigger:
		return usage("--capture %s: want wal or trigger", o.capture)
	case o.scale < 1 || o.scale > 10000:
		return usage("--scale %d: want 1 to 10000", o.scale)
	case o.clients < 1 || o.clients > 1000:
		return usage("--clients %d: want 1 to 1000", o.clients)
	case o.rate < 0:
		return usage("--rate %d: want 0 or more", o.rate)
	case o.span < 0:
		return usage("--for %s: want a time above 0", o.span)
	case o.dataDir == "":
		return usage("--data-dir is empty; name a directory")
	}
	return nil
}

const (
	devStopLimit = 30 * time.Second
	probeEvery   = 50 * time.Millisecond
	// firstProbes is how many probes the first line of proof has at least.
	firstProbes = 20
	// figuresLimit is how long that line waits for them at most.
	figuresLimit = 10 * time.Second
)

// dev is one run of the command.
type dev struct {
	*app
	options devOptions
	dir     string // absolute
	log     *slog.Logger
	screen  *screen
	config  *config.Config
	stream  *config.Stream
	epoch   millrace.Epoch // of the stream
	bench   *pgbench.Bench
	// ends are what to stop and close, the last first.
	ends []func() error
}

func (a *app) dev(ctx context.Context, o devOptions) (err error) {
	d := &dev{app: a, options: o, screen: newScreen(a.stdout)}
	defer func() {
		for i := len(d.ends) - 1; i >= 0; i-- {
			err = errors.Join(err, d.ends[i]())
		}
	}()
	if err := d.ground(ctx); err != nil {
		return err
	}
	return d.life(ctx)
}

func (d *dev) atEnd(fn func() error) { d.ends = append(d.ends, fn) }

// ground makes everything that the stages stand on.
func (d *dev) ground(ctx context.Context) error {
	if err := d.openDir(); err != nil {
		return err
	}
	source, err := d.startSource(ctx)
	if err != nil {
		return err
	}
	brokers, err := d.startBroker()
	if err != nil {
		return err
	}
	if err := d.configure(ctx, source, brokers); err != nil {
		return err
	}
	u := &setup{stream: d.stream, log: d.log, out: &lineLogger{d.log}}
	registered, err := u.run(ctx)
	d.epoch = registered.Epoch
	return err
}

// openDir makes the data directory this process's and opens the log in it.
func (d *dev) openDir() error {
	dir, err := filepath.Abs(d.options.dataDir)
	if err != nil {
		return fmt.Errorf("make %s absolute: %w", d.options.dataDir, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // the user that Postgres runs as passes through
		return operator("data directory %s cannot be made: %w; name another one with --data-dir", d.options.dataDir, err)
	}
	d.dir = dir
	unlock, err := lockFile(filepath.Join(dir, "lock"))
	if err != nil {
		return fmt.Errorf("data directory %s: %w", d.options.dataDir, err)
	}
	d.atEnd(unlock)
	f, err := os.OpenFile(filepath.Join(dir, "dev.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644) //nolint:gosec // no secrets in it
	if err != nil {
		return operator("data directory %s: %w; name another one with --data-dir", d.options.dataDir, err)
	}
	d.atEnd(f.Close)
	d.log = newLogger(f, config.Log{Level: "info", Format: "text"})
	d.log.Info("millrace dev starts", "version", version, "pid", os.Getpid())
	return nil
}

// startSource returns the URL of the database, and a server's programs where it
// is a private one.
func (d *dev) startSource(ctx context.Context) (url string, err error) {
	find, err := pgserver.Find(ctx, 0)
	if err != nil && !errors.Is(err, pgserver.ErrNotFound) {
		return "", err
	}
	if d.options.source != "" {
		d.findPgbench(find)
		d.bench.URL = d.options.source
		return d.options.source, nil
	}
	place, err := pgserver.Place(filepath.Join(d.dir, "postgres"))
	if err != nil {
		return "", err
	}
	if find.IsZero() {
		d.screen.say("no Postgres server is installed; fetching one")
		if find, err = pgserver.Find(ctx, 0, pgserver.AllowFetch("")); err != nil {
			return "", err
		}
	}
	// The zero value lets existing data choose its version.
	server, err := pgserver.Start(ctx, pgserver.Config{Dir: place, Logger: d.log, FSync: true})
	if errors.Is(err, pgserver.ErrNotFound) {
		server, err = pgserver.Start(ctx, pgserver.Config{Dir: place, Logger: d.log, FSync: true, Binaries: find})
	}
	if err != nil {
		return "", err
	}
	d.atEnd(func() error {
		stopping, cancel := context.WithTimeout(context.Background(), devStopLimit)
		defer cancel()
		return server.Stop(stopping)
	})
	d.findPgbench(server.Binaries())
	d.screen.say("Postgres %d: private, data in %s", server.Binaries().Version, place)
	if err := makeDatabase(ctx, server.URL("postgres")); err != nil {
		return "", err
	}
	d.bench.URL = server.URL(devDatabase)
	return d.bench.URL, nil
}

func (d *dev) findPgbench(b pgserver.Binaries) {
	d.bench = &pgbench.Bench{}
	// Without the program, package pgbench does the same itself.
	if program, err := b.Program("pgbench"); err == nil {
		d.bench.Program = program
	}
}

func (d *dev) startBroker() ([]string, error) {
	if len(d.options.brokers) > 0 {
		return d.options.brokers, nil
	}
	broker, err := embeddedkafka.Start(embeddedkafka.Config{Dir: filepath.Join(d.dir, "kafka"), Logger: d.log})
	if err != nil {
		return nil, err
	}
	d.atEnd(broker.Close)
	d.screen.say("broker: embedded, at %s", broker.Addrs()[0])
	return broker.Addrs(), nil
}

// life runs the stages, the load and the proofs.
func (d *dev) life(ctx context.Context) error {
	publisher, err := newPublisher(ctx, d.config, []string{d.stream.Name}, d.log)
	if err != nil {
		return err
	}
	keeper, err := newKeeper(ctx, d.config, d.log, noViewLimit, &start{sockets: new(sockets.Set)})
	if err != nil {
		return errors.Join(err, publisher.close())
	}
	d.atEnd(keeper.close)

	// The stages outlive ctx: the last proof needs them.
	stages, stopStages := context.WithCancel(context.WithoutCancel(ctx))
	defer stopStages()
	running, stages := errgroup.WithContext(stages)
	running.Go(func() error { return publisher.run(stages) })
	running.Go(func() error { return keeper.run(stages) })

	show := &show{dev: d, home: keeper.streams[0].Home(), transfer: publisher.transfers[0]}
	proofs := show.run(ctx, stages)
	stopStages()
	// A stage that failed is why the rest did.
	if err := running.Wait(); err != nil {
		return err
	}
	return proofs
}

// show is what a person sees of a run, and the load.
type show struct {
	*dev
	home     *edge.Home
	transfer statusTeller
	prober   *proof.Prober
	last     *proof.Result
}

// run goes on until ctx ends or the time is over, and returns nil if the last
// proof found no difference. stages ends when a stage fails.
func (s *show) run(ctx, stages context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	context.AfterFunc(stages, cancel)
	var work sync.WaitGroup
	defer s.screen.clear()
	work.Go(func() { s.watch(ctx) })
	loading, stopLoad := context.WithCancel(ctx)
	defer stopLoad()
	work.Go(func() { s.load(loading) })
	probing, stopProbes := context.WithCancel(ctx)
	defer stopProbes()

	began := time.Now()
	err := s.firstCopy(ctx)
	if err == nil {
		// It ends when the edge has caught up with what was committed during the
		// copy. Latency is measured from then on.
		err = s.prove(ctx)
	}
	if err == nil {
		s.prober = proof.NewProber(s.stream.Source.URL.Reveal(), s.stream.Name, s.mode(), s.home.Store(), probeEvery)
		work.Go(func() { s.prober.Run(probing) })
		err = s.middle(ctx, began)
	}
	stopLoad()
	stopProbes()
	cancel()
	work.Wait()
	if stages.Err() != nil {
		return nil // the stage's own error says why
	}
	if s.last == nil {
		s.screen.say("ended before source and edge were compared; the next start goes on")
		return ignoreCanceled(err)
	}
	return errors.Join(ignoreCanceled(err), s.end(stages))
}

// middle is the time under way: the first proof's line, what to try, and the
// wait.
func (s *show) middle(ctx context.Context, began time.Time) error {
	figures, cancel := context.WithTimeout(ctx, figuresLimit)
	defer cancel()
	if err := s.prober.Wait(figures, firstProbes); err != nil && ctx.Err() != nil {
		return err
	}
	s.screen.say("%s", s.proofLine())
	s.screen.hints(s.hints(ctx))
	if s.options.span == 0 {
		<-ctx.Done()
		return nil
	}
	rest := time.NewTimer(s.options.span - time.Since(began))
	defer rest.Stop()
	select {
	case <-ctx.Done():
	case <-rest.C:
	}
	return nil
}

// end proves once more, now without a load.
func (s *show) end(stages context.Context) error {
	ctx, cancel := context.WithTimeout(stages, devStopLimit)
	defer cancel()
	if err := s.prove(ctx); err != nil {
		return err
	}
	s.screen.say("%s", s.proofLine())
	if n := s.last.Differences(); n > 0 {
		for _, example := range s.last.Examples() {
			s.screen.say("  %s", example)
		}
		return fmt.Errorf("source and edge differ: %d differences", n)
	}
	return nil
}

func (s *show) prove(ctx context.Context) error {
	r, err := proof.Run(ctx, proof.Config{
		SourceURL: s.stream.Source.URL.Reveal(), Stream: s.stream.Name, Mode: s.mode(), Tables: s.stream.Source.Tables, Store: s.home.Store(),
	})
	if err != nil {
		return err
	}
	s.last = r
	s.log.Info("compared", "index", r.Index, "source_rows", r.SourceRows(), "edge_rows", r.EdgeRows(), "differences", r.Differences(), "held", r.Held, "took", r.Took)
	return nil
}

func (s *show) mode() millrace.Mode {
	if s.stream.Source.Capture == config.CaptureTrigger {
		return millrace.ModeTrigger
	}
	return millrace.ModeWAL
}

func (s *show) proofLine() string {
	latency := "not measured"
	if s.prober != nil {
		latency = s.prober.Latency().String()
	}
	return fmt.Sprintf("proof at index %v: %d rows at the source, %d rows at the edge, %d differences; commit to edge: %s",
		s.last.Index, s.last.SourceRows(), s.last.EdgeRows(), s.last.Differences(), latency)
}

// load puts the load on the source until ctx ends. One that ends by itself is
// begun again.
func (s *show) load(ctx context.Context) {
	if s.options.workload != workloadPgbench {
		return
	}
	for ctx.Err() == nil {
		err := s.bench.Run(ctx, pgbench.Load{Clients: s.options.clients, Rate: s.options.rate})
		if err == nil {
			return
		}
		s.screen.say("the load ended and is begun again: %s", mend.OneLine(err.Error()))
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func ignoreCanceled(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
