package audit

import (
	"context"
	"maps"
	"slices"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/control"
)

// endTick compares the tick at hand with what its units gave. The units of a load
// stand at the tick before them, and give no changes.
func (a *Audit) endTick(ctx context.Context) error {
	live := a.live
	if live == nil {
		return nil // that of the place where the audit began, whose window was before it
	}
	a.live = nil
	tick, err := a.findTick(ctx)
	if err != nil {
		return err
	}
	if tick == nil {
		oldest, err := a.config.Oldest(ctx)
		if err != nil {
			return err
		}
		if oldest == 0 || a.tick < oldest {
			a.report.Gone++
			return nil
		}
		a.differ("tick %d: the topic has its window, and the source does not have the tick", a.tick)
		return nil
	}
	a.report.Ticks++
	ids := maps.Clone(live)
	for id := range tick.Tables {
		ids[id] = live[id]
	}
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		a.compare(id, tick.Tables[id], live[id])
	}
	return nil
}

// compare holds what a window logged of a table against its entries.
func (a *Audit) compare(id millrace.TableID, logged control.Logged, p Published) {
	t := a.table(id)
	t.Logged.Inserted += logged.Inserted
	t.Logged.Updated += logged.Updated
	t.Logged.Deleted += logged.Deleted
	t.Logged.Truncated += logged.Truncated
	t.Logged.Keys += logged.Keys
	t.Published.Puts += p.Puts
	t.Published.Deletes += p.Deletes
	t.Published.Truncates += p.Truncates
	if logged.Keys != p.Puts+p.Deletes {
		a.differ("tick %d, table %v: the source logged %d keys, and the topic has %d puts and %d deletes", a.tick, id, logged.Keys, p.Puts, p.Deletes)
	}
	if (logged.Truncated > 0) != (p.Truncates > 0) || p.Truncates > 1 {
		a.differ("tick %d, table %v: the source logged %d truncations, and the topic has %d in that window", a.tick, id, logged.Truncated, p.Truncates)
	}
}

// findTick returns the tick at hand, nil if the source does not have it. Those
// before it that were not met in the topic are void.
func (a *Audit) findTick(ctx context.Context) (*control.Tick, error) {
	for {
		for len(a.ticks) > 0 && a.ticks[0].Number < a.tick {
			a.report.Void++
			a.ticks = a.ticks[1:]
		}
		if len(a.ticks) > 0 {
			if a.ticks[0].Number > a.tick {
				return nil, nil
			}
			tick := a.ticks[0]
			a.ticks = a.ticks[1:]
			return &tick, nil
		}
		if a.ticksEnd {
			return nil, nil
		}
		ticks, err := a.config.Ticks(ctx, a.asked)
		if err != nil {
			return nil, err
		}
		if len(ticks) == 0 {
			a.ticksEnd = true
			continue
		}
		a.ticks, a.asked = ticks, ticks[len(ticks)-1].Number
	}
}
