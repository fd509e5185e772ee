package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/mend"
	"github.com/millrace-db/millrace/transfer/admin"
)

const (
	// commandPoll is how often progress is asked for.
	commandPoll = 500 * time.Millisecond
	// commandPatience is how long transfer may be away while a command waits: it
	// may be started again meanwhile, and goes on with what was asked of it.
	commandPatience = time.Minute
	// lineEvery is how often a line of progress is printed where no person looks.
	lineEvery = 10 * time.Second
)

// commander sends commands about one stream to this host's transfer.
type commander struct {
	*app
	stream *config.Stream
	admin  *httpClient
	asJSON bool
}

func (a *app) commander(stream string, asJSON bool) (*commander, error) {
	c, err := a.load()
	if err != nil {
		return nil, err
	}
	s, err := one(c, stream, c.Transfer.Streams)
	if err != nil {
		return nil, err
	}
	client := adminClient(c)
	if client == nil {
		return nil, usage("transfer.admin is off in %s, and commands go there; set it to a loopback address", c.File)
	}
	return &commander{app: a, stream: s, admin: client, asJSON: asJSON}, nil
}

// send asks transfer, with a body where there is one.
func (c *commander) send(ctx context.Context, method, path string, body, into any) error {
	var text []byte
	if method == http.MethodPost {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return fmt.Errorf("encode command: %w", err)
		}
	}
	answer, _, err := c.admin.ask(ctx, method, streamPath(c.stream.Name)+path, text)
	if err != nil {
		return commandError(err)
	}
	if err := json.Unmarshal(answer, into); err != nil {
		return fmt.Errorf("read the answer of %s: %w", c.admin.who, err)
	}
	return nil
}

// commandError gives an answer its exit code.
func commandError(err error) error {
	var e *httpError
	if errors.As(err, &e) && e.code == admin.CodeStopped {
		return &operatorError{err}
	}
	return err
}

