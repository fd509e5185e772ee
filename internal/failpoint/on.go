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
)

// Enabled says whether the process was built with failpoints.
const Enabled = true

// Variable names the environment variable that arms one failpoint.
const Variable = "MILLRACE_FAILPOINT"

var (
	armed  = sync.OnceValues(parse)
	passed atomic.Int64
)

func parse() (name string, n int64) {
	name, count, counted := strings.Cut(os.Getenv(Variable), ":")
	if !counted {
		return name, 1
	}
	n, err := strconv.ParseInt(count, 10, 64)
	if err != nil || n < 1 {
		panic(fmt.Sprintf("%s: %q is not a number from 1", Variable, count))
	}
	return name, n
}

// Hit kills the process if name is armed and this is the time.
func Hit(name string) {
	wanted, n := armed()
	if wanted != name || passed.Add(1) != n {
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // the signal ends the process before anything else happens
}
