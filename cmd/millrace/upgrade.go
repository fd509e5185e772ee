package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-db/millrace/internal/handover"
	"github.com/millrace-db/millrace/internal/sockets"
)

// upgradeLimit is how long a successor may take until it answers.
const upgradeLimit = 30 * time.Second

// start is what an edge begins with, of a predecessor or of the service manager.
type start struct {
	from *handover.Predecessor // nil where there is none
	// sockets are those that were given.
	sockets *sockets.Set
	// upgrade asks for a successor; nil where none is to be started.
	upgrade <-chan os.Signal
	environ []string
}

// newStart takes what the process was given.
func newStart(environ []string) (*start, error) {
	from, err := handover.Inherit(environ)
	if err != nil {
		return nil, err
	}
	s := &start{from: from, environ: environ}
	if from != nil {
		s.sockets = from.Sockets
	} else if s.sockets, err = sockets.Activated(environ); err != nil {
		return nil, err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR2)
	s.upgrade = signals
	return s, nil
}

// run applies and answers until ctx ends, a stream stops, or a successor has taken
// over.
func (k *keeper) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	serving, stopServing := context.WithCancel(ctx)
	defer stopServing()
	following, stopFollowing := context.WithCancel(ctx)
	defer stopFollowing()
	followed := make(chan struct{})
	group.Go(func() error { return k.server.Run(serving) })
	if k.resp != nil {
		group.Go(func() error { return k.resp.Run(serving) })
	}
	if err := k.answering(); err != nil {
		k.log.Warn("the service manager was not told that the edge answers", "error", err)
	}
	group.Go(func() error {
		defer close(followed)
		return k.follow(following)
	})
	var successor *handover.Successor
	group.Go(func() error {
		if successor = k.awaitSuccessor(ctx); successor == nil {
			return nil
		}
		k.leave(successor)
		stopFollowing()
		<-followed
		for _, one := range k.streams {
			if err := one.Yield(); err != nil {
				k.log.Error("what is still read here cannot be handed over as it should", "stream", one.Name(), "error", err)
			}
		}
		stopServing()
		return nil
	})
	err := group.Wait()
	if successor != nil {
		k.log.Info("a successor has taken over; this process ends", "pid", successor.PID())
		err = errors.Join(err, successor.Close())
	}
	return err
}

// answering says that reads are answered: in the log, to the service manager, and to
// the process that answered before.
func (k *keeper) answering() error {
	k.log.Info("edge answers reads", "address", k.server.Addr(), "socket", k.c.Edge.HTTP.Unix)
	for _, address := range k.sockets.Spare() {
		k.log.Warn("a socket that was given is of no address that is configured, and was closed", "address", address)
	}
	return handover.Notify(k.start.environ)
}

// follow applies what comes until ctx ends or a stream stops. A successor waits until
// its predecessor has given the streams up.
func (k *keeper) follow(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	if from := k.start.from; from != nil {
		if err := from.Ready(); err != nil {
			// It has ended, however that came: what it kept is free.
			k.log.Warn("the process that answered before is gone", "error", err)
		}
		group.Go(func() error {
			if err := from.Receive(ctx, k.adopt); err != nil {
				k.log.Warn("connections of the process before were lost", "error", err)
			}
			return nil
		})
		for _, one := range k.streams {
			if err := one.TakeOver(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("stream %s: %w", one.Name(), err)
			}
		}
		if ctx.Err() != nil {
			return group.Wait()
		}
		k.log.Info("the streams were taken over")
	}
	for _, one := range k.streams {
		group.Go(func() error { return one.Run(ctx) })
	}
	k.images.run(ctx, group.Go)
	return group.Wait()
}

// awaitSuccessor starts a successor when it is asked to, and returns the one that
// answers; nil when ctx has ended. One that fails changes nothing.
func (k *keeper) awaitSuccessor(ctx context.Context) *handover.Successor {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.start.upgrade:
		}
		k.log.Info("a successor is started")
		s, err := handover.Start(k.sockets)
		if err == nil {
			limited, cancel := context.WithTimeout(ctx, upgradeLimit)
			err = s.Ready(limited)
			cancel()
		}
		if err == nil {
			return s
		}
		if ctx.Err() == nil {
			k.log.Error("the upgrade has failed; this process goes on as before", "error", err)
		}
	}
}

// leave stops accepting, and lets connections go over to the successor.
func (k *keeper) leave(s *handover.Successor) {
	k.sockets.Yield()
	k.server.Leave()
	if k.resp != nil {
		k.resp.Leave(s.Send)
	}
}
