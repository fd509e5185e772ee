package edge

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// LMDB's locks break when one process opens the same environment twice, and
// nothing below this package can see that it does. So this is the one piece of
// state that belongs to the process: which directories it has open.
var claims = struct {
	sync.Mutex
	dirs map[fileID]bool
}{dirs: make(map[fileID]bool)}

// fileID tells directories apart, whatever path leads to them.
type fileID struct{ dev, ino uint64 }

type claim struct{ id fileID }

// claimDir makes dir this process's for one Store.
func claimDir(dir string) (*claim, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("open store %s: it is a file; mend: name a directory", dir)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, fmt.Errorf("open store %s: the system does not tell directories apart", dir)
	}
	id := fileID{uint64(st.Dev), st.Ino} //nolint:unconvert // Dev has another type on other systems
	claims.Lock()
	defer claims.Unlock()
	if claims.dirs[id] {
		return nil, fmt.Errorf("open store %s: %w: this process has it open already; mend: share the Store", dir, ErrInUse)
	}
	claims.dirs[id] = true
	return &claim{id: id}, nil
}

func (c *claim) release() {
	claims.Lock()
	defer claims.Unlock()
	delete(claims.dirs, c.id)
}

const lockName = "writer.lock"

const (
	// noteSize is more than what a holder of a lock says of itself, for people and for
	// readers of other processes: noteNamespace is before its PID namespace.
	noteSize      = 256
	noteNamespace = " in "
)

// lockDir takes the lock that lets one process write. It is the kernel's lock
// on an open file, so it holds between containers that share the directory and
// is gone with the process. LMDB's own lock tells processes apart by PID, which
// containers have in common.
func lockDir(dir, name string) (*os.File, error) {
	path := filepath.Join(dir, name)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock file: %w; mend: choose a data directory that this user may write", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		holder := make([]byte, noteSize)
		n, _ := f.ReadAt(holder, 0) // what it says is for people only
		_ = f.Close()
		return nil, fmt.Errorf("open store %s: %w by %s; mend: stop that one, or give this one a data directory of its own", dir, ErrInUse, holder[:n])
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w; mend: use a local file system", path, err)
	}
	host, _ := os.Hostname()
	note := fmt.Sprintf("process %d on %q", os.Getpid(), host)
	if namespace := pidNamespace(); namespace != "" {
		note += noteNamespace + namespace
	}
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(note), 0)
	}
	return f, nil
}
