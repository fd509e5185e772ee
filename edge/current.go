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

// epochDir names the directory of an epoch's store within its home.
func epochDir(epoch millrace.Epoch) string { return fmt.Sprintf("%s%d", epochPrefix, uint64(epoch)) }

// parseEpochDir takes back what epochDir gave.
func parseEpochDir(name string) (millrace.Epoch, bool) {
	text, ok := strings.CutPrefix(name, epochPrefix)
	n, err := strconv.ParseUint(text, 10, 64)
	if !ok || err != nil || epochDir(millrace.Epoch(n)) != name {
		return 0, false
	}
	return millrace.Epoch(n), true
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
	if _, ok := parseEpochDir(name); !ok || !ended {
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
