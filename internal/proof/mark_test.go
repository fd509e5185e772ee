package proof

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
)

// TestMarkOfTriggers holds a mark against snapshots from before and behind it.
func TestMarkOfTriggers(t *testing.T) {
	s := newShop(t, 1)
	ctx := context.Background()
	snapshot := func() *millrace.Position {
		t.Helper()
		return &millrace.Position{Mode: millrace.ModeTrigger, SystemID: 1, Tick: 1, Snapshot: s.String(`SELECT pg_current_snapshot()::text`)}
	}
	conn, err := pgx.Connect(ctx, s.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }() // nothing is under way on it
	before := snapshot()
	m, err := setMark(ctx, conn, millrace.ModeTrigger, "shop")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		at   *millrace.Position
		want bool
	}{{&millrace.Position{}, false}, {before, false}, {snapshot(), true}} {
		if got, err := m.passed(c.at); got != c.want || err != nil {
			t.Errorf("%v passed at %v: got %v, %v, want %v", &m, c.at, got, err, c.want)
		}
	}
}
