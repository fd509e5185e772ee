package follow

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/kafkatest"
)

var killsFlag = flag.Int("kills", 6, "how often the test that kills an edge does so")

// killedVariable makes the test binary an edge that is to be killed: "dir broker topic from".
const killedVariable = "MILLRACE_FOLLOW_TEST_EDGE"

func TestMain(m *testing.M) {
	if args := os.Getenv(killedVariable); args != "" {
		if err := edgeChild(strings.Fields(args)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	kafkatest.Main(m)
}

// bankConfig is the configuration of an edge of a bank.
func bankConfig(dir string, brokers []string, name string, from ...string) *config.Config {
	return &config.Config{
		Edge: config.Edge{
			ID: filepath.Base(dir), DataDir: filepath.Join(dir, "data"), MapSize: 1 << 28, Report: config.Duration(10 * time.Second),
			Log:    config.EdgeLog{Retain: config.Duration(time.Hour), MaxBytes: 16 << 20},
			Images: config.Images{Dir: filepath.Join(dir, "images"), Keep: 2, From: from},
		},
		Streams: []config.Stream{{Name: "bank", Kafka: config.Kafka{Brokers: brokers, Topic: name}}},
	}
}

func edgeChild(args []string) error {
	c := bankConfig(args[0], args[1:2], args[2], args[3])
	f, err := New(Config{Whole: c, Stream: &c.Streams[0], Version: "test", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	fmt.Println("began")
	go func() {
		for state := ""; ; time.Sleep(time.Millisecond) {
			if b := f.Bootstrap(); b != nil && b.State != state {
				state = b.State
				fmt.Println(state)
			}
		}
	}()
	return f.Run(context.Background())
}

// An edge that takes an image is killed again and again, in whatever it does then: each
// time its store is whole, at the old rows or at newer ones, and in the end it has come
// to the newest by itself.
func TestKilledBootstrap(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	b := newBank(t)
	peer := b.edge(filepath.Join(t.TempDir(), "peer"))
	dir := filepath.Join(t.TempDir(), "away")
	away := b.edge(dir)
	away.at(0)
	away.end()
	last := 0
	killed := make(map[string]int)
	for round := range *killsFlag {
		if round%3 == 0 || last == b.unitNo {
			b.unit()
			peer.at(b.unitNo)
			b.trim()
			b.heartbeat()
		}
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), killedVariable+"="+strings.Join([]string{dir, b.brokers[0], b.name, peer.url}, " "))
		var out, diag strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &diag
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Duration(rnd.Int64N(int64(600*time.Millisecond))), func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		if diag.Len() > 0 {
			t.Fatalf("round %d: the edge failed: %s", round, diag.String())
		}
		said := strings.Fields(out.String())
		if len(said) > 0 {
			killed[said[len(said)-1]]++
		} else {
			killed["starting"]++
		}
		h, err := edge.OpenHome(edge.Options{Dir: filepath.Join(dir, "data", "bank"), MapSize: 1 << 28})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		err = h.Store().Check(t.Context())
		if err == nil {
			err = h.View(t.Context(), func(v *edge.View) error {
				value, err := bankValue(v)
				if err == nil && (value < last || value > b.unitNo) {
					err = fmt.Errorf("it has unit %d, before it had %d, the newest is %d", value, last, b.unitNo)
				}
				last = value
				return err
			})
		}
		if err != nil {
			t.Fatalf("round %d, killed after %v: %v", round, said, err)
		}
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("killed in %v", killed)
	away = b.edge(dir, peer.url)
	away.at(b.unitNo)
}
