package follow

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"

	"github.com/millrace-db/millrace"
	edgelog "github.com/millrace-db/millrace/edge/log"
)

// logFilterName is the file beside the logs of a stream that says what their records hold,
// as an encoded filter. Where it is not there they hold everything.
const logFilterName = "filter"

// holdLog takes a log's directory to what the store holds. Records of an edge that held
// less have hashes in the place of what the store has now, and would be sent on as if
// nothing was missing: they go. No log in the directory is open.
func holdLog(dir string, filter *millrace.Filter) (renewed bool, err error) {
	path := filepath.Join(dir, logFilterName)
	had, err := readLogFilter(path)
	if err != nil {
		return false, err
	}
	if had.Equal(filter) {
		return false, nil
	}
	if !had.Covers(filter) {
		if err := edgelog.Forget(dir, math.MaxUint64); err != nil {
			return false, err
		}
		renewed = true
	}
	// Before the first record that holds no more.
	if filter.All() {
		return renewed, os.Remove(path)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return renewed, fmt.Errorf("%w; mend: choose a directory that this user may write (edge.log.dir)", err)
	}
	temp := path + ".new"
	if err := os.WriteFile(temp, millrace.AppendFilter(nil, filter), 0o600); err != nil {
		return renewed, err
	}
	return renewed, os.Rename(temp, path)
}

func readLogFilter(path string) (*millrace.Filter, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return new(millrace.Filter), nil
	}
	if err != nil {
		return nil, err
	}
	f, err := millrace.DecodeFilter(b)
	if err != nil {
		return nil, fmt.Errorf("file %s: %w; mend: remove the directory it is in, the log begins anew", path, err)
	}
	return f, nil
}
