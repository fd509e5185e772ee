package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/control"
)

const (
	connectLimit = 15 * time.Second
	closeLimit   = 5 * time.Second
)

// connectSource opens a connection to a stream's source database. Its errors
// name the key that leads there.
func connectSource(ctx context.Context, s *config.Stream) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(s.Source.URL.Reveal())
	if err != nil {
		return nil, usage("streams.%s.source.url: not a connection string; write postgres://user@host:5432/database", s.Name)
	}
	cfg.RuntimeParams["application_name"] = "millrace"
	// The URL may lead through a pooler, which has no place for prepared statements.
	cfg.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = connectLimit
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, sourceError(s, cfg, err)
	}
	return conn, nil
}

// sourceError says why a source cannot be reached: which key, what was tried,
// and what mends it.
func sourceError(s *config.Stream, cfg *pgx.ConnConfig, err error) error {
	key := "streams." + s.Name + ".source.url"
	if s.Source.Login() != "" {
		key = "streams." + s.Name + ".source.setup_url"
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		cause := err
		var connect *pgconn.ConnectError
		if errors.As(err, &connect) && connect.Unwrap() != nil {
			cause = connect.Unwrap()
		}
		return fmt.Errorf("cannot reach Postgres at %v: %w; is it running, and is %s right?", s.Source.URL, cause, key)
	}
	mend := "correct " + key
	switch pg.Code {
	case "28P01":
		mend = "correct the password in " + key + ", or the role's at the source"
	case "28000":
		mend = "correct the role in " + key + ", or allow it in pg_hba.conf"
	case "3D000":
		mend = "correct the database in " + key
	case "57P03", "53300":
		return fmt.Errorf("cannot use Postgres at %v yet: %s", s.Source.URL, pg.Message)
	}
	return operator("cannot use Postgres at %v as %s: %s; mend: %s", s.Source.URL, cfg.User, pg.Message, mend)
}

func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	control.CloseConn(ctx, conn)
}

// withSource runs fn with a connection to a stream's source.
func withSource(ctx context.Context, s *config.Stream, fn func(*pgx.Conn) error) error {
	conn, err := connectSource(ctx, s)
	if err != nil {
		return err
	}
	defer closeConn(conn)
	return fn(conn)
}

func duration(d config.Duration) time.Duration { return time.Duration(d) }
