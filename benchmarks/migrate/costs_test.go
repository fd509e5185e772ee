package migrate

import (
	"fmt"
	"maps"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// costs watches how much processor time the servers' processes and this one take, by
// what they are. On a machine that others use too it says more than the clock.
type costs struct {
	stop, done chan struct{}
	first      map[int]float64 // by process, when it was seen first
	last       map[int]float64
	what       map[int]string
}

// costInterval is how often processes are looked at: what one takes after the last look
// before it ends is not seen.
const costInterval = 50 * time.Millisecond

// watch begins to watch. Processes that are there already count from now on.
func watch() *costs {
	c := &costs{stop: make(chan struct{}), done: make(chan struct{}), first: make(map[int]float64), last: make(map[int]float64), what: make(map[int]string)}
	c.look(false)
	go func() {
		defer close(c.done)
		tick := time.NewTicker(costInterval)
		defer tick.Stop()
		for {
			select {
			case <-c.stop:
				return
			case <-tick.C:
				c.look(true)
			}
		}
	}()
	return c
}

// end returns the seconds by kind of process.
func (c *costs) end() map[string]float64 {
	close(c.stop)
	<-c.done
	c.look(true)
	all := make(map[string]float64)
	for pid, seconds := range c.last {
		if seconds -= c.first[pid]; seconds >= 0.005 {
			all[c.what[pid]] += seconds
		}
	}
	maps.DeleteFunc(all, func(_ string, seconds float64) bool { return seconds < 0.02 })
	return all
}

// look looks at all processes of the servers, and at this one. New ones count from
// their start.
func (c *costs) look(fresh bool) {
	c.one(os.Getpid(), "", fresh)
	for name, s := range servers {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", s.PID()))
		if err != nil {
			continue // it has ended
		}
		for _, text := range strings.Fields(string(children)) {
			if pid, err := strconv.Atoi(text); err == nil {
				c.one(pid, name, fresh)
			}
		}
	}
}

func (c *costs) one(pid int, server string, fresh bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return // it has ended
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	seconds := (user + system) / 100 // USER_HZ
	if _, seen := c.last[pid]; !seen && !fresh {
		c.first[pid] = seconds
	}
	c.last[pid] = seconds
	if server == "" {
		c.what[pid] = "this process"
		return
	}
	title, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if kind := kindOf(string(title)); err == nil && kind != "" {
		c.what[pid] = server + " " + kind
	}
}

// kindOf tells from its title what a process of a server does.
func kindOf(title string) string {
	title = strings.TrimRight(strings.ReplaceAll(title, "\x00", " "), " ")
	title, is := strings.CutPrefix(title, "postgres: ")
	switch {
	case !is:
		return ""
	case strings.HasPrefix(title, "walsender"), strings.Contains(title, "START_REPLICATION"):
		return "walsender"
	case strings.HasPrefix(title, "logical replication apply"), strings.HasPrefix(title, "logical replication worker"):
		return "apply worker"
	case strings.Contains(title, "("): // a client's
		return "session"
	}
	return title
}

// spent writes what was spent.
func (c *costs) spent(b *testing.B, what string, values map[string]any) {
	b.Helper()
	for kind, seconds := range c.end() {
		values[kind] = strconv.FormatFloat(seconds, 'f', 2, 64)
	}
	values["what"] = what
	figure(b, values)
}
