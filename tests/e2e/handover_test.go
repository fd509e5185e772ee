package e2e

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/tests/harness"
)

// TestSuccessorDies kills the successor of an edge when it answers, and has told its
// predecessor so, but has not taken the stream over; and when it has, but has not told. The
// predecessor, which has given the stream up by then, answers all the while, takes the stream
// back, and an edge that follows it goes on; it can be upgraded later.
func TestSuccessorDies(t *testing.T) {
	t.Parallel()
	s := harness.NewSystem(t, kafkatest.Shared(t), "public.items")
	s.Variant = harness.Faulty
	s.DB.Exec(`CREATE TABLE items (id int PRIMARY KEY, v text); INSERT INTO items VALUES (0, 'first')`)
	s.Init()
	s.StartTransfer()
	edge, below := s.NewEdge("edge-1"), s.NewEdge("below")
	below.Upstream = []string{"http://" + edge.Address}
	below.WriteConfig()
	below.Start()
	rows := 0
	for _, at := range []string{"upgrade-ready", "upgrade-taken"} {
		edge.Start("MILLRACE_FAILPOINT=" + at)
		edge.AwaitRow(copyLimit, "public.items", fmt.Sprint(rows))
		below.AwaitRow(copyLimit, "public.items", fmt.Sprint(rows))
		ctx, cancel := context.WithCancel(t.Context())
		asked, control := make(chan time.Duration, 1), make(chan time.Duration, 1)
		go func() { asked <- longestSilence(ctx, edge) }()
		go func() { control <- longestSilence(ctx, below) }() // what the machine is to blame for
		if err := syscall.Kill(edge.PID(), syscall.SIGUSR2); err != nil {
			t.Fatal(err)
		}
		harness.Until(t, progressLimit, at+": the predecessor takes the stream back", func(context.Context) error {
			log := edge.Stderr()
			if !edge.Running() {
				t.Fatalf("%s: the predecessor has ended; it logged %s", at, log)
			}
			if !strings.Contains(log, "this process takes its streams back") {
				return harness.NotYet("it logged %s", log)
			}
			return nil
		})
		rows++
		s.DB.Exec(fmt.Sprintf(`INSERT INTO items VALUES (%d, '%s')`, rows, at))
		edge.AwaitRow(progressLimit, "public.items", fmt.Sprint(rows))
		below.AwaitRow(progressLimit, "public.items", fmt.Sprint(rows))
		cancel()
		silence, other := <-asked, <-control
		if silence > 5*time.Second+other {
			t.Errorf("%s: nobody answered for %v, and an edge beside it not for %v", at, silence, other)
		}
		t.Logf("%s: the longest silence was %v, that of an edge beside it %v", at, silence, other)
		if n := strings.Count(edge.Stderr(), "a successor is started"); n != 1 {
			t.Errorf("%s: %d successors were started", at, n)
		}
		edge.Stop(stopLimit)
	}
}

// longestSilence asks an edge again and again, until ctx ends: what the successor has
// accepted ends with it, and is asked again.
func longestSilence(ctx context.Context, edge *harness.Edge) (longest time.Duration) {
	last := time.Now()
	for ctx.Err() == nil {
		if _, err := edge.Row(ctx, "public.items", "0"); err == nil {
			longest, last = max(longest, time.Since(last)), time.Now()
		}
		harness.Pass(ctx, time.Millisecond)
	}
	return max(longest, time.Since(last))
}
