// Package millracev1 is the code that protoc makes of millrace.proto, the wire
// schema of the topic's payloads. millrace itself writes and reads them field
// by field, without it (wire.go at the module's root); the package is here for
// tools that are content with generated code, and a test holds both to the same
// bytes. docs/FORMAT.md has the rules that a schema cannot express.
//
// `make generate` makes it anew.
package millracev1

//go:generate ../../../scripts/generate
