package pgserver

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// owner is the user that runs the server. The zero value means the user of this
// process; Postgres refuses to run as root, so root always names another.
type owner struct {
	set      bool
	uid, gid uint32
	name     string
}

// ownerOf decides who runs a server on the data directory dir. Not being root,
// it is this process's user. Root goes on as the user who owns existing data,
// and otherwise takes postgres, or nobody where there is no postgres.
func ownerOf(dir string) (owner, error) {
	if os.Geteuid() != 0 {
		return owner{}, nil
	}
	if info, err := os.Stat(filepath.Join(dir, "PG_VERSION")); err == nil {
		stat, ok := info.Sys().(*syscall.Stat_t)
		if ok && stat.Uid != 0 {
			return owner{set: true, uid: stat.Uid, gid: stat.Gid, name: userName(stat.Uid)}, nil
		}
		return owner{}, fmt.Errorf("start Postgres on %s: its files belong to root, and Postgres never runs as root; give them to another user: chown -R postgres %s", dir, dir)
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return owner{}, fmt.Errorf("read user ID of %s: %w", name, err)
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return owner{}, fmt.Errorf("read group ID of %s: %w", name, err)
		}
		return owner{set: true, uid: uint32(uid), gid: uint32(gid), name: name}, nil
	}
	return owner{}, errors.New("start Postgres as root: there is neither a user postgres nor a user nobody to run it; add one, or start millrace as another user")
}

func userName(uid uint32) string {
	text := strconv.FormatUint(uint64(uid), 10)
	u, err := user.LookupId(text)
	if err != nil {
		return "user " + text
	}
	return u.Username
}

// give makes the owner the owner of path.
func (o owner) give(path string) error {
	if !o.set {
		return nil
	}
	if err := os.Chown(path, int(o.uid), int(o.gid)); err != nil {
		return fmt.Errorf("give %s to %s: %w", path, o.name, err)
	}
	return nil
}

// attributes make a child process run as the owner.
func (o owner) attributes() *syscall.SysProcAttr {
	if !o.set {
		return nil
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: o.uid, Gid: o.gid}}
}

// blockedBy returns the first directory above dir that the owner may not pass
// through, or "" if there is none. Only permission bits are read: where access
// control lists say otherwise, the server's own error does.
func (o owner) blockedBy(dir string) string {
	if !o.set {
		return ""
	}
	blocked := ""
	for at := filepath.Dir(dir); ; at = filepath.Dir(at) {
		info, err := os.Stat(at)
		if err == nil && !o.mayPass(info) {
			blocked = at
		}
		if at == filepath.Dir(at) {
			return blocked
		}
	}
}

func (o owner) mayPass(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return true
	}
	mode := info.Mode().Perm()
	switch {
	case stat.Uid == o.uid:
		return mode&0o100 != 0
	case stat.Gid == o.gid:
		return mode&0o010 != 0
	default:
		return mode&0o001 != 0
	}
}

// Place returns a directory for server data as near to dir as this machine
// allows: dir itself, made absolute, or, where root wants a place below a
// directory that the server's unprivileged user may not pass through (root's
// home is one), a directory of its own under /var/lib/millrace. The same dir
// always gives the same place.
func Place(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("make %s absolute: %w", dir, err)
	}
	who, err := ownerOf(abs)
	if err != nil {
		return "", err
	}
	if who.blockedBy(abs) == "" {
		return abs, nil
	}
	sum := fnv.New64a()
	_, _ = sum.Write([]byte(abs)) // a hash never fails to write
	return fmt.Sprintf("/var/lib/millrace/%s-%x", filepath.Base(abs), sum.Sum64()), nil
}
