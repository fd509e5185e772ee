package nemesis

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/millrace-db/millrace/tests/harness"
)

// disableTrigger has a DBA disable what logs a table's changes for a moment, in
// which rows of it are changed. It waits for nobody, and init after it for nobody
// either.
func (w *walker) disableTrigger() bool {
	if w.faults["disable trigger"] == 1 {
		return false
	}
	w.endAll()
	w.faults["disable trigger"]++
	s, table := w.some(false), w.tables[w.r.IntN(len(w.tables))]
	sql := fmt.Sprintf("UPDATE %s SET n = coalesce(n, 0) + 1, note = 'not logged' WHERE %s; DELETE FROM %s WHERE %s; %s",
		table, w.mine(s, 40), table, w.mine(s, 10), insertRows(table, fmt.Sprintf("generate_series(%d, %d) i", places-8, places-1), fmt.Sprintf("i * %d + %d", stripes, s.stripe), w.regions(), 7))
	if table == "part" && w.r.IntN(2) == 0 {
		table = w.shape.leaves[w.region()] // in one partition alone
	}
	w.steps = append(w.steps, step{Do: "disable trigger", Session: s.number, Table: table, SQL: sql, MS: w.r.IntN(1000)})
	return true
}

// disableTrigger wants the stream to stop with an error that says so, and to be
// whole again after init, which copies the table.
func (r *run) disableTrigger(s step) error {
	if err := r.settle(false); err != nil {
		return err
	}
	names := strings.Fields(r.s.DB.String(`SELECT string_agg(tgname, ' ' ORDER BY tgname) FROM pg_trigger
		WHERE tgrelid = $1::text::regclass AND tgname LIKE 'millrace%'`, "public."+s.Table))
	if len(names) == 0 {
		return fmt.Errorf("table %s has no triggers of millrace", s.Table)
	}
	name := names[s.MS%len(names)]
	r.s.DB.Exec(fmt.Sprintf("ALTER TABLE %s DISABLE TRIGGER %s", s.Table, name))
	r.sql(s)
	harness.Pass(r.t.Context(), time.Duration(s.MS)*time.Millisecond)
	r.s.DB.Exec(fmt.Sprintf("ALTER TABLE %s ENABLE ALWAYS TRIGGER %s", s.Table, name))
	err := harness.Wait(r.t.Context(), stopLimit, func(context.Context) error {
		if r.transfer.Running() {
			return harness.NotYet("transfer goes on")
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("trigger %s of %s was disabled while rows were changed: %w", name, s.Table, err)
	}
	said := lastLine(r.transfer.Stderr())
	if code := r.transfer.ExitCode(); code != harness.ExitOperator || !strings.Contains(said, "trigger") || !strings.Contains(said, "mend") {
		return fmt.Errorf("trigger %s of %s was disabled, and transfer ended with exit code %d and without naming it: %s", name, s.Table, code, said)
	}
	if p := r.s.Run(r.transfer.Config, "init"); p.ExitCode() != 0 {
		return fmt.Errorf("millrace init after trigger %s of %s was disabled: exit code %d: %s", name, s.Table, p.ExitCode(), lastLine(p.Stderr()))
	}
	r.startTransfer()
	return r.settle(true)
}
