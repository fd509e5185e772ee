package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
)

const (
	// freshFor is how old an image may be that answers a request for a new one.
	freshFor = time.Minute
	// busyPause is what one who is refused is told to wait.
	busyPause = 30 * time.Second
	// failedPause is how long a Maker makes nothing on request after it has failed.
	failedPause = time.Minute
	// emptyPause is how often a Maker looks whether a new store has rows.
	emptyPause = 10 * time.Second
)

// ErrBusy occurs when an image is asked for and cannot be made now. Mend: ask again
// later, or ask another edge.
var ErrBusy = errors.New("this edge makes as many images as it makes at once")

// Turns bounds how many images a process makes at once, over all streams.
type Turns chan struct{}

// NewTurns returns Turns for so many at once.
func NewTurns(n int) Turns { return make(Turns, n) }

// Home is what images are made of: the store that readers use.
type Home interface {
	Store() *edge.Store
	Place() edge.Place
}

// MakerConfig is what a Maker needs. Home, Dir and Turns must be set.
type MakerConfig struct {
	Home  Home
	Dir   string
	Turns Turns
	// Keep is that of Options.
	Keep int
	// Every is how often an image is made unasked; 0 for never.
	Every time.Duration
	// Logger takes what is made and what fails; nil drops it.
	Logger *slog.Logger
	// Registerer takes the metrics; nil drops them.
	Registerer prometheus.Registerer
}

// Maker makes the images of one stream's store at an edge that runs: at times, and
// when another edge asks for one. All methods may be called at any time by anyone.
type Maker struct {
	config MakerConfig
	asked  chan struct{}
	made   *prometheus.CounterVec
	newest prometheus.Gauge

	mu     sync.Mutex
	making *Making
	// ended tells that Run has ended, and was not called again.
	ended bool
	// failed is when the last one failed, err with what.
	failed time.Time
	err    error
}

// NewMaker returns a Maker; Run makes it work.
func NewMaker(c MakerConfig) (*Maker, error) {
	if c.Home == nil || c.Dir == "" || c.Turns == nil || c.Keep < 0 || c.Every < 0 {
		return nil, fmt.Errorf("make images: directory %q, %d images to keep or one every %v is out of range", c.Dir, c.Keep, c.Every)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Maker{
		config: c, asked: make(chan struct{}, 1),
		made: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_edge_images_total", Help: "Images of the store that were made by the running edge, by outcome.",
		}, []string{"outcome"}),
		newest: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_edge_image_index", Help: "Index of the newest image that the running edge has made; 0 if it has made none.",
		}),
	}
	return m, nil
}

// Run makes images until ctx ends. One call follows another.
func (m *Maker) Run(ctx context.Context) {
	m.mu.Lock()
	m.ended = false
	m.mu.Unlock()
	if r := m.config.Registerer; r != nil {
		r.MustRegister(m.made, m.newest)
		defer func() { r.Unregister(m.made); r.Unregister(m.newest) }()
	}
	var timer *time.Timer
	var due <-chan time.Time
	if m.config.Every > 0 {
		timer = time.NewTimer(m.wait())
		defer timer.Stop()
		due = timer.C
	}
	defer m.forget()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.asked:
			m.makeOne(ctx)
		case <-due:
			if m.config.Home.Place().Index == 0 {
				timer.Reset(emptyPause)
				continue
			}
			select {
			case m.config.Turns <- struct{}{}:
				m.begin()
				m.makeOne(ctx)
			case <-ctx.Done():
				return
			}
			timer.Reset(m.wait())
		}
	}
}

// forget gives up what was asked for and not begun, and takes nothing more.
func (m *Maker) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended = true
	select {
	case <-m.asked:
		<-m.config.Turns
		m.making = nil
	default:
	}
}

