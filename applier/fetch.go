package applier

import (
	"context"
	"errors"
	"fmt"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
)

// errRefetch marks an error of a record that may have been damaged, or left out,
// on its way. Reading it a second time tells.
var errRefetch = errors.New("read twice")

// fetcher reads records and folds them.
type fetcher struct {
	config  *Config
	metrics *metrics
	// fold is nil until the first record of a new store has said which stream
	// this is.
	fold *millrace.Fold
	// after is the checkpoint behind which is read; nil reads from the first record.
	after *millrace.Checkpoint
	topic string
	// loading tells that the checkpoint has loads under way.
	loading bool
	// refill is the store's checkpoint while what is read is for the log alone.
	refill  *millrace.Checkpoint
	planted planted
}

// start takes the place from the store.
func (f *fetcher) start(ctx context.Context) error {
	var c *millrace.Checkpoint
	err := f.config.Store.View(ctx, func(v *edge.View) (err error) {
		c, err = v.Checkpoint()
		return err
	})
	if err != nil {
		return fmt.Errorf("read checkpoint: %w", err)
	}
	if c == nil {
		return nil
	}
	if f.config.Epoch != 0 && c.Epoch != f.config.Epoch {
		return fmt.Errorf("%w: store %s holds epoch %v, wanted is %v; mend: move the directory away and start the edge again, it fills a new store from the topic",
			ErrOtherEpoch, f.config.Store.Dir(), c.Epoch, f.config.Epoch)
	}
	f.loading = len(c.Catalog.Loads) > 0
	from := c
	if f.config.Log != nil {
		if from = f.config.Log.Start(c); from.Index != c.Index {
			f.refill = c
			f.config.Logger.Info("the log lacks records that the store has; they are read again", "index", from.Index, "want", c.Index)
		}
	}
	f.fold, f.after, f.topic = millrace.FoldFrom(from), from, c.TopicID
	f.fold.Hold(f.config.Store.Filter())
	return nil
}

// offset is that of the record behind which is read.
func (f *fetcher) offset() millrace.Offset { return OffsetOf(f.after) }

// OffsetOf is the offset of the record that a checkpoint names, NoOffset without one.
func OffsetOf(c *millrace.Checkpoint) millrace.Offset {
	if c == nil {
		return millrace.NoOffset
	}
	return c.Offset
}

// meet checks that the source is the topic of the checkpoint.
func (f *fetcher) meet(src Source) error {
	id := src.TopicID()
	if f.topic != "" && id != f.topic {
		return fmt.Errorf("%w: the store was filled from topic ID %s, this one has %s; mend: if the topic was deleted and made again, millrace epoch new STREAM; if the brokers are the wrong ones, correct the configuration",
			ErrOtherTopic, f.topic, id)
	}
	f.topic = id
	return nil
}

// run reads until the source or the fold gives an error, or ctx ends.
func (f *fetcher) run(ctx context.Context, src Source, q *queue) error {
	for {
		offset, value, err := src.Next(ctx)
		if err != nil {
			return fmt.Errorf("read source: %w", err)
		}
		w, err := f.take(offset, value)
		if err != nil {
			return err
		}
		if w == nil {
			continue
		}
		if err := q.push(ctx, w); err != nil {
			return err
		}
	}
}

// take folds one record, and returns what the writer has to do, if anything.
func (f *fetcher) take(offset millrace.Offset, value []byte) (*work, error) {
	r, err := millrace.DecodeRecord(value, nil)
	if err != nil {
		return nil, fmt.Errorf("record at offset %v: %w: %w; mend: millrace tail shows it; if the topic itself is damaged, millrace epoch new STREAM", offset, errRefetch, err)
	}
	if err := f.begin(r); err != nil {
		return nil, fmt.Errorf("record at offset %v: %w", offset, err)
	}
	if err := f.config.Trusted.Check(r, f.fold.Next()); err != nil {
		return nil, fmt.Errorf("record at offset %v: %w; mend: find out who writes to the topic; if the publisher has a new key, name it in signing.trusted here", offset, err)
	}
	if err := f.fromStart(r); err != nil {
		return nil, fmt.Errorf("record at offset %v: %w", offset, err)
	}
	f.planted.folding(f, r)
	unit := f.fold.Index()
	outcome, err := f.fold.Step(r)
	if err != nil {
		if errors.Is(err, millrace.ErrGap) || errors.Is(err, millrace.ErrUnknownTerm) || errors.Is(err, millrace.ErrMalformed) {
			err = fmt.Errorf("%w: %w", errRefetch, err)
		}
		return nil, fmt.Errorf("record at offset %v does not continue the history: %w; mend: millrace tail shows it and its neighbours", offset, err)
	}
	f.metrics.records.WithLabelValues(outcome.String()).Inc()
	w := &work{reign: outcome == millrace.Reign}
	switch {
	case outcome == millrace.Accepted:
		w.batch, w.unit, w.mode, w.weight = r, unit, r.Position.Mode, int64(len(value)+len(r.Payload))
	case w.reign:
	case outcome == millrace.Noted && f.config.Log != nil:
		w.weight = int64(len(value) + len(r.Payload))
	default:
		return nil, nil
	}
	if f.config.Log != nil {
		w.record, w.value, w.offset = r, value, offset
	}
	if w.batch != nil && !f.fold.Open() {
		c := f.fold.Checkpoint()
		c.TopicID, c.Offset = f.topic, offset
		w.at = &c
	}
	return w, f.refilled(w)
}

// fromStart refuses a source of which the beginning was trimmed, for a store that has
// nothing yet.
func (f *fetcher) fromStart(r *millrace.Record) error {
	if term, _ := f.fold.Term(); term != 0 || f.fold.Next() != 1 || r.Kind == millrace.RecordTerm || r.First <= 1 {
		return nil
	}
	return fmt.Errorf("%w: the store %s is empty, and the source begins at index %v; mend: name peers in edge.images.from, or make the store from an image (millrace image fetch, millrace image restore)",
		ErrSourceGone, f.config.Store.Dir(), r.First)
}

// refilled tells whether the store has a batch already, and ends the filling up of the
// log where it has come to the store's checkpoint.
func (f *fetcher) refilled(w *work) error {
	if f.refill == nil || w.batch == nil {
		return nil
	}
	w.refill = true
	c := f.refill
	switch last := w.batch.Last(); {
	case last < c.Index:
		return nil
	case last == c.Index && f.fold.Chain() == c.Chain && !f.fold.Open():
		f.refill = nil
		return nil
	default:
		return fmt.Errorf("%w: batch %v to %v of chain %v does not end at the store's index %v chain %v",
			millrace.ErrDiverged, w.batch.First, last, w.batch.Chain.Short(), c.Index, c.Chain.Short())
	}
}

// begin makes the fold of a new store at the first record of its topic.
func (f *fetcher) begin(r *millrace.Record) error {
	if f.fold != nil {
		return nil
	}
	stream, epoch := f.config.Stream, f.config.Epoch
	if stream.IsZero() {
		stream = f.config.Store.Stream()
	}
	if stream.IsZero() {
		stream = r.Stream
	}
	if epoch == 0 {
		epoch = r.Epoch
	}
	f.fold = millrace.NewFold(stream, epoch)
	f.fold.Hold(f.config.Store.Filter())
	if f.config.Log != nil {
		c := f.fold.Checkpoint()
		f.config.Log.Start(&c)
	}
	return nil
}
