package follow

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/applier"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/image"
	"github.com/millrace-db/millrace/edge/relay"
	"github.com/millrace-db/millrace/edge/serve"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/lineage"
	"github.com/millrace-db/millrace/internal/tlsfiles"
	"github.com/millrace-db/millrace/internal/topic"
)

const (
	// makingPoll is how often a peer is asked how far the image is that it makes, and
	// makingFails how often in a row it may give no answer.
	makingPoll  = 250 * time.Millisecond
	makingFails = 40
	// askLimit bounds one such question.
	askLimit = 30 * time.Second
)

// The reasons for which an edge takes an image.
const (
	bootNew    = "the edge is new"
	bootGone   = "the source no longer has what comes after the rows here"
	bootBehind = "an image takes less than what is to be followed"
)

var (
	// errUnfit occurs for an image that is whole and of no use here. Another one may be.
	errUnfit = errors.New("of no use here")
	// errPeersEmpty occurs where no peer gives an image that can be used.
	errPeersEmpty = errors.New("no peer has an image that can be used")
)

// peers are where images of a stream are fetched from: what the configuration names, or
// else the edges that are followed.
func (f *Stream) peers() []string {
	var all []string
	for _, from := range f.edge.Images.From {
		all = append(all, imagesURL(from, f.config.Name))
	}
	if len(all) > 0 || f.upstreams == nil {
		return all
	}
	for _, text := range append(append([]string(nil), f.edge.Upstream...), f.edge.Secondaries...) {
		// Whoever shares a unix socket shares a disk, and Kafka has no images.
		if u, err := relay.ParseUpstream(text); err == nil && u.Socket() == "" && u.URL() != "" {
			all = append(all, strings.TrimRight(u.URL(), "/")+imagesPath(f.config.Name))
		}
	}
	return all
}

// imagesURL is where the images of a stream are: those of the edge at a URL without a
// path, or else a directory with the stream's name below it. {stream} stands for the
// name where that is not so.
func imagesURL(from, stream string) string {
	const name = "{stream}"
	if strings.Contains(from, name) {
		return strings.ReplaceAll(from, name, stream)
	}
	u, err := url.Parse(from)
	if err != nil {
		return from // which the configuration has refused
	}
	if u.Scheme != "file" && strings.Trim(u.Path, "/") == "" {
		return u.JoinPath(imagesPath(stream)).String()
	}
	return u.JoinPath(stream).String()
}

// imagesPath is where an edge has the images of a stream.
func imagesPath(stream string) string { return "/v1/streams/" + stream + "/images" }

// isEdge reports whether an edge answers at a URL, and may be asked for an image.
func isEdge(at, stream string) bool {
	u, err := url.Parse(at)
	return err == nil && u.Scheme != "file" && strings.HasSuffix(strings.TrimSuffix(u.Path, "/"), imagesPath(stream))
}

// shownURL is one without what may be secret in it.
func shownURL(at string) string {
	u, err := url.Parse(at)
	if err != nil {
		return "a URL that cannot be read"
	}
	u.User, u.RawQuery = nil, ""
	return u.String()
}

// imageClients are what images are fetched with.
type imageClients struct {
	// edges shows certificate and token, files the certificate alone: a server of files
	// is no edge, and a bucket would refuse a token that it does not know.
	edges, files *tlsfiles.Client
}

func newImageClients(p *config.Peers, log *slog.Logger) (c imageClients, err error) {
	files := tlsfiles.ClientFiles{CA: p.CA, Cert: p.Cert, Key: p.Key, Token: p.Token}
	if c.edges, err = tlsfiles.NewClient(files, log); err == nil {
		files.Token = ""
		c.files, err = tlsfiles.NewClient(files, log)
	}
	if err != nil {
		return c, fmt.Errorf("edge.peers: %w", err)
	}
	return c, nil
}

// of returns the client for a URL.
func (c *imageClients) of(at, stream string) *http.Client {
	switch {
	case strings.HasPrefix(at, "file:"):
		return image.NewClient()
	case isEdge(at, stream):
		return c.edges.HTTP()
	}
	return c.files.HTTP()
}

