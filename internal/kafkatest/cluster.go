package kafkatest

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-db/millrace/internal/loopback"
)

const (
	startLimit   = 5 * time.Minute // three JVMs on a busy machine of two cores
	portAttempts = 3
)

// Cluster is a running Kafka. Nodes are numbered from 0. Its methods may be
// called concurrently, one at a time for each node.
type Cluster struct {
	nodes []*node
	mu    sync.Mutex // guards the nodes' processes
}

// start makes and starts a cluster of n nodes in dir; lasting says that it is to be
// measured, session how long a node may show no life. When it fails nothing is left
// running.
func start(dir string, n int, lasting bool, session time.Duration) (*Cluster, error) {
	if n < 1 {
		return nil, fmt.Errorf("start %d brokers: want at least 1", n)
	}
	in, err := findInstallation()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	for attempt := 1; ; attempt++ {
		c, err := startOnce(ctx, in, filepath.Join(dir, fmt.Sprint(attempt)), n, lasting, session)
		if err == nil {
			return c, nil
		}
		// Another process may take a port between its choice and the start.
		if !errors.Is(err, errPortTaken) || attempt == portAttempts {
			return nil, err
		}
	}
}

func startOnce(ctx context.Context, in installation, dir string, n int, lasting bool, session time.Duration) (*Cluster, error) {
	ports, err := loopback.FreePorts(2 * n)
	if err != nil {
		return nil, err
	}
	var voters []string
	for i := range n {
		voters = append(voters, fmt.Sprintf("%d@127.0.0.1:%d", i+1, ports[n+i]))
	}
	clusterID, err := newClusterID()
	if err != nil {
		return nil, err
	}
	c := &Cluster{}
	for i := range n {
		c.nodes = append(c.nodes, &node{id: i + 1, in: in, dir: filepath.Join(dir, fmt.Sprintf("node%d", i)), port: ports[i], lasting: lasting, session: session})
		if err := c.nodes[i].configure(ports[n+i], n, strings.Join(voters, ",")); err != nil {
			return nil, err
		}
	}
	if err := c.each(func(nd *node) error { return nd.format(ctx, clusterID) }); err != nil {
		return nil, err
	}
	if err := c.startNodes(ctx, c.nodes); err != nil {
		return nil, errors.Join(err, c.killAll())
	}
	return c, nil
}

// newClusterID makes a cluster ID in Kafka's form: 16 random bytes in URL-safe
// base64, not beginning with a dash, which a command line takes for an option.
func newClusterID() (string, error) {
	for {
		var id [16]byte
		if _, err := rand.Read(id[:]); err != nil {
			return "", fmt.Errorf("make cluster ID: %w", err)
		}
		if text := base64.RawURLEncoding.EncodeToString(id[:]); !strings.HasPrefix(text, "-") {
			return text, nil
		}
	}
}

// each runs do for every node at once and returns all errors.
func (c *Cluster) each(do func(*node) error) error {
	errs := make([]error, len(c.nodes))
	var wg sync.WaitGroup
	for i, nd := range c.nodes {
		wg.Go(func() { errs[i] = do(nd) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// startNodes starts the given nodes and returns when they are ready and every
// running broker of the cluster is known to them.
func (c *Cluster) startNodes(ctx context.Context, nodes []*node) error {
	for _, nd := range nodes {
		if err := nd.start(); err != nil {
			return err
		}
	}
	for _, nd := range nodes {
		if err := nd.waitStarted(ctx); err != nil {
			return err
		}
	}
	want := 0
	for _, nd := range c.nodes {
		if nd.running() {
			want++
		}
	}
	for _, nd := range nodes {
		if err := waitMetadata(ctx, nd.address(), want); err != nil {
			return fmt.Errorf("ask broker %d for metadata: %w", nd.id, err)
		}
	}
	return nil
}

// waitMetadata asks the broker until it knows of at least want brokers and a
// controller.
func waitMetadata(ctx context.Context, address string, want int) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(address))
	if err != nil {
		return err
	}
	defer client.Close()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		request := kmsg.NewPtrMetadataRequest()
		request.Topics = []kmsg.MetadataRequestTopic{} // none; nil means all
		response, err := request.RequestWith(ctx, client)
		if err == nil && len(response.Brokers) >= want && response.ControllerID >= 0 {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("it knows of %d of %d brokers", len(response.Brokers), want)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// Brokers are the addresses of all nodes, also of those that are down.
func (c *Cluster) Brokers() []string {
	var addresses []string
	for _, nd := range c.nodes {
		addresses = append(addresses, nd.address())
	}
	return addresses
}

// Kill ends node i with SIGKILL and returns when it is gone.
func (c *Cluster) Kill(i int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.nodes[i].running() {
		return nil
	}
	if err := c.nodes[i].process.Kill(); err != nil {
		return fmt.Errorf("kill broker %d: %w", c.nodes[i].id, err)
	}
	return nil
}

// Stop shuts node i down in order and returns when it is gone.
func (c *Cluster) Stop(i int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[i].stop()
}

// Pause stops node i's process (SIGSTOP): its connections stay open and silent.
func (c *Cluster) Pause(i int) error { return c.signal(i, syscall.SIGSTOP) }

// Resume lets a paused node go on.
func (c *Cluster) Resume(i int) error { return c.signal(i, syscall.SIGCONT) }

func (c *Cluster) signal(i int, sig syscall.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.nodes[i].running() {
		return fmt.Errorf("send %s to broker %d: it does not run", sig, c.nodes[i].id)
	}
	return c.nodes[i].process.Signal(sig)
}

// Restart starts the given nodes, or all that are down if none is given, on the
// same ports and data, and returns when they are ready. Of given nodes that run,
// it first shuts them down. After a majority was down, name or start all that
// the quorum needs at once: one alone never gets ready.
func (c *Cluster) Restart(nodes ...int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var chosen []*node
	for _, nd := range c.nodes {
		if len(nodes) == 0 && !nd.running() {
			chosen = append(chosen, nd)
		}
	}
	for _, i := range nodes {
		chosen = append(chosen, c.nodes[i])
	}
	for _, nd := range chosen {
		if err := nd.stop(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	return c.startNodes(ctx, chosen)
}

// PID is the process ID of node i's last run.
func (c *Cluster) PID(i int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[i].process.PID()
}

// LogDir is where node i keeps its partitions: segments of partition 0 of a
// topic are in the directory TOPIC-0 below it. Change them while the node is
// down only.
func (c *Cluster) LogDir(i int) string { return c.nodes[i].logDir() }

// ServerLog is the path of node i's own log, for a look after a failure.
func (c *Cluster) ServerLog(i int) string { return c.nodes[i].logFile() }

func (c *Cluster) killAll() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.each(func(nd *node) error {
		if !nd.running() {
			return nil
		}
		return nd.process.Kill()
	})
}
