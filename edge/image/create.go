package image

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/internal/failpoint"
)

// Progress says how far writing or reading an image is.
type Progress struct {
	// Rows are done, of Of.
	Rows, Of uint64
	// Bytes of OfBytes have been downloaded; 0 otherwise.
	Bytes, OfBytes int64
	// Checking tells that a store has all rows and is being read through.
	Checking bool
}

// Options of Create. Only Dir must be set.
type Options struct {
	// Dir is the directory of a stream's images. It is made if need be.
	Dir string
	// Keep is how many images stay there, the new one among them; 0 keeps all.
	Keep int
	// Progress is called now and then; it may be nil.
	Progress func(Progress)
	// Background has whatever else the process does go before, every few rows.
	Background bool

	// frame is the size that frames have at most before compression; 0 takes
	// frameSize.
	frame int
}

// Created is what Create has done.
type Created struct {
	// Path is the directory of the image.
	Path     string
	Manifest *Manifest
	// Existed tells that there was an image of the index already: then that one
	// is meant, and none was written.
	Existed bool
	// Removed is how many older images were removed.
	Removed int
}

// Create writes an image of the newest snapshot of a store, which goes on being
// written to and read, also by another process. The store's file grows while its
// snapshot is held. The image is durable, and has its name, when Create returns;
// after an error, or a crash, there is none.
func Create(ctx context.Context, store *edge.Store, o Options) (*Created, error) {
	if o.Dir == "" || o.Keep < 0 {
		return nil, fmt.Errorf("create image: directory %q or %d images to keep is out of range", o.Dir, o.Keep)
	}
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("create image: %w", err)
	}
	c, err := create(ctx, store, &o)
	if err = errors.Join(err, lock.Close()); err != nil {
		return nil, fmt.Errorf("create image of %s: %w", store.Dir(), err)
	}
	return c, nil
}

func create(ctx context.Context, store *edge.Store, o *Options) (c *Created, err error) {
	if err := sweep(o.Dir); err != nil {
		return nil, err
	}
	err = store.Snapshot(ctx, func(v *edge.View) (err error) {
		c, err = createOf(ctx, v, o)
		return err
	})
	if err != nil {
		return nil, err
	}
	if c.Removed, err = prune(o.Dir, o.Keep, c.Path); err != nil {
		return nil, err
	}
	return c, writeListing(o.Dir)
}

func createOf(ctx context.Context, v *edge.View, o *Options) (*Created, error) {
	contents, err := v.Contents()
	if err != nil {
		return nil, err
	}
	w := &writer{ctx: ctx, v: v, progress: o.Progress, most: cmp.Or(o.frame, frameSize), background: o.Background}
	w.manifest = Manifest{Contents: *contents, Created: time.Now().UTC().Truncate(time.Microsecond)}
	path := filepath.Join(o.Dir, w.manifest.Name())
	if _, err := os.Stat(path); err == nil {
		i, err := Open(path)
		if err != nil {
			return nil, fmt.Errorf("there is one of the same index, and it is not whole; mend: remove it: %w", err)
		}
		return &Created{Path: path, Manifest: i.Manifest(), Existed: true}, i.Close()
	}
	part := path + partSuffix
	err = w.write(part)
	if err == nil {
		failpoint.Hit("image_before_publish")
		if err = os.Rename(part, path); err == nil {
			err = syncDir(o.Dir)
		}
		failpoint.Hit("image_after_publish")
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(part))
	}
	return &Created{Path: path, Manifest: &w.manifest}, nil
}

// writer writes one image.
type writer struct {
	ctx      context.Context //nolint:containedctx // of the one call that it belongs to
	v        *edge.View
	progress func(Progress)
	most     int
	at       Progress
	// background tells to give way after every few rows.
	background bool

	manifest Manifest
	encoder  *zstd.Encoder
	file     *os.File
	out      *bufio.Writer
	frame    Frame
	raw      []byte
	stored   []byte
	// unsynced is how much was written since the file was synced.
	unsynced int
}

// giveWayRows is after how many rows a writer in the background gives way: a lower
// priority of its thread would hold up whatever else is to run on that.
const giveWayRows = 128

// syncBytes is after how many bytes the file is synced.
const syncBytes = 4 << 20

// write writes the files of the image into a new directory, durably.
func (w *writer) write(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	var err error
	if w.encoder, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest)); err != nil {
		return err
	}
	if w.file, err = os.OpenFile(filepath.Join(dir, rowsName), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return err
	}
	w.out = bufio.NewWriterSize(w.file, 1<<20)
	err = w.rows()
	if err == nil {
		err = w.out.Flush()
	}
	if err == nil {
		err = w.file.Sync()
	}
	if err = errors.Join(err, w.file.Close(), w.encoder.Close()); err != nil {
		return fmt.Errorf("write rows: %w", err)
	}
	failpoint.Hit("image_rows_written")
	text, err := AppendManifest(nil, &w.manifest)
	if err != nil {
		return err
	}
	if err := writeSynced(filepath.Join(dir, manifestName), text); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	return syncDir(dir)
}

func (w *writer) rows() error {
	w.at.Of = w.manifest.Rows()
	w.progress(w.at)
	for i := range w.manifest.Sets {
		set := &w.manifest.Sets[i]
		w.frame = Frame{Set: i}
		err := w.v.EachRow(w.ctx, *set, func(key, row []byte) error {
			size := rowSize(key, row)
			if size > MaxFrame {
				return fmt.Errorf("a row of table %v takes %d bytes, at most %d are possible in an image", set.Table, size, MaxFrame)
			}
			if len(w.raw)+size > w.most {
				if err := w.flush(); err != nil {
					return err
				}
			}
			w.raw = appendRow(w.raw, key, row)
			w.frame.Rows++
			if w.background && w.frame.Rows%giveWayRows == 0 {
				runtime.Gosched()
			}
			set.Bytes += uint64(len(key) + len(row))
			return nil
		})
		if err != nil {
			return err
		}
		if err := w.flush(); err != nil {
			return err
		}
	}
	return nil
}

// flush writes the rows gathered as a frame.
func (w *writer) flush() error {
	if w.frame.Rows == 0 {
		return nil
	}
	w.stored = w.encoder.EncodeAll(w.raw, w.stored[:0])
	w.frame.Raw, w.frame.Stored, w.frame.Sum = len(w.raw), len(w.stored), sha256.Sum256(w.stored)
	if _, err := w.out.Write(w.stored); err != nil {
		return err
	}
	w.manifest.Frames = append(w.manifest.Frames, w.frame)
	// Little by little: were all of it to go to the disk in the end, the commits of
	// the store would wait behind it.
	if w.unsynced += len(w.stored); w.unsynced >= syncBytes {
		w.unsynced = 0
		if err := errors.Join(w.out.Flush(), w.file.Sync()); err != nil {
			return err
		}
	}
	w.at.Rows += w.frame.Rows
	w.progress(w.at)
	w.frame, w.raw = Frame{Set: w.frame.Set}, w.raw[:0]
	return nil
}

func writeSynced(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(text); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
