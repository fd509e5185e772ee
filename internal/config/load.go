package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
)

// Problem is one thing that is wrong with the configuration.
type Problem struct {
	// File and Line are its place; Line is 0 where there is none, File empty
	// for a variable.
	File string
	Line int
	Text string
}

// String is the one line for people.
func (p Problem) String() string {
	switch {
	case p.File == "":
		return p.Text
	case p.Line == 0:
		return p.File + ": " + p.Text
	}
	return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Text)
}

// Error is what Load returns when the configuration cannot be used: a line for
// each problem.
type Error struct{ Problems []Problem }

// Error joins the lines.
func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Load reads the file, applies the environment (as os.Environ gives it) and
// validates the result. Every error is an *Error.
func Load(file string, environ []string) (*Config, error) {
	text, err := readFile(file, "configuration", "-c")
	if err != nil {
		return nil, err
	}
	return Parse(file, text, environ)
}

// readFile reads a file that the operator names with a flag.
func readFile(file, kind, flag string) ([]byte, error) {
	text, err := os.ReadFile(file) //nolint:gosec // the operator names it
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, &Error{[]Problem{{File: file, Text: "no such " + kind + " file; name one with " + flag + " FILE"}}}
	case err != nil:
		return nil, &Error{[]Problem{{Text: fmt.Sprintf("read %s file: %v", kind, err)}}}
	}
	return text, nil
}

// fill sets v, a pointer to a struct with key tags, to its defaults and to what the text
// says, and notes in lines where which key stands.
func fill(v any, file string, text []byte, lines map[string]int) []Problem {
	into := reflect.ValueOf(v).Elem()
	defaults(into)
	r := &reader{file: file, lines: lines}
	r.read(text, into)
	return r.problems
}

// Parse is Load for a text that has been read. file is used in messages.
func Parse(file string, text []byte, environ []string) (*Config, error) {
	c := &Config{File: file, lines: map[string]int{}, set: map[string]bool{}}
	problems := fill(c, file, text, c.lines)
	for path := range c.lines {
		c.set[path] = true
	}
	problems = append(problems, c.environment(environ)...)
	if len(problems) == 0 {
		c.complete()
		problems = c.validate()
	}
	if len(problems) > 0 {
		return nil, &Error{problems}
	}
	return c, nil
}

// Ignored are the variables with our prefix that are no configuration; a star
// ends those of which only the start is fixed.
var Ignored = []string{"MILLRACE_CONFIG", "MILLRACE_TEST_*", "MILLRACE_FAILPOINT*", "MILLRACE_PLANT*", "MILLRACE_KAFKA_HOME", "MILLRACE_MIGRATE_*", "MILLRACE_HANDOVER", "MILLRACE_HANDOVER_TOOK"}

func ignored(name string) bool {
	return slices.ContainsFunc(Ignored, func(pattern string) bool {
		if start, ok := strings.CutSuffix(pattern, "*"); ok {
			return strings.HasPrefix(name, start)
		}
		return name == pattern
	})
}

// environment applies the variables and says which of them mean nothing.
func (c *Config) environment(environ []string) []Problem {
	type target struct {
		path string
		v    reflect.Value
	}
	known := map[string]target{}
	visit(reflect.ValueOf(c).Elem(), "", func(path string, k key, v reflect.Value) {
		if strings.HasPrefix(path, "streams.") && k.name == "name" {
			return // the variables of a stream are named after it
		}
		if isMap(v.Type()) {
			return // the names within would not fit into a variable's
		}
		known[variable(path)] = target{path, v}
	})
	var problems []Problem
	for _, entry := range environ {
		name, text, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, "MILLRACE_") || ignored(name) {
			continue
		}
		t, ok := known[name]
		if !ok {
			problems = append(problems, Problem{Text: unknownVariable(name, slices.Sorted(maps.Keys(known)))})
			continue
		}
		if err := setText(t.v, text); err != nil {
			problems = append(problems, Problem{Text: fmt.Sprintf("environment variable %s: %v", name, err)})
		}
		delete(c.lines, t.path)
		c.set[t.path] = true
	}
	slices.SortFunc(problems, func(a, b Problem) int { return strings.Compare(a.Text, b.Text) })
	return problems
}

func unknownVariable(name string, known []string) string {
	text := fmt.Sprintf("unknown environment variable %s", name)
	if near := nearest(name, known); near != "" {
		return text + "; did you mean " + near + "?"
	}
	return text + ": no key of the configuration has this name; unset it"
}

// complete sets the defaults that depend on other keys.
func (c *Config) complete() {
	for i := range c.Streams {
		s := &c.Streams[i]
		if s.Kafka.Topic == "" {
			s.Kafka.Topic = "millrace." + s.Name
		}
	}
	if c.Edge.ID == "" {
		c.Edge.ID = "edge"
		if host, err := os.Hostname(); err == nil {
			c.Edge.ID = host
		}
	}
	if c.Edge.Images.Dir == "" {
		// No stream has such a name.
		c.Edge.Images.Dir = filepath.Join(c.Edge.DataDir, "_images")
	}
	if len(c.Edge.Streams) == 0 {
		for i := range c.Streams {
			c.Edge.Streams = append(c.Edge.Streams, c.Streams[i].Name)
		}
	}
	if len(c.Transfer.Streams) == 0 {
		for i := range c.Streams {
			if c.Streams[i].Source.URL != "" {
				c.Transfer.Streams = append(c.Transfer.Streams, c.Streams[i].Name)
			}
		}
	}
}
