package wal

import "github.com/millrace-db/millrace"

// reloader begins a load of a table in the unit that the decoder is writing: it
// appends the LoadBegin, at the place where the stream stands. The stream has the
// table's schema by then. It is called by the decoder's goroutine, at most once a
// unit and table; a load of the table that is under way gives way to the new one.
// reason is for people.
type reloader func(id millrace.TableID, reason string) error
