package pgtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/millrace-db/millrace/internal/pgserver"
	"github.com/millrace-db/millrace/internal/testdir"
)

// Standby starts a physical standby of a private server, which it stops and
// starts again on the way: the standby begins with a copy of its files, as
// pg_basebackup would make one, without replication slots. It streams through
// the primary's physical slot "standby". Settings go over those of the primary.
// It ends with the test.
func Standby(t testing.TB, primary *pgserver.Server, settings map[string]string) *pgserver.Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	if err := primary.Stop(ctx); err != nil {
		t.Fatalf("stop the primary: %v", err)
	}
	dir := filepath.Join(testdir.For(t), "data")
	CopyData(t, primary.Dir(), dir)
	if err := errors.Join(emptyDir(filepath.Join(dir, "pg_replslot")), mark(filepath.Join(dir, "standby.signal"))); err != nil {
		t.Fatal(err)
	}
	if err := primary.Restart(ctx); err != nil {
		t.Fatalf("start the primary again: %v", err)
	}
	if err := admin(ctx, primary, "select pg_create_physical_replication_slot('standby', true)"); err != nil {
		t.Fatalf("make the standby's slot: %v", err)
	}
	all := map[string]string{
		"primary_conninfo":             fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=postgres", primary.Port()),
		"primary_slot_name":            "standby",
		"hot_standby_feedback":         "on",
		"wal_receiver_status_interval": "1s",
		"wal_retrieve_retry_interval":  "100ms",
	}
	maps.Copy(all, settings)
	server, err := pgserver.Start(ctx, pgserver.Config{Dir: dir, Settings: all, Binaries: primary.Binaries()})
	if err != nil {
		t.Fatalf("start the standby: %v", err)
	}
	t.Cleanup(func() {
		if err := server.Quit(); err != nil {
			t.Error(err)
		}
	})
	return server
}

// CopyData copies the data directory of a stopped server to a place that does
// not exist, owners included.
func CopyData(t testing.TB, from, to string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	if err := copyData(ctx, from, to); err != nil {
		t.Fatal(err)
	}
}

func copyData(ctx context.Context, from, to string) error {
	if out, err := exec.CommandContext(ctx, "cp", "-a", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s: %w: %s", from, err, out)
	}
	return nil
}

func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}

// mark makes an empty file that the server's user may remove and write.
func mark(path string) error {
	if err := os.WriteFile(path, nil, 0o644); err != nil { //nolint:gosec // another user reads it
		return err
	}
	return os.Chmod(path, 0o666) //nolint:gosec // and writes it
}
