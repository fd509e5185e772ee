package pgserver

import (
	"context"
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
	scratch, err := os.MkdirTemp("", "millrace-fetch-")
	if err != nil {
		return Binaries{}, fmt.Errorf("make scratch directory: %w", err)
	}
	defer func() { _ = os.RemoveAll(scratch) }() // throw-away; the archive is in cacheDir
	port, err := loopback.FreePort()
	if err != nil {
		return Binaries{}, err
	}
	server := embedded.NewDatabase(embedded.DefaultConfig().
		Version(archive).
		Port(uint32(port)). // a port is below 65536
		CachePath(cacheDir).
		BinariesPath(target).
		RuntimePath(filepath.Join(scratch, "run")).
		DataPath(filepath.Join(scratch, "data")).
		Logger(io.Discard))

	done := make(chan error, 1)
	go func() {
		err := server.Start()
		if err == nil {
			err = server.Stop()
		}
		done <- err
	}()
	var startErr error
	select {
	case startErr = <-done:
	case <-ctx.Done():
		// The module takes no context: the download goes on to its end in the
		// background and the next Find has it.
		return Binaries{}, fmt.Errorf("fetch Postgres %d: %w", version, ctx.Err())
	}
	bin := filepath.Join(target, "bin")
	major, err := serverVersion(ctx, bin)
	if err != nil {
		if startErr != nil {
			err = startErr
		}
		return Binaries{}, fmt.Errorf("fetch Postgres %d archive into %s: %w: %w", version, target, ErrNotFound, err)
	}
	return Binaries{Dir: bin, Version: major}, nil
}
