package transfer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/control"
	"github.com/millrace-db/millrace/internal/finding"
	"github.com/millrace-db/millrace/internal/topic"
)

// errLostRace occurs when another publisher's term record came before ours.
var errLostRace = errors.New("another publisher was first to begin a term")

// mendLost is what is left to do when the topic is not what it was.
//
// STREAM stands for the stream's name, which whoever prints the error puts in.
const mendLost = "bring the topic back as it was, or begin a new epoch: millrace epoch new STREAM"

// witness is a place of the history that is known from outside the topic. A fold
// of the topic must come by it.
type witness struct {
	// by says who knows it.
	by     string
	topic  string // Kafka's identity of the topic
	index  millrace.Index
	chain  millrace.Chain
	offset millrace.Offset
	met    bool
}

// history is a topic folded to some place.
type history struct {
	fold    *millrace.Fold
	trusted *millrace.Keyring
	// complete is the offset of the record that ended the newest complete unit,
	// state that of the newest accepted state record; NoOffset if there is none.
	complete, state millrace.Offset
	// stateIndex and stateBytes are the index that the newest state record stands
	// behind, and the bytes of the records that were read before it; bytes are those of
	// all that were read, which began at offset from.
	stateIndex        millrace.Index
	stateBytes, bytes uint64
	from              millrace.Offset
}

// step takes the next message in.
func (h *history) step(m *topic.Message, buf []byte) (*millrace.Record, millrace.Outcome, error) {
	record, err := millrace.DecodeRecord(m.Value, buf)
	if err != nil {
		return nil, 0, fmt.Errorf("record at offset %v: %w", m.Offset, err)
	}
	if err := h.trusted.Check(record, h.fold.Next()); err != nil {
		return nil, 0, fmt.Errorf("record at offset %v: %w", m.Offset, err)
	}
	outcome, err := h.fold.Step(record)
	if err != nil {
		return nil, 0, fmt.Errorf("record at offset %v: %w", m.Offset, err)
	}
	switch {
	case outcome == millrace.Noted:
		h.state, h.stateIndex, h.stateBytes = m.Offset, h.fold.Index(), h.bytes
	case outcome == millrace.Accepted && !h.fold.Open():
		h.complete = m.Offset
	}
	h.bytes += uint64(len(m.Value))
	return record, outcome, nil
}

// examine refuses a topic that is not the stream's or could not keep it.
func (t *Transfer) examine(ctx context.Context, log Log) (topic.Info, error) {
	stop := func(err error) error { return fmt.Errorf("%w: %w", millrace.ErrStop, err) }
	info, err := log.Info(ctx)
	if errors.Is(err, topic.ErrNoTopic) {
		return info, stop(err)
	}
	if err != nil {
		return info, err
	}
	s := &t.config.Stream
	if info.ID != s.TopicID {
		return info, stop(fmt.Errorf("topic %s has the ID %s, and stream %s is in %s: it was deleted and made again, or copied: %s", s.Topic, info.ID, s.Name, s.TopicID, mendLost))
	}
	found, err := log.Check(ctx)
	if err != nil {
		return info, err
	}
	if err := finding.Error(found); err != nil {
		return info, stop(err)
	}
	if !t.warned {
		for _, f := range found {
			t.log.Warn("topic is less safe than it could be", "subject", f.Subject, "finding", f.Text, "mend", f.Mend)
		}
		t.warned = true
	}
	return info, nil
}

