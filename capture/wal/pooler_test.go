package wal

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// A real PgBouncer is refused by everything, whether it refuses what it does not
// know itself, or was told to swallow it: then session settings would be missing
// without a word.
func TestPooler(t *testing.T) {
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key)")
	ours := slices.Collect(maps.Keys(capture.Session()))
	for name, ignored := range map[string]string{
		"as installed":             "",
		"swallows settings":        strings.Join(ours, ","),
		"swallows replication too": strings.Join(append(ours, "replication"), ","),
	} {
		t.Run(name, func(t *testing.T) {
			c := mustNew(t, Config{URL: pgtest.Bouncer(t, db.Server, db.Name, ignored), Stream: "s", Slot: "behind_pooler", Tables: []string{"public.a"}, SpoolDir: t.TempDir()})
			refused := func(what string, err error) {
				t.Helper()
				if !errors.Is(err, capture.ErrConnect) || !millrace.NeedsOperator(err) || !strings.Contains(err.Error(), "pooler") || !strings.Contains(err.Error(), "mend: ") || !strings.Contains(err.Error(), poolerMend) {
					t.Errorf("%s: %v", what, err)
				}
			}
			refused("reach", c.Reach(t.Context()))
			refused("install", c.Install(t.Context()))
			_, err := c.Open(t.Context(), &millrace.Checkpoint{})
			refused("open", err)
			findings, err := c.Check(t.Context())
			switch {
			case err != nil:
				refused("check", err)
			case len(findings) != 1 || !strings.Contains(findings[0].Text, "pooler") || findings[0].Mend != poolerMend:
				t.Errorf("check: %v", findings)
			}
			if !strings.Contains(ignored, "replication") {
				_, err = c.connectReplication(t.Context())
				refused("replication connection", err)
			}
		})
	}
	if got := db.String("select (select count(*) from pg_publication) + (select count(*) from pg_replication_slots where slot_name = 'behind_pooler')"); got != "0" {
		t.Errorf("%s things were made through a pooler", got)
	}
}
