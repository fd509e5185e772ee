package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/millrace-db/millrace/edge"
)

// Image is an image that was opened for reading. It is used by one goroutine.
type Image struct {
	path     string
	manifest *Manifest
	rows     *os.File
}

// Open opens the image in a directory. Its manifest is checked; that the rows are
// those it was written for is seen when they are read.
func Open(path string) (*Image, error) {
	text, err := readManifest(filepath.Join(path, manifestName))
	if err != nil {
		return nil, fmt.Errorf("open image %s: %w", path, err)
	}
	m, err := DecodeManifest(text)
	if err != nil {
		return nil, fmt.Errorf("open image %s: %w", path, err)
	}
	f, err := os.Open(filepath.Join(path, rowsName))
	if err != nil {
		return nil, fmt.Errorf("open image %s: %w", path, err)
	}
	info, err := f.Stat()
	if err == nil && info.Size() != m.Stored() {
		err = malformed("the file of rows has %d bytes, the manifest says %d", info.Size(), m.Stored())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open image %s: %w", path, err), f.Close())
	}
	return &Image{path: path, manifest: m, rows: f}, nil
}

// readManifest reads a file that is not larger than a manifest may be.
func readManifest(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, MaxManifest+1))
	return text, errors.Join(err, f.Close())
}

// Manifest returns the image's manifest, which is not changed.
func (i *Image) Manifest() *Manifest { return i.manifest }

// Path returns the image's directory.
func (i *Image) Path() string { return i.path }

// Close closes the image's files.
func (i *Image) Close() error { return i.rows.Close() }

// Each calls fn with all rows, set after set (by its place in Sets), in the order
// in which Home.Restore takes them. Each frame is given out when its hash has been
// compared. key and row are valid until fn returns.
func (i *Image) Each(ctx context.Context, progress func(Progress), fn func(set int, key, row []byte) error) error {
	if err := i.each(ctx, progress, fn); err != nil {
		return fmt.Errorf("read image %s: %w", i.path, err)
	}
	return nil
}

func (i *Image) each(ctx context.Context, progress func(Progress), fn func(set int, key, row []byte) error) error {
	u, err := newUnpacker()
	if err != nil {
		return err
	}
	defer u.close()
	at := Progress{Of: i.manifest.Rows()}
	var stored []byte
	var offset int64
	for n := range i.manifest.Frames {
		f := &i.manifest.Frames[n]
		if err := ctx.Err(); err != nil {
			return err
		}
		if progress != nil {
			progress(at)
		}
		if cap(stored) < f.Stored {
			stored = make([]byte, f.Stored)
		}
		stored = stored[:f.Stored]
		// Open has compared the size of the file.
		if _, err := i.rows.ReadAt(stored, offset); err != nil {
			return fmt.Errorf("frame %d at byte %d: %w", n, offset, err)
		}
		raw, err := u.unpack(f, stored)
		if err != nil {
			return fmt.Errorf("frame %d at byte %d: %w", n, offset, err)
		}
		rows, err := eachRow(raw, func(key, row []byte) error { return fn(f.Set, key, row) })
		if err == nil && rows != f.Rows {
			err = malformed("it has %d rows, the manifest says %d", rows, f.Rows)
		}
		if err != nil {
			return fmt.Errorf("frame %d at byte %d: %w", n, offset, err)
		}
		offset += int64(f.Stored)
		at.Rows += rows
	}
	if progress != nil {
		progress(at)
	}
	return nil
}

// Verify reads all rows and compares all hashes, and that the rows are what their
// set may hold: keys in order, each that of its row, in a version of the schema
// that is there.
func (i *Image) Verify(ctx context.Context, progress func(Progress)) error {
	c, err := newRowChecker(i.manifest)
	if err != nil {
		return fmt.Errorf("read image %s: %w", i.path, err)
	}
	return i.Each(ctx, progress, c.check)
}

// Restore makes a store of the image beside the one that a home's readers use,
// and opens it. See edge.Home.Restore: the caller then calls Switch.
func Restore(ctx context.Context, home *edge.Home, i *Image, progress func(Progress)) (*edge.Restored, error) {
	contents := i.manifest.Contents
	checking := func() {
		if progress != nil {
			n := i.manifest.Rows()
			progress(Progress{Rows: n, Of: n, Checking: true})
		}
	}
	return home.Restore(ctx, &contents, func(add func(set int, key, row []byte) error) error {
		return i.Each(ctx, progress, add)
	}, checking)
}
