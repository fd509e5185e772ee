package topic

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"

	"github.com/IBM/sarama"

	"github.com/millrace-db/millrace"
)

// EpochName names the topic of an epoch of the stream whose first topic is base.
func EpochName(base string, epoch millrace.Epoch) string {
	if epoch <= 1 {
		return base
	}
	return fmt.Sprintf("%s.%d", base, uint64(epoch))
}

// EpochOf takes back what EpochName gave.
func EpochOf(base, name string) (millrace.Epoch, bool) {
	if name == base {
		return 1, true
	}
	text, ok := strings.CutPrefix(name, base+".")
	n, err := strconv.ParseUint(text, 10, 64)
	if !ok || err != nil || n < 2 || EpochName(base, millrace.Epoch(n)) != name {
		return 0, false
	}
	return millrace.Epoch(n), true
}

// ahead is how many epochs Finder.After looks ahead. Topics of old epochs may
// have been deleted, so the next one need not be the only one to look for.
const ahead = 64

// Finder looks which topics of a stream's epochs exist: one request each time,
// over a connection that it keeps. It makes no topic, and does not tell whose
// the records in one are. It is used by one goroutine.
type Finder struct {
	config Config
	dialer *dialer
	broker *sarama.Broker
}

// NewFinder makes a finder; config.Topic is the name of the stream's first topic.
// It connects at the first question. The caller closes it.
func NewFinder(config Config) (*Finder, error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	if config.ClientID == "" {
		config.ClientID = "millrace"
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	return &Finder{config: config}, nil
}

// Close ends the connection.
func (f *Finder) Close() {
	if f.dialer == nil {
		return
	}
	f.dialer.cut()
	_ = f.broker.Close() // its socket is closed already
	f.dialer, f.broker = nil, nil
}

// After returns the epochs after the given one that have a topic, ascending. It
// looks for the next 64.
func (f *Finder) After(ctx context.Context, epoch millrace.Epoch) ([]millrace.Epoch, error) {
	names := make([]string, ahead)
	for i := range names {
		names[i] = EpochName(f.config.Topic, epoch+1+millrace.Epoch(i))
	}
	return f.ask(ctx, names)
}

// All returns the epochs that have a topic, ascending. The brokers list all their
// topics for it.
func (f *Finder) All(ctx context.Context) ([]millrace.Epoch, error) { return f.ask(ctx, nil) }

// ask asks for topics by their names, or for all.
func (f *Finder) ask(ctx context.Context, names []string) ([]millrace.Epoch, error) {
	var answer *sarama.MetadataResponse
	var err error
	if f.broker != nil {
		answer, err = f.once(ctx, names) // the broker may have closed it since
	}
	for i := 0; answer == nil && i < len(f.config.Brokers) && ctx.Err() == nil; i++ {
		f.connect(f.config.Brokers[i])
		answer, err = f.once(ctx, names)
	}
	if answer == nil {
		return nil, fmt.Errorf("look for topics of %s at %v: %w", f.config.Topic, f.config.Brokers, errors.Join(err, context.Cause(ctx)))
	}
	var epochs []millrace.Epoch
	for _, t := range answer.Topics {
		if t.Err != sarama.ErrNoError && t.Err != sarama.ErrLeaderNotAvailable {
			continue
		}
		if epoch, ok := EpochOf(f.config.Topic, t.Name); ok {
			epochs = append(epochs, epoch)
		}
	}
	slices.Sort(epochs)
	return epochs, nil
}

func (f *Finder) connect(address string) {
	f.dialer = newDialer(f.config.Dial)
	f.broker = sarama.NewBroker(address)
}

// once asks over the connection, which ends with an error.
func (f *Finder) once(ctx context.Context, names []string) (*sarama.MetadataResponse, error) {
	undo := context.AfterFunc(ctx, f.dialer.cut)
	settings := (&Topic{config: f.config}).settings(f.dialer)
	err := f.broker.Open(settings)
	if err == nil || errors.Is(err, sarama.ErrAlreadyConnected) {
		var answer *sarama.MetadataResponse
		// The version is that of the settings; topics are not made by asking.
		if answer, err = f.broker.GetMetadata(sarama.NewMetadataRequest(settings.Version, names)); err == nil && undo() {
			return answer, nil
		}
	}
	undo()
	if dialErr := f.dialer.lastError(); dialErr != nil {
		err = dialErr
	}
	f.Close()
	return nil, err
}
