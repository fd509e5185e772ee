package nemesis

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/millrace-db/millrace/tests/harness"
)

// retained lets the topic be trimmed; what a walk has written is too young for that until
// it says otherwise.
const retained = ", retain: {time: 10m}"

// trimLimit is how long it may take until there is a place that the topic may begin at.
const trimLimit = 3 * time.Minute

// trim trims the topic behind the back of an edge, twice in a walk at most.
func (w *walker) trim() bool {
	if w.faults["trim"] == 2 {
		return false
	}
	w.readable()
	return w.fault("trim", 2)
}

// readable ends what keeps triggers' windows from being read: a step that waits for the
// stream would wait for ever.
func (w *walker) readable() {
	if w.mode == byTrigger {
		w.endExclusive()
	}
}

// plan is what millrace trim says.
type plan struct {
	Start int64 `json:"start_offset"`
	To    int64 `json:"to_offset"`
}

func (r *run) trimPlan() (p plan, err error) {
	out := r.s.Run(r.transfer.Config, "trim", "--dry-run", "--json")
	if err := json.Unmarshal([]byte(out.Stdout()), &p); err != nil {
		return p, fmt.Errorf("trim --dry-run: exit code %d: %w: %s", out.ExitCode(), err, lastLine(out.Stderr()))
	}
	return p, nil
}

// trim kills an edge, lets the others go on under a new publisher, and trims the topic. An
// edge that is on the list finds there what it needs; one that was taken off the list, and
// whose records are gone, takes an image from another one.
func (r *run) trim(s step) error {
	if err := r.settle(false); err != nil {
		return err
	}
	all := slices.Clone(r.edges)
	late := all[s.MS%min(len(all), 2)] // who follows others is not late for the topic
	forget := s.MS/2%2 == 0 && len(all) > 1
	late.Kill()
	r.edges = slices.DeleteFunc(slices.Clone(all), func(e *harness.Edge) bool { return e == late })
	err := r.trimBehind(late, forget)
	r.edges = all
	if err != nil {
		return err
	}
	late.More = r.edgeKeys(late, true)
	late.WriteConfig()
	late.Start()
	if err := r.settle(false); err != nil {
		return fmt.Errorf("behind a topic that was trimmed, forgotten is %v: %w", forget, err)
	}
	image := strings.Contains(late.Stderr(), "until an image has been taken from a peer")
	switch {
	case image && !forget:
		return fmt.Errorf("the topic was trimmed past what %s needs, which has reported: %s", late.ID, lastLine(late.Stderr()))
	case image:
		r.counts["image behind a trim"]++
	}
	return nil
}

func (r *run) trimBehind(late *harness.Edge, forget bool) error {
	if forget {
		err := harness.Wait(r.t.Context(), trimLimit, func(context.Context) error {
			if p := r.s.Run(r.transfer.Config, "status", "--forget", late.ID); p.ExitCode() != 0 {
				return harness.NotYet("%s", lastLine(p.Stderr()))
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	// A reign begins with a place at which the topic may begin.
	r.transfer.Kill()
	r.startTransfer()
	if err := r.settle(false); err != nil {
		return err
	}
	before := plan{}
	err := harness.Wait(r.t.Context(), trimLimit, func(ctx context.Context) (err error) {
		if err := r.keepUp(); err != nil {
			return err
		}
		// What the witness has read may go.
		if err := r.witness.Advance(ctx); err != nil {
			return err
		}
		if _, err := r.s.DB.Pool.Exec(ctx, "UPDATE millrace.mark SET marked_at = marked_at - interval '1 hour' WHERE marked_at > now() - interval '30 min' AND last_index <= $1", int64(r.witness.Index)); err != nil {
			return err
		}
		if before, err = r.trimPlan(); err == nil && forget && before.To <= before.Start {
			err = harness.NotYet("nothing can go yet: %+v", before)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("wait for what can be trimmed: %w", err)
	}
	r.trimmed = true // it may do so by itself from here on
	var after plan
	err = harness.Wait(r.t.Context(), trimLimit, func(context.Context) (err error) {
		if err := r.keepUp(); err != nil {
			return err
		}
		if p := r.s.Run(r.transfer.Config, "trim"); p.ExitCode() != 0 {
			return harness.NotYet("millrace trim: exit code %d: %s", p.ExitCode(), lastLine(p.Stderr())) // between two reigns
		}
		after, err = r.trimPlan()
		return err
	})
	if err != nil {
		return err
	}
	if before.To > before.Start && after.Start < before.To {
		return fmt.Errorf("the topic begins at offset %d, and was to be trimmed to %d", after.Start, before.To)
	}
	if after.Start > before.Start {
		r.counts["topic trimmed"]++
	}
	return nil
}