// poll asks until done says so. Transfer may be away for a while.
func poll[T any](ctx context.Context, c *commander, path string, done func([]T) (bool, error)) error {
	tick := time.NewTicker(commandPoll)
	defer tick.Stop()
	reached := time.Now()
	for {
		var all []T
		err := c.send(ctx, http.MethodGet, path, nil, &all)
		if err == nil {
			reached = time.Now()
			var over bool
			if over, err = done(all); over || err != nil {
				return err
			}
		} else if !passing(err) || time.Since(reached) > commandPatience {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// passing reports whether an error may pass when transfer is started again.
func passing(err error) bool {
	var e *httpError
	return errors.Is(err, errUnreachable) || errors.As(err, &e) && e.code == admin.CodeNotPublishing
}

func (a *app) loadCommand() *cobra.Command {
	var stream, reason string
	var wait, asJSON bool
	cmd := &cobra.Command{
		Use:   "load [TABLE]",
		Short: "Copy a table anew, beside the running stream",
		Long: `Copy a table anew, beside the running stream. Edges answer from the rows they have until the copy is
complete, and then from the new ones, at once. TABLE is schema.table. Without TABLE, the loads that wait, are
under way or have ended lately are listed.

The command goes to this host's transfer, which must be publishing the stream.`,
		Example: "  millrace load public.accounts --wait\n  millrace load pause",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage("%s takes one table, got %s; see %[1]s --help", cmd.CommandPath(), strings.Join(args, " "))
			}
			return qualified(args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.commander(stream, asJSON)
			if err != nil {
				return err
			}
			if len(args) == 0 {
				var all []admin.LoadStatus
				if err := c.send(cmd.Context(), http.MethodGet, "/loads", nil, &all); err != nil {
					return err
				}
				return c.printLoads(all)
			}
			return c.load(cmd.Context(), args[0], reason, wait)
		},
	}
	cmd.PersistentFlags().StringVar(&stream, "stream", "", "the stream, where transfer publishes several")
	cmd.PersistentFlags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().StringVar(&reason, "reason", "", "`TEXT` that says why, for the log")
	cmd.Flags().BoolVar(&wait, "wait", false, "show progress, and return when the load has ended")
	for _, sub := range []struct{ use, short string }{
		{"pause", "Hold loads back; live changes go on"},
		{"resume", "Let loads go on"},
	} {
		cmd.AddCommand(&cobra.Command{
			Use: sub.use, Short: sub.short, Args: noArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				c, err := a.commander(stream, asJSON)
				if err != nil {
					return err
				}
				var all []admin.LoadStatus
				if err := c.send(cmd.Context(), http.MethodPost, "/loads/"+sub.use, struct{}{}, &all); err != nil {
					return err
				}
				return c.printLoads(all)
			},
		})
	}
	return cmd
}

// qualified refuses tables without their schema.
func qualified(tables []string) error {
	for _, table := range tables {
		if schema, name, ok := strings.Cut(table, "."); !ok || schema == "" || name == "" {
			return usage("%s: want schema.table, as in public.accounts", quote(table))
		}
	}
	return nil
}

func (c *commander) printJSON(value any) error {
	encoder := json.NewEncoder(c.stdout)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

func (c *commander) printLoads(all []admin.LoadStatus) error {
	if c.asJSON {
		return c.printJSON(all)
	}
	if len(all) == 0 {
		fmt.Fprintf(c.stdout, "stream %s has no loads\n", c.stream.Name)
		return nil
	}
	w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TABLE\tPHASE\tDONE\tROWS\tENDS\tREASON")
	for i := range all {
		l := &all[i]
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\n", l.Table, loadPhase(l), percent(l), l.Rows, ends(l), mend.OneLine(l.Reason))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for i := range all {
		if all[i].Problem != "" {
			fmt.Fprintf(c.stdout, "table %s: %s\n", all[i].Table, mend.OneLine(all[i].Problem))
		}
	}
	return nil
}

func loadPhase(l *admin.LoadStatus) string {
	if l.Paused && l.Phase != admin.PhaseDone && l.Phase != admin.PhaseFailed {
		return l.Phase + " (paused)"
	}
	return l.Phase
}

// share is how much of a load is done, from 0 to 1; false where it cannot be
// said.
func share(l *admin.LoadStatus) (float64, bool) {
	switch {
	case l.Phase == admin.PhaseDone:
		return 1, true
	case l.Blocks > 0:
		return min(float64(l.BlocksDone)/float64(l.Blocks), 1), true
	case l.Estimate > 0:
		return min(float64(l.Rows)/float64(l.Estimate), 1), true
	}
	return 0, false
}

func percent(l *admin.LoadStatus) string {
	if s, ok := share(l); ok {
		return fmt.Sprintf("%.0f %%", 100*s)
	}
	return "-"
}

func ends(l *admin.LoadStatus) string {
	if l.ETA == nil || l.Phase == admin.PhaseDone {
		return "-"
	}
	return "in " + span(max(0, time.Until(*l.ETA).Seconds()))
}

// load begins a load and, with wait, shows it to its end.
func (c *commander) load(ctx context.Context, table, reason string, wait bool) error {
	// What was before tells the load of this command from earlier ones: it is
	// listed when the stream comes to it.
	var all []admin.LoadStatus
	if err := c.send(ctx, http.MethodGet, "/loads", nil, &all); err != nil {
		return err
	}
	var before time.Time
	if l := newestLoad(all, table); l != nil {
		before = l.StartedAt
	}
	if err := c.send(ctx, http.MethodPost, "/loads", admin.LoadRequest{Table: table, Reason: reason}, &all); err != nil {
		return err
	}
	if !wait {
		if c.asJSON {
			return c.printJSON(all)
		}
		fmt.Fprintf(c.stdout, "load of %s begins at the next occasion; millrace load shows it\n", table)
		return nil
	}
	show := c.progress(table)
	defer show.end()
	seen := false
	last := admin.LoadStatus{Table: table, Reason: reason, Phase: admin.PhaseWaiting}
	err := poll(ctx, c, "/loads", func(all []admin.LoadStatus) (bool, error) {
		l := newestLoad(all, table)
		if l == nil || !l.StartedAt.After(before) {
			// One that was listed and is not any more has ended: transfer was
			// started again since.
			if seen {
				last.Phase = admin.PhaseDone
			}
			show.update(&last)
			return seen, nil
		}
		seen, last = true, *l
		show.update(&last)
		if last.Phase == admin.PhaseFailed {
			return true, fmt.Errorf("load of %s has failed: %s", table, last.Problem)
		}
		return last.Phase == admin.PhaseDone, nil
	})
	if err != nil {
		return err
	}
	show.end()
	if c.asJSON {
		return c.printJSON([]admin.LoadStatus{last})
	}
	fmt.Fprintf(c.stdout, "load of %s has ended: %d rows\n", table, last.Rows)
	return nil
}

// newestLoad returns the load of a table that was begun last, or nil.
func newestLoad(all []admin.LoadStatus, table string) (newest *admin.LoadStatus) {
	for i := range all {
		if l := &all[i]; l.Table == table && (newest == nil || l.StartedAt.After(newest.StartedAt)) {
			newest = l
		}
	}
	return newest
}

// progress shows a load: a bar to a person, a line now and then otherwise.
type progress struct {
	c     *commander
	bar   *progressbar.ProgressBar // nil where no person looks
	next  time.Time
	phase string
}

// barSteps is how finely the bar shows a share.
const barSteps = 1000

func (c *commander) progress(table string) *progress {
	p := &progress{c: c}
	if isTerminal(c.stderr) && !c.asJSON {
		p.bar = progressbar.NewOptions(barSteps, progressbar.OptionSetWriter(c.stderr), progressbar.OptionSetDescription(table),
			progressbar.OptionSetPredictTime(false), progressbar.OptionSetElapsedTime(false), progressbar.OptionClearOnFinish(), progressbar.OptionFullWidth())
	}
	return p
}

func (p *progress) update(l *admin.LoadStatus) {
	text := fmt.Sprintf("%s %s, %d rows", l.Table, loadPhase(l), l.Rows)
	if l.Problem != "" {
		text += ": " + mend.OneLine(l.Problem)
	}
	if p.bar != nil {
		if l.ETA != nil {
			text += ", ends " + ends(l)
		}
		p.bar.Describe(text)
		s, _ := share(l)
		_ = p.bar.Set(int(s * barSteps)) // a terminal that went away wants no more of it
		return
	}
	if p.c.asJSON {
		return
	}
	if now := time.Now(); loadPhase(l) != p.phase || !now.Before(p.next) {
		p.phase, p.next = loadPhase(l), now.Add(lineEvery)
		fmt.Fprintf(p.c.stderr, "%s, %s done, ends %s\n", text, percent(l), ends(l))
	}
}

func (p *progress) end() {
	if p.bar != nil {
		_ = p.bar.Finish() // as above
		p.bar = nil
	}
}

// tablesOf returns the tables that a command is about: those named, or all.
func (c *commander) tablesOf(named []string) ([]string, error) {
	tables := slices.Clone(named)
	if len(tables) == 0 {
		tables = slices.Clone(c.stream.Source.Tables)
	}
	if len(tables) == 0 {
		return nil, usage("name tables: streams.%s.source.tables names none", c.stream.Name)
	}
	slices.Sort(tables)
	return slices.Compact(tables), nil
}
