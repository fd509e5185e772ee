package relay

import (
	"context"
	"io"
	"net"
	"time"
)

const (
	// pieceSize is how much of the log goes into one frame.
	pieceSize = 256 << 10
	// copyBelow is up to which size a piece is copied behind its head, so that both are
	// one write.
	copyBelow = 16 << 10
)

// wire writes frames to a connection, each within a time that a peer that reads takes.
// As an io.Writer it takes bytes of the log and cuts them into pieces. It is used by one
// goroutine.
type wire struct {
	ctx   context.Context //nolint:containedctx // of the connection that it belongs to
	conn  net.Conn
	stall time.Duration
	// between is called before each piece.
	between func() error
	pace    pace
	buf     []byte
	// sent counts bytes of the log.
	sent int64
}

func (w *wire) deadline() error { return w.conn.SetWriteDeadline(time.Now().Add(w.stall)) }

// frame writes a frame that says something.
func (w *wire) frame(kind frameKind, content []byte) error {
	if err := w.deadline(); err != nil {
		return err
	}
	w.buf = appendFrame(w.buf[:0], kind, content)
	_, err := w.conn.Write(w.buf)
	return err
}

// Write sends bytes of the log.
func (w *wire) Write(b []byte) (n int, err error) {
	for n < len(b) {
		size, err := w.piece(int64(len(b) - n))
		if err != nil {
			return n, err
		}
		w.buf = append(appendFrameHead(w.buf[:0], frameRecords, size, nil), b[n:n+size]...)
		if _, err := w.conn.Write(w.buf); err != nil {
			return n, err
		}
		n += size
		w.sent += int64(size)
	}
	return n, nil
}

// ReadFrom sends bytes of the log out of a file: where the platform can, they are not
// copied through this process. A limit on r says how many there are, as io.Copy sees to.
func (w *wire) ReadFrom(r io.Reader) (n int64, err error) {
	limited, ok := r.(*io.LimitedReader)
	if !ok {
		return io.Copy(struct{ io.Writer }{w}, r)
	}
	for limited.N > 0 {
		size, err := w.piece(limited.N)
		if err != nil {
			return n, err
		}
		sent, err := w.send(limited.R, size)
		n += sent
		limited.N -= sent
		w.sent += sent
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (w *wire) send(r io.Reader, size int) (int64, error) {
	w.buf = appendFrameHead(w.buf[:0], frameRecords, size, nil)
	if size > copyBelow {
		if _, err := w.conn.Write(w.buf); err != nil {
			return 0, err
		}
		n, err := io.Copy(w.conn, &io.LimitedReader{R: r, N: int64(size)})
		if err == nil && n < int64(size) {
			err = io.ErrUnexpectedEOF
		}
		return n, err
	}
	if cap(w.buf) < frameHead+size {
		w.buf = append(make([]byte, 0, frameHead+copyBelow), w.buf...)
	}
	w.buf = w.buf[:frameHead+size]
	if n, err := io.ReadFull(r, w.buf[frameHead:]); err != nil {
		return int64(n), io.ErrUnexpectedEOF // the head is not sent
	}
	if _, err := w.conn.Write(w.buf); err != nil {
		return 0, err
	}
	return int64(size), nil
}

// piece waits until a piece may be sent, and returns its size.
func (w *wire) piece(most int64) (int, error) {
	size := int(min(most, pieceSize, w.pace.piece()))
	if wait := w.pace.take(time.Now(), size); wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-w.ctx.Done():
			return 0, w.ctx.Err()
		}
	}
	if w.between != nil {
		if err := w.between(); err != nil {
			return 0, err
		}
	}
	return size, w.deadline()
}

// pace bounds bytes a second; 0 is no bound.
type pace struct {
	rate int64
	// free is when the next piece may go.
	free time.Time
}

// piece is the largest piece that keeps a pause short.
func (p *pace) piece() int64 {
	if p.rate <= 0 {
		return pieceSize
	}
	return max(p.rate/8, 1<<10)
}

// take returns how long to wait before size bytes go. What was not used is lost, but for
// an eighth of a second.
func (p *pace) take(now time.Time, size int) time.Duration {
	if p.rate <= 0 {
		return 0
	}
	if earliest := now.Add(-time.Second / 8); p.free.Before(earliest) {
		p.free = earliest
	}
	wait := p.free.Sub(now)
	p.free = p.free.Add(time.Duration(float64(size) / float64(p.rate) * float64(time.Second)))
	return max(wait, 0)
}
