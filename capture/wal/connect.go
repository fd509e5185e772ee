package wal

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace"
)

// maxMessage bounds one message of the server in bytes: a row of the largest
// size, in its old and its new version.
const maxMessage = 2*millrace.MaxEntry + 8<<20

// keepAlive bounds how long the kernel takes to see a dead peer.
const keepAlive = 15 * time.Second

// unanswered bounds how long it takes while something is on its way to the peer.
const unanswered = 30 * time.Second

// session pins what the text of a value depends on, on every connection that
// reads rows, so that a row prints the same wherever it is read; and what could
// end a connection that waits.
func session() map[string]string {
	return map[string]string{
		"application_name":    "millrace",
		"client_encoding":     "UTF8",
		"client_min_messages": "warning", // Postgres 18 tells of lost changes by one
		"DateStyle":           "ISO, MDY",
		"IntervalStyle":       "postgres",
		"TimeZone":            "UTC",
		"extra_float_digits":  "3", // shortest text that reads back exactly
		"bytea_output":        "hex",
		"lc_monetary":         "C",
		"search_path":         "pg_catalog",
		"xmloption":           "content",
		// A row policy would leave rows out without a word; off makes it an
		// error.
		"row_security":                        "off",
		"statement_timeout":                   "0",
		"lock_timeout":                        "0",
		"idle_in_transaction_session_timeout": "0",
		"idle_session_timeout":                "0",
		// Queries over the catalogs look dear to the planner and are not:
		// compiling them costs a hundred times what they do.
		"jit": "off",
	}
}

func (c *Capture) pin(cfg *pgconn.Config) {
	for name, value := range session() {
		cfg.RuntimeParams[name] = value
	}
	cfg.MaxProtocolMessageBodyLen = maxMessage
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 15 * time.Second
	}
	dialer := &net.Dialer{Control: boundUnanswered, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: keepAlive, Interval: keepAlive / 3, Count: 3,
	}}
	cfg.DialFunc = dialer.DialContext
}

// connect opens an SQL connection. extra are more session settings.
func (c *Capture) connect(ctx context.Context, extra map[string]string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(c.cfg.URL)
	if err != nil {
		return nil, c.connectError(err)
	}
	c.pin(&cfg.Config)
	for name, value := range extra {
		cfg.RuntimeParams[name] = value
	}
	// Prepared statements would tie the connection to one server session for no
	// gain: statements are rare here.
	cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
	cfg.AfterConnect = pinLater
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, c.connectError(err)
	}
	return conn, nil
}

// pinLater sets what only newer servers know, and older ones would refuse the
// connection for.
func pinLater(ctx context.Context, conn *pgconn.PgConn) error {
	version := conn.ParameterStatus("server_version") // such as 17.5 or 19beta1
	digits := len(version) - len(strings.TrimLeft(version, "0123456789"))
	if major, _ := strconv.Atoi(version[:digits]); major < 17 { // 0 for what is no number
		return nil
	}
	if _, err := conn.Exec(ctx, "SET transaction_timeout = 0").ReadAll(); err != nil {
		return fmt.Errorf("set transaction_timeout: %w", err)
	}
	return nil
}

// replication is a connection to a walsender, over a socket that can be read in
// gulps.
type replication struct {
	*pgconn.PgConn
	gulp *gulpConn
}

// connectReplication opens a replication connection. It reads as any other
// until the gulpConn is told otherwise.
func (c *Capture) connectReplication(ctx context.Context) (*replication, error) {
	cfg, err := pgconn.ParseConfig(c.cfg.URL)
	if err != nil {
		return nil, c.connectError(err)
	}
	c.pin(cfg)
	cfg.RuntimeParams["replication"] = "database"
	var gulp *gulpConn // of the last address tried, which is the one that works
	dial := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		gulp = &gulpConn{Conn: conn}
		return gulp, nil
	}
	cfg.AfterConnect = pinLater
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, c.connectError(err)
	}
	return &replication{PgConn: conn, gulp: gulp}, nil
}

// poolerMend is the mend where a pooler is in the way.
const poolerMend = "give the server's own address in the source URL"

// connectError tells refusals, which an operator mends, from failures that pass.
func (c *Capture) connectError(err error) error {
	refuse := func(mend string) error {
		return fmt.Errorf("%w: %w; mend: %s", ErrConnect, err, mend)
	}
	var parse *pgconn.ParseConfigError
	if errors.As(err, &parse) {
		return refuse("correct the source URL")
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return fmt.Errorf("connect to the source: %w", err)
	}
	switch {
	case pg.Code == "08P01" && strings.Contains(pg.Message, "unsupported startup parameter"):
		return refuse("the URL leads to a connection pooler, which passes neither replication nor session settings on; " + poolerMend)
	case pg.Code == "28P01":
		return refuse("correct the password in the source URL, or the role's at the source")
	case pg.Code == "28000" && strings.Contains(pg.Message, "pg_hba.conf"):
		return refuse("allow the connection in the server's pg_hba.conf")
	case pg.Code == "28000":
		return refuse("correct the role in the source URL")
	case pg.Code == "3D000":
		return refuse("correct the database in the source URL")
	case pg.Code == "42704":
		return fmt.Errorf("%w: %w; mend: use Postgres 14 or later", ErrVersion, err)
	case pg.Code == "42501":
		return refuse("as a superuser: ALTER ROLE " + c.role() + " REPLICATION (managed services: grant their replication role)")
	}
	return fmt.Errorf("connect to the source: %w", err)
}

// role is the role of the source URL, as SQL writes it.
func (c *Capture) role() string {
	cfg, err := pgconn.ParseConfig(c.cfg.URL)
	if err != nil || cfg.User == "" {
		return "CURRENT_USER"
	}
	return quote(cfg.User)
}

// closing bounds the orderly end of a connection.
const closing = 5 * time.Second

func closeConn(conn interface{ Close(context.Context) error }) {
	ctx, cancel := context.WithTimeout(context.Background(), closing)
	defer cancel()
	_ = conn.Close(ctx) // nothing is lost with it
}
