package nemesis

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace/tests/harness"
)

const (
	// chances bounds in how many walks a planted bug must show.
	chances = 12
	// plantedLimit is how long a stream with a planted bug, which may have lost what is
	// waited for, is given to bring it.
	plantedLimit = 20 * time.Second
)

// planted is a mistake in capture, and the walks that come by it: random ones
// without some kinds of steps, or one that is made for it.
type planted struct {
	plant   string
	first   uint64 // seed
	without []string
	made    func(seed uint64) []step
}

// mending are kinds of steps that mend rows, which would hide a bug, or that tell nothing of
// capture.
var mending = []string{
	"epoch", "truncate", "add column with default", "drop column", "rename column", "retype column", "rewrite column in its type",
	"rename enum value", "attach", "detach", "drop partition", "truncate partition", "trim", "kill relay", "hang relay",
}

// statements are kinds of steps that say nothing of how transactions are decoded,
// and leave less room for those that do.
var statements = []string{"kids", "replace", "pass on", "upsert", "merge", "as a replica", "rewrite purses", "crash"}

// TestPlantedBugsAreCaught walks over a program with one planted bug at a time. A
// walk that goes through without a word would be worth nothing without one.
func TestPlantedBugsAreCaught(t *testing.T) {
	t.Parallel()
	kafka := newBroker(t)
	noLoad := append(slices.Clone(mending), "load")
	bare := append(slices.Clone(noLoad), "vacuum full", "disable trigger", "crash")
	bugs := map[mode][]planted{
		byWAL: {
			{plant: "subabort_ignored", first: 3, without: append(slices.Clone(noLoad), statements...)},
			{plant: "subabort_whole", first: 3, without: append(slices.Clone(noLoad), statements...)},
			{plant: "unchanged_lost", without: noLoad},
			{plant: "drop_unit:5", without: noLoad},
			{plant: "window_ignored", made: rushes},
		},
		byTrigger: {
			{plant: "row_log", without: bare},
			{plant: "xip_ignored", first: 1, without: bare},
			{plant: "xmin_bound", first: 1, without: bare},
			{plant: "no_tick", made: crashes},
			{plant: "early_snapshot", made: rewrites},
		},
	}
	for _, m := range modes() {
		t.Run(string(m), func(t *testing.T) {
			all := newGrounds(t, m, kafka, len(bugs[m]))
			for _, one := range bugs[m] {
				name, _, _ := strings.Cut(one.plant, ":")
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					one.caught(t, all.take(t))
				})
			}
		})
	}
}

func (p planted) caught(t *testing.T, g *ground) {
	t.Helper()
	for seed := p.first; seed < p.first+chances; seed++ {
		var steps []step
		if p.made != nil {
			steps = p.made(seed)
		} else {
			steps = walk(g.mode, seed, *lengthFlag, p.without...)
		}
		if err := p.walk(t, g, steps); err != nil {
			text := err.Error()
			t.Logf("%s is caught by the walk of seed %d: %s", p.plant, seed, text[:min(len(text), 300)])
			return
		}
	}
	t.Errorf("%d walks have not noticed the planted bug %s", chances, p.plant)
}

// walk does the steps over a transfer with the bug and returns what caught it.
func (p planted) walk(t *testing.T, g *ground, steps []step) error {
	t.Helper()
	r := newRun(t, g, harness.Faulty)
	r.env, r.limit = []string{"MILLRACE_PLANT=" + p.plant}, plantedLimit
	r.transfer.Stop(stopLimit)
	r.startTransfer()
	return r.walk(steps)
}

// crashes is a walk in which the server crashes again and again, behind a commit
// that was not durable when capture saw it.
func crashes(uint64) []step {
	var steps []step
	for i := range 3 {
		steps = append(steps, step{Do: "crash", MS: i}, step{Do: "check"}) // 0 waits until capture has seen it
	}
	return append(steps, step{Do: "final check"})
}

// rushes is a walk in which tables are loaded while each of their rows is changed,
// once, so that nothing mends it afterwards.
func rushes(uint64) []step {
	const parts = 100
	var steps []step
	for range 4 {
		for _, table := range []string{"item", "pair", "whole", "code", "kin"} {
			steps = append(steps, step{Do: "load", Table: table})
			for i := range parts {
				steps = append(steps, step{Do: "sql", SQL: fmt.Sprintf("UPDATE %s SET n = coalesce(n, 0) + 1 WHERE id %% %d = %d", table, parts, i)})
			}
		}
		steps = append(steps, step{Do: "check"})
	}
	return append(steps, step{Do: "final check"})
}

// rewrites is a walk in which the purses are changed and their table is rewritten
// behind that at once, by a transaction that is open when capture comes to see the
// change, and ends while capture waits for the table.
func rewrites(seed uint64) []step {
	var steps []step
	say := func(session int, format string, args ...any) {
		steps = append(steps, step{Do: "sql", Session: session, SQL: fmt.Sprintf(format, args...)})
	}
	for i := range 20 {
		say(0, "BEGIN; LOCK TABLE purse IN SHARE UPDATE EXCLUSIVE MODE")
		// One statement of the session follows the other without a pause.
		say(0, "UPDATE purse SET n = n + (CASE WHEN id / %d %% 2 = 0 THEN 1 ELSE -1 END); COMMIT; BEGIN; ALTER TABLE purse ALTER COLUMN n TYPE int USING n + 0", stripes)
		steps = append(steps, step{Do: "pass", MS: 5 + (i*7+int(seed))%60}) //nolint:gosec // a small number
		say(0, "COMMIT")
		steps = append(steps, step{Do: "pass", MS: 50})
	}
	return append(steps, step{Do: "final check"})
}
