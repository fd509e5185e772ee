package keylog

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// roles are the roles of sql/trigger/roles.sql.
var roles = [...]string{"millrace_owner", "millrace_capture", "millrace_verifier"}

// InstallRoles makes the roles and grants them what they need, the tables of cfg
// included. What the role of the connection may not do is returned as statements for
// somebody who may; capture works without them, as the role that ran init. The
// control schema must have been migrated.
func InstallRoles(ctx context.Context, conn *pgx.Conn, cfg Config) (missing []string, err error) {
	t, err := parseTexts()
	if err != nil {
		return nil, err
	}
	var may, there bool
	err = conn.QueryRow(ctx, `
SELECT (SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user),
       (SELECT count(*) FROM pg_roles WHERE rolname = ANY ($1)) = cardinality($1::text[])`, roles[:]).Scan(&may, &there)
	if err != nil {
		return nil, fmt.Errorf("look up roles: %w", err)
	}
	if !may && !there {
		text, err := t.render("roles.sql", nil)
		return []string{text, "-- then millrace init once more\n"}, err
	}
	names := []string{"grants.sql"}
	if may {
		names = []string{"roles.sql", "grants.sql"}
	}
	for _, name := range names {
		text, err := t.render(name, nil)
		if err != nil {
			return nil, err
		}
		refused, err := try(ctx, conn, text)
		if err != nil {
			return nil, fmt.Errorf("run sql/trigger/%s: %w", name, err)
		}
		if refused {
			missing = append(missing, text)
		}
	}
	for i := range cfg.Tables {
		t := &cfg.Tables[i]
		if missing, err = grantTable(ctx, conn, t, missing); err != nil {
			return nil, fmt.Errorf("let the roles read table %v: %w", t, err)
		}
	}
	return missing, nil
}

// grantTable lets the roles read a table. It adds to missing what the role of the
// connection cannot give.
func grantTable(ctx context.Context, conn *pgx.Conn, t *Table, missing []string) ([]string, error) {
	grants := tableGrants(t)
	has := func() (all [2]bool, err error) {
		return all, conn.QueryRow(ctx, `
SELECT bool_and(has_schema_privilege(role, $1, 'USAGE')), bool_and(has_table_privilege(role, $2::bigint::oid, 'SELECT'))
FROM unnest('{millrace_capture,millrace_verifier}'::name[]) role`, t.Schema, int64(t.ID)).Scan(&all[0], &all[1])
	}
	before, err := has()
	if err != nil {
		return missing, err
	}
	for i, text := range grants {
		if !before[i] {
			if _, err := try(ctx, conn, text); err != nil {
				return missing, err
			}
		}
	}
	// A grant by somebody who may not give it can be a warning only.
	after, err := has()
	for i, text := range grants {
		if err == nil && !after[i] {
			missing = append(missing, text)
		}
	}
	return missing, err
}

// tableGrants lets the roles read a table.
func tableGrants(t *Table) []string {
	return []string{
		"GRANT USAGE ON SCHEMA " + quote(t.Schema) + " TO millrace_capture, millrace_verifier;\n",
		"GRANT SELECT ON " + t.quoted() + " TO millrace_capture, millrace_verifier;\n",
	}
}

// try runs statements in a transaction and reports whether the role may not.
func try(ctx context.Context, conn *pgx.Conn, text string) (refused bool, err error) {
	err = retry(ctx, conn, "set up roles", func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, text, pgx.QueryExecModeSimpleProtocol)
		return err
	})
	if code(err) == "42501" { // insufficient_privilege
		return true, nil
	}
	return false, err
}

// canOwn reports whether what is made can be handed to the role millrace_owner.
func canOwn(ctx context.Context, q Querier) (bool, error) {
	var can bool
	err := q.QueryRow(ctx, `
SELECT coalesce((SELECT pg_has_role(oid, 'MEMBER') AND has_schema_privilege(oid, 'millrace', 'CREATE') FROM pg_roles WHERE rolname = 'millrace_owner'), false)
   AND (SELECT count(*) FROM pg_roles WHERE rolname = ANY ($1)) = cardinality($1::text[])`, roles[:]).Scan(&can)
	if err != nil {
		return false, fmt.Errorf("look up the role millrace_owner: %w", err)
	}
	return can, nil
}
