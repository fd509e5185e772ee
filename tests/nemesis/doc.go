// Package nemesis has the random walk: one stream under everything that its
// users, its operators and its machines may do to it, in an order that a seed
// decides.
//
// A walk is a list of steps, made from a seed without looking at anything that
// runs. It is then done over real Postgres and real Kafka, with transfer and two
// edges as processes: sessions that hold transactions open side by side, with
// savepoints, prepared transactions, rows moved to other keys, values stored out
// of line, DDL, partitions that come and go, loads, and processes killed or
// stopped in between. At its checkpoints and at its end every row of the source
// must be at every edge, and in the topic by an independent reading of it, and
// nothing else; indexes dense, chains equal.
//
//	go test ./tests/nemesis -seed 7          one walk again
//	go test ./tests/nemesis -walk FILE       the steps of a file, as a failure leaves them
//	make nemesis SEEDS=200                   many
//
// With -capture wal or -capture trigger the stream is captured in that way alone.
//
// The method is that of the nemesis of CockroachDB's changefeeds: random
// operations from a state that knows which are possible, and a validator that
// knows nothing of how the stream is made.
package nemesis
