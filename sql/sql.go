// Package sql holds the SQL that millrace runs in a source database, embedded
// as files that a DBA can read. Files under control are numbered and run once
// each, in order; statements that are run many times stand beside the Go code
// that runs them.
package sql

import "embed"

// Control holds the numbered files of the control schema, and under down those
// that take each back.
//
//go:embed control/*.sql control/down/*.sql
var Control embed.FS

// EventTriggers tells of DDL in a source database. Whoever runs it needs the
// right to make event triggers; it can be run again.
//
//go:embed ddl/event_triggers.sql
var EventTriggers string

// Trigger holds what trigger capture installs and looks at: plain SQL, with the
// names of the table and its log to be filled in (text/template).
//
//go:embed trigger/*.sql
var Trigger embed.FS

// Migrations holds the numbered files of what migrations keep in both of their
// databases.
//
//go:embed migrations/*.sql
var Migrations embed.FS
