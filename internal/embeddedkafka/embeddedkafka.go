// Package embeddedkafka is the broker inside `millrace dev`: kfake, of the
// franz-go project, with its data on disk.
//
// It owns a data directory and a port on loopback. It promises that records and
// topics (their IDs too) are on disk before they are acknowledged and are there
// at the next start, and that two processes never use one directory.
//
// It is one node and no replacement for Kafka: kfake ignores failures of fsync,
// saves producers' sequence windows only at Close, and keeps
// message.timestamp.type as a setting while records carry the producer's time.
// What millrace needs is safe all the same: after a doubtful end a publisher takes
// a new term, and order never depends on a clock.
package embeddedkafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/millrace-db/millrace/internal/loopback"
)

// ErrInUse says that another live process has the data directory. End that one,
// or name another directory.
var ErrInUse = errors.New("another broker uses this data directory")

// Config says how to run a broker.
type Config struct {
	// Dir holds the broker's data; it is made if missing.
	Dir string
	// Port on 127.0.0.1; 0 picks a free one.
	Port int
	// Logger hears of the broker's warnings and errors; nil discards them.
	Logger *slog.Logger
}

// Broker is a running broker. Its methods may be called concurrently.
type Broker struct {
	cluster *kfake.Cluster
	addrs   []string
	lock    *os.File

	once     sync.Once
	closeErr error
}

// Start starts the broker and returns when it accepts connections. The caller
// ends it with Close.
func Start(cfg Config) (*Broker, error) {
	if cfg.Dir == "" {
		return nil, errors.New("start embedded broker: no data directory given")
	}
	if cfg.Port < 0 || cfg.Port > 65535 {
		return nil, fmt.Errorf("start embedded broker on port %d: want 1 to 65535, or 0 for any", cfg.Port)
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	port := cfg.Port
	if port == 0 {
		var err error
		if port, err = loopback.FreePort(); err != nil {
			return nil, fmt.Errorf("start embedded broker: %w", err)
		}
	}
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("make data directory of the embedded broker: %w", err)
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	cluster, err := kfake.NewCluster(
		kfake.Ports(port),
		kfake.ClusterID("millrace-dev"),
		kfake.DefaultNumPartitions(1),
		kfake.DataDir(filepath.Join(cfg.Dir, "data")),
		kfake.SyncWrites(),
		kfake.WithLogger(logger{log}),
	)
	if err != nil {
		err = fmt.Errorf("start embedded broker on %s: %w", cfg.Dir, err)
		if errors.Is(err, syscall.EADDRINUSE) {
			err = fmt.Errorf("start embedded broker on port %d: another program listens there; name another port: %w", port, err)
		}
		return nil, errors.Join(err, lock.Close())
	}
	return &Broker{cluster: cluster, addrs: cluster.ListenAddrs(), lock: lock}, nil
}

// lockDir takes the directory for this process. The kernel lets go of it with
// the process, so there is no stale lock.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644) // nothing is in it
	if err != nil {
		return nil, fmt.Errorf("open lock file of the embedded broker: %w", err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil { // a descriptor fits
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = fmt.Errorf("start embedded broker on %s: %w; end the other millrace, or name another directory", dir, ErrInUse)
		} else {
			err = fmt.Errorf("lock %s: %w", path, err)
		}
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// Addrs is where the broker listens, in the form clients take.
func (b *Broker) Addrs() []string { return b.addrs }

// Close ends the broker, saves what it keeps in memory and frees the directory.
// Calls after the first return what that one did.
func (b *Broker) Close() error {
	b.once.Do(func() {
		b.cluster.Close()
		if err := b.lock.Close(); err != nil {
			b.closeErr = fmt.Errorf("free data directory of the embedded broker: %w", err)
		}
	})
	return b.closeErr
}

// logger passes kfake's log on. What it calls info is a line a request.
type logger struct{ log *slog.Logger }

func (l logger) Logf(level kfake.LogLevel, format string, args ...any) {
	to := slog.LevelDebug
	switch level {
	case kfake.LogLevelNone:
		return
	case kfake.LogLevelError:
		to = slog.LevelError
	case kfake.LogLevelWarn:
		to = slog.LevelWarn
	case kfake.LogLevelInfo, kfake.LogLevelDebug:
	}
	ctx := context.Background()
	if !l.log.Enabled(ctx, to) {
		return
	}
	l.log.Log(ctx, to, "embedded broker", "message", strings.TrimSpace(fmt.Sprintf(format, args...)))
}
