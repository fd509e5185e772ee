package follow

import (
	"context"
	"errors"
)

// TakeOver takes the stream from the process that keeps it, as soon as that has given
// it up (Yield): a Stream of Config.Standby only reads until then, and is not Run. A Stream
// that has yielded takes the stream back so, where nobody keeps it any more.
func (f *Stream) TakeOver(ctx context.Context) error {
	if err := f.home.TakeOver(ctx); err != nil {
		return err
	}
	epoch := f.home.Place().Epoch
	logs, err := f.openLogs(epoch)
	if err != nil {
		return err
	}
	f.epoch.Store(uint64(epoch))
	f.mu.Lock()
	defer f.mu.Unlock()
	f.logs = logs
	return nil
}

// Yield lets another process follow the stream, and goes on reading its store. Run has
// ended. Leave follows when that process has taken the stream over, or TakeOver and Run
// when it has not.
func (f *Stream) Yield() error {
	f.mu.Lock()
	logs := f.logs
	f.logs.current, f.logs.next = nil, nil
	f.mu.Unlock()
	return errors.Join(logs.close(), f.home.Yield())
}

// Leave lets the edges go that follow this one: they ask again, and are answered by the
// process that has taken the stream over.
func (f *Stream) Leave() error {
	if f.relay == nil {
		return nil
	}
	return f.relay.Close()
}