// wait is how long it is to the next image that is made unasked. Edges that were started
// together do not make theirs together.
func (m *Maker) wait() time.Duration {
	every := m.config.Every
	wait := every
	if all, err := List(m.config.Dir); err == nil && len(all) > 0 {
		if i, err := Open(all[0].Path); err == nil {
			wait = min(every, every-time.Since(i.Manifest().Created))
			_ = i.Close() // only read from
		}
	} else if err == nil {
		wait = 0 // there is none yet
	}
	return max(wait, time.Second) + rand.N(every/16+time.Second) //nolint:gosec // to spread load
}

// begin notes that one is being made. The turn is taken.
func (m *Maker) begin() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.making = &Making{At: time.Now().UTC()}
}

// Ask has an image made that is newer than an index, which goes on in the background; one
// that is being made counts as asked for. fresh tells that there is one that is new
// enough, or of the newest index. ErrBusy is returned while another stream's is being made,
// another error once Run has ended.
func (m *Maker) Ask(newerThan millrace.Place) (fresh bool, err error) {
	place := m.config.Home.Place()
	if place.Index == 0 {
		return false, errors.New("this edge has no rows yet; mend: ask another one")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		return false, errors.New("this edge makes no images any more, as it is ending; mend: ask another one, or again when it has started")
	}
	if m.making != nil {
		return false, nil
	}
	if all, err := List(m.config.Dir); err == nil && len(all) > 0 && all[0].Epoch == place.Epoch {
		if i, err := Open(all[0].Path); err == nil {
			fresh = all[0].Index == place.Index ||
				time.Since(i.Manifest().Created) < freshFor && newerThan.Compare(millrace.Place{Epoch: all[0].Epoch, Index: all[0].Index}) < 0
			if err := i.Close(); err != nil || fresh {
				return fresh, err
			}
		}
	}
	if m.err != nil && time.Since(m.failed) < failedPause {
		return false, fmt.Errorf("the last one failed a moment ago: %w", m.err)
	}
	select {
	case m.config.Turns <- struct{}{}:
	default:
		return false, ErrBusy
	}
	m.making = &Making{At: time.Now().UTC()}
	m.asked <- struct{}{} // it has room, since none is being made
	return false, nil
}

// Making says how far the image is that is being made; nil if none is.
func (m *Maker) Making() *Making {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.making == nil {
		return nil
	}
	making := *m.making
	return &making
}

// makeOne makes one and gives the turn back.
func (m *Maker) makeOne(ctx context.Context) {
	began := time.Now()
	c, err := m.create(ctx)
	<-m.config.Turns
	m.mu.Lock()
	defer m.mu.Unlock()
	m.making, m.err = nil, err
	if err != nil {
		if ctx.Err() != nil {
			return
		}
		m.failed = time.Now()
		m.made.WithLabelValues("failed").Inc()
		m.config.Logger.Warn("no image was made", "error", err)
		return
	}
	m.newest.Set(float64(c.Manifest.Checkpoint.Index))
	if c.Existed {
		return
	}
	m.made.WithLabelValues("made").Inc()
	m.config.Logger.Info("an image was made", "path", c.Path, "index", c.Manifest.Checkpoint.Index, "rows", c.Manifest.Rows(),
		"bytes", c.Manifest.Stored(), "seconds", time.Since(began).Seconds(), "removed", c.Removed)
}

// create makes an image of the store that readers use; should they go over to
// another one meanwhile, of that.
func (m *Maker) create(ctx context.Context) (*Created, error) {
	for {
		store := m.config.Home.Store()
		c, err := Create(ctx, store, Options{Dir: m.config.Dir, Keep: m.config.Keep, Background: true, Progress: func(p Progress) {
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.making != nil {
				m.making.Rows, m.making.Of = p.Rows, p.Of
			}
		}})
		if (errors.Is(err, edge.ErrSuperseded) || errors.Is(err, edge.ErrClosed)) && m.config.Home.Store() != store {
			continue
		}
		return c, err
	}
}
