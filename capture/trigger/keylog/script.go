package keylog

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Script writes out the SQL that InstallRoles, Install and InstallEventTriggers would
// run now, as a script for psql. It changes nothing. Where the control schema is not
// there yet, it is what they would run once it is.
func Script(ctx context.Context, conn *pgx.Conn, cfg Config) (string, error) {
	i, err := newInstaller(cfg)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	// Read only, and with the search_path that types are written out for.
	err = pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{AccessMode: pgx.ReadOnly, IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL search_path = pg_catalog"); err != nil {
			return err
		}
		return i.script(ctx, tx, &b)
	})
	if err != nil {
		return "", fmt.Errorf("write out what init would run: %w", err)
	}
	return b.String(), nil
}

func (i *installer) script(ctx context.Context, q Querier, b *strings.Builder) error {
	var migrated, super, createRole, roles bool
	err := q.QueryRow(ctx, `
SELECT to_regclass('millrace.key_log') IS NOT NULL, rolsuper, rolcreaterole,
       EXISTS (SELECT FROM pg_roles WHERE rolname = $1)
FROM pg_roles WHERE rolname = current_user`, i.cfg.Roles.Owner).Scan(&migrated, &super, &createRole, &roles)
	if err != nil {
		return err
	}
	write := func(name string) error {
		text, err := i.texts.render(name, i.cfg.roleTexts())
		b.WriteString(text + "\n")
		return err
	}
	if (super || createRole) && !i.cfg.Alone {
		if err := write("roles.sql"); err != nil {
			return err
		}
	}
	if (super || createRole || roles) && !i.cfg.Alone {
		if err := write("grants.sql"); err != nil {
			return err
		}
		var grants []string
		for n := range i.cfg.Tables {
			heaps, err := heapsOf(ctx, q, &i.cfg.Tables[n])
			if err != nil {
				return err
			}
			for h := range heaps {
				for _, grant := range i.cfg.tableGrants(&heaps[h]) {
					if !slices.Contains(grants, grant) {
						grants = append(grants, grant)
					}
				}
			}
		}
		b.WriteString(strings.Join(grants, "") + "\n")
	}
	var logs []Log
	number := 1
	i.owns = (super || createRole) && !i.cfg.Alone
	if migrated {
		if logs, err = i.looker.Look(ctx, q); err != nil {
			return err
		}
		if number, err = nextNumber(ctx, q); err != nil {
			return err
		}
		if !i.owns && !i.cfg.Alone {
			if i.owns, err = canOwn(ctx, q, i.cfg.Roles); err != nil {
				return err
			}
		}
	}
	for n := range i.cfg.Tables {
		p, err := i.plan(ctx, q, logs, &i.cfg.Tables[n], number)
		if err != nil {
			return err
		}
		if p.nothing() {
			fmt.Fprintf(b, "-- Nothing to do for table %v.\n\n", &i.cfg.Tables[n])
			continue
		}
		if p.id == number {
			number++
		}
		fmt.Fprintf(b, "-- Table %v: %s.\n", &i.cfg.Tables[n], p.why)
		transaction(b, append([]string{p.lock + ";\n"}, p.statements...)...)
	}
	for n := range logs {
		if i.wanted(&logs[n]) {
			continue
		}
		text, err := i.removal(ctx, q, &logs[n])
		if err != nil {
			return err
		}
		fmt.Fprintf(b, "-- Table %v is not configured any more.\n", &logs[n].Table)
		transaction(b, text)
	}
	if super {
		return write("event_triggers.sql")
	}
	return nil
}

// transaction writes statements out as Install runs them.
func transaction(b *strings.Builder, statements ...string) {
	b.WriteString("BEGIN ISOLATION LEVEL READ COMMITTED;\n")
	for _, s := range transactionSettings {
		b.WriteString(s + ";\n")
	}
	for _, s := range statements {
		b.WriteString(s)
	}
	b.WriteString("COMMIT;\n\n")
}
