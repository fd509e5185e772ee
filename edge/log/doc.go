// Package log keeps an edge's own log: the records of a stream that its store has
// taken in, byte for byte as they came from the topic, so that other edges can
// follow from here.
//
// It holds accepted Term and State records and batches of complete units, in
// append-only segment files, and drops whole segments, oldest first, by age and by
// size. It promises that what a reader gets is whole and in order, that the log has
// no hole inside, and that it never shows what the store has not committed. It does
// not promise to be there: nothing is synced, so what the store has and the log lacks
// after a crash of the system is fetched once more or, where that cannot be, the log
// begins anew behind it. A log that cannot be written does not hold up the store; it
// says so and begins anew later.
//
//	applier ──► Append (written, not shown) ──► store commits ──► Commit (shown) ──► Reader ──► relays
//
//	<dir>/epoch-3/00000000000000000000.mlog   a segment, named by the index before it
//	<dir>/epoch-3/00000000000000048211.mlog   the newest, which is appended to
//	<dir>/epoch-3/log.lock                    one process keeps the log
//	<dir>/epoch-3/aside/…                     a log that was not of the store's history
//
// A segment begins where a unit begins, with the checkpoint of that place. A unit that
// spans batches is written as it comes and lies in one segment, so its size bounds
// that of a segment, and not memory. docs/FORMAT.md has the bytes.
package log
