package topic

import (
	"context"
	"net"
	"sync"
)

// dialer opens the connections of one client and can cut them all. After that
// it opens none: the library's retries end at once.
type dialer struct {
	ctx    context.Context
	cancel context.CancelFunc
	dial   func(ctx context.Context, network, address string) (net.Conn, error)

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	err   error // of the newest attempt
}

func newDialer(dial func(ctx context.Context, network, address string) (net.Conn, error)) *dialer {
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	d := &dialer{dial: dial, conns: make(map[net.Conn]struct{})}
	// The context belongs to the dialer because the library's interface passes
	// none.
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

// Dial implements the library's interface.
func (d *dialer) Dial(network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(d.ctx, dialLimit)
	defer cancel()
	conn, err := d.dial(ctx, network, address)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = err
	if err != nil {
		return nil, err
	}
	if d.ctx.Err() != nil {
		_ = conn.Close()
		return nil, d.ctx.Err()
	}
	tracked := &trackedConn{Conn: conn, dialer: d}
	d.conns[tracked] = struct{}{}
	return tracked, nil
}

// cut closes all connections and refuses new ones.
func (d *dialer) cut() {
	d.cancel()
	d.mu.Lock()
	conns := d.conns
	d.conns = nil
	d.mu.Unlock()
	for conn := range conns {
		_ = conn.Close() // a second Close by the library is harmless
	}
}

func (d *dialer) lastError() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// trackedConn leaves its dialer's list when it is closed.
type trackedConn struct {
	net.Conn
	dialer *dialer
}

func (c *trackedConn) Close() error {
	c.dialer.mu.Lock()
	delete(c.dialer.conns, c)
	c.dialer.mu.Unlock()
	return c.Conn.Close()
}
