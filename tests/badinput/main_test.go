// Package badinput gives millrace, as a process over real servers, what it must
// refuse. Each refusal is one line that names the thing and the mend and an exit
// code that is not zero; and when the mend is done, everything is still there.
package badinput

import (
	"fmt"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

const (
	stopLimit  = 30 * time.Second
	applyLimit = time.Minute
	rows       = 500
)

// newSystem makes a stream of one table with some rows, and the journal's table
// as the end marker of harness.Settle.
func newSystem(t *testing.T) *harness.System {
	t.Helper()
	return newSystemOn(t, kafkatest.Shared(t))
}

func newSystemOn(t *testing.T, kafka *kafkatest.Cluster) *harness.System {
	t.Helper()
	s := harness.NewSystem(t, kafka, "public.items", harness.JournalTable)
	harness.NewJournal(t, s, 0)
	s.DB.Exec(`CREATE TABLE items (id bigint PRIMARY KEY, note text)`)
	s.DB.Exec(fmt.Sprintf(`INSERT INTO items SELECT i, md5(i::text) || md5((-i)::text) FROM generate_series(1, %d) i`, rows))
	return s
}

// namesake makes another stream of the same name, as two databases of a server
// may have.
func namesake(t *testing.T, other *running) *harness.System {
	t.Helper()
	s := newSystem(t)
	s.Stream = other.Stream
	return s
}

// running is a system whose first copy is at the edge.
type running struct {
	*harness.System
	transfer *harness.Transfer
	edge     *harness.Edge
}

func start(t *testing.T, s *harness.System) *running {
	t.Helper()
	s.Init()
	r := &running{System: s, transfer: s.StartTransfer(), edge: s.NewEdge("edge-1")}
	r.edge.Start()
	r.settle(t)
	return r
}

func (r *running) settle(t *testing.T) {
	t.Helper()
	if err := r.Settle(t.Context(), r.edge, applyLimit); err != nil {
		t.Fatal(err)
	}
}

func (r *running) stop() {
	r.transfer.Stop(stopLimit)
	r.edge.Stop(stopLimit)
}

// goesOn starts both again, after the mend, with a change that came meanwhile,
// and wants every row to be equal.
func (r *running) goesOn(t *testing.T) {
	t.Helper()
	r.DB.Exec(`UPDATE items SET note = 'later ' || note WHERE id % 7 = 0; DELETE FROM items WHERE id % 11 = 0`)
	r.transfer = r.StartTransfer()
	r.edge.Start()
	r.settle(t)
	r.judge(t)
	r.stop()
	if err := r.edge.CheckStore(t.Context()); err != nil {
		t.Error(err)
	}
}

func (r *running) judge(t *testing.T) {
	t.Helper()
	r.Judge(r.edge, r.Witness(), r.transfer.Config, nil).Report(t)
}
