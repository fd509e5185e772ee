package wal

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/finding"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// position gives CheckPosition a place to look at.
func (r *rig) position(change func(*millrace.Position)) []finding.Finding {
	r.t.Helper()
	p := r.edge.at.Position
	if change != nil {
		change(&p)
	}
	found, err := r.c.CheckPosition(r.ctx(), func(context.Context) (millrace.Position, time.Time, error) { return p, r.edge.at.Time, nil })
	if err != nil {
		r.t.Fatal(err)
	}
	return found
}

// Each fence is told of beforehand, with the command that mends it, and looking
// changes nothing.
func TestCheckPosition(t *testing.T) {
	r := started(t, nil)
	told := func(name, text string, change func(*millrace.Position)) {
		t.Helper()
		found := r.position(change)
		if len(found) != 1 || found[0].Level != finding.Problem || !strings.Contains(found[0].Text, text) || !strings.Contains(found[0].Mend, "millrace epoch new STREAM") {
			t.Errorf("%s: found %v, want %q with its mend", name, found, text)
		}
	}
	if found := r.position(nil); len(found) != 0 {
		t.Errorf("while it is captured: %v", found)
	}
	r.close()
	if found := r.position(nil); len(found) != 0 {
		t.Errorf("at rest: %v", found)
	}
	told("another cluster", "another cluster", func(p *millrace.Position) { p.SystemID++ })
	told("later timeline", "timeline", func(p *millrace.Position) { p.Timeline++ })
	told("restored source", "restored to an earlier state", func(p *millrace.Position) { p.LSN += 1 << 40 })
	told("another mode", "another mode", func(p *millrace.Position) {
		p.Mode = millrace.ModeTrigger
	})
	told("another slot", "slot other", func(p *millrace.Position) { p.Slot = "other" })
	told("slot ahead", "ahead", func(p *millrace.Position) { p.LSN = 1 })
	if found := r.position(func(p *millrace.Position) { *p = millrace.Position{} }); len(found) != 0 {
		t.Errorf("before the first copy: %v", found)
	}
	r.open()
	r.sync()
	r.close()
	if dropped, err := r.c.DropSlot(r.ctx()); err != nil || !dropped {
		t.Fatalf("drop the slot: %v, %v", dropped, err)
	}
	told("slot dropped", "was dropped", nil)
	if dropped, err := r.c.DropSlot(r.ctx()); err != nil || dropped {
		t.Errorf("drop it again: %v, %v", dropped, err)
	}
}

// A slot that is somebody else's is neither dropped nor taken for ours, and one
// that has lost its WAL keeps nobody from copying anew.
func TestSlotOfANewEpoch(t *testing.T) {
	r := started(t, nil)
	if foreign, err := r.c.ForeignSlot(r.ctx()); err != nil || foreign {
		t.Errorf("our slot is foreign: %v, %v", foreign, err)
	}
	r.close()
	if _, err := r.c.DropSlot(r.ctx()); err != nil {
		t.Fatal(err)
	}
	other := pgtest.New(t)
	other.Exec("select pg_create_logical_replication_slot('" + r.cfg.Slot + "', 'pgoutput')")
	if foreign, err := r.c.ForeignSlot(r.ctx()); err != nil || !foreign {
		t.Errorf("a slot of another database is ours: %v, %v", foreign, err)
	}
	if dropped, err := r.c.DropSlot(r.ctx()); err != nil || dropped {
		t.Errorf("a slot of another database is dropped: %v, %v", dropped, err)
	}
	found, err := r.c.CheckAnew(r.ctx())
	if err != nil || finding.Error(found) != nil {
		t.Errorf("to copy anew: %v, %v", found, err)
	}
	if found, err = r.c.Check(r.ctx()); err != nil || finding.Error(found) == nil {
		t.Errorf("check does not tell of the foreign slot: %v, %v", found, err)
	}
}
