// Package table says what the source's catalogs have of a table: its columns,
// indexes, types and partitions, the key that a capture can tell its rows apart
// by, its schema in a stream, what the step to an altered schema means, and
// whether it can be captured at all.
//
// Look-ups see the catalogs as of now, or as of the snapshot of the transaction
// that they are made in. Nothing here writes to the source or waits for locks.
package table