// taker takes an image from a stream's peers and makes a store of it. It is used by one
// goroutine.
type taker struct {
	*Stream
	why string
	// epoch is the one that is wanted; 0 for any.
	epoch millrace.Epoch
	// refused are images that have come and turned out to be of no use, taken is the one
	// that a store was made of.
	refused refusedImages
	taken   *image.Created
	client  *http.Client
	// unfit is the newest image of a peer that was of no use.
	unfit millrace.Place
	// agreed tells that the source has the record at which the image was taken.
	agreed bool
}

// take tries each peer once, in random order, and what is on this host's disk last.
func (t *taker) take(ctx context.Context) (*edge.Restored, error) {
	peers := t.peers()
	rand.Shuffle(len(peers), func(i, j int) { peers[i], peers[j] = peers[j], peers[i] }) //nolint:gosec // to spread load
	if own := ownImages(t.imageDir); own != "" {
		peers = append(peers, own)
	}
	var errs []error
	for _, from := range peers {
		t.showBoot(func(b *serve.Bootstrap) {
			*b = serve.Bootstrap{State: serve.BootstrapAsking, Reason: t.why, From: shownURL(from), StartedAt: b.StartedAt}
		})
		restored, err := t.from(ctx, from)
		if err == nil {
			return restored, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		errs = append(errs, err)
		t.tellRefused(shownURL(from), err)
	}
	return nil, fmt.Errorf("%w: %w", errPeersEmpty, errors.Join(errs...))
}

// ownImages is the URL of the images that this edge has made or fetched, empty if there
// are none.
func ownImages(dir string) string {
	all, err := image.List(dir)
	if err != nil || len(all) == 0 {
		return ""
	}
	path, err := filepath.Abs(dir)
	if err != nil {
		return ""
	}
	return (&url.URL{Scheme: "file", Path: path}).String()
}

// tellRefused raises the alarm for a peer that gave something untrue, once for each
// thing that it gave.
func (f *Stream) tellRefused(from string, err error) {
	untrue := untrue(err)
	outcome := "failed"
	if untrue {
		outcome = "refused"
	}
	f.boots.outcomes.WithLabelValues(outcome).Inc()
	if !f.boots.news(from, err) {
		return
	}
	if untrue {
		f.log.Error("a peer's image is refused", "from", from, "error", err, "mend", "look at that peer; another one is asked")
		return
	}
	f.log.Warn("a peer gives no image that can be used", "from", from, "error", err)
}

// untrue tells that an image is not what it says it is.
func untrue(err error) bool {
	for _, kind := range []error{image.ErrMalformed, millrace.ErrMalformed, millrace.ErrSignature, millrace.ErrDiverged, millrace.ErrForeign, millrace.ErrGap, edge.ErrContents, edge.ErrOtherStream, edge.ErrCorrupt, relay.ErrUntrue} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// from takes an image from one peer: the newest that can be used, or where there is none
// a new one that the peer is asked to make.
func (t *taker) from(ctx context.Context, from string) (*edge.Restored, error) {
	asks := isEdge(from, t.config.Name)
	t.unfit = millrace.Place{}
	t.client = t.clients.of(from, t.config.Name)
	defer t.client.CloseIdleConnections()
	c, err := t.fetch(ctx, from, asks)
	if asks && (errors.Is(err, errUnfit) || errors.Is(err, image.ErrNone)) {
		made := t.haveMade(ctx, from)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if c, err = t.fetch(ctx, from, false); err != nil {
			err = errors.Join(err, made)
		}
	}
	if err != nil {
		return nil, err
	}
	return t.restore(ctx, c)
}

func (t *taker) fetch(ctx context.Context, from string, young bool) (*image.Created, error) {
	return image.Fetch(ctx, t.imageDir, image.Source{
		URL: from, Stream: t.stream(), Trusted: t.trusted, Keep: t.edge.Images.Keep, Client: t.client, Pause: t.bootRules.pause,
		Accept: func(m *image.Manifest) error {
			if err := t.fits(ctx, m, young); err != nil {
				if at := (millrace.Place{Epoch: m.Checkpoint.Epoch, Index: m.Checkpoint.Index}); t.unfit.Compare(at) < 0 {
					t.unfit = at
				}
				return fmt.Errorf("image %s: %w", m.Name(), err)
			}
			t.showBoot(func(b *serve.Bootstrap) {
				b.State, b.Image, b.Index = serve.BootstrapDownloading, m.Name(), m.Checkpoint.Index
				b.OfBytes, b.OfRows = m.Stored(), m.Rows()
			})
			t.log.Info("an image is taken from a peer", "reason", t.why, "from", shownURL(from), "image", m.Name(), "rows", m.Rows(), "bytes", m.Stored())
			return nil
		},
		Progress: func(p image.Progress) {
			t.showBoot(func(b *serve.Bootstrap) { b.Bytes, b.OfBytes = p.Bytes, p.OfBytes })
		},
	})
}

func unfit(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errUnfit, fmt.Sprintf(format, args...))
}

// fits refuses an image that is of no use here.
func (t *taker) fits(ctx context.Context, m *image.Manifest, young bool) error {
	c := m.Checkpoint
	here := t.home.Place()
	switch {
	case t.refused.why(m) != nil:
		return fmt.Errorf("%w: %w", errUnfit, t.refused.why(m))
	case t.epoch != 0 && c.Epoch != t.epoch:
		return unfit("it is of epoch %v, wanted is %v", c.Epoch, t.epoch)
	case c.Epoch < here.Epoch || c.Epoch == here.Epoch && c.Index <= here.Index:
		return unfit("it is of epoch %v, index %v, and the rows here are of %v, %v", c.Epoch, c.Index, here.Epoch, here.Index)
	case t.why == bootBehind && uint64(c.Index-here.Index) < max(t.bootRules.few, m.Rows()):
		return unfit("it has %d rows, and %d entries are to be followed", m.Rows(), uint64(c.Index-here.Index))
	case m.Suits(t.home.Filter()) != nil:
		return fmt.Errorf("%w: %w", errUnfit, m.Suits(t.home.Filter()))
	case young && !m.Created.IsZero() && time.Since(m.Created) > t.bootRules.stale && !image.Begun(t.imageDir, m.Name()):
		return unfit("it is older than %v", t.bootRules.stale)
	}
	var err error
	t.agreed, err = t.reaches(ctx, c)
	if here.Index == 0 && err != nil && !errors.Is(err, errUnfit) && !untrue(err) {
		// Nothing can be asked. Some rows are better than none.
		t.log.Warn("it cannot be told whether the source goes on from the image", "error", err)
		return nil
	}
	return err
}

// reaches returns nil where the source has what comes after a checkpoint. agreed tells
// that it still has the record that ends there, and that this is of the same history; of
// another one is ErrDiverged.
func (f *Stream) reaches(ctx context.Context, c *millrace.Checkpoint) (agreed bool, err error) {
	if f.upstreams != nil {
		return f.relayed(ctx, c)
	}
	t, err := lineage.OpenTopic(ctx, f.config, topic.EpochName(f.config.Kafka.Topic, c.Epoch), f.log)
	if err != nil {
		return false, err
	}
	defer func() { _ = t.Close() }() // nothing is appended
	info, err := t.Info(ctx)
	switch {
	case errors.Is(err, topic.ErrNoTopic):
		return false, unfit("the topic of its epoch is not there")
	case err != nil:
		return false, err
	case info.ID != c.TopicID:
		return false, unfit("it was made from topic ID %s, and %s has %s", c.TopicID, t.Name(), info.ID)
	case c.Offset == millrace.NoOffset:
		return false, unfit("it does not say where in the topic it stands")
	case c.Offset+1 < info.Start:
		return false, unfit("it stands at offset %v, and the topic begins at %v", c.Offset, info.Start)
	case c.Offset >= info.End:
		return false, unfit("it stands at offset %v, and the topic ends at %v", c.Offset, info.End)
	case c.Offset < info.Start:
		return false, nil // the first record is the next one
	}
	reader, err := t.Read(ctx, c.Offset)
	if err != nil {
		return false, err
	}
	defer reader.Close()
	message, err := reader.Next(ctx)
	if err != nil {
		return false, err
	}
	h, err := millrace.DecodeHeader(message.Value)
	switch {
	case err != nil || message.Offset != c.Offset:
		return false, nil // what is wrong there is seen by who follows
	case h.Kind != millrace.RecordBatch || h.Stream != c.Stream || h.Epoch != c.Epoch || h.Last() != c.Index || h.Chain != c.Chain:
		return false, fmt.Errorf("%w: the record at offset %v of topic %s ends at index %v with chain %v, and the image says index %v, chain %v",
			millrace.ErrDiverged, c.Offset, t.Name(), h.Last(), h.Chain.Short(), c.Index, c.Chain.Short())
	}
	return true, nil
}

// relayed is reaches for edges that may be followed.
func (f *Stream) relayed(ctx context.Context, c *millrace.Checkpoint) (agreed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	source, err := f.upstreams.Aside().Open(ctx, relay.From{Stream: c.Stream, Epoch: c.Epoch, Index: c.Index, Chain: c.Chain, After: c})
	switch {
	case errors.Is(err, relay.ErrGone):
		return false, unfit("%v", err)
	case errors.Is(err, relay.ErrUntrue):
		return false, fmt.Errorf("%w: %s", millrace.ErrDiverged, err.Error())
	case err != nil:
		return false, err
	}
	return source.Agrees(), source.Close()
}

// haveMade asks an edge to make an image, and waits until it has.
func (t *taker) haveMade(ctx context.Context, from string) error {
	l, err := t.ask(ctx, http.MethodPost, from)
	if err != nil {
		return fmt.Errorf("have an image made: %w", err)
	}
	tick := time.NewTicker(makingPoll)
	defer tick.Stop()
	fails, rows, since := 0, uint64(0), time.Now()
	for l.Making != nil {
		if l.Making.Rows != rows {
			rows, since = l.Making.Rows, time.Now()
		} else if time.Since(since) > t.bootRules.still {
			return fmt.Errorf("wait for an image: nothing has come of it for %v", t.bootRules.still)
		}
		t.showBoot(func(b *serve.Bootstrap) {
			b.State, b.Rows, b.OfRows = serve.BootstrapWaiting, l.Making.Rows, l.Making.Of
		})
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		next, err := t.ask(ctx, http.MethodGet, from)
		if err == nil {
			l, fails = next, 0
			continue
		}
		if fails++; fails == makingFails {
			return fmt.Errorf("wait for an image: %w", err)
		}
	}
	return nil
}

// ask asks an edge about its images.
func (t *taker) ask(ctx context.Context, method, at string) (*image.Listing, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	var body io.Reader
	if method == http.MethodPost {
		text, err := json.Marshal(image.Wanted{Epoch: uint64(t.unfit.Epoch), NewerThan: uint64(t.unfit.Index)})
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(text)
	}
	q, err := http.NewRequestWithContext(ctx, method, at, body)
	if err != nil {
		return nil, err
	}
	q.Header.Set("Content-Type", "application/json")
	return image.Ask(t.client, q)
}

// restore makes a store of an image that has come.
func (t *taker) restore(ctx context.Context, c *image.Created) (restored *edge.Restored, err error) {
	i, err := image.Open(c.Path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, i.Close()) }()
	t.showBoot(func(b *serve.Bootstrap) {
		m := i.Manifest()
		b.State, b.Image, b.Index = serve.BootstrapRestoring, m.Name(), m.Checkpoint.Index
		b.Bytes, b.OfBytes, b.OfRows = m.Stored(), m.Stored(), m.Rows()
	})
	restored, err = image.Restore(ctx, t.home, i, func(p image.Progress) {
		t.showBoot(func(b *serve.Bootstrap) {
			b.Rows, b.OfRows = p.Rows, p.Of
			if p.Checking {
				b.State = serve.BootstrapChecking
			}
		})
	})
	if err != nil {
		if ctx.Err() == nil && untrue(err) {
			err = errors.Join(err, t.refused.add(c, err))
		}
		return nil, err
	}
	t.taken = c
	return restored, nil
}

// refusedImages are images that were of no use, by their sums: another peer may have one of
// the same name that is.
type refusedImages map[[sha256.Size]byte]error

// why is why an image was of no use; nil where nothing is known against it.
func (r refusedImages) why(m *image.Manifest) error {
	sum, err := m.Sum()
	if err != nil {
		return err
	}
	return r[sum]
}

// add notes that an image is of no use. What is untrue does not stay here: others would
// take it from this edge, and it would stand in the way of a true one of its name.
func (r refusedImages) add(c *image.Created, why error) error {
	sum, err := c.Manifest.Sum()
	if err != nil {
		return err
	}
	r[sum] = why
	if !untrue(why) {
		return nil
	}
	return image.Remove(c.Path)
}

// passed tells that the source goes on, and no longer has what comes next here: an image
// mends that. A topic that is not there has to be followed by a new epoch.
func passed(err error) bool {
	return errors.Is(err, applier.ErrSourceGone) && !errors.Is(err, topic.ErrNoTopic)
}
