// Package relay carries a stream from one edge to others: it serves an edge's own log
// over HTTP, and follows one of several edges that do.
//
// It owns the frames on the wire, what a child and its upstream tell each other, and
// the choice of the upstream. It promises that a child gets what the log of its
// upstream shows, byte for byte, from the place on that it asks for; that a node which
// would come to follow itself is refused; that an upstream is left only for a reason
// that another one cures; and that no peer costs more than a stated amount of memory.
// Whether records are history it does not judge: the fold of whoever applies them does,
// and tells the Source (Reject).
//
//	edge/log ──► Server ──frames──► Source ──► applier        a child's side: Client, Source
//	               ▲                  │
//	               └── place, reports ┘
//
// A child opens one HTTP request, which is upgraded (millrace-relay/1); frames go over
// the connection from then on in both directions. docs/FORMAT.md has the bytes.
//
// Nothing here reads a clock that another host has set: whether one upstream is fresher
// than another is decided by the indexes and the times of the source that they name,
// and silence is measured here.
package relay
