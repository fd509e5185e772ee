package image

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/millrace-db/millrace"
)

const (
	namePrefix   = "image-"
	partSuffix   = ".part"
	goneSuffix   = ".gone"
	manifestName = "manifest"
	rowsName     = "rows"
	lockName     = "images.lock"
)

// ErrInUse occurs when another process writes images into the directory. Mend:
// wait for it.
var ErrInUse = errors.New("another process is writing or removing images there")

// Entry is an image in a directory.
type Entry struct {
	// Path is its directory.
	Path  string
	Epoch millrace.Epoch
	Index millrace.Index
}

func imageName(epoch millrace.Epoch, index millrace.Index) string {
	return fmt.Sprintf("%s%d-%d", namePrefix, uint64(epoch), uint64(index))
}

// parseName takes back what imageName gave.
func parseName(name string) (epoch millrace.Epoch, index millrace.Index, ok bool) {
	text, ok := strings.CutPrefix(name, namePrefix)
	first, second, both := strings.Cut(text, "-")
	if !ok || !both {
		return 0, 0, false
	}
	e, err := strconv.ParseUint(first, 10, 64)
	if err != nil {
		return 0, 0, false
	}
	i, err := strconv.ParseUint(second, 10, 64)
	epoch, index = millrace.Epoch(e), millrace.Index(i)
	return epoch, index, err == nil && imageName(epoch, index) == name
}

// List returns the images in a directory, the newest first. One that is not there
// has none. What is in them is not looked at.
func List(dir string) ([]Entry, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var all []Entry
	for _, e := range entries {
		if epoch, index, ok := parseName(e.Name()); ok && e.IsDir() {
			all = append(all, Entry{Path: filepath.Join(dir, e.Name()), Epoch: epoch, Index: index})
		}
	}
	slices.SortFunc(all, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(b.Epoch, a.Epoch), cmp.Compare(b.Index, a.Index))
	})
	return all, nil
}

// Begun reports whether a part of an image has been downloaded to a directory.
func Begun(dir, name string) bool {
	_, err := os.Stat(filepath.Join(dir, name+loadSuffix))
	return err == nil
}

// lockDir makes this process the one that writes into a directory of images. The
// lock is the kernel's, gone with the process.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of images: %w; mend: choose one that this user may write", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock directory of images: %w; mend: choose one that this user may write", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = fmt.Errorf("%w; mend: wait for it", ErrInUse)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock directory of images %s: %w", dir, err), f.Close())
	}
	return f, nil
}

// sweep removes what writers and removers have left that did not come to their
// end. The directory is locked.
func sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("look for images that are not whole: %w", err)
	}
	for _, e := range entries {
		name, part := strings.CutSuffix(e.Name(), partSuffix)
		if !part {
			name, part = strings.CutSuffix(e.Name(), goneSuffix)
		}
		if _, _, ok := parseName(name); !ok || !part {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("remove an image that is not whole: %w", err)
		}
	}
	return nil
}

// prune keeps so many images of a directory, which is locked: one of a path, and
// otherwise the newest; 0 keeps all. It returns how many it removed. One that is
// being read elsewhere stays readable there.
func prune(dir string, keep int, path string) (removed int, err error) {
	all, err := List(dir)
	if err != nil || keep == 0 || len(all) <= keep {
		return 0, err
	}
	all = slices.DeleteFunc(all, func(e Entry) bool { return e.Path == path })
	for _, e := range all[keep-1:] {
		if err := remove(e.Path); err != nil {
			return removed, fmt.Errorf("remove an old image: %w", err)
		}
		removed++
	}
	return removed, nil
}

// remove removes an image, if it is there.
func remove(path string) error {
	// What has lost its name is no image, whatever is left of it.
	gone := path + goneSuffix
	if err := os.Rename(path, gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(gone)
}

// Remove removes an image by its path, so that nobody takes it from here: one that has
// turned out to be untrue. While another writes there, the list of images is left to that
// one.
func Remove(path string) error {
	err := remove(path)
	if err != nil {
		return fmt.Errorf("remove image %s: %w", path, err)
	}
	dir := filepath.Dir(path)
	lock, err := lockDir(dir)
	if errors.Is(err, ErrInUse) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(writeListing(dir), lock.Close())
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
