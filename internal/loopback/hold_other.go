//go:build !linux

package loopback

import (
	"net"
	"strconv"
)

// hold only looks whether a port of 127.0.0.1 is free: elsewhere a server cannot share
// an address with a socket that is bound to it.
func hold(port int) error {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return err
	}
	return l.Close()
}
