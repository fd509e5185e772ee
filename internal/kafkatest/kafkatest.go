// Package kafkatest gives tests brokers: Apache Kafka itself, as processes in
// KRaft mode, and an in-process broker for unit tests.
//
// It owns the processes, their data and their ports on loopback. A real broker
// needs Java 17 and Kafka's jars, which `make setup` installs; where they are
// missing the test fails and says so, it is never skipped. Topics are never made
// automatically.
//
// A package that uses Shared ends that broker in its TestMain:
//
//	func TestMain(m *testing.M) { kafkatest.Main(m) }
package kafkatest

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/millrace-db/millrace/internal/testdir"
)

// shared is the test binary's one real broker. A test binary has no other place
// to keep it: tests start in any order and none of them owns it.
var shared struct {
	once    sync.Once
	cluster *Cluster
	dir     string
	err     error
}

var topics atomic.Uint64 // numbers the topics of the shared broker

// Main runs the tests, stops the shared broker, runs the given other ends (such
// as pgtest.StopShared) and exits.
func Main(m *testing.M, ends ...func() error) {
	code := m.Run()
	for _, end := range append(ends, StopShared) {
		if err := end(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// StopShared ends the shared broker and removes its data. For a TestMain that
// does not call Main.
func StopShared() error {
	if shared.cluster == nil {
		return nil
	}
	return errors.Join(shared.cluster.killAll(), os.RemoveAll(shared.dir))
}

// Shared returns the test binary's one-node cluster, started at the first call.
// Tests must not stop, pause or reconfigure it, and use topics of their own.
func Shared(t testing.TB) *Cluster {
	t.Helper()
	shared.once.Do(func() {
		if shared.dir, shared.err = testdir.New(); shared.err != nil {
			return
		}
		shared.cluster, shared.err = start(shared.dir, 1, lasting(t), sharedSession)
	})
	if shared.err != nil {
		t.Fatalf("start the shared Kafka broker: %v", shared.err)
	}
	return shared.cluster
}

// Start starts a cluster of n nodes, each broker and controller, for this test
// alone. It returns when all brokers take part, and ends with the test.
func Start(t testing.TB, n int) *Cluster {
	t.Helper()
	cluster, err := start(testdir.For(t), n, lasting(t), session)
	if err != nil {
		t.Fatalf("start %d Kafka brokers: %v", n, err)
	}
	t.Cleanup(func() {
		if err := cluster.killAll(); err != nil {
			t.Error(err)
		}
	})
	return cluster
}

const (
	// session is that of a broker which may be killed: it may come back only when its last
	// session is over, which takes 9 s with Kafka's default.
	session = 4 * time.Second
	// sharedSession is that of one which nobody kills. On a loaded machine it gets no turn
	// for some seconds now and then, and a broker that is taken for dead has no topics.
	sharedSession = time.Minute
)

// lasting reports whether a broker is to be measured, and not only to be there.
func lasting(t testing.TB) bool {
	_, ok := t.(*testing.B)
	return ok
}

var notInNames = regexp.MustCompile(`[^a-zA-Z0-9._-]+`)

// Topic returns a topic name that no other test of this binary has. It makes no
// topic.
func Topic(t testing.TB) string {
	name := notInNames.ReplaceAllString(t.Name(), "-")
	return fmt.Sprintf("t%d-%s", topics.Add(1), strings.Trim(name[:min(len(name), 150)], "-"))
}

// Fake starts a broker inside this process, in memory, and returns its address.
// It ends with the test.
func Fake(t testing.TB, options ...kfake.Opt) []string {
	t.Helper()
	cluster, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1), kfake.DefaultNumPartitions(1)}, options...)...)
	if err != nil {
		t.Fatalf("start in-process broker: %v", err)
	}
	t.Cleanup(cluster.Close)
	return cluster.ListenAddrs()
}
