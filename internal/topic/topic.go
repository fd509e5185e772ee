// Package topic is the Kafka topic of one stream, and the only package that
// imports sarama.
//
// It owns connections, the topic's settings, appends to partition 0 and reading
// it from an offset. It promises that an append is acknowledged by all in-sync
// replicas before it returns, that no record is left out or skipped while
// reading, and that every call ends soon after its context does: connections
// are cut, so a broker that hangs holds nobody. It does not look into records:
// what belongs to the history is decided by millrace.Fold.
//
// No consumer groups, no Kafka transactions and no producer compression are
// used: places to read from are kept by readers, records fence themselves and
// are compressed before they come here.
package topic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/IBM/sarama"
)

var (
	// ErrNoTopic occurs when the topic does not exist. Mend: millrace init
	// makes it; if it existed before, it was deleted, and the stream needs a
	// new epoch.
	ErrNoTopic = errors.New("no such topic")

	// ErrTopicExists occurs when Create finds a topic of that name.
	ErrTopicExists = errors.New("topic exists")

	// ErrFewBrokers occurs when Create is asked for more replicas than there
	// are brokers.
	ErrFewBrokers = errors.New("the cluster has fewer brokers")

	// ErrOffsetGone occurs when a reader's place is before the topic's first
	// record or after its last: records were deleted, or the topic was made
	// anew. Mend: start from another place that is known to be good.
	ErrOffsetGone = errors.New("offset is not in the topic")

	// ErrClosed occurs when a Topic is used after Close, or appended to after
	// an append failed.
	ErrClosed = errors.New("topic is closed")
)

const (
	// MaxMessage is max.message.bytes of the topics that Create makes, in
	// bytes.
	MaxMessage = 20 << 20

	dialLimit     = 5 * time.Second
	writeLimit    = 10 * time.Second
	appendLimit   = 10 * time.Second // for the in-sync replicas to have a record
	answerLimit   = 15 * time.Second // for a broker to answer; more than appendLimit
	maxUnpacked   = 32 << 20         // of a compressed batch, which only others write
	retryPause    = 100 * time.Millisecond
	appendTries   = 3
	metadataTries = 3
)

