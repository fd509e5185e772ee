package pgserver

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// processesIn lists the Postgres processes whose working directory is dir. The
// postmaster and all its children stay in the data directory, so this finds a
// live server, and what is left of a killed one, without trusting a process ID
// from a file that may be older than the machine's last start.
func processesIn(dir string) []int {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil
	}
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		return nil
	}
	var pids []int
	for _, link := range links {
		if cwd, err := os.Readlink(link); err != nil || cwd != real {
			continue
		}
		// A person's shell may stand in the directory too. A process that is
		// dying has no program any more, while it still holds what it shares
		// with the others.
		exe, err := os.Readlink(filepath.Join(filepath.Dir(link), "exe"))
		if err == nil && filepath.Base(strings.TrimSuffix(exe, " (deleted)")) != "postgres" {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link)))
		if err != nil || pid == os.Getpid() {
			continue
		}
		pids = append(pids, pid)
	}
	return pids
}

// canListProcesses says whether processesIn sees anything on this system.
const canListProcesses = true
