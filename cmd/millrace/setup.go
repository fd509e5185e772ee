package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/control"
	"github.com/millrace-db/millrace/internal/edgestatus"
	"github.com/millrace-db/millrace/internal/finding"
	"github.com/millrace-db/millrace/internal/lineage"
	"github.com/millrace-db/millrace/internal/mend"
	"github.com/millrace-db/millrace/internal/topic"
)

// setup makes, or with dry prints, what a stream needs at its source and in
// Kafka. It is idempotent: what is there and fits stays.
type setup struct {
	stream *config.Stream
	log    *slog.Logger
	out    io.Writer // a line for each thing that is made
	dry    bool
}

func (u *setup) say(format string, args ...any) { fmt.Fprintf(u.out, format+"\n", args...) }

// run returns the stream's row in the registry; with dry the one that it would
// get.
func (u *setup) run(ctx context.Context) (control.Stream, error) {
	var registered control.Stream
	err := withSource(ctx, u.stream, func(conn *pgx.Conn) (err error) {
		registered, err = u.all(ctx, conn)
		return err
	})
	return registered, mend.Error(u.stream.Name, err)
}

func (u *setup) all(ctx context.Context, conn *pgx.Conn) (control.Stream, error) {
	registered, err := u.streamIn(ctx, conn)
	if err != nil {
		return control.Stream{}, err
	}
	return registered, u.reportTopic(ctx)
}

// reportTopic makes the topic that the edges report to. A stream goes on without
// one, so one that is there and does not fit is only told of.
func (u *setup) reportTopic(ctx context.Context) error {
	t, err := lineage.OpenTopic(ctx, u.stream, edgestatus.TopicOf(u.stream.Kafka.Topic), u.log)
	if err != nil {
		return err
	}
	defer func() { _ = t.Close() }() // nothing is appended
	if !u.dry {
		replicas, err := createTopic(ctx, u.stream.Kafka.Replicas, t.CreateCompacted)
		if err == nil {
			u.say("topic %s: made with %d replicas, compacted, for what edges report", t.Name(), replicas)
		}
		if !errors.Is(err, topic.ErrTopicExists) {
			return err
		}
	}
	found, err := t.CheckCompacted(ctx)
	if errors.Is(err, topic.ErrNoTopic) && u.dry {
		u.say("-- Kafka topic %s: 1 partition, compacted, for what edges report of themselves", t.Name())
		return nil
	}
	for _, f := range found {
		u.log.Warn("the topic that edges report to is not as it should be", "stream", u.stream.Name, "topic", t.Name(), "found", f.Text, "mend", f.Mend)
	}
	return err
}

func (u *setup) streamIn(ctx context.Context, conn *pgx.Conn) (control.Stream, error) {
	registered, err := control.LoadStream(ctx, conn, u.stream.Name)
	known := err == nil
	if err != nil && !errors.Is(err, control.ErrNoStream) && !errors.Is(err, control.ErrNotInitialised) {
		return control.Stream{}, err
	}
	if known {
		if err := sameStream(u.stream, registered); err != nil {
			return control.Stream{}, err
		}
	}
	// What can be refused is refused before anything is made.
	if !known {
		if registered.Epoch, err = u.newEpoch(ctx); err != nil {
			return control.Stream{}, err
		}
	}
	t, err := lineage.OpenTopic(ctx, u.stream, topic.EpochName(u.stream.Kafka.Topic, registered.Epoch), u.log)
	if err != nil {
		return control.Stream{}, err
	}
	defer func() { _ = t.Close() }() // nothing is appended
	info, create, err := u.lookAtTopic(ctx, t, registered, known)
	if err != nil {
		return control.Stream{}, err
	}
	if err := u.reach(ctx, registered); err != nil {
		return control.Stream{}, err
	}
	if err := u.schema(ctx, conn); err != nil {
		return control.Stream{}, err
	}
	if err := u.capture(ctx, registered); err != nil {
		return control.Stream{}, err
	}
	if create {
		if info, err = u.createTopic(ctx, t); err != nil {
			return control.Stream{}, err
		}
	}
	if known {
		u.say("stream %s is registered with ID %v, topic %s", registered.Name, registered.ID, registered.Topic)
		return registered, nil
	}
	return u.register(ctx, conn, registered.Epoch, t.Name(), info)
}

