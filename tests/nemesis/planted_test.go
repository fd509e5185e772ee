package nemesis

import (
	"strings"
	"testing"

	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/tests/harness"
)

// chances bounds in how many walks a planted bug must show.
const chances = 12

// TestPlantedBugsAreCaught walks over a program with one planted bug at a time. A
// walk that goes through without a word would be worth nothing without one.
func TestPlantedBugsAreCaught(t *testing.T) {
	g := newGround(t, byWAL, kafkatest.Start(t, 1))
	// What mends rows would hide a bug.
	mending := []string{
		"epoch", "truncate", "add column with default", "drop column", "rename column", "retype column", "rewrite column in its type",
		"rename enum value", "attach", "detach", "drop partition", "truncate partition",
	}
	for _, one := range []struct {
		plant   string
		without []string
	}{
		{"subabort_ignored", append(mending, "load")},
		{"subabort_whole", append(mending, "load")},
		{"unchanged_lost", append(mending, "load")},
		{"drop_unit:20", append(mending, "load")},
		{"window_ignored", mending},
	} {
		plant := one.plant
		name, _, _ := strings.Cut(plant, ":")
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(chances) {
				if err := planted(t, g, plant, walk(g.mode, seed, *lengthFlag, one.without...)); err != nil {
					text := err.Error()
					t.Logf("%s is caught by the walk of seed %d: %s", plant, seed, text[:min(len(text), 300)])
					return
				}
			}
			t.Errorf("%d walks have not noticed the planted bug %s", chances, plant)
		})
	}
}

// planted does the steps over a transfer with the bug and returns what caught it.
func planted(t *testing.T, g *ground, plant string, steps []step) error {
	t.Helper()
	r := newRun(t, g, harness.Faulty)
	r.env = []string{"MILLRACE_PLANT=" + plant}
	r.transfer.Stop(stopLimit)
	r.startTransfer()
	return r.walk(steps)
}
