package edge

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/millrace-db/millrace"
)

// currentName is the file in a home that names the store that readers use: one
// line, the store's directory within the home. Where there is none, the home
// itself is the store, as it is in a stream's first epoch here.
const currentName = "CURRENT"

const epochPrefix = "epoch-"

// storeDir is the directory of a store within its home: that of an epoch, or a
// copy that took the place of it or of another copy.
type storeDir struct {
	name  string
	epoch millrace.Epoch
	copy  uint64 // 0 for the epoch's first store
}

// epochDir names the directory of an epoch's store within its home.
func epochDir(epoch millrace.Epoch) string { return fmt.Sprintf("%s%d", epochPrefix, uint64(epoch)) }

// copyDir names that of a copy, of which number 0 is the epoch's store itself.
func copyDir(epoch millrace.Epoch, number uint64) string {
	if number == 0 {
		return epochDir(epoch)
	}
	return fmt.Sprintf("%s-%d", epochDir(epoch), number)
}

// parseStoreDir takes back what copyDir gave.
func parseStoreDir(name string) (d storeDir, ok bool) {
	text, ok := strings.CutPrefix(name, epochPrefix)
	if !ok {
		return storeDir{}, false
	}
	epoch, number, copied := strings.Cut(text, "-")
	n, err := strconv.ParseUint(epoch, 10, 64)
	d = storeDir{name: name, epoch: millrace.Epoch(n)}
	if err == nil && copied {
		d.copy, err = strconv.ParseUint(number, 10, 64)
	}
	return d, err == nil && copyDir(d.epoch, d.copy) == name
}

// storeDirOf is parseStoreDir, with the home itself as what is no such name.
func storeDirOf(name string) storeDir {
	d, ok := parseStoreDir(name)
	if !ok {
		return storeDir{}
	}
	return d
}

// readCurrent returns the directory within home that readers use, empty for the
// home itself.
func readCurrent(home string) (string, error) {
	path := filepath.Join(home, currentName)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("find the current store: %w; mend: run as the user that owns %s", err, path)
	}
	name, ended := strings.CutSuffix(string(text), "\n")
	if _, ok := parseStoreDir(name); !ok || !ended {
		return "", &CorruptError{Dir: home, Text: fmt.Sprintf("file %s holds %.40q, which names no store", currentName, text)}
	}
	return name, nil
}

// writeCurrent makes name the store that readers use. It is durable when it
// returns; a crash at any moment leaves either the old name or the new one.
func writeCurrent(home, name string) error {
	temp := filepath.Join(home, currentName+".new")
	err := writeSynced(temp, name+"\n")
	if err == nil {
		err = os.Rename(temp, filepath.Join(home, currentName))
	}
	if err == nil {
		err = syncDir(home)
	}
	if err != nil {
		return fmt.Errorf("make %s the current store of %s: %w", name, home, err)
	}
	return nil
}

func writeSynced(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.WriteString(text); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
