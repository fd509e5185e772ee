package main

import "strings"

// epochMend is how stages, which do not know of commands or names of streams in
// the configuration, speak of a new epoch.
const (
	epochMend      = "millrace epoch new STREAM"
	epochMendPlain = "begin a new epoch"
)

// epochCommand begins a new epoch of a stream.
func epochCommand(stream string) string { return "millrace epoch new " + stream }

// mendText puts the command into a text that speaks of a new epoch.
func mendText(stream, text string) string {
	text = strings.ReplaceAll(text, epochMend, epochCommand(stream))
	if strings.Contains(text, epochCommand(stream)) {
		return text
	}
	return strings.ReplaceAll(text, epochMendPlain, epochMendPlain+": "+epochCommand(stream))
}

// mendedError says a stage's error with the command that mends it.
type mendedError struct {
	stream string
	err    error
}

func (e *mendedError) Error() string { return mendText(e.stream, e.err.Error()) }
func (e *mendedError) Unwrap() error { return e.err }

func withMend(stream string, err error) error {
	if err == nil {
		return nil
	}
	return &mendedError{stream, err}
}
