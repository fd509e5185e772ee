package follow

import (
	"context"
	"errors"
)

// TakeOver takes the stream from the process that keeps it, as soon as that has given
// it up (Yield): a Stream of Config.Standby only reads until then, and is not Run.
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
// ended.
func (f *Stream) Yield() error {
	f.mu.Lock()
	logs := f.logs
	f.logs.current, f.logs.next = nil, nil
	f.mu.Unlock()
	var errs []error
	if f.relay != nil {
		errs = append(errs, f.relay.Close()) // whom it serves asks again, and is answered by the other process
	}
	return errors.Join(append(errs, logs.close(), f.home.Yield())...)
}
