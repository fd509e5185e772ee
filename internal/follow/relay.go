package follow

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/applier"
	"github.com/millrace-db/millrace/edge"
	edgelog "github.com/millrace-db/millrace/edge/log"
	"github.com/millrace-db/millrace/edge/relay"
	"github.com/millrace-db/millrace/edge/serve"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/lineage"
	"github.com/millrace-db/millrace/internal/tlsfiles"
)

// newUpstreams makes what follows other edges; nil where the stream is read from Kafka
// alone.
func (f *Stream) newUpstreams(peers *tlsfiles.Client, metrics prometheus.Registerer) (*relay.Client, error) {
	if f.edge.FollowsKafka() {
		return nil, nil
	}
	times := &f.edge.Follow
	c := relay.ClientConfig{
		Silence: time.Duration(times.Silence), Stale: time.Duration(times.Stale), Margin: time.Duration(times.Margin),
		Probe: time.Duration(times.Probe), Ban: time.Duration(times.Ban),
		Node: f.edge.ID, Stream: f.config.Name, Applied: f.applied, Filter: millrace.AppendFilter(nil, f.filter),
		Logger: f.log, Registerer: metrics,
	}
	if f.edge.UsesKafka() {
		c.Origin = origin{f}
	}
	if peers != nil {
		c.TLS, c.Authorize = peers.TLS, peers.Authorize
	}
	for _, list := range []struct {
		texts []string
		to    *[]relay.Upstream
	}{{f.edge.Upstream, &c.Upstreams}, {f.edge.Secondaries, &c.Secondaries}} {
		for _, text := range list.texts {
			u, err := relay.ParseUpstream(text)
			if err != nil {
				return nil, err
			}
			*list.to = append(*list.to, u)
		}
	}
	return relay.NewClient(c)
}

// newRelay makes what serves the stream's log to other edges; nil where none is kept.
func (f *Stream) newRelay(metrics prometheus.Registerer) (*relay.Server, error) {
	if f.edge.Log.Dir == config.Off {
		return nil, nil
	}
	return relay.NewServer(relay.ServerConfig{
		Node: f.edge.ID, Local: f, MaxPeers: f.edge.Relay.MaxPeers, MaxRate: int64(f.edge.Relay.MaxRate), Filter: f.childFilter,
		Reports: f.tree.reports.Take, Logger: f.log, Registerer: metrics,
	})
}

// childFilter is what of each record a child gets that wants less than everything.
func (f *Stream) childFilter(filter []byte) (relay.Rewriter, error) {
	if len(filter) == 0 && f.home.Filter().All() {
		return nil, nil
	}
	return f.home.ForChild(filter)
}

// Relay serves the stream's log to other edges; nil where none is kept.
func (f *Stream) Relay() *relay.Server { return f.relay }

// applied is what relays ask of the store that readers use.
func (f *Stream) applied() relay.Applied {
	p := f.home.Place()
	return relay.Applied{Stream: f.stream(), Place: millrace.Place{Epoch: p.Epoch, Index: p.Index}, Chain: p.Chain, Time: p.Time}
}

// Log implements relay.Local.
func (f *Stream) Log(epoch millrace.Epoch) *edgelog.Log {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range []*edgelog.Log{f.logs.current, f.logs.next} {
		if l != nil && (epoch == 0 || l.Status().Epoch == epoch) {
			return l
		}
	}
	return nil
}

// Epochs implements relay.Local.
func (f *Stream) Epochs() (now, next millrace.Epoch) {
	now = f.home.Place().Epoch
	if now == 0 {
		now = millrace.Epoch(f.epoch.Load())
	}
	next, _ = f.home.Following()
	return now, next
}

// Path implements relay.Local.
func (f *Stream) Path() []string {
	if f.upstreams == nil {
		return nil
	}
	return f.upstreams.Path()
}

// sourceOf opens the source of an applier: that of readers' store, or one beside it.
func (f *Stream) sourceOf(store *edge.Store, epoch millrace.Epoch, readers bool) func(context.Context, *millrace.Checkpoint) (applier.Source, error) {
	client := f.upstreams
	if client == nil {
		return func(ctx context.Context, after *millrace.Checkpoint) (applier.Source, error) {
			return f.openSource(ctx, store, epoch, applier.OffsetOf(after))
		}
	}
	if !readers {
		client = client.Aside()
	}
	return func(ctx context.Context, after *millrace.Checkpoint) (applier.Source, error) {
		from := relay.From{Stream: f.stream(), Epoch: epoch}
		if from.Epoch == 0 {
			from.Epoch = millrace.Epoch(f.epoch.Load())
		}
		if after != nil {
			from.Stream, from.Epoch, from.Index, from.Chain, from.After = after.Stream, after.Epoch, after.Index, after.Chain, after
		}
		source, err := client.Open(ctx, from)
		if errors.Is(err, relay.ErrGone) {
			return nil, fmt.Errorf("%w: %w", applier.ErrSourceGone, err)
		}
		if err != nil {
			return nil, err
		}
		f.epoch.CompareAndSwap(0, uint64(source.Epoch()))
		return source, nil
	}
}

