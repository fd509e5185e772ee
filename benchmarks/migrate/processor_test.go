package migrate

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/pgserver"
)

// processor returns the processor time that servers and this process have taken so far,
// its children but the servers' included: on a machine that others use too, it says
// more than the clock.
func processor(b *testing.B, all ...*pgserver.Server) time.Duration {
	b.Helper()
	const tick = time.Second / 100 // USER_HZ
	var sum time.Duration
	for _, s := range all {
		files, err := filepath.Glob("/proc/[0-9]*/stat")
		must(b, "list processes", err)
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				continue // it has ended
			}
			var pid, parent int
			var skip string
			var user, system, childrenUser, childrenSystem int64
			at := strings.LastIndexByte(string(text), ')') // behind the program's name
			_, err = fmt.Sscan(string(text), &pid)
			must(b, "read "+file, err)
			fields := strings.Fields(string(text[at+1:]))
			_, err = fmt.Sscan(strings.Join(append(fields[:2:2], fields[11:15]...), " "), &skip, &parent, &user, &system, &childrenUser, &childrenSystem)
			must(b, "read "+file, err)
			if pid == s.PID() {
				user, system = user+childrenUser, system+childrenSystem
			} else if parent != s.PID() {
				continue
			}
			sum += time.Duration(user+system) * tick
		}
	}
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		must(b, "getrusage", syscall.Getrusage(who, &u))
		sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return sum
}
