// Package capture holds what every way of capturing a source shares: the errors
// that stop a stream, what is shown of loads and of verification, findings, and
// how a connection to the source is made, so that a value prints the same
// whichever way it is read.
//
// The ways themselves are packages of their own: capture/wal reads what logical
// decoding says. What the catalogs say of a table is capture/table's, the reading
// of tables beside their writers capture/chunk's. None of them imports another
// way.
package capture
