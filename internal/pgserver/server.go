// Package pgserver runs a private Postgres server as a child process: for
// `millrace dev`, and for tests.
//
// It owns the server's data directory, port and process. It promises that the
// server listens on loopback and on a unix socket only, that it never runs as
// root, that it is ready when Start returns, and, on Linux, that it ends with
// the process that started it. A data directory of an earlier run is gone on
// with. What is in the databases is left to the caller.
//
// Connections are trusted without a password: whoever may open a loopback
// socket on the machine is superuser there. It is no server for data of worth.
package pgserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/internal/child"
	"github.com/millrace-db/millrace/internal/loopback"
)

// ErrInUse says that another live server holds the data directory. End that
// one, or name another directory.
var ErrInUse = errors.New("another Postgres server is running on this data directory")

const (
	startLimit    = 5 * time.Minute // crash recovery of a big directory takes a while
	stopLimit     = 20 * time.Second
	quitLimit     = 10 * time.Second
	killLimit     = 10 * time.Second
	pollInterval  = 10 * time.Millisecond
	portAttempts  = 3
	leftOverLimit = 5 * time.Second
)

// Config says how to run a server.
type Config struct {
	// Dir is the data directory. An empty or missing one gets a new cluster
	// (UTF8, locale C.UTF-8 or C, superuser postgres).
	Dir string
	// Port on 127.0.0.1; 0 picks a free one.
	Port int
	// Settings go into the server's configuration, over the defaults here
	// (wal_level logical, 64 replication slots and senders, loopback only).
	Settings map[string]string
	// Binaries is the server to run; the zero value means the one Find gives
	// for the version of the data in Dir, or the newest for a new cluster.
	Binaries Binaries
	// Logger hears of starts and ends. The server's own log is in
	// Dir/server.log. Nil discards.
	Logger *slog.Logger
	// FSync makes commits durable against a crash of the machine. Without it
	// they are durable against a crash of the server only: right for tests.
	FSync bool
}

// Server is a private Postgres server. Its methods may be called concurrently.
type Server struct {
	dir        string
	port       int
	settings   map[string]string
	binaries   Binaries
	log        *slog.Logger
	who        owner
	socketDir  string
	ownsSocket bool // socketDir is ours to remove

	mu      sync.Mutex
	process *child.Process // the last one started; it may have ended
}

// Start makes the cluster if there is none, starts the server and returns when
// it accepts connections. ctx bounds the start only. The caller stops the server
// with Stop or Kill.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.Dir == "" {
		return nil, errors.New("start Postgres: no data directory given")
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("start Postgres on %s: %w", cfg.Dir, err)
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	if cfg.Port < 0 || cfg.Port > 65535 {
		return nil, fmt.Errorf("start Postgres on port %d: want 1 to 65535, or 0 for any", cfg.Port)
	}
	version, err := dataVersion(dir)
	if err != nil {
		return nil, err
	}
	binaries := cfg.Binaries
	if binaries.IsZero() {
		if binaries, err = Find(ctx, version); err != nil {
			return nil, fmt.Errorf("start Postgres on %s: %w", dir, err)
		}
	}
	if version != 0 && version != binaries.Version {
		return nil, fmt.Errorf("start Postgres on %s: its data was made by version %d and %s is version %d; install version %d or name another directory",
			dir, version, binaries.Dir, binaries.Version, version)
	}
	who, err := ownerOf(dir)
	if err != nil {
		return nil, err
	}
	s := &Server{dir: dir, port: cfg.Port, binaries: binaries, log: cfg.Logger, who: who}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if version == 0 {
		if err := initialize(ctx, dir, binaries, who, cfg.FSync); err != nil {
			return nil, err
		}
	} else if at := who.blockedBy(dir); at != "" {
		return nil, fmt.Errorf("start Postgres on %s: it runs as user %s, who may not pass through %s; chmod o+x %s", dir, who.name, at, at)
	}
	if s.socketDir, s.ownsSocket, err = socketDirectory(dir, who); err != nil {
		return nil, err
	}
	s.settings = s.allSettings(cfg)
	if err := s.start(ctx, cfg.Port == 0); err != nil {
		return nil, errors.Join(err, s.removeSocketDir())
	}
	return s, nil
}

