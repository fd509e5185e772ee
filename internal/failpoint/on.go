//go:build failpoint

package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Enabled says whether the process was built with failpoints.
const Enabled = true

// Variable names the environment variable that arms one failpoint.
const Variable = "MILLRACE_FAILPOINT"

// point is what Variable says: the place, the time of passing it, and the
// signal.
type point struct {
	name   string
	n      int64
	signal syscall.Signal
}

var (
	armed  = sync.OnceValue(parse)
	passed atomic.Int64
)

func parse() point {
	name, rest, counted := strings.Cut(os.Getenv(Variable), ":")
	if !counted {
		return point{name, 1, syscall.SIGKILL}
	}
	count, action, acts := strings.Cut(rest, ":")
	n, err := strconv.ParseInt(count, 10, 64)
	if err != nil || n < 1 || acts && action != "stop" {
		panic(fmt.Sprintf("%s: want name, name:n or name:n:stop with n from 1, got %q", Variable, os.Getenv(Variable)))
	}
	if acts {
		return point{name, n, syscall.SIGSTOP}
	}
	return point{name, n, syscall.SIGKILL}
}

// Hit signals the process if name is armed and this is the time.
func Hit(name string) {
	p := armed()
	if p.name != name || passed.Add(1) != p.n {
		return
	}
	_ = syscall.Kill(os.Getpid(), p.signal)
	if p.signal == syscall.SIGKILL {
		select {} // the signal ends the process before anything else happens
	}
	awaitStop()
}

// awaitStop gives the kernel time to stop all threads, this one among them. A
// process has no way to wait for its own SIGSTOP.
func awaitStop() {
	for range 100 {
		time.Sleep(time.Millisecond)
	}
}
