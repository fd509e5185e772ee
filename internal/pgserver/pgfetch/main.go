// Command pgfetch sees to it that Postgres servers of the named major versions
// are on this machine: one that is installed counts, an archive of another is
// fetched into the cache directory that tests look into.
//
//	go run ./internal/pgserver/pgfetch 14 16 17 18
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"time"

	"github.com/millrace-db/millrace/internal/pgserver"
)

// limit bounds the fetching of one archive, of about 10 MB.
const limit = 5 * time.Minute

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "pgfetch:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, versions []string) error {
	if len(versions) == 0 {
		return errors.New("name major versions, such as 14 18")
	}
	var failed []error
	for _, text := range versions {
		version, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("%q is no major version of Postgres", text)
		}
		if err := fetch(ctx, version); err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

func fetch(ctx context.Context, version int) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	b, err := pgserver.Find(ctx, version, pgserver.AllowFetch(""))
	if err != nil {
		return err
	}
	fmt.Printf("Postgres %d: %s\n", version, b.Dir)
	return nil
}
