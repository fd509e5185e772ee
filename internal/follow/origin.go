package follow

import (
	"context"
	"errors"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/applier"
	"github.com/millrace-db/millrace/edge/relay"
	"github.com/millrace-db/millrace/internal/lineage"
)

// origin is Kafka among other upstreams.
type origin struct{ *Stream }

// originSource is a topic as relays know it.
type originSource struct {
	applier.Source
	epoch millrace.Epoch
}

func (s originSource) Epoch() millrace.Epoch { return s.epoch }

// Open implements relay.Origin.
func (o origin) Open(ctx context.Context, from relay.From) (relay.OriginSource, error) {
	if from.After == nil && from.Index > 0 {
		return nil, errors.New("a topic is read behind a checkpoint, and none is given")
	}
	epoch := from.Epoch
	if epoch == 0 {
		var err error
		if epoch, err = o.choose(ctx); err != nil {
			return nil, err
		}
	}
	source, err := o.openSource(ctx, o.home.Store(), epoch, applier.OffsetOf(from.After))
	if err != nil {
		return nil, err
	}
	return originSource{source, epoch}, nil
}

// Stand implements relay.Origin.
func (o origin) Stand(ctx context.Context, epoch millrace.Epoch) (millrace.Index, time.Time, error) {
	if epoch != o.home.Place().Epoch {
		return 0, time.Time{}, errors.New("it is asked about another epoch than the one that is read")
	}
	return o.newestRecord(ctx)
}

// Gone implements relay.Origin.
func (o origin) Gone(err error) bool { return errors.Is(err, applier.ErrSourceGone) }

// allEpochs asks upstreams and Kafka.
type allEpochs struct {
	upstreams *upstreamEpochs
	topics    *lineage.Epochs
}

// Newest is the newer one of both answers. It fails where both fail.
func (e allEpochs) Newest(ctx context.Context, after millrace.Epoch, want millrace.StreamID) (millrace.Epoch, error) {
	a, errA := e.upstreams.Newest(ctx, after, want)
	b, errB := e.topics.Newest(ctx, after, want)
	if errA != nil && errB != nil {
		return 0, errors.Join(errA, errB)
	}
	return max(a, b), nil
}

func (e allEpochs) Close() { e.topics.Close() }
