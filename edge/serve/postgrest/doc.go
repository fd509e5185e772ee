// Package postgrest reads one table of an edge in PostgREST's dialect of HTTP
// queries:
//
//	Parse    query string and headers → Query, which knows no table
//	Compile  Query and Table → Plan: the rows to look at, what they must fulfil,
//	         and what is shown of them
//	Run      Plan and an *edge.Table of a snapshot → the answer's bytes
//
// The first two are pure. What PostgREST hands on to Postgres is done here, with
// the same result: literals are read as Postgres's input functions read them,
// values compare as its types do, and an unknown truth stays unknown through not,
// and, or. What cannot be done exactly is refused by name: PGRST127 with what it
// was and, where there is one, a mend.
//
// A plan reads rows by the table's key or by one secondary index, in the order
// that this gives or sorted by key afterwards; every row is held against the whole
// condition, so a path has to lead to all rows that are wanted and may lead to
// more. How many more is bounded: beyond Limits.Scan the answer is an error that
// names the index which would do.
package postgrest
