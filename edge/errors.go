package edge

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"

	"github.com/bmatsuo/lmdb-go/lmdb"

	"github.com/millrace-db/millrace"
)

// stopError is an error that only an operator mends.
type stopError string

func (e stopError) Error() string { return string(e) }
func (stopError) Unwrap() error   { return millrace.ErrStop }

// Errors of opening a store.
var (
	// ErrOtherStream occurs when the store holds another stream than the one
	// asked for. Mend: give the stream its own directory, or remove the store.
	ErrOtherStream error = stopError("store of another stream")

	// ErrWider occurs when a store is to hold more than it does: what it left out
	// so far is not here. Mend: let the edge fill a new store, or narrow the filter.
	ErrWider error = stopError("store holds less than is wanted")

	// ErrInUse occurs when the store is already open for writing, by this
	// process or another. Mend: stop the other one.
	ErrInUse = errors.New("store is in use")

	// ErrNoStore occurs when there is no store at the directory and none may be
	// made. Mend: start the edge that keeps it, or correct the directory.
	ErrNoStore = errors.New("no store")
)

// Errors of using a store.
var (
	// ErrCorrupt occurs when what is stored is damaged. Mend: move the
	// directory away and start the edge again; it fills a new store from the
	// topic.
	ErrCorrupt error = stopError("store is damaged")

	// ErrInconsistent occurs when a change does not fit the rows that are here:
	// it deletes a row that is absent, leaves columns of an absent row
	// unchanged, or belongs to a load that is not under way. The rows differ
	// from the source's. Mend: as for ErrCorrupt, and report it.
	ErrInconsistent error = stopError("change does not fit the store")

	// ErrFull occurs when the map or the disk has no room for a commit. The
	// store goes on answering reads, and can be written again as soon as there is
	// room. Mend: free disk space, or a larger map size and a restart.
	ErrFull = errors.New("store is full")

	// ErrNotFound occurs when a table has no row of the key.
	ErrNotFound = errors.New("row not found")

	// ErrNoTable occurs when the stream has no table of the name, or its first
	// load has not ended.
	ErrNoTable = errors.New("no such table")

	// ErrNotHeld occurs when a partial store is asked for what it does not hold, so
	// that it cannot say what there is. Mend: ask an edge that holds it, or widen
	// edge.tables.
	ErrNotHeld = errors.New("not held here")

	// ErrNoIndex occurs when a table has no index over the columns, or the one
	// that it is to have is not whole yet. Mend: read the rows by their keys, or
	// declare the index and wait.
	ErrNoIndex = errors.New("no such index")

	// ErrLarge occurs when a row has more bytes than the reader takes (Row.Most). Mend:
	// read it where that takes nobody's time.
	ErrLarge = errors.New("the row is large")

	// ErrForbidden occurs when a process must not read a store beside its edge: it runs
	// as another user, or in another PID namespace. Mend: run it as the edge's user and
	// in its namespace, or read through the edge.
	ErrForbidden = errors.New("store must not be read by this process")

	// ErrExpired occurs when a View has been open for longer than the store
	// allows. Mend: read in smaller steps.
	ErrExpired = errors.New("view was open for too long")

	// ErrSuperseded occurs when readers have gone over to another store, of a
	// newer epoch or compacted. Mend: Close the store and Open its directory again; that leads to
	// the newer one.
	ErrSuperseded = errors.New("store was superseded by another one")

	// ErrClosed occurs when the store was closed.
	ErrClosed = errors.New("store is closed")
)

// CorruptError says what is damaged. It is an ErrCorrupt.
type CorruptError struct {
	// Dir is the store's directory. Table is the name of the table, or empty
	// for damage elsewhere, and Key the key of the row in a form for people.
	Dir, Table, Key string
	// Text says what is wrong.
	Text string
}

// Error names the thing, what is wrong with it, and the mend.
func (e *CorruptError) Error() string {
	what := ""
	if e.Table != "" {
		what = ": table " + e.Table
		if e.Key != "" {
			what += " key " + e.Key
		}
	}
	return fmt.Sprintf("store %s is damaged%s: %s; mend: move the directory away and start the edge again, it fills a new one from the topic",
		e.Dir, what, e.Text)
}

// Unwrap makes it an ErrCorrupt.
func (e *CorruptError) Unwrap() error { return ErrCorrupt }

// littleSpace is how much free space makes it likely that a write failed for
// want of it: more than one commit ever writes at once.
const littleSpace = 64 << 20

func (s *Store) corrupt(format string, args ...any) error {
	return &CorruptError{Dir: s.dir, Text: fmt.Sprintf(format, args...)}
}

// fail gives an error of LMDB the meaning it has here.
func (s *Store) fail(verb string, err error) error {
	if err == nil {
		return nil
	}
	var op *lmdb.OpError
	if !errors.As(err, &op) {
		return fmt.Errorf("%s: %w", verb, err)
	}
	is := func(codes ...error) bool {
		return slices.ContainsFunc(codes, func(c error) bool { return errors.Is(op.Errno, c) })
	}
	switch {
	case is(lmdb.MapFull):
		return fmt.Errorf("%s: %w: store %s has filled its map of %d bytes; mend: raise map_size and restart the edge", verb, ErrFull, s.dir, s.mapSize())
	case is(lmdb.DBsFull):
		return fmt.Errorf("%s: %w: store %s has its limit of %d table generations in use; mend: restart the edge, it then makes room for more", verb, ErrFull, s.dir, s.opts.MaxDBs)
	case is(syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG):
		return fmt.Errorf("%s: %w: %w; mend: free space on the disk of %s", verb, ErrFull, err, s.dir)
	case is(syscall.EAGAIN):
		return fmt.Errorf("%s: %w: %w: another process that has it open has the process ID %d too, in a PID namespace of its own, and LMDB takes the two for one; mend: let the containers share a PID namespace, or start one of the processes under another ID (with an init process, for instance)",
			verb, ErrInUse, err, os.Getpid())
	case is(syscall.EIO) && s.diskFree() < littleSpace:
		// What LMDB gives when a write ends short.
		return fmt.Errorf("%s: %w: %w, and %d bytes are free; mend: free space on the disk of %s", verb, ErrFull, err, s.diskFree(), s.dir)
	case is(syscall.EIO):
		return fmt.Errorf("%s: %w; mend: look at the disk of %s", verb, err, s.dir)
	case is(lmdb.Panic):
		return s.corrupt("%s: an earlier write of the environment failed (%v); restart the edge, and look at the disk, before you take the rows for lost", verb, err)
	case is(lmdb.BadTxn):
		return s.corrupt("%s: an earlier step of the transaction met damage (%v)", verb, err)
	case is(lmdb.Corrupted, lmdb.PageNotFound, lmdb.Invalid, lmdb.Incompatible, lmdb.CursorFull, lmdb.PageFull, lmdb.BadValSize):
		return s.corrupt("%s: %v", verb, err)
	}
	return fmt.Errorf("%s: %w", verb, err)
}
