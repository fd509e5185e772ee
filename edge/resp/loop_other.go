//go:build !linux

package resp

// loop is for Linux alone: elsewhere each connection waits in a goroutine.
type loop struct{}

func (*loop) expel(*conn) {}

type loops struct{}

func (*loops) end() {}

func (*conn) park() bool { return false }
