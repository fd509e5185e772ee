package resp

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"syscall"
)

const (
	// batchSize is how many connections a loop answers together at most.
	batchSize = 128
	// turns is how many times a loop goes on before it lets others have its processor: a
	// loop whose clients never pause does not come to wait, which would do that.
	turns = 32
)

// loop waits for the connections that wait for a command, all of them in one goroutine,
// and answers those together for which something has come: with one call for all that
// there is to wait for, and from one snapshot of a stream. So a command costs a read and
// a write, and neither a goroutine that is woken nor a try in vain. What may take time
// is not for it: see away.
//
// Each connection is its loop's or its own goroutine's (conn.run), never both's. The loop
// has a descriptor of its own for it, which Go's runtime does not wait for as well.
type loop struct {
	s *Server
	// epoll is what is waited with. A byte in poke[1] ends a wait.
	epoll int
	poke  [2]int
	ended chan struct{}

	mu     sync.Mutex
	parked map[int32]*conn
	ending bool

	// Those that are answered, and those of them that have asked for rows; used again.
	batch, asking []*conn
	patience      patience
}

// loops are those of a server, which are begun when the first connection waits.
type loops struct {
	once sync.Once
	all  []*loop
}

// of returns a connection's loop, or nil if there is none.
func (l *loops) of(c *conn) *loop {
	l.once.Do(func() {
		// They leave room to those who write the stores.
		for range (runtime.GOMAXPROCS(0) + 1) / 2 {
			one, err := newLoop(c.s)
			if err != nil {
				c.s.log.Warn("each client of Redis costs a goroutine", "error", err)
				break
			}
			l.all = append(l.all, one)
		}
	})
	if len(l.all) == 0 {
		return nil
	}
	return l.all[uint64(c.id)%uint64(len(l.all))]
}

// end ends the loops. Their connections must be gone, and no more come.
func (l *loops) end() {
	l.once.Do(func() {}) // none is begun any more
	for _, one := range l.all {
		one.mu.Lock()
		one.ending = true
		one.mu.Unlock()
		_, _ = syscall.Write(one.poke[1], []byte{0}) // there is room for a byte
		<-one.ended
		one.close()
	}
	l.all = nil
}

func newLoop(s *Server) (*loop, error) {
	l := &loop{s: s, ended: make(chan struct{}), parked: make(map[int32]*conn), patience: patience{Context: s.life}}
	var err error
	if l.epoll, err = syscall.EpollCreate1(syscall.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("make a descriptor to wait with: %w", err)
	}
	if err := syscall.Pipe2(l.poke[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK); err != nil {
		_ = syscall.Close(l.epoll) // nothing was done with it
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	if err := l.watch(l.poke[0]); err != nil {
		l.close()
		return nil, err
	}
	go l.run()
	return l, nil
}

func (l *loop) close() {
	for _, fd := range []int{l.epoll, l.poke[0], l.poke[1]} {
		_ = syscall.Close(fd) // nothing is lost with it
	}
}

func (l *loop) watch(fd int) error {
	event := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(fd)} //nolint:gosec // a descriptor
	if err := syscall.EpollCtl(l.epoll, syscall.EPOLL_CTL_ADD, fd, &event); err != nil {
		return fmt.Errorf("wait for a descriptor: %w", err)
	}
	return nil
}

// unwatchLocked takes a connection out.
func (l *loop) unwatchLocked(c *conn) {
	delete(l.parked, int32(c.fd))                                   //nolint:gosec // as above
	_ = syscall.EpollCtl(l.epoll, syscall.EPOLL_CTL_DEL, c.fd, nil) // it is there
	c.parked = false
}

// take takes a connection over, unless that is to end.
func (l *loop) take(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ending || c.woken.Load() || l.watch(c.fd) != nil {
		return false
	}
	l.parked[int32(c.fd)] = c //nolint:gosec // as above
	c.parked, c.answered = true, false
	return true
}

// expel has a connection go on in a goroutine that ends it. One that is being answered
// does so afterwards.
func (l *loop) expel(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.parked && !c.answered {
		l.unwatchLocked(c)
		go c.resume()
	}
}

func (l *loop) run() {
	defer close(l.ended)
	var events [batchSize]syscall.EpollEvent
	for turn := 1; ; turn++ {
		n, err := syscall.EpollWait(l.epoll, events[:], -1)
		if err != nil && !errors.Is(err, syscall.EINTR) {
			panic(fmt.Sprintf("wait for connections: %v", err)) // the descriptor is the loop's own
		}
		l.batch = l.batch[:0]
		l.mu.Lock()
		if l.ending {
			l.mu.Unlock()
			return
		}
		for i := range max(n, 0) {
			if c := l.parked[events[i].Fd]; c != nil {
				c.answered = true
				l.batch = append(l.batch, c)
			}
		}
		l.mu.Unlock()
		l.answer()
		if l.release() || turn%turns == 0 {
			runtime.Gosched()
		}
	}
}

// release lets those go that were answered: back to waiting, away, or to their end. It
// reports whether any has gone.
func (l *loop) release() bool {
	over := l.batch[:0]
	l.mu.Lock()
	for _, c := range l.batch {
		c.answered = false
		if c.away || c.gone || c.closing || c.woken.Load() {
			l.unwatchLocked(c)
			over = append(over, c)
		}
	}
	l.mu.Unlock()
	for _, c := range over {
		if c.gone || c.closing && len(c.out.b) == 0 {
			c.finish()
		} else {
			go c.resume()
		}
	}
	clear(l.batch)
	return len(over) > 0
}