// newEpoch is the epoch of a stream that has no registry: 1, or, where one whose
// ID the configuration names had one, that after all that have a topic. Edges that
// have the stream go over to it.
func (u *setup) newEpoch(ctx context.Context) (millrace.Epoch, error) {
	topics, err := epochTopics(ctx, u.stream, u.log)
	if err != nil {
		return 0, err
	}
	for i := len(topics) - 1; i >= 0; i-- {
		newest := &topics[i]
		if newest.info.End == 0 {
			continue
		}
		t, err := lineage.OpenTopic(ctx, u.stream, newest.name, u.log)
		if err != nil {
			return 0, err
		}
		defer func() { _ = t.Close() }() // nothing is appended
		if err := u.occupied(ctx, t, newest.info); err != nil {
			return 0, err
		}
		u.say("topic %s holds epoch %v of this stream, whose registry is gone: the stream goes on with epoch %v, and its tables are copied anew", newest.name, newest.epoch, newest.epoch+1)
		return newest.epoch + 1, nil
	}
	return 1, nil
}

// orNull is a name as an SQL text shows it to a person.
func orNull(name string) string {
	if name == "" {
		return "NULL"
	}
	return "'" + name + "'"
}

// sameStream compares the configuration with the registry.
func sameStream(s *config.Stream, r control.Stream) error {
	wanted := topic.EpochName(s.Kafka.Topic, r.Epoch)
	switch {
	case r.Topic != wanted:
		return operator("stream %s is registered with topic %s, and streams.%[1]s.kafka.topic says %[3]s; put the configuration back", s.Name, r.Topic, s.Kafka.Topic)
	case r.Capture != s.Source.Capture:
		return operator("stream %s is registered with capture %s, and streams.%[1]s.source.capture says %[3]s; put the configuration back", s.Name, r.Capture, s.Source.Capture)
	case s.ID != "" && s.ID != r.ID.String():
		return operator("stream %s has ID %v at its source, and streams.%[1]s.id says %[3]s; correct the configuration", s.Name, r.ID, s.ID)
	}
	return nil
}

// lookAtTopic refuses a topic that cannot be this stream's.
func (u *setup) lookAtTopic(ctx context.Context, t *topic.Topic, registered control.Stream, known bool) (info topic.Info, create bool, err error) {
	info, err = t.Info(ctx)
	if errors.Is(err, topic.ErrNoTopic) {
		if known {
			return info, false, operator("topic %s of stream %s is gone: it was deleted, and with it the stream's history; mend: %s", registered.Topic, registered.Name, mend.EpochCommand(registered.Name))
		}
		return info, true, nil
	}
	if err != nil {
		return info, false, err
	}
	if err := sameTopic(registered, known, info); err != nil {
		return info, false, err
	}
	found, err := t.Check(ctx)
	if err != nil {
		return info, false, err
	}
	if err := finding.Error(found); err != nil {
		return info, false, &operatorError{err}
	}
	for _, f := range found {
		u.log.Warn("the topic is less safe than it could be", "stream", u.stream.Name, "topic", t.Name(), "found", f.Text, "mend", f.Mend)
	}
	return info, false, nil
}

// occupied says whose records are in a topic that should be empty; nil if they are
// of the stream that the configuration names.
func (u *setup) occupied(ctx context.Context, t *topic.Topic, info topic.Info) error {
	const mend = "; name another topic in streams.%s.kafka.topic, or delete this one if nothing needs it"
	id, ok, err := lineage.IdentityOf(ctx, t, info)
	if err == nil && !ok && u.stream.ID != "" {
		return nil // emptied, and the configuration names the stream
	}
	if millrace.NeedsOperator(err) {
		return operator("topic %s holds %d records that are none of millrace's"+mend, t.Name(), info.End-info.Start, u.stream.Name)
	}
	if err != nil {
		return err
	}
	if u.stream.ID != "" && u.stream.ID == id.Stream.String() {
		return nil
	}
	return operator("topic %s holds the records of another stream, or of an earlier one of this name (ID %v)"+mend+
		"; if it is this stream and its registry was lost, set streams.%[3]s.id to that ID: it then goes on with a new epoch", t.Name(), id.Stream, u.stream.Name)
}

// sameTopic refuses a topic that was deleted and made again.
func sameTopic(registered control.Stream, known bool, info topic.Info) error {
	if known && registered.TopicID != info.ID {
		return operator("topic %s has ID %s, and stream %s was registered with %s: it was deleted and made again, or the brokers are another cluster's; mend: correct kafka.brokers, or %s",
			registered.Topic, info.ID, registered.Name, registered.TopicID, mend.EpochCommand(registered.Name))
	}
	return nil
}

func (u *setup) schema(ctx context.Context, conn *pgx.Conn) error {
	pending, err := control.Pending(ctx, conn)
	if err != nil {
		return err
	}
	for _, m := range pending {
		if u.dry {
			u.say("-- control schema, file %s\n%s", m.Name, strings.TrimSpace(m.SQL))
		} else {
			u.say("control schema: run %s", m.Name)
		}
	}
	if u.dry {
		return nil
	}
	return control.Migrate(ctx, conn)
}

