package harness

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/internal/loopback"
	"github.com/millrace-db/millrace/internal/pgtest"
	"github.com/millrace-db/millrace/internal/testdir"
)

// The exit codes that scripts rely on.
const (
	ExitFailure  = 1 // worth another try
	ExitUsage    = 2 // command line or configuration
	ExitFenced   = 3 // another publisher reigns
	ExitOperator = 4 // somebody has to act
)

// The ways to capture changes.
const (
	CaptureWAL     = "wal"
	CaptureTrigger = "trigger"
)

// commandLimit is how long a command may take that has an end of its own; a loaded
// machine is slow.
const commandLimit = 3 * time.Minute

// System is one stream with its source, its topic and the configuration that
// its processes share.
type System struct {
	T      testing.TB
	DB     *pgtest.DB
	Kafka  *kafkatest.Cluster
	Stream string
	Topic  string
	// Dir holds configurations, logs and the edges' data.
	Dir string
	// Tables are the captured ones, schema.table.
	Tables []string
	// Capture is how changes are captured, wal or trigger; empty is what -capture
	// says.
	Capture string
	// More is put behind the other keys of the configuration's source, such as
	// ", where: {public.a: true}".
	More string
	// MoreKafka is put behind the other keys of the configuration's kafka, such as
	// ", retain: {time: 10m}".
	MoreKafka string
	// SourceURL is that of DB unless a test puts another in its place.
	SourceURL string
	// Brokers stand in configurations in the place of Kafka's where they are set.
	Brokers []string
	// Variant of the program that Start… run.
	Variant Variant
	// Sparse makes Judge take a column that is null for one that is not there.
	Sparse bool
	// Lease is how long a publisher may show no life; 0 means millrace's own.
	Lease time.Duration

	transfers int
}

// NewSystem makes a system over a fresh database of its own on the shared
// Postgres, with a topic name and a stream name of its own: a slot, which is
// named after the stream, is the server's.
func NewSystem(t testing.TB, kafka *kafkatest.Cluster, tables ...string) *System {
	t.Helper()
	db := pgtest.New(t)
	number, _, _ := strings.Cut(db.Name, "_")
	return &System{
		T: t, DB: db, Kafka: kafka, Stream: "bank_" + number, Topic: kafkatest.Topic(t), Dir: testdir.For(t),
		Tables: tables, SourceURL: db.URL,
	}
}

// stream is the configuration's part that all processes share. An edge needs
// no source.
func (s *System) stream(source bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "streams:\n  - name: %s\n", s.Stream)
	if source {
		fmt.Fprintf(&b, "    source: {url: %q, capture: %s, tables: [%s], heartbeat: 1s, spool_dir: %q%s}\n",
			s.SourceURL, s.Mode(), strings.Join(s.Tables, ", "), filepath.Join(s.Dir, fmt.Sprintf("spool-%d", s.transfers)), s.More)
	}
	brokers := make([]string, 0, 3)
	addresses := s.Kafka.Brokers()
	if s.Brokers != nil {
		addresses = s.Brokers
	}
	for _, address := range addresses {
		brokers = append(brokers, fmt.Sprintf("%q", address))
	}
	fmt.Fprintf(&b, "    kafka: {brokers: [%s], topic: %q%s}\n", strings.Join(brokers, ", "), s.Topic, s.MoreKafka)
	return b.String()
}

// Mode is how the system captures changes: wal or trigger.
func (s *System) Mode() string {
	if s.Capture == "" {
		return *captureFlag
	}
	return s.Capture
}

// TransferConfig writes a configuration for the source's side with an admin
// port of its own and returns its path and the address.
func (s *System) TransferConfig() (path, admin string) {
	s.T.Helper()
	port, err := loopback.FreePort()
	must(s.T, "find a port", err)
	s.transfers++
	admin = fmt.Sprintf("127.0.0.1:%d", port)
	path = filepath.Join(s.Dir, fmt.Sprintf("transfer-%d.yaml", s.transfers))
	text := s.stream(true) + fmt.Sprintf("transfer:\n  admin: %q\n", admin)
	if s.Lease != 0 {
		text += fmt.Sprintf("  lease: %s\n", s.Lease)
	}
	writeFile(s.T, path, text)
	return path, admin
}

// Run runs a command of the program to its end and returns it. Its -c is that
// of config, which may be empty.
func (s *System) Run(config string, args ...string) *Process {
	s.T.Helper()
	if config != "" {
		args = append(args, "-c", config)
	}
	p := Start(s.T, Command{Name: args[0], Binary: Binary(s.T, s.Variant), Args: args, Dir: s.Dir})
	p.Wait(commandLimit)
	return p
}

// Init runs millrace init and wants it to succeed.
func (s *System) Init() {
	s.T.Helper()
	config, _ := s.TransferConfig()
	if p := s.Run(config, "init"); p.ExitCode() != 0 {
		s.T.Fatalf("millrace init: exit code %d: %s", p.ExitCode(), p.Stderr())
	}
}

