//go:build !linux

package capture

import "syscall"

// boundUnanswered leaves it to the kernel how long it waits for a dead peer.
func boundUnanswered(_, _ string, _ syscall.RawConn) error { return nil }
