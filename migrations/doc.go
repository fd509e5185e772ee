// Package migrations moves live tables from one Postgres cluster to another while
// they are written to.
//
// It owns what a migration keeps in both databases, the copy of the rows that are
// there, the sink that changes go into, and the comparison of both sides. It
// promises:
//
//   - What the source has committed reaches the target exactly once in effect:
//     changes go into the target in one transaction with the place up to which they
//     have come.
//   - A transaction of the source becomes visible at the target as a whole, once
//     the target has converged: Status says so. Before that it is a mixture of
//     rows of different times, and nobody should look.
//   - Every step can be killed at any time and begun again.
//   - No snapshot at the source outlives a chunk of the copy, and no lock stops a
//     writer.
//   - What is not understood stops the migration with an error that names its mend:
//     a table that is altered, rows that come without being sent, a row that is not
//     where it should be.
//
// How changes are captured is left to the captures, whose units it takes through a
// small interface; what a migration file looks like to internal/config.
//
// # Copy and changes meet
//
// The place at which changes begin is made first: from there on every change is
// kept at the source. Then the chunks are copied, each in a snapshot of its own that
// sees everything committed before that place. Then the changes are applied, from
// the place on, to rows that may be newer than they:
//
//	place P            chunks, each at its own time          E: the last is copied
//	──┼───────────────────┼──────┼────────┼──────────────────────┼──────────►
//	  └─ changes are applied from here; behind E the target is the source
//
// A row that was not changed behind P is in its chunk as it is. One that was is
// put as its last change says, or deleted, whatever was there. What happens before
// E is of no account, with three exceptions:
//
//   - A change may leave out large values that it did not touch. They are in the
//     row that is there, if that row has always had this key. A row that has not, or
//     is not there, is noted as missing, and read from the source by its key, with
//     the care that capture/chunk's windows take.
//   - Rows of different times may have the same value where it has to be unique.
//     Both have been changed behind P then, so the one in the way is taken away: its
//     own change brings it back.
//   - A row that moved from a block that was not read to one that was, is missed;
//     one that moved the other way is met twice. Both have been changed.
//
// Two rows with the same key, or the same value where it has to be unique, come from
// two snapshots behind P, and in each of them only one had it: both were changed in
// between. So whichever of them is taken away, before a change is applied, comes back.
// That is why keys need not be there while rows are copied.
//
// When the changes have come to E and no row is missing, the target has converged.
// From there on it is, behind each batch, exactly the source at that index, and a
// row that is not where a change expects it is an error.
package migrations
