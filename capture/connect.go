package capture

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace"
)

// maxMessage bounds one message of the server in bytes: a row of the largest
// size, in its old and its new version.
const maxMessage = 2*millrace.MaxEntry + 8<<20

const (
	// KeepAlive bounds how long the kernel takes to see a dead peer.
	KeepAlive = 15 * time.Second
	// Unanswered bounds how long it takes while something is on its way to the
	// peer.
	Unanswered = 30 * time.Second
	// connecting bounds how long a connection is waited for, unless the URL says
	// otherwise.
	connecting = 15 * time.Second
	// closing bounds the orderly end of a connection, cancelling that of a
	// statement that was broken off.
	closing    = 5 * time.Second
	cancelling = time.Second
)

// Bound bounds what a connection may wait for and how much one message of the
// server may hold.
func Bound(cfg *pgconn.Config) {
	cfg.MaxProtocolMessageBodyLen = maxMessage
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = connecting
	}
	dialer := &net.Dialer{Control: boundUnanswered, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: KeepAlive, Interval: KeepAlive / 3, Count: 3,
	}}
	cfg.DialFunc = dialer.DialContext
}

// Close ends a connection in good order, within 5 s.
func Close(conn interface{ Close(context.Context) error }) {
	ctx, cancel := context.WithTimeout(context.Background(), closing)
	defer cancel()
	_ = conn.Close(ctx) // nothing is lost with it
	switch conn := conn.(type) {
	case *pgx.Conn:
		awaitCancel(conn.PgConn())
	case *pgconn.PgConn:
		awaitCancel(conn)
	}
}

// awaitCancel gives a statement that was broken off the time to be cancelled at the
// server, which is asked in the background. PgBouncer before 1.19 ends for everybody
// when whoever asks it is gone before it has passed that on, as a process that ends
// would be.
func awaitCancel(conn *pgconn.PgConn) {
	timer := time.NewTimer(cancelling)
	defer timer.Stop()
	select {
	case <-conn.CleanupDone():
	case <-timer.C: // nobody answers
	}
}

// ConnectRefused makes an ErrConnect.
func ConnectRefused(err error, mend string) error {
	return fmt.Errorf("%w: %w; mend: %s", ErrConnect, err, mend)
}

// ConnectError tells refusals of a connection, which an operator mends, from
// failures that pass.
func ConnectError(err error) error { return ConnectErrorOf(err, "source") }

// ConnectErrorOf is ConnectError for a server that is called otherwise, in front of the
// word URL too.
func ConnectErrorOf(err error, server string) error {
	refused := func(mend string) error { return fmt.Errorf("connect to the %s: %w", server, ConnectRefused(err, mend)) }
	var parse *pgconn.ParseConfigError
	if errors.As(err, &parse) {
		return refused("correct the " + server + " URL")
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return fmt.Errorf("connect to the %s: %w", server, err)
	}
	switch {
	case pg.Code == "28P01":
		return refused("correct the password in the " + server + " URL, or the role's there")
	case pg.Code == "28000" && strings.Contains(pg.Message, "pg_hba.conf"):
		return refused("allow the connection in the server's pg_hba.conf")
	case pg.Code == "28000":
		return refused("correct the role in the " + server + " URL")
	case pg.Code == "3D000":
		return refused("correct the database in the " + server + " URL")
	case pg.Code == "42704":
		return fmt.Errorf("connect to the %s: %w: %w; mend: use Postgres 14 or later", server, ErrVersion, err)
	}
	return fmt.Errorf("connect to the %s: %w", server, err)
}

// Role returns the role of a source URL, as SQL writes it.
func Role(url string) string {
	cfg, err := pgconn.ParseConfig(url)
	if err != nil || cfg.User == "" {
		return "CURRENT_USER"
	}
	return pgx.Identifier{cfg.User}.Sanitize()
}
