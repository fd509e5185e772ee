// Package handover lets a process be followed by another one of the same program, so
// that nobody who asks it is refused meanwhile.
//
//	predecessor                         successor
//	Start: sockets, environment  ─────► Inherit: takes them, opens what it reads
//	Ready                        ◄───── Ready: answers too
//	gives up what only one may
//	have, and answers on                takes that
//	Took                         ◄───── Took: has it
//	stops accepting
//	Send: connections            ─────► Receive: goes on with them
//	ends                         ─────► Receive returns
//
// Where the successor ends, or does not come on, before Took, the predecessor takes back
// what it gave up, and nothing has changed for who asks it.
//
// It owns the channel between both, a pair of connected sockets. What is handed over,
// and when, is the caller's business.
package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/millrace-db/millrace/internal/sockets"
)

// Variable tells a successor what it was given: the names of the sockets, which are
// its descriptors from 3 on; the channel comes behind them. Its name stands for what is
// said over the channel: a program that does not know it refuses to start, as it does with
// any variable of ours that it does not know, and nothing is given up for it.
const Variable = "MILLRACE_HANDOVER_TOOK"

// VariableBefore is the one of predecessors that do not wait for Took.
const VariableBefore = "MILLRACE_HANDOVER"

// What a successor sends: when it answers, and when it has what only one may have.
const (
	readyMessage = "ready"
	tookMessage  = "took"
)

// dataSize is the most that is sent at once; more goes before it in pieces.
const dataSize = 32 << 10

// The first byte of what a predecessor sends: a piece, or the end of what belongs to a
// connection.
const (
	piece = 'p'
	last  = 'c'
)

// maxState bounds what is taken in for one connection.
const maxState = 16 << 20

// Successor is the process that follows this one. Its methods but Send are called by
// one goroutine.
type Successor struct {
	process *os.Process
	channel *net.UnixConn
	ended   chan struct{}
	err     error // why it has ended, once it has

	mu sync.Mutex // held to send
}

// Start starts the program anew, with this process's arguments and environment, output
// and sockets.
func Start(set *sockets.Set) (*Successor, error) {
	path, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the program to go over to: %w", err)
	}
	names, files, err := set.Files()
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, f := range files {
			_ = f.Close() // the successor has its own
		}
	}()
	ours, theirs, err := pair()
	if err != nil {
		return nil, err
	}
	files = append(files, theirs)
	process, err := spawn(path, names, files)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %s to go over to it: %w", path, err), ours.Close())
	}
	s := &Successor{process: process, channel: ours, ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		state, err := process.Wait()
		if s.err = err; err == nil && !state.Success() {
			s.err = errors.New(state.String())
		}
	}()
	return s, nil
}

// spawn starts the program with descriptors from 3 on. Package os would make the
// sockets wait in the kernel, for this process too, which shares them.
func spawn(path string, names []string, files []*os.File) (*os.Process, error) {
	attributes := &syscall.ProcAttr{Files: []uintptr{0, 1, 2}}
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return nil, err
		}
		if err := raw.Control(func(fd uintptr) { attributes.Files = append(attributes.Files, fd) }); err != nil {
			return nil, err
		}
	}
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); name != Variable && name != VariableBefore && !strings.HasPrefix(name, "LISTEN_") {
			attributes.Env = append(attributes.Env, entry)
		}
	}
	attributes.Env = append(attributes.Env, Variable+"="+strings.Join(names, ","))
	pid, err := syscall.ForkExec(path, os.Args, attributes)
	runtime.KeepAlive(files)
	if err != nil {
		return nil, err
	}
	return os.FindProcess(pid)
}

// pair makes connected sockets that keep the bounds of messages.
func pair() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a pair of sockets: %w", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "successor")
	ours, err = channel(os.NewFile(uintptr(fds[0]), "predecessor"))
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return ours, theirs, nil
}

func channel(f *os.File) (*net.UnixConn, error) {
	defer func() { _ = f.Close() }() // FileConn has its own
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("use a pair of sockets: %w", err)
	}
	unix, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("use a pair of sockets: it is a %T", c), c.Close())
	}
	return unix, nil
}

// PID is the successor's.
func (s *Successor) PID() int { return s.process.Pid }

// Ready returns when the successor answers. Where it ends before, or takes too long,
// it is ended, and the error says so: then nothing has changed for this process.
func (s *Successor) Ready(ctx context.Context) error {
	if err := s.await(ctx, readyMessage); err != nil {
		return fmt.Errorf("the successor does not answer: %w; %s", err, mendMessage)
	}
	return nil
}

// Took returns, after Ready, when the successor has what only one process may have. Where
// it ends before, or takes too long, it is ended, and the error says so: then that is free.
func (s *Successor) Took(ctx context.Context) error {
	if err := s.await(ctx, tookMessage); err != nil {
		return fmt.Errorf("the successor has not taken over: %w; %s", err, mendMessage)
	}
	return nil
}

// mendMessage is for a successor that fails.
const mendMessage = "mend: see what it has logged, correct that and send SIGUSR2 again, or end this process and start the other program"

// lastWords is how long what an ended successor has said last may take to come, and how
// long one that says no more may take to end.
const lastWords = time.Second

