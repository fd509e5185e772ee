package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/control"
	"github.com/millrace-db/millrace/internal/edgestatus"
	"github.com/millrace-db/millrace/internal/finding"
	"github.com/millrace-db/millrace/internal/follow"
	"github.com/millrace-db/millrace/internal/lineage"
	"github.com/millrace-db/millrace/internal/mend"
	"github.com/millrace-db/millrace/internal/topic"
)

func (a *app) checkCommand() *cobra.Command {
	var stream string
	var asJSON, quick, fix bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Look at sources, topics and local stores, and say what does not fit",
		Long: `Look at sources, topics and local stores without changing anything, and say what does not fit, each
with its mend. Of a stream it looks at what the configuration names: the source if there is a source.url, the
topic if there are brokers, the local store if there is an edge section. Every row of a local store is read,
unless --quick. Exit code 4 if there is a problem; warnings do not count.

With --fix, what can be mended without losing anything is mended first: control schema and what captures
the tables of streams that are registered. Of the rest each line names the command.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.load()
			if err != nil {
				return err
			}
			all := streamNames(c)
			names, err := selected(c, stream, all)
			if err != nil {
				return err
			}
			k := &check{c: c, quick: quick, app: a}
			for _, name := range names {
				if s := c.Stream(name); fix && s.Source.URL != "" {
					k.fix(cmd.Context(), s)
				}
				if err := k.streamIn(cmd.Context(), c.Stream(name)); err != nil {
					return err
				}
			}
			return k.report(asJSON)
		},
	}
	cmd.Flags().StringVar(&stream, "stream", "", "only this stream")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&fix, "fix", false, "mend what can be mended without losing anything")
	cmd.Flags().BoolVar(&quick, "quick", false, "do not read the rows of local stores")
	return cmd
}

// checked is a finding and the stream it is about.
type checked struct {
	Stream string `json:"stream"`
	finding.Finding
}

// String is the one line for people.
func (f checked) String() string {
	line := fmt.Sprintf("stream %s: %s: %s", f.Stream, f.Subject, f.Text)
	if f.Mend != "" {
		line += "; mend: " + f.Mend
	}
	return mend.OneLine(line)
}

// check gathers findings.
type check struct {
	*app
	c     *config.Config
	quick bool
	found []checked
	// later are findings that init mends by the way; they come last.
	later []checked
	done  []string
}

func (k *check) add(s *config.Stream, found ...finding.Finding) {
	for _, f := range found {
		f.Text, f.Mend = mend.Text(s.Name, f.Text), mend.Text(s.Name, f.Mend)
		k.found = append(k.found, checked{s.Name, f})
	}
}

// fix mends at the source what init would mend. What it cannot do is told by the
// check that follows.
func (k *check) fix(ctx context.Context, s *config.Stream) {
	owned := s.AsOwner()
	u := &setup{stream: owned, log: k.logger(k.c), out: io.Discard}
	err := withSource(ctx, owned, func(conn *pgx.Conn) error {
		registered, err := control.LoadStream(ctx, conn, s.Name)
		if err != nil {
			return err
		}
		if err := u.schema(ctx, conn); err != nil {
			return err
		}
		return u.capture(ctx, registered)
	})
	if err != nil {
		k.done = append(k.done, "source of "+s.Name+", to mend it: "+mend.OneLine(mend.Text(s.Name, err.Error())))
		return
	}
	k.done = append(k.done, "source of "+s.Name+": control schema and capture are as init makes them")
}

// problem turns an error into a finding: its text names the mend itself.
func (k *check) problem(s *config.Stream, subject string, err error) {
	k.add(s, finding.Finding{Level: finding.Problem, Subject: subject, Text: mend.OneLine(err.Error())})
}

func (k *check) streamIn(ctx context.Context, s *config.Stream) error {
	var registered control.Stream
	if s.Source.URL != "" {
		if err := k.c.NeedSource([]string{s.Name}); err != nil {
			return err
		}
		registered = k.source(ctx, s)
		k.done = append(k.done, "source of "+s.Name)
	}
	if len(s.Kafka.Brokers) > 0 {
		k.topic(ctx, s, registered)
		k.done = append(k.done, "topic of "+s.Name)
	}
	if k.c.Has("edge") {
		k.store(ctx, s)
		k.done = append(k.done, "local store of "+s.Name)
	}
	return ctx.Err()
}

// source looks at the database and returns the stream's row in the registry, if
// it has one.
func (k *check) source(ctx context.Context, s *config.Stream) (registered control.Stream) {
	err := withSource(ctx, s, func(conn *pgx.Conn) error {
		var err error
		registered, err = control.LoadStream(ctx, conn, s.Name)
		switch {
		case errors.Is(err, control.ErrNoStream), errors.Is(err, control.ErrNotInitialised):
			k.later = append(k.later, checked{s.Name, finding.Finding{Level: finding.Problem, Subject: "source", Text: "the stream is not registered there", Mend: "millrace init"}})
			return nil
		case err != nil:
			return err
		}
		if err := sameStream(s, registered); err != nil {
			k.problem(s, "registry", err)
		}
		pending, err := control.Pending(ctx, conn)
		if err != nil {
			return err
		}
		if len(pending) > 0 {
			k.add(s, finding.Finding{Level: finding.Problem, Subject: "control schema", Text: fmt.Sprintf("it lacks %s", pending[0].Name), Mend: "millrace init"})
		}
		return nil
	})
	if err != nil {
		k.problem(s, "source", err)
		return registered
	}
	capture, err := newCapture(s, registered, k.logger(k.c), nil)
	if err == nil {
		var found []finding.Finding
		if found, err = capture.Check(ctx); err == nil {
			k.add(s, found...)
		}
		if err == nil && registered.Epoch != 0 && len(s.Kafka.Brokers) > 0 {
			err = k.fences(ctx, s, registered, capture)
		}
	}
	if err != nil {
		k.problem(s, "source", err)
	}
	return registered
}

// fences says whether capture could go on where the topic ends.
func (k *check) fences(ctx context.Context, s *config.Stream, registered control.Stream, capture capturing) error {
	found, err := capture.CheckPosition(ctx, func(ctx context.Context) (p millrace.Position, at time.Time, err error) {
		err = withSource(ctx, s, func(conn *pgx.Conn) error {
			p, at, err = publishedPosition(ctx, conn, s, registered, k.logger(k.c))
			return err
		})
		var kafka *net.OpError
		if errors.As(err, &kafka) {
			return millrace.Position{}, at, nil // the look at the topic tells of it
		}
		return p, at, err
	})
	k.add(s, found...)
	return err
}

// topicOf names the topic to look at: the registry's, or, where there is no source
// to ask, that of the newest epoch that has begun.
func (k *check) topicOf(ctx context.Context, s *config.Stream, registered control.Stream) (string, error) {
	if registered.Topic != "" {
		return registered.Topic, nil
	}
	epoch, err := lineage.Newest(ctx, s, k.logger(k.c))
	return topic.EpochName(s.Kafka.Topic, epoch), err
}

func (k *check) topic(ctx context.Context, s *config.Stream, registered control.Stream) {
	name, err := k.topicOf(ctx, s, registered)
	if err != nil {
		k.problem(s, "kafka", err)
		return
	}
	t, err := lineage.OpenTopic(ctx, s, name, k.logger(k.c))
	if err != nil {
		k.problem(s, "kafka", err)
		return
	}
	defer func() { _ = t.Close() }() // nothing is appended
	if err := k.lookAtTopic(ctx, s, t, registered); err != nil {
		k.problem(s, "topic "+t.Name(), err)
	}
	if !registered.ID.IsZero() || s.Source.URL == "" {
		k.reportTopic(ctx, s)
	}
}

// reportTopic looks at what edges report to. Without it everything goes on.
func (k *check) reportTopic(ctx context.Context, s *config.Stream) {
	name := edgestatus.TopicOf(s.Kafka.Topic)
	warn := func(text, mend string) {
		k.add(s, finding.Finding{Level: finding.Warning, Subject: "topic " + name, Text: text, Mend: mend})
	}
	t, err := lineage.OpenTopic(ctx, s, name, k.logger(k.c))
	if err != nil {
		warn(mend.OneLine(err.Error()), "")
		return
	}
	defer func() { _ = t.Close() }() // nothing is appended
	found, err := t.CheckCompacted(ctx)
	switch {
	case errors.Is(err, topic.ErrNoTopic):
		warn("it does not exist, and edges cannot report how far they are", "millrace init")
	case err != nil:
		warn(mend.OneLine(err.Error()), "")
	default:
		k.add(s, found...)
	}
}

func (k *check) lookAtTopic(ctx context.Context, s *config.Stream, t *topic.Topic, registered control.Stream) error {
	known := !registered.ID.IsZero()
	info, err := t.Info(ctx)
	if errors.Is(err, topic.ErrNoTopic) && !known && s.Source.URL != "" {
		return nil // init makes it
	}
	if err != nil {
		return err
	}
	found, err := t.Check(ctx)
	if err != nil {
		return err
	}
	k.add(s, found...)
	if err := sameTopic(registered, known, info); err != nil {
		return err
	}
	id, ok, err := lineage.IdentityOf(ctx, t, info)
	if err != nil || !ok {
		return err
	}
	if known && id.Stream != registered.ID {
		return operator("it holds stream %v, and %s has ID %v at its source; name the stream's own topic in kafka.topic", id.Stream, s.Name, registered.ID)
	}
	return lineage.Want(s, "it", id.Stream)
}

func (k *check) store(ctx context.Context, s *config.Stream) {
	dir := follow.StoreDir(k.c, s)
	subject := "store " + dir
	if err := writable(k.c.Edge.DataDir); err != nil {
		k.add(s, finding.Finding{
			Level: finding.Problem, Subject: "edge.data_dir " + k.c.Edge.DataDir, Text: err.Error(),
			Mend: "give it to the user that runs the edge, or name another directory",
		})
		return
	}
	if records := k.c.Edge.Log.Dir; records != "" && records != config.Off {
		if err := writable(records); err != nil {
			k.add(s, finding.Finding{
				Level: finding.Problem, Subject: "edge.log.dir " + records, Text: err.Error(),
				Mend: "give it to the user that runs the edge, or name another directory",
			})
		}
	}
	id, _, ok, err := storeIdentity(ctx, dir)
	if err != nil {
		k.problem(s, subject, err)
		return
	}
	if !ok {
		return // the edge makes it at its first start
	}
	if err := lineage.Want(s, "it", id); err != nil {
		k.problem(s, subject, err)
	}
	if k.quick {
		return
	}
	if err := walk(ctx, dir); err != nil {
		k.problem(s, subject, err)
	}
}

// walk reads everything that a store holds.
func walk(ctx context.Context, dir string) error {
	store, err := edge.Open(edge.Options{Dir: dir, ReadOnly: true, MaxViewAge: noViewLimit})
	if err != nil {
		return err
	}
	return errors.Join(store.Check(ctx), store.Close())
}

// writable says why a directory cannot be written by this user, or could not be
// made. It leaves nothing behind.
func writable(dir string) error {
	at := dir
	for {
		info, err := os.Stat(at)
		if err == nil && !info.IsDir() {
			return fmt.Errorf("%s is not a directory", at)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, os.ErrNotExist) || filepath.Dir(at) == at {
			return err
		}
		at = filepath.Dir(at)
	}
	f, err := os.CreateTemp(at, ".millrace-check-")
	if err != nil {
		return fmt.Errorf("this user cannot write there: %w", err)
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

func (k *check) report(asJSON bool) error {
	k.found = append(k.found, k.later...)
	var problems []checked
	for _, f := range k.found {
		if f.Level == finding.Problem {
			problems = append(problems, f)
		}
	}
	if asJSON {
		if k.found == nil {
			k.found = []checked{}
		}
		encoder := json.NewEncoder(k.stdout)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(k.found); err != nil {
			return err
		}
	} else {
		for _, what := range k.done {
			fmt.Fprintf(k.stdout, "looked at: %s\n", what)
		}
		for _, f := range k.found {
			fmt.Fprintf(k.stdout, "%s: %s\n", f.Level, f)
		}
	}
	switch len(problems) {
	case 0:
	case 1:
		return operator("%s", problems[0])
	case 2:
		return operator("%s (and another problem, listed above)", problems[0])
	default:
		return operator("%s (and %d more problems, listed above)", problems[0], len(problems)-1)
	}
	if !asJSON {
		fmt.Fprintln(k.stdout, "no problems")
	}
	return nil
}