// reach refuses a source that no stream can be captured from, such as one behind
// a connection pooler.
func (u *setup) reach(ctx context.Context, registered control.Stream) error {
	if u.dry {
		return nil // what is found is printed in its place
	}
	c, err := newCapture(u.stream, registered, u.log, nil)
	if err != nil {
		return err
	}
	return c.Reach(ctx)
}

// capture makes what capture needs at the source.
func (u *setup) capture(ctx context.Context, registered control.Stream) error {
	c, err := newCapture(u.stream, registered, u.log, nil)
	if err != nil {
		return err
	}
	if !u.dry {
		if err := c.Install(ctx); err != nil {
			return err
		}
		u.say("%s", c.installed())
		return nil
	}
	found, err := c.Check(ctx)
	if err != nil {
		return err
	}
	text, err := c.installSQL(ctx)
	if err != nil {
		return err
	}
	u.say("%s", text)
	for _, f := range found {
		u.say("-- %s: %s", f.Level, mend.OneLine(f.String()))
	}
	return nil
}

func (u *setup) createTopic(ctx context.Context, t *topic.Topic) (topic.Info, error) {
	if u.dry {
		u.say("-- Kafka topic %s: 1 partition, %d replicas, cleanup.policy=delete, retention.ms=-1, retention.bytes=-1,\n--   message.timestamp.type=LogAppendTime, max.message.bytes=%d",
			t.Name(), u.stream.Kafka.Replicas, topic.MaxMessage)
		return topic.Info{}, nil
	}
	replicas, err := createTopic(ctx, u.stream.Kafka.Replicas, t.Create)
	if err != nil {
		return topic.Info{}, err
	}
	u.say("topic %s: made with %d replicas", t.Name(), replicas)
	return t.Info(ctx)
}

// createTopic returns how many replicas the topic got: a cluster of fewer brokers
// gives what it can, and check warns of it.
func createTopic(ctx context.Context, replicas int, create func(ctx context.Context, replicas int) error) (int, error) {
	for ; ; replicas-- {
		err := create(ctx, replicas)
		if err == nil || !errors.Is(err, topic.ErrFewBrokers) || replicas == 1 {
			return replicas, err
		}
	}
}

// slotElsewhere looks for a slot of the name that is another database's: slots
// are named for the whole cluster.
const slotElsewhere = `
SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND database IS DISTINCT FROM current_database())`

// chooseNames gives a new stream an ID and, where capture needs them, the usual
// names; where a stream of the same name in another database has the slot, one
// named after that ID.
func (u *setup) chooseNames(ctx context.Context, conn *pgx.Conn, s *control.Stream) error {
	if s.ID.IsZero() {
		if _, err := rand.Read(s.ID[:]); err != nil {
			return fmt.Errorf("make stream ID: %w", err)
		}
	}
	if s.Capture != control.CaptureWAL {
		return nil
	}
	s.Publication, s.Slot = control.DefaultPublication(s.Name), control.DefaultSlot(s.Name)
	var taken bool
	if err := conn.QueryRow(ctx, slotElsewhere, s.Slot).Scan(&taken); err != nil {
		return fmt.Errorf("look for slots of the name %s: %w", s.Slot, err)
	}
	if taken {
		s.Slot += "_" + s.ID.String()[:8]
	}
	return nil
}

func (u *setup) register(ctx context.Context, conn *pgx.Conn, epoch millrace.Epoch, name string, info topic.Info) (control.Stream, error) {
	s := control.Stream{
		Name: u.stream.Name, Epoch: epoch, Capture: u.stream.Source.Capture, Topic: name, TopicID: info.ID,
	}
	if u.stream.ID != "" {
		// The configuration has checked it.
		s.ID, _ = millrace.ParseStreamID(u.stream.ID)
	}
	if err := u.chooseNames(ctx, conn, &s); err != nil {
		return control.Stream{}, err
	}
	if u.dry {
		u.say("-- registry\nINSERT INTO millrace.stream (name, id, epoch, capture, topic, topic_id, publication, slot)\n    VALUES ('%s', a random UUID, %d, '%s', '%s', the topic's ID, %s, %s);",
			s.Name, s.Epoch, s.Capture, s.Topic, orNull(s.Publication), orNull(s.Slot))
		if s.Slot != "" {
			u.say("-- the replication slot %s is made by the first start of millrace transfer, with the first copy", s.Slot)
		}
		return s, nil
	}
	registered, err := control.CreateStream(ctx, conn, s)
	if err != nil {
		return control.Stream{}, err
	}
	// Another init may have been quicker.
	if err := sameTopic(registered, true, info); err != nil {
		return control.Stream{}, err
	}
	u.say("stream %s: registered with ID %v", registered.Name, registered.ID)
	return registered, nil
}
