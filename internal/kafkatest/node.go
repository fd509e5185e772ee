package kafkatest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/millrace-db/millrace/internal/child"
)

// logConfig writes everything to standard output, which goes to a file a node.
const logConfig = `<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="WARN">
  <Appenders>
    <Console name="out"><PatternLayout pattern="%d %p %c{1}: %m%n"/></Console>
  </Appenders>
  <Loggers><Root level="INFO"><AppenderRef ref="out"/></Root></Loggers>
</Configuration>
`

const (
	readyLine    = "Kafka Server started"
	pollInterval = 20 * time.Millisecond
	stopLimit    = time.Minute
)

// node is one broker and controller.
type node struct {
	id      int // from 1
	in      installation
	dir     string
	port    int
	lasting bool           // it is to be measured
	session time.Duration  // without a sign of life it is taken for dead after that
	process *child.Process // the last one started, nil before the first start
	started int64          // where that one's part of the log begins, in bytes
}

func (n *node) logDir() string     { return filepath.Join(n.dir, "data") }
func (n *node) logFile() string    { return filepath.Join(n.dir, "server.log") }
func (n *node) properties() string { return filepath.Join(n.dir, "server.properties") }
func (n *node) logConfig() string  { return filepath.Join(n.dir, "log4j2.xml") }
func (n *node) address() string    { return fmt.Sprintf("127.0.0.1:%d", n.port) }
func (n *node) running() bool      { return n.process != nil && n.process.Running() }

// configure writes the node's files. voters is the same for all nodes.
func (n *node) configure(controllerPort, nodes int, voters string) error {
	if err := os.MkdirAll(n.dir, 0o755); err != nil {
		return fmt.Errorf("make broker directory: %w", err)
	}
	replicas, inSync := min(nodes, 3), 1
	if nodes >= 3 {
		inSync = 2
	}
	lines := []string{
		"process.roles=broker,controller",
		fmt.Sprintf("node.id=%d", n.id),
		fmt.Sprintf("listeners=PLAINTEXT://%s,CONTROLLER://127.0.0.1:%d", n.address(), controllerPort),
		"advertised.listeners=PLAINTEXT://" + n.address(),
		"controller.listener.names=CONTROLLER",
		"controller.quorum.voters=" + voters,
		"log.dirs=" + n.logDir(),
		"auto.create.topics.enable=false",
		"num.partitions=1",
		fmt.Sprintf("default.replication.factor=%d", replicas),
		fmt.Sprintf("min.insync.replicas=%d", inSync),
		fmt.Sprintf("offsets.topic.replication.factor=%d", replicas),
		fmt.Sprintf("transaction.state.log.replication.factor=%d", replicas),
		fmt.Sprintf("transaction.state.log.min.isr=%d", inSync),
		"offsets.topic.num.partitions=1",
		"transaction.state.log.num.partitions=1",
		"group.initial.rebalance.delay.ms=0",
		fmt.Sprintf("broker.session.timeout.ms=%d", n.session.Milliseconds()),
		"broker.heartbeat.interval.ms=500",
	}
	if err := os.WriteFile(n.properties(), []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		return fmt.Errorf("write broker properties: %w", err)
	}
	if err := os.WriteFile(n.logConfig(), []byte(logConfig), 0o600); err != nil {
		return fmt.Errorf("write log configuration: %w", err)
	}
	return nil
}

// format makes the node's data directory.
func (n *node) format(ctx context.Context, clusterID string) error {
	options := []string{"-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"}
	cmd := n.in.command(ctx, n.logConfig(), options, "kafka.tools.StorageTool", "format", "-t", clusterID, "-c", n.properties())
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := child.Run(cmd, syscall.SIGKILL); err != nil {
		return fmt.Errorf("format storage of broker %d: %w: %s", n.id, err, strings.TrimSpace(out.String()))
	}
	return nil
}

// start starts the broker and does not wait until it is ready.
func (n *node) start() error {
	log, err := os.OpenFile(n.logFile(), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open broker log: %w", err)
	}
	defer func() { _ = log.Close() }() // the broker has its own descriptor
	info, err := log.Stat()
	if err != nil {
		return fmt.Errorf("open broker log: %w", err)
	}
	n.started = info.Size()
	options := []string{"-Xms96m", "-Xmx256m", "-XX:+UseSerialGC"}
	if !n.lasting {
		// What the slower compiler costs, a broker of a test does not live to earn.
		options = append(options, "-XX:TieredStopAtLevel=1")
	}
	// No deadline on the command: the broker lives until it is stopped.
	cmd := n.in.command(context.Background(), n.logConfig(), options, "kafka.Kafka", n.properties())
	cmd.Dir = n.dir
	cmd.Stdout, cmd.Stderr = log, log
	if n.process, err = child.Start(cmd, syscall.SIGKILL); err != nil {
		return fmt.Errorf("start broker %d: %w", n.id, err)
	}
	return nil
}

var errPortTaken = errors.New("a port is taken")

// waitStarted returns when the broker's log says that it has started.
func (n *node) waitStarted(ctx context.Context) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		if strings.Contains(child.Tail(n.logFile(), n.started, 1<<30), readyLine) {
			return nil
		}
		select {
		case <-n.process.Done():
			said := child.Tail(n.logFile(), n.started, 4096)
			err := n.process.Err()
			if strings.Contains(child.Tail(n.logFile(), n.started, 1<<30), "Address already in use") {
				err = errors.Join(errPortTaken, err)
			}
			return fmt.Errorf("broker %d ended while starting: %w; its log (%s) says: %s", n.id, err, n.logFile(), said)
		case <-ctx.Done():
			return fmt.Errorf("wait until broker %d has started: %w; its log (%s) says: %s", n.id, ctx.Err(), n.logFile(), child.Tail(n.logFile(), n.started, 4096))
		case <-tick.C:
		}
	}
}

// stop shuts the broker down in order.
func (n *node) stop() error {
	if !n.running() {
		return nil
	}
	if err := n.process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop broker %d: %w", n.id, err)
	}
	if !n.process.EndsWithin(stopLimit) {
		return errors.Join(fmt.Errorf("stop broker %d: it still runs after %s", n.id, stopLimit), n.process.Kill())
	}
	return nil
}
