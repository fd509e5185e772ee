// Package chunk decides how the rows of a table come into a stream of its
// changes: in chunks, while the table is written to, with no lock that stops a
// writer and no snapshot that outlives a chunk.
//
// It owns three things. A Snapshot is what pg_current_snapshot() prints. A
// Window says which rows of a chunk may be emitted at the place where the
// stream stands by then. A Load says what to read next, and can be written down
// and taken up by another publisher. None of these does I/O or starts a
// goroutine, and none is safe for concurrent use: the goroutine that emits the
// stream owns them. A Reader does their I/O on a connection of its own, and may
// wait there without holding up the stream.
//
// # The algorithm
//
// One chunk, in the order of events; time runs downwards:
//
//	the stream emits                        the chunk's connection
//	T1, T2 …
//	open the window                         begin, lock ACCESS SHARE
//	T3, T4 … their keys are noted           take snapshot S, compare relfilenodes
//	                                        read the rows in S
//	                                        commit, write message M into the WAL
//	T5, M arrives
//	emit the rows that are not left out
//
// Why that is right: what S sees was committed in the WAL before M, so by the
// time M arrives all of it has been emitted. What was emitted is therefore what
// S sees and what it does not see. The latter was emitted after the window was
// opened, because S was checked to see all that came before, so its keys were
// noted. A row whose key is not among them is in S as it is at this place of the
// stream; one whose key is among them has been put or deleted by the stream
// itself and is left out.
//
// The check is needed because a commit is in the WAL, and decoded, before
// snapshots see it; with synchronous replication for as long as the standby
// takes. And the order in which commits become visible is not that of the WAL,
// so no LSN taken beside S can stand for it.
//
// Chunks between watermarks in the log are those of DBLog (Andreakis and
// Papapanagiotou, "DBLog: A Watermark Based Change-Data-Capture Framework",
// arXiv:2010.12597), which Debezium's incremental snapshots follow. There, rows
// are left out if their key changed between a low and a high watermark, both
// written to the log, and the select is assumed to see all that was committed
// before the low one. Here the low watermark is a place in the emitted stream,
// only the high one is written, and visibility is not assumed but asked of S,
// transaction by transaction; a row that changed in between, seen by S, is not
// left out. Ranges are of ctid, not of a key, so rows move between them; what
// moves was changed, and what was changed is in the stream. What is not, because
// the source does not send a stored out-of-line value that did not change, is
// the business of Load.
//
// What it leaves to others: opening connections and pinning their settings,
// telling of every change that is emitted, emitting the entries, and pace.
package chunk
