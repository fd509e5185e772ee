package handover

import (
	"fmt"
	"net"
	"os"
	"strings"
)

// Notify tells the service manager, if it asks for that (NOTIFY_SOCKET, as systemd sets
// it), that this process answers, and that it is the service's main one from here on.
func Notify(environ []string) error {
	path := ""
	for _, entry := range environ {
		if value, ok := strings.CutPrefix(entry, "NOTIFY_SOCKET="); ok {
			path = value
		}
	}
	if path == "" {
		return nil
	}
	if strings.HasPrefix(path, "@") {
		path = "\x00" + path[1:] // an abstract socket
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("tell the service manager that this process answers: %w", err)
	}
	defer func() { _ = c.Close() }() // it was told, or the error says that it was not
	if _, err := fmt.Fprintf(c, "READY=1\nMAINPID=%d\n", os.Getpid()); err != nil {
		return fmt.Errorf("tell the service manager that this process answers: %w", err)
	}
	return nil
}
