package nemesis

import (
	"fmt"
	"slices"
	"strings"

	"github.com/millrace-db/millrace/tests/harness"
)

// mode is how the stream of a walk is captured, as configurations say it.
type mode string

const (
	byWAL     mode = harness.CaptureWAL
	byTrigger mode = harness.CaptureTrigger
)

// kinds are all kinds of steps that a walk may take, with how often it does in
// proportion to the others. lacks says why one is not taken: the program cannot
// do it yet. A walk logs those. only says in which mode it is, where not in both.
var kinds = []struct {
	name   string
	weight int
	lacks  string
	make   func(*walker) bool
	only   mode
}{
	{"begin", 10, "", (*walker).begin, ""},
	{"insert", 14, "", (*walker).insert, ""},
	{"update", 14, "", (*walker).update, ""},
	{"update out of line", 8, "", (*walker).updateBig, ""},
	{"balance", 8, "", (*walker).balance, ""},
	{"delete", 6, "", (*walker).delete, ""},
	{"move", 7, "", (*walker).move, ""},
	{"move many", 3, "", (*walker).moveMany, ""},
	{"loop with exceptions", 5, "", (*walker).loop, ""},
	{"bulk", 5, "", (*walker).bulk, ""},
	{"savepoint", 7, "", (*walker).savepoint, ""},
	{"rollback to savepoint", 4, "", (*walker).rollbackTo, ""},
	{"release savepoint", 2, "", (*walker).release, ""},
	{"commit", 9, "", (*walker).commit, ""},
	{"rollback", 3, "", (*walker).rollback, ""},
	{"prepare", 2, "", (*walker).prepare, ""},
	{"end prepared", 3, "", (*walker).endPrepared, ""},
	{"truncate", 2, "", (*walker).truncate, ""},
	{"message", 2, "", (*walker).message, ""},
	{"vacuum full", 2, "", (*walker).vacuumFull, ""},
	{"add nullable column", 3, "", (*walker).addColumn, ""},
	{"add column with default", 2, "", (*walker).addDefault, ""},
	{"drop column", 2, "", (*walker).dropColumn, ""},
	{"rename column", 2, "", (*walker).renameColumn, ""},
	{"retype column", 2, "", (*walker).retypeColumn, ""},
	{"rewrite column in its type", 1, "", (*walker).rewriteColumn, ""},
	{"rename enum value", 1, "", (*walker).renameLabel, ""},
	{"add enum value", 1, "", (*walker).addLabel, ""},
	{"rename table and back", 1, "", (*walker).renameTable, ""},
	{"kids", 6, "", (*walker).kids, ""},
	{"replace", 5, "", (*walker).replace, ""},
	{"pass on", 3, "", (*walker).passOn, ""},
	{"upsert", 4, "", (*walker).upsert, ""},
	{"merge", 4, "", (*walker).merge, ""},
	{"as a replica", 3, "", (*walker).asReplica, ""},
	{"rewrite purses", 2, "", (*walker).rewritePurses, ""},
	{"swap keys", 5, "", (*walker).swap, byTrigger},
	{"new before old", 6, "", (*walker).newBeforeOld, byTrigger},
	{"attach", 2, "", (*walker).attach, ""},
	{"detach", 2, "", (*walker).detach, ""},
	{"drop partition", 1, "", (*walker).dropPartition, ""},
	{"truncate partition", 2, "", (*walker).truncatePartition, ""},
	{"load", 3, "", (*walker).load, ""},
	{"verify", 2, "", (*walker).verify, ""},
	{"epoch", 1, "", (*walker).epoch, ""},
	{"kill transfer", 2, "", func(w *walker) bool { return w.fault("kill transfer", 4) }, ""},
	{"kill edge", 2, "", func(w *walker) bool { return w.fault("kill edge", 4) }, ""},
	{"end connection", 2, "", func(w *walker) bool { return w.fault("end connection", 4) }, ""},
	{"zombie", 1, "", (*walker).zombie, ""},
	{"pause broker", 1, "", func(w *walker) bool { return w.fault("pause broker", 2) }, ""},
	{"trim", 1, "", (*walker).trim, ""},
	{"kill relay", 1, "", func(w *walker) bool { return w.relayed("kill relay") }, ""},
	{"hang relay", 1, "", func(w *walker) bool { return w.relayed("hang relay") }, ""},
	{"disable trigger", 1, "", (*walker).disableTrigger, byTrigger},
	{"crash", 1, "", (*walker).crash, ""},
	{"pass", 8, "", (*walker).pass, ""},
	{"check", 1, "", (*walker).check, ""},
}

// reason says why a kind of step is not taken, or "".
func reason(name string) string {
	for _, k := range kinds {
		if k.name == name {
			return k.lacks
		}
	}
	panic("no such kind of step: " + name)
}

// lacking lists what walks leave out.
func lacking() string {
	by := map[string][]string{}
	var reasons []string
	for _, k := range kinds {
		if k.lacks == "" {
			continue
		}
		if !slices.Contains(reasons, k.lacks) {
			reasons = append(reasons, k.lacks)
		}
		by[k.lacks] = append(by[k.lacks], k.name)
	}
	var b strings.Builder
	for _, r := range reasons {
		fmt.Fprintf(&b, "\n  %s: %s", r, strings.Join(by[r], ", "))
	}
	return b.String()
}
