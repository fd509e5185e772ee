//go:build unix && !linux

package child

import (
	"os/exec"
	"syscall"
)

// attributes gives the child a process group of its own. This system has no way
// to tie its life to ours.
func attributes(cmd *exec.Cmd, _ syscall.Signal) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
}
