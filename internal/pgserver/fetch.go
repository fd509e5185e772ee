package pgserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	embedded "github.com/fergusstrange/embedded-postgres"

	"github.com/millrace-db/millrace/internal/loopback"
)

// newestArchive is what is fetched when the caller does not ask for a version.
const newestArchive = 17

// archives are the server archives that the module knows, by major version.
var archives = map[int]embedded.PostgresVersion{
	14: embedded.V14,
	15: embedded.V15,
	16: embedded.V16,
	17: embedded.V17,
	18: embedded.V18,
}

// fetch gets the archive of the given major version (0: newestArchive) and
// unpacks it into cacheDir/<version>.
//
// The module can only unpack as the first step of starting a server of its own.
// So it starts one in a throw-away directory, and what counts afterwards is
// whether the programs are there and run: for root its initdb refuses, after
// the unpacking, and that is no failure here.
func fetch(ctx context.Context, version int, cacheDir string) (Binaries, error) {
	if version == 0 {
		version = newestArchive
	}
	archive, ok := archives[version]
	if !ok {
		return Binaries{}, fmt.Errorf("fetch Postgres %d: %w: there is no archive of this version, install it with your package manager", version, ErrNotFound)
	}
	target := filepath.Join(cacheDir, strconv.Itoa(version))
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		return Binaries{}, fmt.Errorf("make cache directory for Postgres archives: %w", err)
	}
	// Beside the target and renamed at the end: what is cut off must not look
	// whole.
	scratch, err := os.MkdirTemp(cacheDir, "fetch-")
	if err != nil {
		return Binaries{}, fmt.Errorf("make scratch directory: %w", err)
	}
	fresh := filepath.Join(scratch, "server")
	port, err := loopback.FreePort()
	if err != nil {
		return Binaries{}, err
	}
	server := embedded.NewDatabase(embedded.DefaultConfig().
		Version(archive).
		Port(uint32(port)). // a port is below 65536
		CachePath(cacheDir).
		BinariesPath(fresh).
		RuntimePath(filepath.Join(scratch, "run")).
		DataPath(filepath.Join(scratch, "data")).
		Logger(io.Discard))

	done := make(chan error, 1)
	go func() {
		err := server.Start()
		if err == nil {
			err = server.Stop()
		}
		err = install(fresh, target, err)
		_ = os.RemoveAll(scratch) // throw-away; what counts has been moved
		done <- err
	}()
	select {
	case err = <-done:
	case <-ctx.Done():
		// The module takes no context: the download goes on to its end in the
		// background and the next Find has it.
		err = ctx.Err()
	}
	if err != nil {
		return Binaries{}, fmt.Errorf("fetch Postgres %d: %w", version, err)
	}
	bin := filepath.Join(target, "bin")
	major, err := serverVersion(ctx, bin)
	if err != nil {
		return Binaries{}, fmt.Errorf("fetch Postgres %d: %w", version, err)
	}
	return Binaries{Dir: bin, Version: major}, nil
}

// install moves an unpacked server to its place. startErr is what the module's
// own start gave; it matters only if there is no server.
func install(fresh, target string, startErr error) error {
	if !executable(filepath.Join(fresh, "bin", "postgres")) {
		if startErr == nil {
			startErr = errors.New("the archive holds no server")
		}
		return fmt.Errorf("%w: %w", ErrNotFound, startErr)
	}
	err := os.Rename(fresh, target)
	if err != nil && executable(filepath.Join(target, "bin", "postgres")) {
		return nil // another process was quicker
	}
	if err != nil {
		return fmt.Errorf("put the unpacked server into place: %w", err)
	}
	return nil
}
