// Package client reads what an edge keeps: rows by key, several in one snapshot, ranges of
// keys, and what changes. It needs no C compiler, and no millrace process but the edge.
//
// An edge is asked over its unix socket first, where there is one, and over the addresses
// of peers when it cannot be reached. While none can be, as when an edge restarts, a read
// is tried again for Config.Patience; all that this package sends may be sent twice. A
// watch goes on where it was, at whichever edge answers, and gives each change once.
//
// What is read is true at the place that comes with it: an epoch and an index. Places of
// one epoch can be compared between edges. Two answers of different edges may be of
// places in either order, unless the second is asked for with Min or After.
package client
