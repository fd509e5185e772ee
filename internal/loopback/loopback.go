// Package loopback finds free TCP ports on 127.0.0.1 for servers that this
// project starts itself: the private Postgres and the brokers of tests and of
// `millrace dev`.
//
// It promises that a port is free when it is handed out, that no outgoing
// connection will be given it while its server is down for a restart (ports come
// from below the kernel's ephemeral range), and, on Linux, that no other process
// is handed it here for as long as this one lives. It cannot promise that no
// server takes the port that chose it otherwise, so callers that can choose again
// should do so.
package loopback

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
)

const (
	lowestPort  = 10240
	defaultHigh = 32768 // Linux starts its ephemeral range here unless told otherwise
	attempts    = 400
)

// FreePorts returns n different ports that are free on 127.0.0.1. On Linux each
// costs a descriptor until the process ends.
func FreePorts(n int) ([]int, error) {
	high := ephemeralStart()
	ports := make([]int, 0, n)
	var last error
	for range attempts {
		if len(ports) == n {
			return ports, nil
		}
		port := lowestPort + rand.IntN(high-lowestPort)
		if slices.Contains(ports, port) {
			continue
		}
		if err := hold(port); err != nil {
			last = err
			continue
		}
		ports = append(ports, port)
	}
	if len(ports) == n {
		return ports, nil
	}
	return nil, fmt.Errorf("find %d free ports on 127.0.0.1 between %d and %d: %w", n, lowestPort, high, errors.Join(errors.New("all tried ones are taken"), last))
}

// FreePort returns one port that is free on 127.0.0.1.
func FreePort() (int, error) {
	ports, err := FreePorts(1)
	if err != nil {
		return 0, err
	}
	return ports[0], nil
}

// ephemeralStart is the first port that the kernel gives to outgoing
// connections, or its usual value where that cannot be read or leaves no room.
func ephemeralStart() int {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return defaultHigh
	}
	fields := strings.Fields(string(text))
	if len(fields) == 0 {
		return defaultHigh
	}
	low, err := strconv.Atoi(fields[0])
	if err != nil || low < lowestPort+4096 || low > 65536 {
		return defaultHigh
	}
	return low
}
