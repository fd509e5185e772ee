package wal

import (
	"context"
	"errors"
	"net"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace/capture"
)

func (c *Capture) pin(cfg *pgconn.Config) {
	for name, value := range capture.Session() {
		cfg.RuntimeParams[name] = value
	}
	capture.Bound(cfg)
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
	cfg.AfterConnect = capture.PinLater
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, c.connectError(err)
	}
	return conn, nil
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
	cfg.AfterConnect = capture.PinLater
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
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch {
		case pg.Code == "08P01" && strings.Contains(pg.Message, "unsupported startup parameter"):
			return capture.ConnectRefused(err, "the URL leads to a connection pooler, which passes neither replication nor session settings on; "+poolerMend)
		case pg.Code == "42501":
			return capture.ConnectRefused(err, "as a superuser: ALTER ROLE "+capture.Role(c.cfg.URL)+" REPLICATION (managed services: grant their replication role)")
		}
	}
	return capture.ConnectError(err)
}
