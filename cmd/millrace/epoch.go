package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/control"
	"github.com/millrace-db/millrace/internal/failpoint"
	"github.com/millrace-db/millrace/internal/finding"
	"github.com/millrace-db/millrace/internal/lineage"
	"github.com/millrace-db/millrace/internal/mend"
	"github.com/millrace-db/millrace/internal/topic"
)

func (a *app) epochCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "epoch",
		Short: "Begin a new epoch of a stream, or show where its epochs are",
		Long: `Begin a new epoch of a stream, or show where its epochs are. A new epoch is the mend for all that only a
fresh copy can cure: a replication slot that was lost or dropped, a source that was restored to an older
state or failed over with a loss, a topic that is gone.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.epochNewCommand(), a.epochShowCommand())
	return cmd
}

// streamArg loads the configuration for a command about one stream that has a
// source: the one that is named, or the only one.
func (a *app) streamArg(cmd *cobra.Command, args []string) (*config.Config, *config.Stream, error) {
	if len(args) > 1 {
		return nil, nil, usage("%s takes the name of one stream; see %[1]s --help", cmd.CommandPath())
	}
	c, err := a.load()
	if err != nil {
		return nil, nil, err
	}
	name := ""
	if len(args) == 1 {
		name = args[0]
	}
	names, err := selected(c, name, c.Transfer.Streams)
	if err != nil {
		return nil, nil, err
	}
	if len(names) != 1 {
		return nil, nil, usage("%s has several streams; name one: %s %s", c.File, cmd.CommandPath(), strings.Join(names, "|"))
	}
	if err := errors.Join(c.NeedSource(names), c.NeedKafka(names)); err != nil {
		return nil, nil, err
	}
	return c, c.Stream(names[0]), nil
}

func (a *app) epochNewCommand() *cobra.Command {
	var dry, yes, asJSON bool
	cmd := &cobra.Command{
		Use:   "new [STREAM]",
		Short: "Begin a new epoch of a stream: a new topic, and all tables copied anew",
		Long: `Begin a new epoch of a stream: it gets a new topic, its replication slot is dropped if it has one, and the next
millrace transfer copies all tables anew. Edges go on serving their old rows, copy the new ones beside them, and go
over at once when the copy is complete; nothing has to be done there, and they need disk for both until then.

millrace transfer must be stopped first, and started again afterwards. What it did before it was ended, if it
was, is found and used by the next run. Old topics are left: delete them when no edge needs them any more.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, s, err := a.streamArg(cmd, args)
			if err != nil {
				return err
			}
			r := &renewal{app: a, c: c, stream: s, dry: dry, yes: yes, out: a.stdout}
			if asJSON {
				r.out = io.Discard
			}
			plan, err := r.run(cmd.Context())
			if err != nil || !asJSON {
				return mend.Error(s.Name, err)
			}
			encoder := json.NewEncoder(a.stdout)
			encoder.SetIndent("", "  ")
			return encoder.Encode(plan)
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "say what would be done, with its SQL, and do nothing")
	cmd.Flags().BoolVar(&yes, "yes", false, "do it without asking")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// epochPlan is what a new epoch changes; in JSON it is the answer of epoch new.
type epochPlan struct {
	Stream    string `json:"stream"`
	StreamID  string `json:"stream_id"`
	FromEpoch uint64 `json:"from_epoch"`
	FromTopic string `json:"from_topic"`
	Epoch     uint64 `json:"epoch"`
	Topic     string `json:"topic"`
	TopicID   string `json:"topic_id,omitempty"`
	// Slot is empty where capture needs none.
	Slot string `json:"slot,omitempty"`
	// Begun tells that the registry's epoch has nothing in it yet: it is the new
	// one, begun by an earlier run.
	Begun bool `json:"begun_before"`
	// Reused tells that the topic was there, empty.
	Reused bool `json:"topic_reused"`
	// Passed are topics of later epochs than the registry knows that hold
	// records; they are left alone.
	Passed []string `json:"topics_passed"`
	DryRun bool     `json:"dry_run"`

	from control.Stream
	// old says what is wrong with the old topic, if anything.
	old string
}

// to is the registry's row of the new epoch.
func (p *epochPlan) to() control.Stream {
	to := p.from
	to.Epoch, to.Topic, to.TopicID, to.Slot = millrace.Epoch(p.Epoch), p.Topic, p.TopicID, p.Slot
	return to
}

