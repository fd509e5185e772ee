// Package applier brings the history of a stream from a source of its records
// into the local store.
//
// It owns the reading side's fold, the gathering of units into commits, and the
// answer to everything that can be wrong with a source. It promises that the
// store holds complete units of the accepted history only, each once and in
// order, that the checkpoint which is committed with them is where reading goes
// on, and that any doubt stops it with an error that names the mend; it skips
// nothing. How entries change rows is the store's business, where records come
// from the Source's.
//
//	Source ──► fetch: decode, check, fold ──► queue ──► write: apply, commit ──► edge.Store
//
// Where a Log is given, accepted records go into it too: written when they are
// applied, shown when the store has committed them.
//
// The queue is bounded in records and bytes. Units that are complete when the
// writer has nothing else to do are committed at once; while a commit runs, what
// arrives waits and goes into the next one together.
//
// A unit that spans batches is written into the open transaction as it comes.
// All units before it are committed first, so giving the transaction up, because
// another publisher's reign made the unit void or because its rest does not
// come, loses nothing that is complete.
package applier
