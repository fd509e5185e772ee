// Package access says who may read what at an edge. It is pure: a list is read
// from a text, and a list and what somebody shows give an Identity, which answers
// whether it may.
//
// Nothing is allowed that no right names, and an Identity that is nil may do
// nothing. Whoever reaches an edge over loopback or its unix sockets is Local: the
// host's own rights on those decide.
//
// # The list
//
// One line for each identity: its name, what it shows, and its rights. What
// follows a # is a comment.
//
//	# name     what it shows          rights
//	billing    sha256:5f2b…           read:bank/public.accounts read:bank/billing.*
//	edge-2     cert:edge-2.internal   relay:* images:* status
//	operator   sha256:91aa…           read:* admin
//
// sha256: is the hash of a bearer token, in hexadecimal; the token itself is not
// in the list. cert: is a name that a verified client certificate has: one of its
// URIs or DNS names, or its common name. The rights:
//
//	read:STREAM            rows of all tables of a stream, and its status
//	read:STREAM/TABLE      of one table (schema.table), or all of a schema (schema.*)
//	relay:STREAM           follow the stream here, as an edge below does
//	images:STREAM          fetch images of the stream's store
//	admin                  metrics, and what changes the edge, as compacting a store
//
// * in place of STREAM stands for all streams. A name with blanks, # or % in it is
// percent-encoded. schema.* is for tables whose names have no dot; one that has is named in
// full. A dot does not say whether it is of the schema's name or the table's, here as
// elsewhere: a.b.* is for the schema a.b, and for a table b.c of the schema a.
package access

import (
	"context"
	"strings"
)

// Identity is somebody and their rights. It is not changed once made.
type Identity struct {
	name string
	all  bool
	// read, relay and images have a stream's name, or * for all.
	read          map[string]tables
	relay, images map[string]bool
	admin         bool
}

// tables are those of a stream that may be read.
type tables struct {
	all   bool
	names map[string]bool // schema.table, or schema.*
}

const anyStream, anyTable = "*", "*"

// Local returns the identity of who reaches the edge from its own host, which may
// do everything.
func Local() *Identity { return &Identity{name: "local", all: true} }

// Name is what the list calls it, for logs.
func (id *Identity) Name() string {
	if id == nil {
		return ""
	}
	return id.name
}

// Table reports whether the rows of a table may be read. table is its qualified
// name.
func (id *Identity) Table(stream, table string) bool {
	if id == nil {
		return false
	}
	return id.all || id.read[stream].has(table) || id.read[anyStream].has(table)
}

// AllTables reports whether the rows of all tables of a stream may be read, those
// that are yet to come included.
func (id *Identity) AllTables(stream string) bool {
	return id != nil && (id.all || id.read[stream].all || id.read[anyStream].all)
}

// Stream reports whether anything of a stream may be seen, its status for instance.
func (id *Identity) Stream(stream string) bool {
	if id == nil {
		return false
	}
	if id.all || id.admin {
		return true
	}
	for _, name := range []string{stream, anyStream} {
		if _, ok := id.read[name]; ok || id.relay[name] || id.images[name] {
			return true
		}
	}
	return false
}

// Relay reports whether the stream may be followed.
func (id *Identity) Relay(stream string) bool {
	return id != nil && (id.all || id.relay[stream] || id.relay[anyStream])
}

// Images reports whether images of the stream's store may be fetched.
func (id *Identity) Images(stream string) bool {
	return id != nil && (id.all || id.images[stream] || id.images[anyStream])
}

// Admin reports whether metrics may be seen, and the edge be changed.
func (id *Identity) Admin() bool { return id != nil && (id.all || id.admin) }

func (t tables) has(table string) bool {
	if t.all || t.names[table] {
		return true
	}
	// What stands behind the last dot is the table, unless its name has one: such a table
	// has to be named, so that a right for a schema a is none for one called a.b.
	dot := strings.LastIndexByte(table, '.')
	return dot > 0 && t.names[table[:dot+1]+anyTable]
}

type contextKey struct{}

// With returns a context that carries an identity, for handlers behind the one
// that found it out.
func With(ctx context.Context, id *Identity) context.Context {
	return context.WithValue(ctx, contextKey{}, id)
}

// From returns the identity that a context carries; nil, which may do nothing, if
// it carries none.
func From(ctx context.Context) *Identity {
	id, _ := ctx.Value(contextKey{}).(*Identity)
	return id
}