// renewal begins a new epoch of a stream. Each step may be the last one of a run
// that is cut off: what it did is found by the next. Up to the change of the
// registry the old epoch can go on as if nothing had been; after it, nothing that
// is left to do is needed for the new one.
type renewal struct {
	*app
	c        *config.Config
	stream   *config.Stream
	dry, yes bool
	out      io.Writer
}

func (r *renewal) say(format string, args ...any) { fmt.Fprintf(r.out, format+"\n", args...) }

func (r *renewal) run(ctx context.Context) (plan *epochPlan, err error) {
	err = withSource(ctx, r.stream.AsOwner(), func(conn *pgx.Conn) error {
		if plan, err = r.plan(ctx, conn); err != nil {
			return err
		}
		r.show(plan)
		if r.dry {
			return r.rehearse(ctx, conn, plan)
		}
		if err := r.confirm(plan); err != nil {
			return err
		}
		return r.begin(ctx, conn, plan)
	})
	return plan, err
}

// plan decides which epoch is next, and changes nothing.
func (r *renewal) plan(ctx context.Context, conn *pgx.Conn) (*epochPlan, error) {
	from, err := control.LoadStream(ctx, conn, r.stream.Name)
	if errors.Is(err, control.ErrNoStream) || errors.Is(err, control.ErrNotInitialised) {
		return nil, operator("stream %s is not registered at its source; mend: millrace init; if the stream had a registry there and it was lost, set streams.%[1]s.id to the stream's ID first, so that it stays the same stream", r.stream.Name)
	}
	if err != nil {
		return nil, err
	}
	if err := sameStream(r.stream, from); err != nil {
		return nil, err
	}
	p := &epochPlan{
		Stream: from.Name, StreamID: from.ID.String(), FromEpoch: uint64(from.Epoch), FromTopic: from.Topic,
		Epoch: uint64(from.Epoch), Slot: from.Slot, Passed: []string{}, DryRun: r.dry, from: from,
	}
	log := r.logger(r.c)
	topics, err := epochTopics(ctx, r.stream, log)
	if err != nil {
		return nil, err
	}
	p.old = "it is gone"
	for _, t := range topics {
		switch {
		case t.epoch == from.Epoch && t.info.ID != from.TopicID:
			p.old = "it was deleted and made again"
		case t.epoch == from.Epoch:
			p.old = ""
			p.Begun = t.info.End == 0
		case t.epoch > from.Epoch && t.info.End > 0:
			p.Epoch = max(p.Epoch, uint64(t.epoch))
			p.Passed = append(p.Passed, t.name)
		}
	}
	if p.Begun = p.Begun && len(p.Passed) == 0; p.Begun {
		p.Topic, p.TopicID = from.Topic, from.TopicID
		return p, nil
	}
	p.Epoch++
	p.Topic = topic.EpochName(r.stream.Kafka.Topic, millrace.Epoch(p.Epoch))
	for _, t := range topics {
		if t.name == p.Topic {
			p.Reused, p.TopicID = true, t.info.ID
		}
	}
	return p, r.chooseSlot(ctx, p)
}

// chooseSlot takes another name for the slot where somebody else has taken ours.
func (r *renewal) chooseSlot(ctx context.Context, p *epochPlan) error {
	capture, err := newCapture(r.stream, p.from, r.logger(r.c), nil)
	if err != nil {
		return err
	}
	slots, ok := capture.(slotted)
	if !ok {
		return nil
	}
	foreign, err := slots.ForeignSlot(ctx)
	if err != nil || !foreign {
		return err
	}
	p.Slot = control.DefaultSlot(r.stream.Name) + "_" + p.StreamID[:8]
	if p.Slot == p.from.Slot {
		return operator("slot %s of stream %s is somebody else's; mend: drop it if nobody needs it, SELECT pg_drop_replication_slot('%[1]s')", p.Slot, p.Stream)
	}
	return nil
}

// show says to a person what the plan is.
func (r *renewal) show(p *epochPlan) {
	if p.Begun {
		r.say("stream %s: epoch %d in topic %s is new: nothing was published in it yet", p.Stream, p.Epoch, p.Topic)
		return
	}
	r.say("stream %s: epoch %d in topic %s follows epoch %d in topic %s", p.Stream, p.Epoch, p.Topic, p.FromEpoch, p.FromTopic)
	if p.old != "" {
		r.say("  topic %s: %s", p.FromTopic, p.old)
	}
	for _, name := range p.Passed {
		r.say("  topic %s holds records of a later epoch than the registry knows: it is left alone, and its epoch is not used again", name)
	}
	if p.Reused {
		r.say("  topic %s is there already, empty", p.Topic)
	}
	if p.from.Slot != "" {
		r.say("  the replication slot %s is dropped; the next millrace transfer makes it anew and copies all tables", p.from.Slot)
	} else {
		r.say("  the logs of keys stay; the next millrace transfer copies all tables")
	}
	r.say("  edges serve their old rows until the copy is complete, and need disk for both until then")
}

