// Package millrace holds the words of the change pipeline and its one rule of
// continuity, the Fold.
//
// A Stream is one totally ordered log in a Kafka topic of exactly one
// partition. Capture turns what a Postgres source committed into Units;
// transfer gives every Entry of a Unit an Index and every Unit a Chain value,
// frames them into Batch records and appends those to the topic; appliers read
// the topic, run the Fold over it, and bring the units it accepts into the
// local store. Every stage imports this package and no stage imports another:
// what crosses a border between two stages is a type of this package.
//
// The package does no I/O. Encoding and decoding of everything that is stored
// in the topic is here (record.go, entry.go, row.go, key.go, state.go) and is
// specified byte by byte in docs/FORMAT.md.
package millrace
