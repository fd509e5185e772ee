package postgrest

import (
	"fmt"
	"net/http"
)

// Error is an answer other than the rows, in PostgREST's shape. Code is one of
// PostgREST's (PGRST…), one of Postgres's where PostgREST would pass that on, or
// one of millrace's own (millrace.…).
type Error struct {
	Status  int    `json:"-"`
	Code    string `json:"code"`
	Message string `json:"message"`
	// Details and Hint may be empty, which is null in JSON.
	Details string `json:"-"`
	Hint    string `json:"-"`
}

func (e *Error) Error() string {
	text := e.Code + ": " + e.Message
	if e.Details != "" {
		text += ": " + e.Details
	}
	return text
}

// Codes of millrace's own.
const (
	// CodeMaxScan: answering would look at more rows than is allowed.
	CodeMaxScan = "millrace.max_scan"
	// CodeMaxRows: the answer would have more rows than is allowed.
	CodeMaxRows = "millrace.max_rows"
	// CodeTooLarge: the answer would have more bytes than is allowed.
	CodeTooLarge = "millrace.too_large"
)

// unparsed is the error for text that does not follow the syntax. column counts
// from 1.
func unparsed(what, text string, column int, format string, args ...any) error {
	return &Error{
		Status: http.StatusBadRequest, Code: "PGRST100",
		Message: fmt.Sprintf("%q (line 1, column %d)", "failed to parse "+what+" ("+text+")", column),
		Details: fmt.Sprintf(format, args...),
	}
}

// refused is the error for what PostgREST does and millrace does not.
func refused(hint, format string, args ...any) error {
	return &Error{
		Status: http.StatusBadRequest, Code: "PGRST127", Message: "Feature not implemented",
		Details: fmt.Sprintf(format, args...), Hint: hint,
	}
}

// sqlError is an error that Postgres gives, and PostgREST hands on.
func sqlError(status int, code, format string, args ...any) error {
	return &Error{Status: status, Code: code, Message: fmt.Sprintf(format, args...)}
}

func badInput(typ, text string) error {
	return sqlError(http.StatusBadRequest, "22P02", "invalid input syntax for type %s: %q", typ, text)
}

func noColumn(table, column string) error {
	return sqlError(http.StatusBadRequest, "42703", "column %s.%s does not exist", table, column)
}

func badRange(details string) error {
	return &Error{Status: http.StatusRequestedRangeNotSatisfiable, Code: "PGRST103", Message: "Requested range not satisfiable", Details: details}
}

// NoTable is the error where a schema has no table of the name.
func NoTable(schema, table string) error {
	return &Error{
		Status: http.StatusNotFound, Code: "PGRST205",
		Message: fmt.Sprintf("Could not find the table '%s.%s' in the schema cache", schema, table),
	}
}

// NoSchema is the error where a schema is not to be had. exposed names those that
// are, separated by commas.
func NoSchema(schema, exposed string) error {
	return &Error{
		Status: http.StatusNotAcceptable, Code: "PGRST106", Message: "Invalid schema: " + schema,
		Hint: "Only the following schemas are exposed: " + exposed,
	}
}

// NoPath is the error for a path that names no table.
func NoPath(hint string) error {
	return &Error{Status: http.StatusNotFound, Code: "PGRST125", Message: "Invalid path specified in request URL", Hint: hint}
}

// BadMethod is the error for a method that does not read.
func BadMethod(method string) error {
	return &Error{
		Status: http.StatusMethodNotAllowed, Code: "PGRST117", Message: "Unsupported HTTP method: " + method,
		Hint: "An edge is read-only: write to the source's database.",
	}
}
