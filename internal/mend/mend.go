// Package mend puts names of commands and streams into what stages say, which know
// neither.
package mend

import "strings"

// epochMend is how stages, which do not know of commands or names of streams in
// the configuration, speak of a new epoch.
const (
	epochMend      = "millrace epoch new STREAM"
	epochMendPlain = "begin a new epoch"
)

// EpochCommand is the command that begins a new epoch of a stream.
func EpochCommand(stream string) string { return "millrace epoch new " + stream }

// Text puts the command into a text that speaks of a new epoch.
func Text(stream, text string) string {
	text = strings.ReplaceAll(text, epochMend, EpochCommand(stream))
	if strings.Contains(text, EpochCommand(stream)) {
		return text
	}
	return strings.ReplaceAll(text, epochMendPlain, epochMendPlain+": "+EpochCommand(stream))
}

type mended struct {
	stream string
	err    error
}

func (e *mended) Error() string { return Text(e.stream, e.err.Error()) }
func (e *mended) Unwrap() error { return e.err }

// Error says a stage's error, which may be nil, with the command that mends it.
func Error(stream string, err error) error {
	if err == nil {
		return nil
	}
	return &mended{stream, err}
}

// OneLine joins the lines of a text that came from elsewhere.
func OneLine(text string) string {
	var parts []string
	for part := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == '\n' || r == '\r' }) {
		if part = strings.TrimSpace(part); part != "" {
			parts = append(parts, part)
		}
	}
	return strings.ReplaceAll(strings.Join(parts, "; "), ":; ", ": ")
}
