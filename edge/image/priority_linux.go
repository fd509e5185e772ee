package image

import "syscall"

// niceness is that of a thread that gives way.
const niceness = 15

// giveWay lowers the priority of the calling thread. On Linux each has its own.
func giveWay() {
	// Where it cannot be lowered, it stays what it is.
	_ = syscall.Setpriority(syscall.PRIO_PROCESS, syscall.Gettid(), niceness)
}
