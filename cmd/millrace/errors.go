package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/mend"
	"github.com/millrace-db/millrace/transfer"
)

// The exit codes. Unit files rely on them: they start a process again after 1,
// and not after the others.
const (
	exitOK = 0
	// exitFailure: something failed that another try may mend.
	exitFailure = 1
	// exitUsage: the command line or the configuration cannot be used.
	exitUsage = 2
	// exitFenced: another publisher reigns over the stream.
	exitFenced = 3
	// exitOperator: the stream is stopped, or a check found a problem, until
	// somebody acts.
	exitOperator = 4
)

// usageError is wrong use of the command line.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usage(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// operatorError needs somebody to act; err says how.
type operatorError struct{ err error }

func (e *operatorError) Error() string { return e.err.Error() }
func (e *operatorError) Unwrap() error { return e.err }

func operator(format string, args ...any) error { return &operatorError{fmt.Errorf(format, args...)} }

func exitCode(err error) int {
	var wrongUse *usageError
	var wrongConfig *config.Error
	var needed *operatorError
	switch {
	case errors.As(err, &wrongUse), errors.As(err, &wrongConfig):
		return exitUsage
	case errors.Is(err, transfer.ErrFenced):
		return exitFenced
	case errors.As(err, &needed), millrace.NeedsOperator(err):
		return exitOperator
	}
	return exitFailure
}

// printError writes the one line of an error; a configuration with several
// problems gives one line each.
func printError(w io.Writer, err error) {
	var wrongConfig *config.Error
	if errors.As(err, &wrongConfig) {
		for _, p := range wrongConfig.Problems {
			_, _ = fmt.Fprintln(w, "millrace: "+mend.OneLine(p.String()))
		}
		return
	}
	_, _ = fmt.Fprintln(w, "millrace: "+mend.OneLine(err.Error()))
}

func quote(s string) string { return strconv.Quote(s) }
