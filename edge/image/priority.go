package image

import "runtime"

// behindOthers calls fn on a thread of its own, which gives way to others where the
// system lets it. The thread ends with the call, and its priority with it.
func behindOthers(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and is not unlocked
		giveWay()
		done <- fn()
	}()
	return <-done
}