// recover folds the topic to its end, from the state record that the ledger
// attests or from the topic's start, and holds the result against what ledger
// and process know. The reader stands behind the last record that was folded.
func (t *Transfer) recover(ctx context.Context, log Log, ledger Ledger) (_ *history, _ *topic.Reader, err error) {
	// The ledger is read first: a publisher that does not know yet that it is
	// fenced may add to both, and the topic is never behind its ledger.
	row, err := ledger.Newest(ctx)
	if err != nil {
		return nil, nil, err
	}
	info, err := t.examine(ctx, log)
	if err != nil {
		return nil, nil, err
	}
	witnesses := t.witnesses(row)
	if err := checkEnd(&t.config.Stream, &info, witnesses); err != nil {
		return nil, nil, err
	}
	from, err := startOf(&t.config.Stream, &info, row)
	if err != nil {
		return nil, nil, cmp.Or(movedOn(ctx, ledger, row), err)
	}
	reader, err := log.Read(ctx, from)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			reader.Close()
		}
	}()
	h := &history{fold: millrace.NewFold(t.config.Stream.ID, t.config.Stream.Epoch), trusted: t.config.Trusted, complete: millrace.NoOffset, state: millrace.NoOffset}
	if row != nil && row.StateOffset != millrace.NoOffset {
		if h, err = t.fromState(ctx, reader, row); err != nil {
			return nil, nil, err
		}
	}
	if err := meet(h, witnesses, true); err != nil {
		return nil, nil, err
	}
	for {
		m, err := reader.Until(ctx, info.End)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, nil, err
		}
		if _, _, err := h.step(&m, nil); err != nil {
			return nil, nil, err
		}
		if err := meet(h, witnesses, false); err != nil {
			return nil, nil, err
		}
	}
	for _, w := range witnesses {
		if !w.met {
			return nil, nil, fmt.Errorf("%w: topic %s ends with index %v, and %s knows that it went on to %v: records were lost (an unclean election, a restored disk): %s",
				millrace.ErrStop, t.config.Stream.Topic, h.fold.Index(), w.by, w.index, mendLost)
		}
	}
	return h, reader, nil
}

// witnesses are the ledger's newest row and what this process has accepted.
func (t *Transfer) witnesses(row *control.LedgerRow) []*witness {
	var all []*witness
	if row != nil {
		all = append(all, &witness{by: "the ledger in the source database", topic: row.TopicID, index: row.Last, chain: row.Chain, offset: row.LastOffset})
	}
	if t.seen != nil {
		w := *t.seen
		all = append(all, &w)
	}
	return all
}

// checkEnd refuses a topic that cannot hold what was seen in it.
func checkEnd(s *control.Stream, info *topic.Info, witnesses []*witness) error {
	for _, w := range witnesses {
		if w.topic != info.ID {
			return fmt.Errorf("%w: topic %s has the ID %s, and %s knows it as %s: it was deleted and made again, or copied: %s", millrace.ErrStop, s.Topic, info.ID, w.by, w.topic, mendLost)
		}
		if w.offset >= info.End {
			return fmt.Errorf("%w: topic %s ends before offset %v, and %s knows of a record at %v: records were lost or deleted: %s", millrace.ErrStop, s.Topic, info.End, w.by, w.offset, mendLost)
		}
	}
	return nil
}

// startOf decides where the fold begins.
func startOf(s *control.Stream, info *topic.Info, row *control.LedgerRow) (millrace.Offset, error) {
	from := millrace.Offset(0)
	if row != nil && row.StateOffset != millrace.NoOffset {
		from = row.StateOffset
	}
	if from < info.Start {
		return 0, fmt.Errorf("%w: topic %s begins at offset %v, and its history is needed from %v on: records were deleted: %s", millrace.ErrStop, s.Topic, info.Start, from, mendLost)
	}
	return from, nil
}

// movedOn tells that the ledger attests a later state record than it did: a publisher
// that does not know yet that it is fenced has written that, and has trimmed the topic
// since. Then the next attempt begins there.
func movedOn(ctx context.Context, ledger Ledger, row *control.LedgerRow) error {
	now, err := ledger.Newest(ctx)
	if err != nil {
		return err
	}
	if row != nil && now != nil && now.StateOffset > row.StateOffset {
		return fmt.Errorf("the ledger went on from offset %v to %v while it was read", row.StateOffset, now.StateOffset)
	}
	return nil
}

