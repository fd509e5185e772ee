package keylog

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
)

// Roles are names of roles that may not log in; see sql/trigger/roles.sql.
type Roles struct{ Owner, Capture, Verifier string }

// complete puts the usual names in the place of empty ones.
func (r Roles) complete() Roles {
	for _, name := range []struct {
		is    *string
		usual string
	}{{&r.Owner, "millrace_owner"}, {&r.Capture, "millrace_capture"}, {&r.Verifier, "millrace_verifier"}} {
		if *name.is == "" {
			*name.is = name.usual
		}
	}
	return r
}

func (r Roles) names() []string { return []string{r.Owner, r.Capture, r.Verifier} }

// roleTexts are the names of roles as statements are filled with them: quoted, and
// as constants.
type roleTexts struct {
	Owner, Capture, Verifier, Login                 string
	OwnerName, CaptureName, VerifierName, LoginName string
}

func (cfg *Config) roleTexts() roleTexts {
	r := cfg.Roles.complete()
	t := roleTexts{
		Owner: quote(r.Owner), Capture: quote(r.Capture), Verifier: quote(r.Verifier),
		OwnerName: literal(r.Owner), CaptureName: literal(r.Capture), VerifierName: literal(r.Verifier),
	}
	if cfg.Login != "" {
		t.Login, t.LoginName = quote(cfg.Login), literal(cfg.Login)
	}
	return t
}

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
       (SELECT count(*) FROM pg_roles WHERE rolname = ANY ($1)) = cardinality($1::text[])`, cfg.Roles.complete().names()).Scan(&may, &there)
	if err != nil {
		return nil, fmt.Errorf("look up roles: %w", err)
	}
	if !may && !there {
		text, err := t.render("roles.sql", cfg.roleTexts())
		return []string{text, "-- then millrace init once more\n"}, err
	}
	names := []string{"grants.sql"}
	if may {
		names = []string{"roles.sql", "grants.sql"}
	}
	for _, name := range names {
		text, err := t.render(name, cfg.roleTexts())
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
		heaps, err := heapsOf(ctx, conn, t)
		for n := 0; n < len(heaps) && err == nil; n++ {
			missing, err = cfg.grantTable(ctx, conn, &heaps[n], missing)
		}
		if err != nil {
			return nil, fmt.Errorf("let the roles read table %v: %w", t, err)
		}
	}
	return missing, nil
}

// heapsOf returns a table and its partitions that hold rows, which loads read by
// themselves.
func heapsOf(ctx context.Context, q Querier, t *Table) ([]Table, error) {
	rows, err := q.Query(ctx, `
WITH RECURSIVE tree (oid) AS (
    SELECT $1::bigint::oid
  UNION
    SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
)
SELECT c.oid::bigint, n.nspname::text, c.relname::text
FROM tree JOIN pg_class c ON c.oid = tree.oid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = $1::bigint::oid OR c.relkind = 'r'
ORDER BY c.oid <> $1::bigint::oid, 2, 3`, int64(t.ID))
	if err != nil {
		return nil, fmt.Errorf("look up partitions: %w", err)
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (h Table, err error) {
		var id int64
		err = row.Scan(&id, &h.Schema, &h.Name)
		h.ID = millrace.TableID(id) //nolint:gosec // it is an OID
		return h, err
	})
}

// grantTable lets the roles read a table. It adds to missing what the role of the
// connection cannot give.
func (cfg *Config) grantTable(ctx context.Context, conn *pgx.Conn, t *Table, missing []string) ([]string, error) {
	grants, roles := cfg.tableGrants(t), cfg.Roles.complete()
	has := func() (all [2]bool, err error) {
		return all, conn.QueryRow(ctx, `
SELECT bool_and(has_schema_privilege(role, $1, 'USAGE')), bool_and(has_table_privilege(role, $2::bigint::oid, 'SELECT'))
FROM unnest($3::text[]::name[]) role`, t.Schema, int64(t.ID), []string{roles.Capture, roles.Verifier}).Scan(&all[0], &all[1])
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
		if err == nil && !after[i] && !slices.Contains(missing, text) {
			missing = append(missing, text)
		}
	}
	return missing, err
}

// tableGrants lets the roles read a table.
func (cfg *Config) tableGrants(t *Table) []string {
	r := cfg.roleTexts()
	to := " TO " + r.Capture + ", " + r.Verifier + ";\n"
	return []string{
		"GRANT USAGE ON SCHEMA " + quote(t.Schema) + to,
		"GRANT SELECT ON " + t.quoted() + to,
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

// canOwn reports whether what is made can be handed to the owner role.
func canOwn(ctx context.Context, q Querier, roles Roles) (bool, error) {
	var can bool
	err := q.QueryRow(ctx, `
SELECT coalesce((SELECT pg_has_role(oid, 'MEMBER') AND has_schema_privilege(oid, 'millrace', 'CREATE') FROM pg_roles WHERE rolname = $2), false)
   AND (SELECT count(*) FROM pg_roles WHERE rolname = ANY ($1)) = cardinality($1::text[])`, roles.names(), roles.Owner).Scan(&can)
	if err != nil {
		return false, fmt.Errorf("look up the role %s: %w", roles.Owner, err)
	}
	return can, nil
}

const (
	// A role that somebody else than init has made a member of, that has a right in
	// another database, or that owns something, is used.
	rolesInUse = `
SELECT r.rolname::text FROM pg_roles r
WHERE r.rolname = ANY ($1)
  AND (EXISTS (SELECT FROM pg_shdepend d WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = r.oid
               AND (d.deptype = 'o' OR d.dbid NOT IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))))
    OR EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles who ON who.oid = m.member
               WHERE m.roleid = r.oid AND who.rolname NOT IN ($2, current_user))
    OR r.rolcanlogin)`
	rolesThere = `SELECT rolname::text FROM pg_roles WHERE rolname = ANY ($1) ORDER BY 1`
)

// UninstallRoles drops those roles, with their rights in this database, that nobody
// else uses: of which another database knows nothing, which own nothing and cannot log
// in, and which have no members but the role of the connection and cfg.Login. It is for the end of the last
// stream that captures by triggers, after the control schema has gone. The roles that
// are left are returned; those that the role of the connection may not drop are among
// them.
func UninstallRoles(ctx context.Context, conn *pgx.Conn, cfg Config) (left []string, err error) {
	names := cfg.Roles.complete().names()
	read := func(query string, args ...any) ([]string, error) {
		rows, err := conn.Query(ctx, query, args...)
		if err != nil {
			return nil, fmt.Errorf("look up roles: %w", err)
		}
		return pgx.CollectRows(rows, pgx.RowTo[string])
	}
	there, err := read(rolesThere, names)
	if err != nil {
		return nil, err
	}
	used, err := read(rolesInUse, names, cfg.Login)
	if err != nil {
		return nil, err
	}
	for _, role := range there {
		if slices.Contains(used, role) {
			left = append(left, role)
			continue
		}
		// It owns nothing, so only rights go with what it owns.
		refused, err := try(ctx, conn, "DROP OWNED BY "+quote(role)+"; DROP ROLE "+quote(role))
		switch {
		case refused, code(err) == "2BP01": // dependent_objects_still_exist: another database was quicker
			left = append(left, role)
		case err != nil:
			return nil, fmt.Errorf("drop role %s: %w", role, err)
		}
	}
	return left, nil
}
