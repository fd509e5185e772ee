package config

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// checker gathers problems with the places of their keys.
type checker struct {
	c        *Config
	problems []Problem
}

func (k *checker) bad(path, format string, args ...any) {
	p := Problem{Text: path + ": " + fmt.Sprintf(format, args...)}
	at, ok := k.c.lines[path]
	for parent := path; !ok && parent != ""; {
		i := strings.LastIndexByte(parent, '.')
		parent = parent[:max(i, 0)]
		at, ok = k.c.lines[parent]
	}
	p.File, p.Line = k.c.File, at
	k.problems = append(k.problems, p)
}

func (k *checker) err() error {
	if len(k.problems) == 0 {
		return nil
	}
	return &Error{k.problems}
}

func (k *checker) oneOf(path, got string, want ...string) {
	if slices.Contains(want, got) {
		return
	}
	text := "want " + strings.Join(want, ", ")
	if near := nearest(got, want); near != "" {
		text = fmt.Sprintf("did you mean %q?", near)
	}
	k.bad(path, "%q: %s", got, text)
}

func (k *checker) between(path string, got Duration, low, high time.Duration) {
	if time.Duration(got) < low || time.Duration(got) > high {
		k.bad(path, "%v: want %v to %v", got, Duration(low), Duration(high))
	}
}

func (k *checker) atLeast(path string, got, low Size) {
	if got < low {
		k.bad(path, "%v: want at least %v", got, low)
	}
}

func (k *checker) sized(path string, got, low, high Size) {
	if got < low || got > high {
		k.bad(path, "%v: want %v to %v", got, low, high)
	}
}

func (k *checker) within(path string, got, low, high int) {
	if got < low || got > high {
		k.bad(path, "%d: want %d to %d", got, low, high)
	}
}

// loopback checks an address to listen at.
func (k *checker) loopback(path, address string) {
	if address == Off {
		return
	}
	if err := hostPort(address); err != nil {
		k.bad(path, "%v", err)
		return
	}
	host, _, _ := net.SplitHostPort(address) // hostPort has split it
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		k.bad(path, "%s is not a loopback address; without encryption millrace serves on loopback only, so use 127.0.0.1, [::1] or localhost%s", address, beyond(path))
	}
}

// beyond says what serves other hosts in place of a loopback address.
func beyond(path string) string {
	switch path {
	case "edge.http.listen":
		return ", or edge.tls.http for other hosts"
	case "edge.resp.listen":
		return ", or edge.tls.resp for other hosts"
	}
	return ""
}

func hostPort(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return fmt.Errorf("%q: want host:port, as in 127.0.0.1:9092", address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q: port %q is not a number from 0 to 65535", address, port)
	} else if n == 0 && host != "127.0.0.1" && host != "::1" && host != "localhost" {
		return fmt.Errorf("%q: port 0 leads nowhere", address)
	}
	return nil
}
