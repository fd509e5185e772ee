package trigger

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/capture/trigger/keylog"
)

// Install makes the logs of keys of exactly the configured tables, and what writes
// them, or makes whole what is there; see keylog.Install for the locks. Roles and
// event triggers are made where the role of the connection may; what it may not is
// logged, and capture does without. Tables that are unfit are refused before. It can
// be run again at any time. The control schema must have been migrated.
func (c *Capture) Install(ctx context.Context) error {
	return c.prepare(ctx, func(conn *pgx.Conn, cfg keylog.Config) error {
		if !cfg.Alone {
			missing, err := keylog.InstallRoles(ctx, conn, cfg)
			if err != nil {
				return err
			}
			if len(missing) > 0 {
				c.log.Warn("the role may not set up the roles of capture; millrace init --dry-run as one that may prints what is missing", "statements", len(missing))
			}
		}
		if err := keylog.Install(ctx, conn, cfg); err != nil {
			return err
		}
		made, err := keylog.InstallEventTriggers(ctx, conn, cfg)
		if err == nil && !made {
			c.log.Warn("the role may not make event triggers, so who altered a captured table is not noted, and a table is loaded again after VACUUM FULL or CLUSTER; mend: millrace init once as a superuser")
		}
		return err
	})
}

// InstallSQL writes out what Install would run now, as a script for psql, and changes
// nothing.
func (c *Capture) InstallSQL(ctx context.Context) (text string, err error) {
	err = c.prepare(ctx, func(conn *pgx.Conn, cfg keylog.Config) error {
		text, err = keylog.Script(ctx, conn, cfg)
		return err
	})
	return text, err
}

// prepare checks what Install needs and runs fn with what is to be installed.
func (c *Capture) prepare(ctx context.Context, fn func(*pgx.Conn, keylog.Config) error) error {
	conn, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer capture.Close(conn)
	problems, err := c.checkServer(ctx, conn)
	if err != nil {
		return err
	}
	if err := capture.FirstError(problems); err != nil {
		return err
	}
	var tables []*table.Info
	err = look(ctx, conn, func(tx pgx.Tx) error {
		logs, _, err := c.logs(ctx, tx)
		if err != nil {
			return err
		}
		tables, problems, err = c.checkTables(ctx, tx, logs)
		return err
	})
	if err != nil {
		return err
	}
	if err := capture.FirstError(problems); err != nil {
		return err
	}
	if problems, err = c.checkFilters(ctx, conn, nil); err != nil {
		return err
	}
	if err := capture.FirstError(problems); err != nil {
		return err
	}
	cfg := c.logConfig()
	for _, t := range tables {
		key, problem, mend := t.Key(millrace.ModeTrigger)
		if problem != "" {
			return fmt.Errorf("%w: %v: %s; mend: %s", capture.ErrTable, t.Name, problem, mend)
		}
		k := keylog.Table{ID: t.ID, Schema: t.Name.Schema, Name: t.Name.Name}
		for _, n := range key {
			k.Key = append(k.Key, t.Column(n).Name)
		}
		cfg.Tables = append(cfg.Tables, k)
	}
	return fn(conn, cfg)
}

// Uninstall takes away all that Install made for the stream, and its ticks. What is
// not there is no error.
func (c *Capture) Uninstall(ctx context.Context) error {
	conn, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer capture.Close(conn)
	return keylog.Uninstall(ctx, conn, c.cfg.Stream, c.cfg.Logger)
}

// UninstallRoles drops the event triggers and the roles that Install made, roles where
// nobody else uses them; see keylog.UninstallRoles. It is for the end of the last
// stream that captures by triggers, after Uninstall. The roles that are left are
// returned.
func (c *Capture) UninstallRoles(ctx context.Context) (left []string, err error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer capture.Close(conn)
	if err := keylog.UninstallEventTriggers(ctx, conn); err != nil {
		return nil, err
	}
	return keylog.UninstallRoles(ctx, conn, c.logConfig())
}

func (c *Capture) logConfig() keylog.Config {
	return keylog.Config{Stream: c.cfg.Stream, Period: c.cfg.Retain, Log: c.cfg.Logger, Roles: keylog.Roles(c.cfg.Roles), Login: c.cfg.Login, Except: c.cfg.Except, Alone: c.cfg.Alone}
}