// rehearse says what begin would do.
func (r *renewal) rehearse(ctx context.Context, conn *pgx.Conn, p *epochPlan) error {
	u := &setup{stream: r.stream.AsOwner(), log: r.logger(r.c), out: r.out, dry: true}
	if err := u.schema(ctx, conn); err != nil {
		return err
	}
	if err := u.capture(ctx, p.from); err != nil {
		return err
	}
	if !p.Begun && !p.Reused {
		t, err := lineage.OpenTopic(ctx, r.stream, p.Topic, r.logger(r.c))
		if err != nil {
			return err
		}
		defer func() { _ = t.Close() }() // nothing is appended
		if _, err := u.createTopic(ctx, t); err != nil {
			return err
		}
	}
	if !p.Begun {
		u.say("-- registry\nUPDATE millrace.stream SET epoch = %d, topic = '%s', topic_id = the topic's ID, slot = %s\n    WHERE name = '%s' AND epoch = %d;",
			p.Epoch, p.Topic, orNull(p.Slot), p.Stream, p.FromEpoch)
	}
	if p.from.Slot == "" {
		return nil
	}
	u.say("-- slot\nSELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '%s';", p.from.Slot)
	return nil
}

// confirm asks whoever sits at the terminal.
func (r *renewal) confirm(p *epochPlan) error {
	if r.yes || p.Begun {
		return nil
	}
	in, ok := r.stdin.(*os.File)
	if !ok || !terminal(in) || !isTerminal(r.stdout) {
		return usage("epoch new copies all tables of stream %s anew; say --yes if that is meant, or --dry-run to see what it does", p.Stream)
	}
	fmt.Fprintf(r.stdout, "Begin epoch %d of stream %s? [y/N] ", p.Epoch, p.Stream)
	if !agreed(in) {
		return operator("epoch %d of stream %s was not begun: nothing was changed", p.Epoch, p.Stream)
	}
	return nil
}

// agreed reads the answer to a question.
func agreed(in io.Reader) bool {
	answer, _ := bufio.NewReader(in).ReadString('\n') // no answer is no
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return true
	}
	return false
}

// begin does what the plan says, under the stream's hold.
func (r *renewal) begin(ctx context.Context, conn *pgx.Conn, p *epochPlan) (err error) {
	hold, err := r.hold(ctx, conn)
	if err != nil {
		return err
	}
	defer func() {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
		defer cancel()
		_ = hold.Close(limited) // it ends with its session at the latest
	}()
	if p.Begun {
		return r.dropSlot(ctx, p)
	}
	// Tables and publication are made fit here, because init refuses a stream
	// whose topic is lost.
	u := &setup{stream: r.stream.AsOwner(), log: r.logger(r.c), out: r.out}
	if err := u.schema(ctx, conn); err != nil {
		return err
	}
	if err := u.capture(ctx, p.from); err != nil {
		return err
	}
	if err := r.check(ctx, p); err != nil {
		return err
	}
	failpoint.Hit("epoch-checked")
	if err := r.topic(ctx, u, p); err != nil {
		return err
	}
	failpoint.Hit("epoch-topic")
	select {
	case <-hold.Lost():
		return operator("the hold of stream %s was lost before epoch %d was begun: nothing was changed but that topic %s is there; run it again", p.Stream, p.Epoch, p.Topic)
	default:
	}
	if err := control.BeginEpoch(ctx, conn, p.from, p.to()); err != nil {
		return err
	}
	r.say("stream %s: epoch %d is begun in topic %s", p.Stream, p.Epoch, p.Topic)
	failpoint.Hit("epoch-registered")
	return r.dropSlot(ctx, p)
}

// check refuses a source from which nothing could be copied.
func (r *renewal) check(ctx context.Context, p *epochPlan) error {
	capture, err := newCapture(r.stream, p.from, r.logger(r.c), nil)
	if err != nil {
		return err
	}
	found, err := capture.CheckAnew(ctx)
	if err != nil {
		return err
	}
	if err := finding.Error(found); err != nil {
		return &operatorError{fmt.Errorf("source of stream %s: %w", p.Stream, err)}
	}
	for _, f := range found {
		r.say("%s: %s", f.Level, mend.OneLine(f.String()))
	}
	return nil
}