// await waits until the successor says something, or ends it.
func (s *Successor) await(ctx context.Context, what string) error {
	said := make(chan error, 1)
	go func() {
		b := make([]byte, 16)
		n, err := s.channel.Read(b)
		switch {
		case errors.Is(err, io.EOF):
			err = errors.New("it has given up")
		case err == nil && string(b[:n]) != what:
			err = fmt.Errorf("it said %q", b[:n])
		}
		said <- err
	}()
	var err error
	select {
	case err = <-said:
	case <-s.ended:
		// A process that it has started may hold the channel.
		select {
		case err = <-said:
		case <-time.After(lastWords):
			err = errors.New("it has ended")
		}
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err == nil {
		return nil
	}
	if ctx.Err() == nil {
		select {
		case <-s.ended:
			if s.err != nil {
				err = fmt.Errorf("%w: %w", err, s.err)
			}
		case <-time.After(lastWords):
		}
	}
	return errors.Join(err, s.End())
}

// Upgrade asks the successor to be followed by another one, as this process was asked. It is
// called after Ready, and may be after the successor has ended.
func (s *Successor) Upgrade() error {
	if err := s.process.Signal(syscall.SIGUSR2); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("ask the successor, process %d, for an upgrade: %w", s.PID(), err)
	}
	return nil
}

// End ends a successor that is not to take over, and returns when it is gone.
func (s *Successor) End() error {
	_ = s.process.Kill() // it may have ended
	<-s.ended
	return s.channel.Close()
}

// Send gives the successor a connection with what it needs to know of it. The caller
// closes its own copy. It is safe for concurrent use.
func (s *Successor) Send(c net.Conn, state []byte) error {
	raw, ok := c.(syscall.Conn)
	if !ok {
		return fmt.Errorf("hand over a connection: a %T has no descriptor", c)
	}
	rc, err := raw.SyscallConn()
	if err != nil {
		return fmt.Errorf("hand over a connection: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(state) > dataSize {
		if _, err := s.channel.Write(append([]byte{piece}, state[:dataSize]...)); err != nil {
			return fmt.Errorf("hand over a connection: %w", err)
		}
		state = state[dataSize:]
	}
	err = rc.Control(func(fd uintptr) {
		_, _, err = s.channel.WriteMsgUnix(append([]byte{last}, state...), syscall.UnixRights(int(fd)), nil)
	})
	if err != nil {
		return fmt.Errorf("hand over a connection: %w", err)
	}
	return nil
}

// Close tells the successor that no more comes.
func (s *Successor) Close() error { return s.channel.Close() }

// Predecessor is the process that this one follows.
type Predecessor struct {
	// Sockets are those that it listened on.
	Sockets *sockets.Set
	channel *net.UnixConn
}

// Inherit takes what a predecessor gives, where there is one; otherwise nil.
func Inherit(environ []string) (*Predecessor, error) {
	for _, entry := range environ {
		name, text, _ := strings.Cut(entry, "=")
		if name != Variable && name != VariableBefore {
			continue
		}
		var names []string
		if text != "" {
			names = strings.Split(text, ",")
		}
		set, err := sockets.Given(names)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", entry, err)
		}
		c, err := channel(os.NewFile(uintptr(sockets.FirstFD+len(names)), "predecessor"))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", entry, err), set.Close())
		}
		return &Predecessor{Sockets: set, channel: c}, nil
	}
	return nil, nil //nolint:nilnil // there is none
}

// Ready tells the predecessor that this process answers.
func (p *Predecessor) Ready() error {
	if _, err := p.channel.Write([]byte(readyMessage)); err != nil {
		return fmt.Errorf("tell the predecessor that this process answers: %w", err)
	}
	return nil
}

// Took tells the predecessor, after Ready, that this process has what only one may have.
func (p *Predecessor) Took() error {
	if _, err := p.channel.Write([]byte(tookMessage)); err != nil {
		return fmt.Errorf("tell the predecessor that this process has taken over: %w", err)
	}
	return nil
}

// Receive gives the connections that come to take, until the predecessor has ended or
// ctx has. The connection is take's.
func (p *Predecessor) Receive(ctx context.Context, take func(net.Conn, []byte) error) error {
	defer context.AfterFunc(ctx, func() { _ = p.channel.SetReadDeadline(time.Unix(1, 0)) })()
	var errs []error
	var state []byte
	b, oob := make([]byte, dataSize+1), make([]byte, syscall.CmsgSpace(4))
	for {
		n, oobn, _, _, err := p.channel.ReadMsgUnix(b, oob)
		if errors.Is(err, syscall.ECONNRESET) && ctx.Err() == nil {
			// It has ended and left something unread, as one does that does not wait for
			// Took. That is told once, and before what it has sent.
			continue
		}
		if err == nil && n == 0 || errors.Is(err, io.EOF) || ctx.Err() != nil {
			return errors.Join(append(errs, p.channel.Close())...)
		}
		if err != nil {
			return errors.Join(append(errs, fmt.Errorf("take over connections: %w", err), p.channel.Close())...)
		}
		if state = append(state, b[1:n]...); len(state) > maxState {
			return errors.Join(append(errs, errors.New("take over connections: what belongs to one is too much"), p.channel.Close())...)
		}
		if b[0] != last {
			continue
		}
		c, err := received(oob[:oobn])
		if err == nil {
			err = take(c, state)
		}
		if err != nil {
			errs = append(errs, err)
		}
		state = nil
	}
}

// received makes a connection of the descriptor in a message.
func received(oob []byte) (net.Conn, error) {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("take over a connection: %d messages, %w", len(messages), err)
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("take over a connection: %d descriptors, %w", len(fds), err)
	}
	syscall.CloseOnExec(fds[0])
	f := os.NewFile(uintptr(fds[0]), "connection")
	defer func() { _ = f.Close() }() // FileConn has its own
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("take over a connection: %w", err)
	}
	return c, nil
}
