package main

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
)

// TestSourceWAL: a transfer that cannot reach its topic watches what the slot
// holds at the source all the same, and does with it what the configuration says.
func TestSourceWAL(t *testing.T) {
	w := newWorld(t)
	program(t, w.dir, "init", "-c", w.file)
	transfer := spawn(t, w.dir, nil, "transfer", "-c", w.file)
	spawn(t, w.dir, nil, "edge", "-c", w.file)
	w.ready(t)
	transfer.stop(syscall.SIGTERM)
	for range 5 { // segments of 16 MiB
		w.db.Exec("select pg_logical_emit_message(false, 'fill', repeat('x', 1 << 16)) from generate_series(1, 16); select pg_switch_wal()")
	}
	limited := func(name, onLimit string) string {
		text := strings.Replace(w.config(w.db.URL, ""), "spool_dir: spool", "spool_dir: spool, wal: {limit: 64MiB, on_limit: "+onLimit+"}", 1)
		return w.write(t, name, strings.Replace(text, w.broker, closedPort(t), 1))
	}
	alarm := limited("alarm.yaml", "alarm")
	transfer = spawn(t, w.dir, nil, "transfer", "-c", alarm)
	until(t, "status warns", func() error {
		// Kafka is not there; that is no reason to be silent about the source.
		if got := program(t, w.dir, "status", "-c", alarm); !strings.Contains(got, "warning: slot millrace_shop holds") {
			return fmt.Errorf("got %s", got)
		}
		return nil
	})
	transfer.stop(syscall.SIGTERM)
	drop := limited("drop.yaml", "drop")
	refusal(t, w.dir, nil, exitOperator, []string{"slot was given up", "source.wal.limit is 64 MiB", "mend: "}, "transfer", "-c", drop)
	if got := w.db.String("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"); got != "0" {
		t.Errorf("slots: %s", got)
	}
	refusal(t, w.dir, nil, exitOperator, []string{"replication slot is missing", "mend: "}, "transfer", "-c", w.file)
}