// topic makes the new topic, or takes the one that an earlier run has made.
func (r *renewal) topic(ctx context.Context, u *setup, p *epochPlan) error {
	t, err := lineage.OpenTopic(ctx, r.stream, p.Topic, r.logger(r.c))
	if err != nil {
		return err
	}
	defer func() { _ = t.Close() }() // nothing is appended
	info, err := t.Info(ctx)
	switch {
	case errors.Is(err, topic.ErrNoTopic):
		if info, err = u.createTopic(ctx, t); err != nil {
			return err
		}
	case err != nil:
		return err
	case info.End > 0:
		return operator("topic %s has got records meanwhile; run it again to take the next one", p.Topic)
	}
	found, err := t.Check(ctx)
	if err != nil {
		return err
	}
	if err := finding.Error(found); err != nil {
		return &operatorError{err}
	}
	p.TopicID = info.ID
	return nil
}

// dropSlot drops the old epoch's slot: what it holds back is of no use any more,
// and a publisher of the old epoch that has not noticed gets no further.
func (r *renewal) dropSlot(ctx context.Context, p *epochPlan) error {
	capture, err := newCapture(r.stream, p.from, r.logger(r.c), nil)
	if err != nil {
		return err
	}
	if slots, ok := capture.(slotted); ok {
		dropped, err := slots.DropSlot(ctx)
		if err != nil {
			return fmt.Errorf("epoch %d of stream %s is begun, but its old slot is left, which millrace transfer drops too: %w", p.Epoch, p.Stream, err)
		}
		if dropped {
			r.say("slot %s: dropped", p.from.Slot)
		}
	}
	r.say("start millrace transfer; millrace status shows the copy, and edges go over by themselves when it is complete")
	return nil
}

// holdPatience is how long a publisher that has just been stopped may take to let
// go.
const holdPatience = 3 * time.Second

// hold takes the stream, or says who has it.
func (r *renewal) hold(ctx context.Context, conn *pgx.Conn) (*control.Hold, error) {
	lease := duration(r.c.Transfer.Lease)
	holder, err := control.LookHolder(ctx, conn, r.stream.Name)
	if err != nil {
		return nil, err
	}
	patience := holdPatience
	if holder != nil && holder.Silent > lease/2 {
		patience += lease // it shows no life; if it is dead its hold can be had then
	}
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var me millrace.PublisherID
	if _, err := rand.Read(me[:]); err != nil {
		return nil, fmt.Errorf("make publisher ID: %w", err)
	}
	hold, err := control.AcquireHold(limited, r.stream.Source.URL.Reveal(), r.stream.Name, me, lease, r.logger(r.c))
	if err == nil || limited.Err() == nil || ctx.Err() != nil {
		return hold, err
	}
	if holder, lookErr := control.LookHolder(ctx, conn, r.stream.Name); lookErr == nil && holder != nil {
		return nil, operator("stream %s is being published by publisher %s (server process %d); mend: stop millrace transfer on every host where it publishes this stream, then run this again",
			r.stream.Name, holder.Publisher, holder.PID)
	}
	return nil, err
}

// epochTopic is a topic of one of a stream's epochs.
type epochTopic struct {
	epoch millrace.Epoch
	name  string
	info  topic.Info
}

// epochTopics looks at all topics that have the name of an epoch of the stream, in
// the order of their epochs.
func epochTopics(ctx context.Context, s *config.Stream, log *slog.Logger) ([]epochTopic, error) {
	finder, err := topic.NewFinder(topic.Config{Brokers: s.Kafka.Brokers, Topic: s.Kafka.Topic, ClientID: "millrace-" + s.Name, Logger: log})
	if err != nil {
		return nil, err
	}
	defer finder.Close()
	epochs, err := finder.All(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot reach Kafka at %s: %w; are the brokers running, and is streams.%s.kafka.brokers right?", strings.Join(s.Kafka.Brokers, ", "), err, s.Name)
	}
	var all []epochTopic
	for _, epoch := range epochs {
		name := topic.EpochName(s.Kafka.Topic, epoch)
		t, err := lineage.OpenTopic(ctx, s, name, log)
		if err != nil {
			return nil, err
		}
		info, err := t.Info(ctx)
		_ = t.Close() // nothing was appended
		if errors.Is(err, topic.ErrNoTopic) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, epochTopic{epoch, name, info})
	}
	return all, nil
}