// allSettings are the defaults, what cfg wants, and what is not for it to choose.
func (s *Server) allSettings(cfg Config) map[string]string {
	settings := map[string]string{
		"wal_level":             "logical",
		"max_replication_slots": "64",
		"max_wal_senders":       "64",
		"max_connections":       "200",
		"timezone":              "UTC",
		"log_timezone":          "UTC",
		"listen_addresses":      "127.0.0.1",
		"fsync":                 "on",
	}
	if !cfg.FSync {
		settings["fsync"] = "off"
	}
	maps.Copy(settings, cfg.Settings)
	settings["unix_socket_directories"] = s.socketDir
	return settings
}

// start starts the postmaster, choosing among free ports if pickPort is set.
func (s *Server) start(ctx context.Context, pickPort bool) error {
	if err := s.checkUnused(ctx); err != nil {
		return err
	}
	for attempt := 1; ; attempt++ {
		if pickPort {
			port, err := loopback.FreePort()
			if err != nil {
				return fmt.Errorf("start Postgres: %w", err)
			}
			s.port = port
		}
		log, err := s.startOnce(ctx)
		if err == nil {
			s.log.Info("Postgres started", "dir", s.dir, "port", s.port, "version", s.binaries.Version, "pid", s.PID())
			return nil
		}
		taken := strings.Contains(log, "Address already in use")
		if taken && pickPort && attempt < portAttempts {
			continue
		}
		if taken {
			return fmt.Errorf("start Postgres on port %d: another program listens there; name another port: %w", s.port, err)
		}
		return err
	}
}

// checkUnused refuses a data directory that a live server holds, waits for one
// that is just ending, and removes the lock file of one that is dead, because
// Postgres takes any process that has its number by now for that server.
func (s *Server) checkUnused(ctx context.Context) error {
	lock := filepath.Join(s.dir, "postmaster.pid")
	if _, err := os.Stat(lock); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if !canListProcesses {
		return nil // Postgres's own check has to do
	}
	deadline := time.Now().Add(leftOverLimit)
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		pids := processesIn(s.dir)
		if len(pids) == 0 {
			break
		}
		// The lock file's eighth line says what the server is about.
		text, err := os.ReadFile(lock)
		ending := errors.Is(err, os.ErrNotExist) || strings.Contains(string(text), "stopping")
		orphans := err == nil && !isOneOf(strings.SplitN(string(text), "\n", 2)[0], pids)
		if !ending && !orphans || time.Now().After(deadline) {
			return fmt.Errorf("start Postgres on %s: %w (processes %v); end it, or name another directory", s.dir, ErrInUse, pids)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("start Postgres on %s: %w", s.dir, ctx.Err())
		case <-tick.C:
		}
	}
	if err := os.Remove(lock); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove lock file of a dead server: %w", err)
	}
	return nil
}

func isOneOf(text string, pids []int) bool {
	for _, pid := range pids {
		if text == strconv.Itoa(pid) {
			return true
		}
	}
	return false
}

// startOnce runs the postmaster on s.port until it is ready. When it fails it
// also returns what the server wrote to its log.
func (s *Server) startOnce(ctx context.Context) (string, error) {
	s.settings["port"] = strconv.Itoa(s.port)
	if err := writeSettings(s.dir, s.who, s.settings); err != nil {
		return "", err
	}
	path := s.LogFile()
	if info, err := os.Stat(path); err == nil && info.Size() > logLimit {
		if err := os.Rename(path, path+".old"); err != nil {
			return "", fmt.Errorf("set old server log aside: %w", err)
		}
	}
	log, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return "", fmt.Errorf("open server log: %w", err)
	}
	defer func() { _ = log.Close() }() // the server has its own descriptor
	if err := s.who.give(path); err != nil {
		return "", err
	}
	info, err := log.Stat()
	if err != nil {
		return "", fmt.Errorf("open server log: %w", err)
	}
	before := info.Size()

	// No context on the command: it bounds the start, not the server's life.
	cmd := exec.Command(s.binaries.postgres(), "-D", s.dir) //nolint:noctx // see above
	cmd.Dir = s.dir
	cmd.Env = environment()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = s.who.attributes()
	process, err := child.Start(cmd, syscall.SIGINT) // a fast shutdown
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	s.process = process
	s.mu.Unlock()

	if err := s.waitReady(ctx, process); err != nil {
		said := child.Tail(path, before, 4096)
		killErr := s.Kill()
		return said, errors.Join(fmt.Errorf("start Postgres on %s: %w; its log (%s) says: %s", s.dir, err, path, strings.TrimSpace(said)), killErr)
	}
	return "", nil
}

