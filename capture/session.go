package capture

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// texts are the settings that the text of a value depends on, and whether a row
// is read at all. Every connection that reads rows pins them, so that a row
// prints the same wherever it is read.
func texts() map[string]string {
	return map[string]string{
		"client_encoding":    "UTF8",
		"DateStyle":          "ISO, MDY",
		"IntervalStyle":      "postgres",
		"TimeZone":           "UTC",
		"extra_float_digits": "3", // shortest text that reads back exactly
		"bytea_output":       "hex",
		"lc_monetary":        "C",
		"search_path":        "pg_catalog",
		"xmloption":          "content",
		// A row policy would leave rows out without a word; off makes it an
		// error.
		"row_security": "off",
		// Queries over the catalogs look dear to the planner and are not:
		// compiling them costs a hundred times what they do.
		"jit": "off",
	}
}

// Session returns the settings that a connection of its own is opened with: what
// the text of a value depends on, and what could end a connection that waits.
func Session() map[string]string {
	all := texts()
	maps.Copy(all, map[string]string{
		"application_name":                    "millrace",
		"client_min_messages":                 "warning", // Postgres 18 tells of lost changes by one
		"statement_timeout":                   "0",
		"lock_timeout":                        "0",
		"idle_in_transaction_session_timeout": "0",
		"idle_session_timeout":                "0",
	})
	return all
}

// SetLocal returns the statements, separated by semicolons, that pin for one
// transaction what the text of a value depends on: for connections that a pooler
// shares, where nothing of a session's lasts. Locks wait as long as the session's
// lock_timeout says.
func SetLocal() string {
	all := texts()
	// These may be the role's or the database's own.
	all["statement_timeout"] = "0"
	all["idle_in_transaction_session_timeout"] = "0"
	var b strings.Builder
	for i, name := range slices.Sorted(maps.Keys(all)) {
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "SET LOCAL %s = '%s'", name, all[name])
	}
	return b.String()
}

// PinLater sets what only newer servers know, and older ones would refuse the
// connection for: it is an AfterConnect of connections of their own.
func PinLater(ctx context.Context, conn *pgconn.PgConn) error {
	if ServerMajor(conn) < 17 {
		return nil
	}
	if _, err := conn.Exec(ctx, "SET transaction_timeout = 0").ReadAll(); err != nil {
		return fmt.Errorf("set transaction_timeout: %w", err)
	}
	return nil
}

// ServerMajor is the major version of the server, as it says by itself; 0 where that is
// no number.
func ServerMajor(conn *pgconn.PgConn) int {
	version := conn.ParameterStatus("server_version") // such as 17.5 or 19beta1
	digits := len(version) - len(strings.TrimLeft(version, "0123456789"))
	major, _ := strconv.Atoi(version[:digits])
	return major
}
