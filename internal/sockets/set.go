package sockets

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
)

// FirstFD is the first descriptor that a process is given, by the convention of
// systemd.
const FirstFD = 3

// foreign stands before the name of a unix socket whose file is not this process's to
// remove.
const foreign = "!"

// Set hands out the listeners of a process (errors name the key that configures one): those it was given at its start, where
// there is one for an address, and new ones otherwise. It knows them all, so that it
// can give them to a successor. Its methods may be called concurrently. A nil Set
// makes new ones.
type Set struct {
	mu    sync.Mutex
	given []*socket
	taken []*socket
}

// socket is a listener under the name of the key that configures it.
type socket struct {
	name     string
	listener net.Listener
	// owned tells that a unix socket's file is this process's to remove.
	owned bool
}

// Activated takes the sockets that the service manager gives: LISTEN_PID, LISTEN_FDS
// and LISTEN_FDNAMES, as systemd sets them. They are told apart by their addresses.
func Activated(environ []string) (*Set, error) {
	var pid, fds string
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		switch name {
		case "LISTEN_PID":
			pid = value
		case "LISTEN_FDS":
			fds = value
		}
	}
	if pid != strconv.Itoa(os.Getpid()) {
		return new(Set), nil
	}
	n, err := strconv.Atoi(fds)
	if err != nil || n < 0 || n > 64 {
		return nil, fmt.Errorf("LISTEN_FDS is %q; want the number of sockets that the service manager has opened, at most 64", fds)
	}
	names := make([]string, n)
	for i := range names {
		names[i] = foreign
	}
	return Given(names)
}

// Given takes the sockets of descriptors from 3 on, under the names that Files gave.
func Given(names []string) (*Set, error) {
	s := new(Set)
	var errs []error
	for i, name := range names {
		f := os.NewFile(uintptr(FirstFD+i), name)
		l, err := net.FileListener(f)
		_ = f.Close() // FileListener has its own descriptor
		if err != nil {
			errs = append(errs, fmt.Errorf("take over the socket of descriptor %d: %w; mend: give listening stream sockets only", FirstFD+i, err))
			continue
		}
		name, isForeign := strings.CutPrefix(name, foreign)
		s.given = append(s.given, &socket{name: name, listener: l, owned: !isForeign})
	}
	if err := errors.Join(errs...); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// TCP listens on an address, as the function TCP does; name is the key that
// configures it.
func (s *Set) TCP(ctx context.Context, name, address string, loopback bool) (net.Listener, error) {
	if s == nil {
		return TCP(ctx, address, loopback)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if loopback {
		if err := CheckLoopback(address); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	given := s.find(name, func(at net.Addr) bool {
		tcp, ok := at.(*net.TCPAddr)
		return ok && sameTCP(tcp, address)
	})
	if given == nil {
		l, err := TCP(ctx, address, loopback)
		return s.keep(&socket{name: name, listener: l, owned: true}, err)
	}
	tcp, ok := given.listener.Addr().(*net.TCPAddr)
	if !ok || loopback && !tcp.IP.IsLoopback() {
		return nil, fmt.Errorf("%s: listen on %s: the socket that was given for it is %v, which is not a loopback address; mend: correct the socket unit", name, address, given.listener.Addr())
	}
	return s.keep(given, nil)
}

// Unix listens on a unix socket, as the function Unix does; name is the key that
// configures it.
func (s *Set) Unix(ctx context.Context, name, path string) (net.Listener, error) {
	if s == nil {
		return Unix(ctx, path)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	given := s.find(name, func(at net.Addr) bool {
		unix, ok := at.(*net.UnixAddr)
		return ok && unix.Name == path
	})
	if given == nil {
		l, err := Unix(ctx, path)
		return s.keep(&socket{name: name, listener: l, owned: true}, err)
	}
	given.own()
	return s.keep(given, nil)
}

// find takes a socket that was given. One whose key has another address now is not
// taken.
func (s *Set) find(name string, at func(net.Addr) bool) *socket {
	for i, g := range s.given {
		if at(g.listener.Addr()) && (g.name == "" || g.name == name) {
			s.given = append(s.given[:i:i], s.given[i+1:]...)
			return g
		}
	}
	return nil
}

func (s *Set) keep(l *socket, err error) (net.Listener, error) {
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.name, err)
	}
	s.taken = append(s.taken, l)
	return l.listener, nil
}

// own lets the file of a unix socket be removed with it, if it is this process's.
func (s *socket) own() {
	if l, ok := s.listener.(*net.UnixListener); ok {
		l.SetUnlinkOnClose(s.owned)
	}
}

// sameTCP reports whether a socket's address is that of a configured one. Port 0 is
// that of any.
func sameTCP(at *net.TCPAddr, address string) bool {
	host, port, err := net.SplitHostPort(address)
	if err != nil || port != "0" && port != strconv.Itoa(at.Port) {
		return false
	}
	switch host {
	case "":
		return at.IP.IsUnspecified()
	case "localhost":
		return at.IP.IsLoopback()
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.Equal(at.IP)
}

// Spare closes the sockets that were given and that nobody has taken, and returns
// their addresses.
func (s *Set) Spare() (addresses []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.given {
		addresses = append(addresses, g.listener.Addr().String())
		g.own()
		_ = g.listener.Close() // nobody was answered there
	}
	s.given = nil
	return addresses
}

// Files returns the sockets that were handed out, for a successor, under their
// names. The caller closes the files.
func (s *Set) Files() (names []string, files []*os.File, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.taken {
		l, ok := t.listener.(interface{ File() (*os.File, error) })
		if !ok {
			return nil, nil, fmt.Errorf("hand over the socket at %v: a %T has no descriptor", t.listener.Addr(), t.listener)
		}
		f, err := l.File()
		if err != nil {
			for _, f := range files {
				_ = f.Close() // a copy
			}
			return nil, nil, fmt.Errorf("hand over the socket at %v: %w", t.listener.Addr(), err)
		}
		name := t.name
		if !t.owned {
			name = foreign + name
		}
		names, files = append(names, name), append(files, f)
	}
	return names, files, nil
}

// Yield leaves the files of unix sockets to a successor.
func (s *Set) Yield() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.taken {
		if l, ok := t.listener.(*net.UnixListener); ok {
			l.SetUnlinkOnClose(false)
		}
	}
}

// Close closes what was given and not taken. What was handed out is its taker's to
// close.
func (s *Set) Close() error {
	s.Spare()
	return nil
}
