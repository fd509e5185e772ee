package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-db/millrace/internal/failpoint"
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
	group.Go(func() error { return k.server.Run(serving) })
	if k.resp != nil {
		group.Go(func() error { return k.resp.Run(serving) })
	}
	k.answering()
	var successor *handover.Successor
	last := make(chan struct{})
	var passing sync.WaitGroup
	group.Go(func() (err error) {
		if successor, err = k.reign(ctx); successor != nil {
			passing.Go(func() { k.passUpgrades(successor, last) })
			stopServing()
		}
		return err
	})
	err := group.Wait()
	if successor != nil {
		k.log.Info("a successor has taken over; this process ends", "pid", successor.PID())
		err = errors.Join(err, successor.Close())
		close(last)
		passing.Wait()
	}
	return err
}

// passUpgrades tells the successor, which has taken over, of each upgrade that this process
// is asked for, until last is closed: nobody needs to know which of the two is asked.
func (k *keeper) passUpgrades(s *handover.Successor, last <-chan struct{}) {
	tell := func() {
		k.log.Info("an upgrade is asked for; the process that has taken over is told", "pid", s.PID())
		if err := s.Upgrade(); err != nil {
			k.log.Error("the upgrade has failed", "error", err)
		}
	}
	for {
		select {
		case <-k.start.upgrade:
			tell()
		case <-last:
			select {
			case <-k.start.upgrade:
				tell()
			default:
			}
			return
		}
	}
}

// answering says that reads are answered.
func (k *keeper) answering() {
	k.log.Info("edge answers reads", "address", k.server.Addr(), "socket", k.c.Edge.HTTP.Unix,
		"tls", address(k.c.Edge.TLS.HTTP), "resp", address(k.c.Edge.RESP.Listen), "resp_socket", k.c.Edge.RESP.Unix, "resp_tls", address(k.c.Edge.TLS.RESP))
	for _, address := range k.sockets.Spare() {
		k.log.Warn("a socket that was given is of no address that is configured, and was closed", "address", address)
	}
}

// notify tells the service manager that this is the process that answers.
func (k *keeper) notify() {
	if err := handover.Notify(k.start.environ); err != nil {
		k.log.Warn("the service manager was not told that the edge answers", "error", err)
	}
}

// reign follows the streams until ctx ends, one of them stops, or a successor has taken
// them over, which it returns. One that fails to, however far it has come, changes nothing.
func (k *keeper) reign(ctx context.Context) (*handover.Successor, error) {
	// A process is followed by another one when it keeps the streams and has no predecessor
	// any more, which lets connections go over to it to its end, and not before.
	kept := make(chan struct{})
	follow := func(ctx context.Context) error { return k.inherit(ctx, kept) }
	if k.start.from == nil {
		k.notify()
		close(kept)
		follow = k.follow
	}
	for {
		following, stop := context.WithCancel(ctx)
		followed, ready := make(chan error, 1), make(chan *handover.Successor, 1)
		go func() { followed <- follow(following) }()
		go func() { ready <- k.awaitSuccessor(following, kept) }()
		var s *handover.Successor
		var err error
		select {
		case err = <-followed:
			stop()
			s = <-ready
		case s = <-ready:
			stop()
			err = <-followed
		}
		if s == nil {
			return nil, err
		}
		if err != nil || ctx.Err() != nil {
			return nil, errors.Join(err, s.End())
		}
		if k.handOver(ctx, s) {
			return s, nil
		}
		follow = k.takeBack
	}
}

// follow applies what comes until ctx ends or a stream stops.
func (k *keeper) follow(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, one := range k.streams {
		group.Go(func() error { return one.Run(ctx) })
	}
	k.images.run(ctx, group.Go)
	return group.Wait()
}

// takeBack is follow of streams that another process had, or was to have: it waits until
// nobody keeps them.
func (k *keeper) takeBack(ctx context.Context) error {
	if err := k.takeOver(ctx); err != nil || ctx.Err() != nil {
		return err
	}
	return k.follow(ctx)
}

func (k *keeper) takeOver(ctx context.Context) error {
	for _, one := range k.streams {
		if err := one.TakeOver(ctx); err != nil && ctx.Err() == nil {
			return fmt.Errorf("stream %s: %w", one.Name(), err)
		}
	}
	return nil
}

// inherit is takeBack of a successor, which waits until its predecessor has given the
// streams up. kept is closed when it has them, and its predecessor has ended.
func (k *keeper) inherit(ctx context.Context, kept chan<- struct{}) error {
	from := k.start.from
	if err := from.Ready(); err != nil {
		// It has ended, however that came: what it kept is free.
		k.log.Warn("the process that answered before is gone", "error", err)
	}
	failpoint.Hit("upgrade-ready")
	group, ctx := errgroup.WithContext(ctx)
	gone := make(chan struct{})
	group.Go(func() error {
		defer close(gone)
		if err := from.Receive(ctx, k.adopt); err != nil {
			k.log.Warn("connections of the process before were lost", "error", err)
		}
		return nil
	})
	group.Go(func() error {
		if err := k.takeOver(ctx); err != nil || ctx.Err() != nil {
			return err
		}
		failpoint.Hit("upgrade-taken")
		k.log.Info("the streams were taken over")
		k.notify()
		if err := from.Took(); err != nil {
			k.log.Warn("the process that answered before is gone", "error", err)
		}
		group.Go(func() error {
			<-gone
			close(kept)
			return nil
		})
		return k.follow(ctx)
	})
	return group.Wait()
}

// awaitSuccessor starts a successor when it is asked to, once the streams are kept here, and
// returns the one that answers; nil when ctx has ended. One that fails changes nothing.
func (k *keeper) awaitSuccessor(ctx context.Context, kept <-chan struct{}) *handover.Successor {
	for asked := false; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-k.start.upgrade:
			if asked = true; kept != nil {
				k.log.Info("an upgrade is asked for; it begins when this process has the streams and the one before has ended")
			}
		case <-kept:
			kept = nil
		}
		if !asked || kept != nil {
			continue
		}
		asked = false
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

// handOver gives the streams up, whose appliers have ended, and when the successor has
// them stops accepting, and lets connections go over to it. It reports whether it has: until
// then this process answers as before.
func (k *keeper) handOver(ctx context.Context, s *handover.Successor) bool {
	for _, one := range k.streams {
		if err := one.Yield(); err != nil {
			k.log.Error("what is still read here cannot be handed over as it should", "stream", one.Name(), "error", err)
		}
	}
	limited, cancel := context.WithTimeout(ctx, upgradeLimit)
	defer cancel()
	if err := s.Took(limited); err != nil {
		if ctx.Err() == nil {
			k.log.Error("the upgrade has failed; this process takes its streams back, and goes on as before", "error", err)
		}
		return false
	}
	for _, one := range k.streams {
		if err := one.Leave(); err != nil {
			k.log.Warn("edges that follow this one were not let go", "stream", one.Name(), "error", err)
		}
	}
	k.sockets.Yield()
	k.server.Leave()
	if k.resp != nil {
		k.resp.Leave(s.Send)
	}
	return true
}
