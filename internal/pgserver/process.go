package pgserver

import (
	"errors"
	"fmt"
	"syscall"
	"time"
)

// clearOut kills what is left of a dead postmaster in dir and returns when
// nothing is: a backend that outlives its postmaster still writes to the data
// directory, and the next postmaster refuses to start beside it.
func clearOut(dir string, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		pids := processesIn(dir)
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("kill Postgres process %d: %w", pid, err)
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("kill Postgres in %s: processes %v are still there after %s", dir, pids, limit)
		}
		<-tick.C
	}
}
