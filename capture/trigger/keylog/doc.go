// Package keylog owns what trigger capture keeps in a source database: for each
// captured table a log of the keys of its changed rows, the triggers and functions
// that write it, the marks by which a tampering is seen, the turning of the log's
// segments, and the roles.
//
// It promises that while Look finds nothing amiss, every change that a transaction
// made to a captured table since the log's CompleteSince has its keys in the log,
// committed with the change or not at all, but for sessions that Config.Except names; that no statement of a writer fails
// because of a trigger; and that Rotate empties nothing which is not visible in the
// snapshot it is given.
//
// What is read from the log, and what is published, is package trigger's. The SQL
// is in sql/trigger, as a DBA would write it, with each lock and how long it is
// held. No function keeps a connection that it was given, and none needs anything
// of a session between two transactions, so a pooler in transaction mode may be in
// between.
package keylog
