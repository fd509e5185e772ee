package wal

import (
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/pgtest"
)

// TestStatusUnasked: a server that never asks where we stand is told all the
// same, while nothing happens.
func TestStatusUnasked(t *testing.T) {
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key); alter database " + db.Name + " set wal_sender_timeout = 0")
	r := newRig(t, db, func(c *Config) { c.Silence = time.Hour }, "a")
	r.c.statusInterval = 50 * time.Millisecond
	r.open()
	r.copied()
	replies := func() string {
		return db.String(`select coalesce(max(reply_time)::text, '') from pg_stat_replication
			where pid = (select active_pid from pg_replication_slots where slot_name = $1)`, r.cfg.Slot)
	}
	last := ""
	for range 3 {
		until(t, "another status arrives", func() bool {
			now := replies()
			if now == "" || now == last {
				return false
			}
			last = now
			return true
		})
	}
}