// Config says which topic, and how to reach it.
type Config struct {
	// Brokers are host:port addresses, at least one.
	Brokers []string
	// Topic is the name of the topic.
	Topic string
	// ClientID is shown in the brokers' logs and metrics. Default: millrace.
	ClientID string
	// Logger gets the starts and ends of producers and readers, at debug level.
	// Default: they are dropped.
	Logger *slog.Logger
	// Dial opens connections. Default: plain TCP.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

const maxName = 249

func validName(name string) bool {
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return name != "" && name != "." && name != ".." && len(name) <= maxName
}

func (c *Config) validate() error {
	if len(c.Brokers) == 0 {
		return errors.New("open topic: no brokers: name at least one as host:port")
	}
	if !validName(c.Topic) {
		return fmt.Errorf("open topic %q: not a name for a topic: use up to 249 letters, digits, dots, dashes and underscores", c.Topic)
	}
	return nil
}

// Topic is a stream's topic. Its methods may be called concurrently, apart from
// Append, which one goroutine at a time may call. It never makes the topic by
// itself.
type Topic struct {
	config Config

	mu       sync.Mutex
	producer *producer
	closed   bool
}

// Open checks that a broker answers. It does not ask whether the topic exists.
func Open(ctx context.Context, config Config) (*Topic, error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	if config.ClientID == "" {
		config.ClientID = "millrace"
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	t := &Topic{config: config}
	if _, err := t.info(ctx); err != nil && !answered(err) {
		return nil, fmt.Errorf("connect to Kafka at %v: %w", config.Brokers, err)
	}
	return t, nil
}

// answered reports whether an error came from a broker that merely has no topic
// to speak of, or none with a leader yet.
func answered(err error) bool {
	return errors.Is(err, sarama.ErrUnknownTopicOrPartition) || errors.Is(err, sarama.ErrLeaderNotAvailable) ||
		errors.Is(err, sarama.ErrNotLeaderForPartition)
}

// Name returns the topic's name.
func (t *Topic) Name() string { return t.config.Topic }

// Close ends the producer, if there was an append. Readers are closed by their
// owners.
func (t *Topic) Close() error {
	t.mu.Lock()
	p := t.producer
	t.producer, t.closed = nil, true
	t.mu.Unlock()
	if p != nil {
		p.close()
	}
	return nil
}

// connection is a client of its own with connections of its own: a reader's long
// polls must not stand before an append in a broker's queue.
type connection struct {
	client sarama.Client
	dialer *dialer
	undo   func() bool // of the watch over the context
}

// limitUnpacked sets the library's limit on what a compressed batch may unpack
// to. The library has it as a global, which is set before its first use.
var limitUnpacked sync.Once

// connect opens a client whose connections are cut when ctx ends.
func (t *Topic) connect(ctx context.Context) (*connection, error) {
	limitUnpacked.Do(func() { sarama.MaxDecompressedBatchSize = maxUnpacked })
	c := &connection{dialer: newDialer(t.config.Dial)}
	c.undo = context.AfterFunc(ctx, c.dialer.cut)
	client, err := sarama.NewClient(t.config.Brokers, t.settings(c.dialer))
	if err != nil {
		c.undo()
		c.dialer.cut()
		return nil, c.explain(ctx, err)
	}
	c.client = client
	return c, nil
}

func (t *Topic) settings(d *dialer) *sarama.Config {
	s := sarama.NewConfig()
	s.ClientID = t.config.ClientID
	s.Version = sarama.V2_8_0_0
	s.Net.MaxOpenRequests = 1
	s.Net.DialTimeout, s.Net.WriteTimeout, s.Net.ReadTimeout = dialLimit, writeLimit, answerLimit
	s.Net.Proxy.Enable, s.Net.Proxy.Dialer = true, d
	s.Metadata.Full = false
	s.Metadata.AllowAutoTopicCreation = false
	s.Metadata.Retry.Max, s.Metadata.Retry.Backoff = metadataTries, retryPause
	s.Admin.Timeout = appendLimit
	s.Producer.Idempotent = true
	s.Producer.RequiredAcks = sarama.WaitForAll
	s.Producer.Timeout = appendLimit
	s.Producer.Retry.Max, s.Producer.Retry.Backoff = appendTries, retryPause
	s.Producer.MaxMessageBytes = MaxMessage
	s.Producer.Compression = sarama.CompressionNone
	s.Producer.Partitioner = sarama.NewManualPartitioner
	s.Producer.Return.Successes, s.Producer.Return.Errors = true, true
	s.Consumer.Return.Errors = true
	s.Consumer.Fetch.Max = 0
	s.ChannelBufferSize = 1
	return s
}

// explain adds to err what the library leaves out: that the context ended, or
// why the last connection failed.
func (c *connection) explain(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("%w: %w", err, cause)
	}
	if errors.Is(err, sarama.ErrOutOfBrokers) || errors.Is(err, io.EOF) {
		if dialErr := c.dialer.lastError(); dialErr != nil && !strings.Contains(err.Error(), dialErr.Error()) {
			return fmt.Errorf("%w: %w", err, dialErr)
		}
	}
	return err
}

// close ends the client. Its connections are cut first, so that it does not
// wait for answers.
func (c *connection) close() {
	c.undo()
	c.dialer.cut()
	_ = c.client.Close() // the sockets are closed already
}

// noTopic turns the library's errors about a missing topic into ErrNoTopic.
func (t *Topic) noTopic(err error) error {
	if errors.Is(err, sarama.ErrUnknownTopicOrPartition) {
		return fmt.Errorf("topic %s at %v: %w: run millrace init to make it; if it was there before, its records are lost: millrace epoch new STREAM", t.config.Topic, t.config.Brokers, ErrNoTopic)
	}
	return err
}
