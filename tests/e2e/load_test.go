package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/tests/harness"
)

// loadLimit bounds each wait.
const loadLimit = 3 * time.Minute

// The commands of an operator against running processes: a table is verified,
// loaded while it is written to, with transfer killed in the middle, and verified
// again.
func TestLoadAndVerify(t *testing.T) {
	t.Parallel()
	s := harness.NewSystem(t, kafkatest.Shared(t), "public.a", "public.b")
	s.DB.Exec(`create table a (id int primary key, n int, v text); create table b (name text primary key, n int);
		insert into a select i, i, repeat('v', 200) from generate_series(1, 20000) i; insert into b select 'name ' || i, i from generate_series(1, 3000) i`)
	s.Init()
	transfer := s.StartTransfer()
	e := s.NewEdge("edge-1")
	e.Start()
	e.AwaitRow(loadLimit, "public.b", "name 3000")
	s.AwaitReport(loadLimit, transfer.Config, e, 0) // verify waits for those that have

	verify := func() {
		t.Helper()
		p := s.Run(transfer.Config, "verify", "--wait", "--json", "--timeout", "150s")
		if p.ExitCode() != 0 {
			t.Fatalf("millrace verify: exit code %d: %s%s", p.ExitCode(), p.Stdout(), p.Stderr())
		}
		var results []struct{ Table, Result string }
		if err := json.Unmarshal([]byte(p.Stdout()), &results); err != nil || len(results) != 2 {
			t.Fatalf("millrace verify printed %s: %v", p.Stdout(), err)
		}
		for _, r := range results {
			if r.Result != "equal" {
				t.Errorf("%s: %s", r.Table, r.Result)
			}
		}
	}
	verify()

	stop := make(chan struct{})
	written := make(chan error, 1)
	go func() {
		var err error
		for i := 0; err == nil; i++ {
			select {
			case <-stop:
				written <- nil
				return
			default:
			}
			_, err = s.DB.Pool.Exec(context.WithoutCancel(t.Context()), fmt.Sprintf("update a set n = n + 1 where id %% 997 = %d", i%997))
		}
		written <- err
	}()
	p := s.Run(transfer.Config, "load", "public.a", "--reason", "a test")
	if p.ExitCode() != 0 {
		t.Fatalf("millrace load: exit code %d: %s", p.ExitCode(), p.Stderr())
	}
	transfer.Kill()
	transfer = s.StartTransferWith(transfer.Config, transfer.Admin)
	harness.Until(t, loadLimit, "the load of public.a has ended", func(context.Context) error {
		p := s.Run(transfer.Config, "tail")
		if n := strings.Count(p.Stdout(), `"kind":"load_end"`); n < 3 {
			return harness.NotYet("%d ends of loads", n)
		}
		return nil
	})
	close(stop)
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	verify()
}