// Transfer is a running millrace transfer.
type Transfer struct {
	*Process
	// Config is its configuration file, Admin its admin address.
	Config, Admin string
}

// StartTransfer starts millrace transfer and does not wait for anything. env
// is added to its environment.
func (s *System) StartTransfer(env ...string) *Transfer {
	s.T.Helper()
	config, admin := s.TransferConfig()
	return s.StartTransferWith(config, admin, env...)
}

// StartTransferWith is StartTransfer with a configuration that exists.
func (s *System) StartTransferWith(config, admin string, env ...string) *Transfer {
	s.T.Helper()
	p := Start(s.T, Command{
		Name: "transfer", Binary: Binary(s.T, s.Variant), Args: []string{"transfer", "-c", config}, Env: env, Dir: s.Dir,
	})
	return &Transfer{Process: p, Config: config, Admin: admin}
}

// Status asks the running transfer what it has published.
func (s *System) Status(config string) (Status, error) {
	p, err := start(s.T, Command{
		Name: "status", Binary: Binary(s.T, s.Variant), Args: []string{"status", "--json", "-c", config}, Dir: s.Dir,
	})
	if err != nil {
		return Status{}, err
	}
	if !p.process.EndsWithin(commandLimit) {
		return Status{}, fmt.Errorf("millrace status does not end within %s", commandLimit)
	}
	if code := p.ExitCode(); code != 0 {
		return Status{}, fmt.Errorf("millrace status: exit code %d: %s", code, p.Stderr())
	}
	var all []Status
	if err := json.Unmarshal([]byte(p.Stdout()), &all); err != nil {
		return Status{}, fmt.Errorf("read answer of millrace status %q: %w", p.Stdout(), err)
	}
	for _, one := range all {
		if one.Stream == s.Stream {
			return one, nil
		}
	}
	return Status{}, fmt.Errorf("millrace status says nothing of stream %s: %s", s.Stream, p.Stdout())
}

// Edge is a place for an edge: its configuration, address and data, which stay
// the same over its restarts.
type Edge struct {
	*Process
	*Client
	// ID of the edge, DataDir of all its streams.
	ID, Config, DataDir, Address string
	// Upstream are the edges that it follows, by their URLs; none stands for Kafka. An
	// edge that follows others knows no brokers.
	Upstream []string
	// More is put behind the other keys of the configuration's edge.
	More string

	s *System
}

// NewEdge makes the place of an edge and starts nothing.
func (s *System) NewEdge(id string) *Edge {
	s.T.Helper()
	port, err := loopback.FreePort()
	must(s.T, "find a port", err)
	e := &Edge{
		ID: id, Config: filepath.Join(s.Dir, id+".yaml"), DataDir: filepath.Join(s.Dir, id),
		Address: fmt.Sprintf("127.0.0.1:%d", port), s: s,
	}
	e.Client = NewClient(e.Address, s.Stream)
	e.WriteConfig()
	return e
}

// WriteConfig writes the edge's configuration anew after a field has changed.
func (e *Edge) WriteConfig() {
	e.s.T.Helper()
	text, more := e.s.stream(false), e.More
	if e.Upstream != nil {
		text = fmt.Sprintf("streams:\n  - name: %s\n", e.s.Stream)
		more = fmt.Sprintf("  upstream: [\"%s\"]\n", strings.Join(e.Upstream, `", "`)) + more
	}
	writeFile(e.s.T, e.Config, text+fmt.Sprintf(
		"edge:\n  id: %s\n  streams: [%s]\n  data_dir: %q\n  http: {listen: %q}\n%s", e.ID, e.s.Stream, e.DataDir, e.Address, more))
}

// StoreDir is where the edge keeps the stream.
func (e *Edge) StoreDir() string { return filepath.Join(e.DataDir, e.s.Stream) }

// Start starts the edge, anew if it ran before, and does not wait for anything.
func (e *Edge) Start(env ...string) {
	e.s.T.Helper()
	e.Process = Start(e.s.T, e.command(env))
}

// StartAs starts the edge as another user.
func (e *Edge) StartAs(uid uint32) {
	e.s.T.Helper()
	c := e.command(nil)
	c.UID = uid
	e.Process = Start(e.s.T, c)
}

func (e *Edge) command(env []string) Command {
	return Command{Name: e.ID, Binary: Binary(e.s.T, e.s.Variant), Args: []string{"edge", "-c", e.Config}, Env: env, Dir: e.s.Dir}
}

// AwaitRow waits until the row of table with the given key is at the edge and
// returns it.
func (e *Edge) AwaitRow(limit time.Duration, table string, key ...string) Answer {
	e.s.T.Helper()
	var answer Answer
	Until(e.s.T, limit, fmt.Sprintf("%s has row %v of %s", e.ID, key, table), func(ctx context.Context) (err error) {
		answer, err = e.Row(ctx, table, key...)
		return err
	})
	return answer
}
