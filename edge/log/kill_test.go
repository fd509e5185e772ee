package log

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
)

// childEnv makes the test binary the process that TestKill kills: "dir seed offset pruning".
const childEnv = "MILLRACE_LOG_CHILD"

var killsFlag = flag.Int("kills", 0, "how often each of the tests that kill a process does so; 0 for as often as rounds say")

func TestMain(m *testing.M) {
	if args := os.Getenv(childEnv); args != "" {
		if err := child(strings.Fields(args)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// killOptions are small, so that segments begin and go all the time; those for pruning
// so small that one goes with almost every commit.
func killOptions(dir string, pruning bool) Options {
	o := Options{Dir: dir, MaxBytes: 40 << 10, SegmentBytes: 3 << 10, Retain: forEver}
	if pruning {
		o.MaxBytes, o.SegmentBytes = 16<<10, 256
	}
	return o
}

func killTopic(t testing.TB, seed uint64) *topic {
	p := newTopic(t, seed)
	for range 1000 {
		p.some()
	}
	p.batch(1)
	return p
}

// child brings a topic into a log, from where the store is, and prints every offset
// that a store would have committed before the log does.
func child(args []string) error {
	seed, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return err
	}
	offset, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	t := new(testing.T)
	p := killTopic(t, seed)
	l, err := Open(killOptions(args[0], args[3] == "true"))
	if err != nil {
		return err
	}
	y := newPlayer(t, p, l)
	y.at = checkpointAt(t, p, millrace.Offset(offset))
	y.start()
	for ; int(y.next) < len(p.values); y.next++ {
		y.step()
		if y.pending != nil {
			if _, err := fmt.Println(int64(y.pending.Offset)); err != nil {
				return err
			}
			y.commit()
		}
	}
	if fault := l.Status().Fault; fault != nil {
		return fault
	}
	select {} // it waits to be killed
}

// checkpointAt is the checkpoint of a store that has committed up to an offset.
func checkpointAt(t testing.TB, p *topic, offset millrace.Offset) *millrace.Checkpoint {
	t.Helper()
	fold := millrace.NewFold(testStream, p.epoch)
	for _, value := range p.values[:offset+1] {
		r, err := millrace.DecodeRecord(value, nil)
		if err == nil {
			_, err = fold.Step(r)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	c := fold.Checkpoint()
	c.TopicID, c.Offset = "topic", offset
	return &c
}

// A process that is killed at any moment leaves a log that has all that its store
// has, and that is cut to it.
func TestKill(t *testing.T) { testKill(t, false) }

// The same while segments are dropped all the time: what is left has no hole.
func TestKilledPruning(t *testing.T) { testKill(t, true) }

func testKill(t *testing.T, pruning bool) {
	s := seed(t)
	rnd := rand.New(rand.NewPCG(s, 3)) //nolint:gosec // a test that can be repeated
	dir := t.TempDir()
	p := killTopic(t, s)
	want := p.accepted()
	offset := int64(-1)
	var oldest millrace.Index
	pruned := 0
	rounds := max(1, *roundsFlag/15)
	if *killsFlag > 0 {
		rounds = *killsFlag
	}
	for round := range rounds {
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		cmd := exec.CommandContext(ctx, os.Args[0]) //nolint:gosec // this test
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %d %v", childEnv, dir, s, offset, pruning))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		// It is killed a moment after one of its commits.
		for left := rnd.IntN(400); lines.Scan(); left-- {
			if offset, err = strconv.ParseInt(lines.Text(), 10, 64); err != nil {
				t.Fatalf("child says %q", lines.Text())
			}
			if left == 0 || offset == int64(len(p.values))-1 {
				time.AfterFunc(time.Duration(rnd.IntN(2000))*time.Microsecond, func() { _ = cmd.Process.Kill() })
			}
		}
		_ = cmd.Wait() // it was killed
		cancel()
		l, err := Open(killOptions(dir, pruning))
		if err != nil {
			t.Fatal(err)
		}
		c := checkpointAt(t, p, millrace.Offset(offset))
		from := l.Start(c)
		status := l.Status()
		if from.Index != c.Index || status.Fault != nil || status.Newest != c.Index {
			t.Fatalf("round %d: store is at %v, log at %+v", round, c.Index, status)
		}
		base := l.segments[0].begin.index
		if base > oldest {
			pruned++
		}
		oldest = base
		compare(t, l, want, base)
		compare(t, l, want, base+millrace.Index(rnd.Uint64N(uint64(c.Index-base)+1)))
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if offset == int64(len(p.values))-1 {
			offset = -1
			if err := os.RemoveAll(epochDir(dir, p.epoch)); err != nil {
				t.Fatal(err)
			}
			oldest = 0
		}
	}
	t.Logf("in %d rounds of %d segments were dropped", pruned, rounds)
	if pruning && pruned < rounds/2 {
		t.Errorf("segments were dropped in %d rounds of %d", pruned, rounds)
	}
}
