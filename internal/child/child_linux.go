package child

import (
	"os/exec"
	"syscall"
)

// attributes gives the child a process group of its own and the parent-death
// signal. Go sets that signal after the change of user, which would clear it.
func attributes(cmd *exec.Cmd, onDeath syscall.Signal) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = onDeath
}