// fromState reads the state record that the ledger attests.
func (t *Transfer) fromState(ctx context.Context, reader *topic.Reader, row *control.LedgerRow) (*history, error) {
	m, err := reader.Next(ctx)
	if err != nil {
		return nil, err
	}
	bad := func(err error) error {
		return fmt.Errorf("state record at offset %v that the ledger attests: %w", row.StateOffset, err)
	}
	record, err := millrace.DecodeRecord(m.Value, nil)
	if err != nil {
		return nil, bad(err)
	}
	if m.Offset != row.StateOffset || record.Kind != millrace.RecordState {
		return nil, bad(fmt.Errorf("%w: a %v record at offset %v is in its place", millrace.ErrDiverged, record.Kind, m.Offset))
	}
	if record.Stream != t.config.Stream.ID || record.Epoch != t.config.Stream.Epoch {
		return nil, bad(fmt.Errorf("%w: stream %v epoch %v", millrace.ErrForeign, record.Stream, record.Epoch))
	}
	if err := t.config.Trusted.Check(record, record.First); err != nil {
		return nil, bad(err)
	}
	fold, err := millrace.FoldFromState(record)
	if err != nil {
		return nil, bad(err)
	}
	// The newest unit at that place ended before the state record; the record
	// itself is as good a mark.
	return &history{
		fold: fold, trusted: t.config.Trusted, complete: m.Offset, state: m.Offset, stateIndex: fold.Index(),
		bytes: uint64(len(m.Value)), from: m.Offset,
	}, nil
}

// meet holds the fold's place against the witnesses. A fold that begins behind a
// witness cannot meet it, and the ledger has attested its beginning.
func meet(h *history, witnesses []*witness, beginning bool) error {
	for _, w := range witnesses {
		switch index := h.fold.Index(); {
		case w.met || index < w.index:
			continue
		case index > w.index && !beginning, index == w.index && h.fold.Chain() != w.chain:
			return fmt.Errorf("%w: %s knows index %v with chain %v, and the topic has index %v with chain %v there: %s",
				millrace.ErrDiverged, w.by, w.index, w.chain.Short(), index, h.fold.Chain().Short(), mendLost)
		}
		w.met = true
	}
	return nil
}

// crown begins a term and folds on to its record. It gives errLostRace if
// another publisher was first.
func (r *reign) crown(ctx context.Context) error {
	term, _ := r.history.fold.Term()
	r.term = term + 1
	if _, err := r.append(ctx, &millrace.Header{Kind: millrace.RecordTerm, Time: r.now()}, nil); err != nil {
		return err
	}
	for {
		outcome, _, own, err := r.follow(ctx)
		if err != nil {
			return err
		}
		switch {
		case own && outcome == millrace.Reign:
			return nil
		case own:
			now, by := r.history.fold.Term()
			return fmt.Errorf("%w: term %v is that of publisher %v", errLostRace, now, by)
		}
	}
}

// attest writes the reign's first state record and folds on to it.
func (r *reign) attest(ctx context.Context) error {
	header, payload := r.history.fold.StateRecord()
	if _, err := r.append(ctx, &header, payload); err != nil {
		return err
	}
	for {
		outcome, kind, own, err := r.follow(ctx)
		if err != nil {
			return err
		}
		switch {
		case own && outcome == millrace.Noted:
			return nil
		case own && kind == millrace.RecordTerm:
			// The network repeated the record that crown has met.
		case own:
			return fmt.Errorf("%w: the first state record of term %v is %v", ErrFenced, r.term, outcome)
		}
	}
}

// follow folds one more record before the reign's goroutines run. own tells
// that this reign wrote it.
func (r *reign) follow(ctx context.Context) (outcome millrace.Outcome, kind millrace.RecordKind, own bool, err error) {
	m, err := r.reader.Next(ctx)
	if err != nil {
		return 0, 0, false, err
	}
	record, outcome, err := r.history.step(&m, nil)
	if err != nil {
		return 0, 0, false, err
	}
	if outcome == millrace.Stale {
		r.t.metrics.stale.Inc()
	}
	return outcome, record.Kind, r.wrote(record), nil
}

// checkpoint is where capture goes on.
func (r *reign) checkpoint() *millrace.Checkpoint {
	c := r.history.fold.Checkpoint()
	c.TopicID, c.Offset = r.t.config.Stream.TopicID, r.history.complete
	c.Recent = slices.Clip(c.Recent)
	return &c
}
