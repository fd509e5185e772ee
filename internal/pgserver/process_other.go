//go:build unix && !linux

package pgserver

import "syscall"

// processAttributes puts the server into a process group of its own, so that a
// Ctrl-C meant for millrace does not stop the database under it. This system
// has no way to tie its life to ours: a server whose parent was killed goes on
// until the next start finds it.
func processAttributes(who owner) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: who.credential(), Setpgid: true}
}

// processesIn finds nothing here: there is no /proc to look at.
func processesIn(string) []int { return nil }

// canListProcesses says whether processesIn sees anything on this system.
const canListProcesses = false
