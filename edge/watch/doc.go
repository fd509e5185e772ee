// Package watch tells watchers of a stream what changes, from any place that the edge's
// log holds, in order, each change once.
//
// What it tells is made of the edge's log alone, which shows nothing that the store has
// not committed: whoever reads a row after an event of it sees that change, or a later
// one. It promises that a watcher is told everything after its place that its filter
// lets through, or that its watch ends with an error; that no event comes twice; and
// that memory is bounded, whatever the number of watchers and however slow they are.
// Sending events over a network is package serve's business.
//
//	log ──Reader──► decode ──► ring (newest records, bounded) ──► watchers at the end
//	log ──Reader──► decode ──► cache (a few records, bounded) ──► watchers behind the ring
//
// One reader decodes the tail of the log for all watchers of the stream. A watcher is a
// place and a filter, and nothing waits for it: one that is slow falls behind the ring,
// and what it lacks is read from the log again when it asks, a few records at a time and
// by a few watchers at once. So it costs the same whether a watcher has come late or is
// slow, and what ends a slow one is that the log no longer reaches back to its place. An
// event is rendered when the first watcher wants it, for all of them.
package watch