// epochs looks which epochs have begun.
type epochs interface {
	// Newest returns the newest epoch after the given one that has begun, 0 if none
	// has.
	Newest(ctx context.Context, after millrace.Epoch, want millrace.StreamID) (millrace.Epoch, error)
	Close()
}

// newEpochs looks in Kafka, or asks the upstreams, or both.
func (f *Stream) newEpochs() (epochs, error) {
	if f.upstreams != nil && !f.edge.UsesKafka() {
		return f.upstreamEpochs(), nil
	}
	topics, err := lineage.NewEpochs(f.config, f.log)
	if err != nil || f.upstreams == nil {
		return topics, err
	}
	return allEpochs{f.upstreamEpochs(), topics}, nil
}

// upstreamEpochs are those that upstreams name. One is believed where an upstream
// serves it, and where keys are trusted its first record is signed with one of them.
type upstreamEpochs struct {
	client  *relay.Client
	trusted *millrace.Keyring
	// refused are epochs that nobody was to be believed, and until when they are not
	// looked at again.
	refused map[millrace.Epoch]time.Time
}

// refuseFor is how long an epoch that was made up is not looked at again.
const refuseFor = 10 * time.Minute

func (f *Stream) upstreamEpochs() *upstreamEpochs {
	return &upstreamEpochs{f.upstreams, f.trusted, map[millrace.Epoch]time.Time{}}
}

func (e *upstreamEpochs) Newest(ctx context.Context, after millrace.Epoch, want millrace.StreamID) (millrace.Epoch, error) {
	var errs []error
	for _, epoch := range e.client.Named(after) {
		if time.Now().Before(e.refused[epoch]) {
			continue
		}
		begun, err := e.client.Ask(ctx, want, epoch)
		if begun && err == nil {
			if begun, err = e.signed(ctx, want, epoch); !begun && err == nil {
				e.refused[epoch] = time.Now().Add(refuseFor)
			}
		}
		if begun && err == nil {
			return epoch, nil
		}
		errs = append(errs, err)
	}
	return 0, errors.Join(errs...)
}

// signed reports whether an upstream has a first record of an epoch that is to be
// believed: a copy that is begun for nothing stands in the way of one that is not.
func (e *upstreamEpochs) signed(ctx context.Context, want millrace.StreamID, epoch millrace.Epoch) (bool, error) {
	if e.trusted == nil {
		return true, nil
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	client := e.client.Aside()
	rejected := false
	for {
		source, err := client.Open(ctx, relay.From{Stream: want, Epoch: epoch})
		switch {
		case errors.Is(err, relay.ErrGone):
			return true, nil // its log begins later; an image is what proves it
		case err != nil && rejected:
			return false, nil // who has it is not to be believed, and nobody else has it
		case err != nil:
			return false, err
		}
		_, value, err := source.Next(ctx)
		if err == nil {
			var r *millrace.Record
			if r, err = millrace.DecodeRecord(value, nil); err == nil {
				err = e.trusted.Check(r, 1)
			}
			if err != nil {
				err, rejected = source.Reject(err), true
			}
		}
		if cerr := source.Close(); err == nil {
			return true, cerr
		}
		if ctx.Err() != nil {
			return false, err
		}
	}
}

func (*upstreamEpochs) Close() {}

// origin says where the stream comes from, for messages.
func (f *Stream) origin() string {
	if f.upstreams == nil {
		return "topic " + f.topicName()
	}
	return "upstreams " + strings.Join(append(append([]string(nil), f.edge.Upstream...), f.edge.Secondaries...), ", ")
}

// UpstreamStatus says whom the stream follows here; nil where it is Kafka alone.
func (f *Stream) UpstreamStatus() *serve.UpstreamStatus {
	if f.upstreams == nil {
		return nil
	}
	s := f.upstreams.Status()
	status := &serve.UpstreamStatus{
		URL: s.URL, Node: s.Node, Path: s.Path, Depth: len(s.Path), Index: s.Index, Behind: s.Behind, BehindSeconds: s.BehindTime.Seconds(),
	}
	for _, u := range s.Upstreams {
		one := serve.UpstreamCandidate{
			URL: u.URL, Secondary: u.Secondary, Epoch: u.Epoch, Oldest: u.Oldest, Newest: u.Newest, Problem: u.Problem, Untrue: u.Untrue,
		}
		if !u.Heard.IsZero() {
			at := u.Heard.UTC()
			one.HeardAt = &at
		}
		status.Upstreams = append(status.Upstreams, one)
	}
	return status
}

// Children are the edges that follow the stream here, as its status shows them.
func (f *Stream) Children() []serve.ChildStatus {
	if f.relay == nil {
		return nil
	}
	var all []serve.ChildStatus
	for _, p := range f.relay.Peers() {
		all = append(all, serve.ChildStatus{Node: p.Node, Address: p.Address, Epoch: p.Epoch, Index: p.Index, Since: p.Since.UTC()})
	}
	return all
}

// newPeers is how this edge reaches others.
func newPeers(c *config.Peers, log *slog.Logger) (*tlsfiles.Client, error) {
	return tlsfiles.NewClient(tlsfiles.ClientFiles{CA: c.CA, Cert: c.Cert, Key: c.Key, Token: c.Token}, log)
}