// waitReady returns once the server answers on its socket. The socket, and not
// the port: nobody else's server can answer there.
func (s *Server) waitReady(ctx context.Context, process *child.Process) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	cfg, err := s.socketConfig()
	if err != nil {
		return err
	}
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		conn, err := pgx.ConnectConfig(ctx, cfg)
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-process.Done():
			return fmt.Errorf("the server ended: %w", process.Err())
		case <-ctx.Done():
			return fmt.Errorf("wait until it accepts connections: %w: %w", ctx.Err(), err)
		case <-tick.C:
		}
	}
}

func (s *Server) socketConfig() (*pgx.ConnConfig, error) {
	cfg, err := pgx.ParseConfig("sslmode=disable user=" + superuser + " dbname=postgres connect_timeout=10")
	if err != nil {
		return nil, fmt.Errorf("make connection settings: %w", err)
	}
	cfg.Host, cfg.Port, cfg.Fallbacks = s.socketDir, uint16(s.port), nil // checked by Start
	return cfg, nil
}

// Stop shuts the server down: fast (connections are ended, everything is
// written out), and after ctx's end, or 20 s where ctx has no deadline, at once,
// which the next start mends from the log. A server that has ended is no error.
func (s *Server) Stop(ctx context.Context) error {
	p := s.current()
	if p == nil {
		return nil
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, stopLimit)
		defer cancel()
	}
	if err := p.Signal(syscall.SIGINT); err != nil {
		return err
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		s.log.Warn("Postgres does not end by itself, ending it at once", "dir", s.dir)
		return s.Quit()
	}
	s.log.Info("Postgres stopped", "dir", s.dir)
	return s.removeSocketDir()
}

// Quit ends the server at once and writes nothing out, which the next start mends
// from the log. Unlike Kill it leaves nothing in the system's shared memory, of
// which there is a limited number of pieces.
func (s *Server) Quit() error {
	p := s.current()
	if p == nil {
		return nil
	}
	if err := p.Signal(syscall.SIGQUIT); err != nil {
		return err
	}
	if !p.EndsWithin(quitLimit) {
		return errors.Join(s.Kill(), s.removeSocketDir())
	}
	return s.removeSocketDir()
}

// Kill ends the server and all its processes with SIGKILL, as a crash would, and
// returns when they are gone. Restart starts it again on the same port.
func (s *Server) Kill() error {
	p := s.current()
	if p == nil {
		return nil
	}
	if err := p.Kill(); err != nil {
		return fmt.Errorf("kill Postgres: %w", err)
	}
	return clearOut(s.dir, killLimit)
}

// Restart stops the server if it runs and starts it again, on the same port and
// data directory.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.Stop(ctx); err != nil {
		return err
	}
	if s.ownsSocket {
		dir, owns, err := socketDirectory(s.dir, s.who)
		if err != nil {
			return err
		}
		s.socketDir, s.ownsSocket = dir, owns
		s.settings["unix_socket_directories"] = dir
	}
	return s.start(ctx, false)
}

func (s *Server) removeSocketDir() error {
	if !s.ownsSocket {
		return nil
	}
	if err := os.RemoveAll(s.socketDir); err != nil {
		return fmt.Errorf("remove socket directory: %w", err)
	}
	return nil
}

func (s *Server) current() *child.Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process
}

// Done is closed when the server that was started last has ended, for whatever
// reason.
func (s *Server) Done() <-chan struct{} { return s.current().Done() }

// URL is where to reach the named database over TCP, as superuser.
func (s *Server) URL(db string) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.User(superuser),
		Host:     net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)),
		Path:     "/" + db,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// PID is the process ID of the postmaster that was started last.
func (s *Server) PID() int { return s.current().PID() }

// Port is the TCP port on 127.0.0.1.
func (s *Server) Port() int { return s.port }

// Dir is the data directory, absolute.
func (s *Server) Dir() string { return s.dir }

// SocketDir is the directory of the unix socket, good as a host in a
// connection string.
func (s *Server) SocketDir() string { return s.socketDir }

// LogFile is the path of the server's own log.
func (s *Server) LogFile() string { return filepath.Join(s.dir, logFile) }

// Binaries is the installed server that runs.
func (s *Server) Binaries() Binaries { return s.binaries }
