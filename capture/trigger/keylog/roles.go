package keylog

import (
	"context"
	"fmt"
	"strings"

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
	steps := []string{"grants.sql"}
	if may {
		steps = []string{"roles.sql", "grants.sql"}
	}
	for _, name := range steps {
		text, err := t.render(name, nil)
		if err != nil {
			return nil, err
		}
		if refused, err := try(ctx, conn, text); err != nil {
			return nil, fmt.Errorf("run sql/trigger/%s: %w", name, err)
		} else if refused {
			missing = append(missing, text)
		}
	}
	for i := range cfg.Tables {
		for _, text := range tableGrants(&cfg.Tables[i]) {
			if refused, err := try(ctx, conn, text); err != nil {
				return nil, fmt.Errorf("%s: %w", strings.TrimSpace(text), err)
			} else if refused {
				missing = append(missing, text)
			}
		}
	}
	return missing, nil
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
		// A grant that the role has no right to give is a warning only, unless
		// it has none at all on the thing.
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
