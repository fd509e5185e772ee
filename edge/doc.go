// Package edge is the local store of one stream: the rows of its tables as of
// an index, in one LMDB environment.
//
// It owns the layout of that environment, the rules by which entries change
// rows, and everything that touches LMDB; no other package does. It promises
// that a reader sees whole units only, that the checkpoint is stored in the
// same transaction as the rows it stands for, that every value is checked
// against its CRC before it is given out, and that a store which cannot be
// trusted says so by name instead of answering. Where the entries come from,
// whether they are history, and when to commit is the applier's business.
//
// One process opens a store for writing (a lock file sees to that), any number
// of processes of the same user and PID namespace open it with ReadOnly. One
// environment is opened once in a process: share the Store.
//
// An edge keeps a stream in a Home, which holds the store that readers use and,
// while a new epoch is copied, the store that is to follow it. Open leads to the
// store in use wherever a directory is a home; ErrSuperseded tells a process that
// has one open that another has taken its place.
//
// # Layout
//
// The named database "meta" holds, each with a CRC-32C behind it:
//
//	format               version of this layout
//	stream               ID of the stream
//	head                 index, chain, time, and the number of the catalog; one
//	                     byte more in a store that readers have left
//	checkpoint           millrace.Checkpoint without schemas
//	s ‖ table ‖ version  a schema
//	d ‖ table            why the table is marked as diverged
//	g ‖ name             what the named database is used for, whether it has
//	                     values in pieces, and what it indexes
//	m ‖ name ‖ 0 ‖ key   a row of a shadow generation that lacks columns
//
// Every other named database but "pieces" (t000001, t000002, …) holds one
// generation of one table, an index over one (index.go), or is waiting to be used
// again. Databases are never removed, because LMDB hands out the handle of a
// removed one again while readers still use it; one that is no longer needed is
// emptied in slices and becomes free. The entry count of a generation is the
// number of rows. A key is millrace.StoreKey of the row's encoded key, a value is
//
//	CRC-32C, big-endian, over table ID, store key and all that follows
//	the length of the encoded key as a varint, and the key: long keys only
//	the encoded row
//
// What is too large to stand in a leaf page beside another value is cut into
// pieces of a page each in the database "pieces", and a stub stands in its place
// (pieces.go). Values of stores of the first format are whole whatever their
// size; they stay so until they are written anew.
package edge
