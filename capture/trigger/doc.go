// Package trigger captures the committed changes of chosen Postgres tables by logs
// of keys that triggers write, and gives them out as units. It is for sources where
// logical decoding is not allowed; what it gives out is what capture/wal would.
//
// It owns the windows in which the logs and the tables are read, the ticks that they
// end with, and what rides on them: loads and verification. The logs themselves,
// with their triggers and segments, are package keylog's. It promises:
//
//   - After the unit of a window the stream has each captured table as the window's
//     snapshot has it, but for tables of which that unit or an earlier one has begun
//     a load. No time-out, cursor or order of numbers is part of the reason.
//   - A unit that was given out to its last entry is of changes that are durable at
//     the source, and the source can prove that it has them: its tick is there.
//   - Where changes may not have been logged, or the source is not the one that the
//     stream came from, Next stops with an error that says what mends it.
//   - Memory is bounded: a window that has much in it is streamed from the source.
//
// A stream begins with a load of its tables; or, where somebody else copies the rows, at
// a place that Begin makes.
//
// Indexes, batches and retries are left to transfer. A Source ends with its first
// error, and the caller opens a new one from what it has published. It works only
// while it is called, in the caller's goroutine.
//
// # What a window reads
//
// The log says which rows were changed, never what they are. What they are is read
// from the table in the window's own snapshot. So nothing depends on the order in
// which triggers wrote the log, which is not that of the changes: a trigger of the
// user's that changes a row logs before the statement that fired it does, and WITH d
// AS (DELETE …) INSERT … logs its INSERT first.
//
//	log:    keys of transactions that snapshot B sees and snapshot A does not
//	table:  for each of these keys the row that B sees, or none
//	unit:   Put for a row, Delete for none
//
// The claim is that applying the unit to the table as A sees it gives the table as B
// sees it. A row that differs between the two was changed by some transaction that B
// sees and A does not: committed rows change in no other way (but for those below).
// Its triggers logged the row's key, the old one too where the key changed, in the
// same transaction; so B sees the log entry exactly if it sees the change. The entry
// has the number of the top-level transaction, and A does not see that number. So the
// key is read. Keys that are read although nothing differs cost a Put of what is
// there, and nothing else.
//
// # Which transactions are new
//
// A snapshot is xmin:xmax:xip. It sees a transaction as ended whose number is below
// xmax and not in xip. Transactions that B sees and A does not therefore are those in
// A's xip that are not in B's, and those from A's xmax to before B's xmax that are not
// in B's xip. Both halves are needed. The first are transactions that were open while
// window A was read, however long before it they began; a reader that goes by the
// highest number it has met never comes back for them. The second must not wait for
// the oldest that runs, or one open transaction holds up everybody.
//
//   - Numbers are of top-level transactions, in the log and in the snapshot alike: on
//     a primary pg_current_snapshot() names no subtransactions. What a subtransaction
//     wrote that was rolled back is not visible, so it needs no thought.
//   - A transaction that is rolled back leaves rows in the log which no snapshot sees.
//   - A prepared transaction goes on running for every snapshot until it is committed
//     or rolled back, also across a restart of the server.
//   - On a standby running transactions are missing from snapshots, so a standby is
//     refused, in each window anew.
//   - A commit that waits for a synchronous standby is not visible yet. It is new to
//     the first window that sees it.
//
// The window's own transaction has no number before its snapshot, so it is not among
// them; it logs nothing.
//
// # Locks before the snapshot
//
// Some commands do not leave old rows for old snapshots: a rewriting ALTER TABLE gives
// all rows its own number, TRUNCATE takes them away. To a snapshot from before such a
// command a table is empty after it. So the window locks the tables and the segments
// of their logs first, ACCESS SHARE, and takes its snapshot after that; LOCK TABLE and
// SET take none. Whoever rewrites a table has committed before, and the snapshot sees
// it, or waits. The lock is asked for by name, and the snapshot tells whether the
// names are still those tables'. A lock that is not to be had in a moment is given up
// and asked for again later, so that nobody queues behind a window that waits. A table
// that stays locked against everybody is then left out, of locks and of reading, while
// the window finds nothing new in its log: there is nothing of it to be read.
//
// # What is not logged
//
//   - TRUNCATE logs a mark. The unit then begins with a Truncate. It held ACCESS
//     EXCLUSIVE to its commit, which A does not see: so each row that B sees was put
//     there by the same transaction, or by one that began to write behind it, which A
//     does not see either. All of their keys are in the window. What happened to the
//     table's files before or after the TRUNCATE in the same window does not matter for
//     the same reason.
//   - Rewrites, partitions that come and go, a TRUNCATE of a partition: the window
//     compares files and partitions with those of window A, which stand in its tick. A
//     difference begins a load of the table, in the unit of the window that sees it:
//     from its snapshot on all changes are logged, and the chunks are read in this
//     snapshot or a later one. VACUUM FULL and CLUSTER of a plain table differ too, and
//     need no load where the noted DDL has no rewrite.
//   - Altered columns and types: the catalogs are compared in each window, and the
//     unit begins with the Schema that its rows are of.
//   - A trigger that somebody disables or replaces: every change of a trigger or a
//     function makes another row of its catalog, which the window compares with the
//     one that was left there. A trigger that was off for a second is seen by the
//     first window after it, and the stream stops.
//
// # Ticks
//
// After a crash Postgres may give out transaction numbers again, of transactions that
// had left nothing in the part of the WAL that was flushed: ones that were rolled back
// or open, and with synchronous_commit = off also ones that had committed and been
// read. Snapshot A would count their successors as seen. So each window ends by
// writing a row, its tick, in its own transaction, with synchronous_commit on, and
// the unit's last entry is given out only when that has committed:
//
//	BEGIN … LOCK … snapshot B … rows … INSERT tick … COMMIT … last entry
//
// The transaction gets its number at the INSERT, so that is none below B's xmax. Once
// its commit is flushed the server never gives out a lower one, and everything that B
// saw committed was flushed with it, because it stands before it in the WAL. Snapshot
// and commit are those of one server process: no crash can have come between them, also
// where a pooler hides one. A synchronous standby has the tick before the unit is
// whole.
//
// The tick is also what proves a source. Each window, and Open, wants to find the tick
// of the stream's position, with the very snapshot, taken in a database with this
// one's OID. It is missing in a source that was restored to an earlier state and in a
// standby that was promoted before it had it; in a dump that was restored it is a copy,
// and the numbers in the logs are of another life. A standby that has the tick has all
// that was published, and goes on.
//
// # Where it fails
//
//   - Before the tick: nothing was given out to its end. A part of a large unit that was
//     published is void there, because its last entry never came. The next window begins
//     at A again and reads what B would have, and more.
//   - After the tick, before the unit is published: the tick is one that nobody stands
//     at. The next Source numbers its ticks after the highest that there is, so they need
//     not be dense, and reads from A again.
//   - In the middle of a unit that streams: the same as before the tick. Whoever does not
//     take the rows in time loses them in this way too, because the open transaction holds
//     up VACUUM and ALTER TABLE.
//   - A Source that is not the reigning publisher's any more may go on making windows. Its
//     units are void where they are published; its ticks have numbers of their own, since
//     the second of two with the same number fails, and the Source with it.
//
// Rotation and pruning go by what was confirmed, which is what the publisher has read
// back. They never take what a later Open may begin at.
package trigger
