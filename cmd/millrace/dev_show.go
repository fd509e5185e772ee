package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/transfer"
)

const (
	terminalEvery = 250 * time.Millisecond
	plainEvery    = 5 * time.Second
)

// screen writes for a person: lines that stay, and on a terminal one last line
// that is written anew. Its methods may be called concurrently.
type screen struct {
	mu       sync.Mutex
	w        io.Writer
	terminal bool
	line     string // what stands in the last line
}

func newScreen(w io.Writer) *screen { return &screen{w: w, terminal: isTerminal(w)} }

const eraseLine = "\r\x1b[2K"

// say writes a line that stays.
func (s *screen) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := fmt.Sprintf(format, args...) + "\n"
	if s.line != "" {
		text = eraseLine + text + s.line
	}
	_, _ = io.WriteString(s.w, text) // a terminal that went away wants no more
}

// live replaces the last line; where that is not possible it writes another.
func (s *screen) live(line string) {
	if !s.terminal {
		s.say("%s", line)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.line = line
	_, _ = io.WriteString(s.w, eraseLine+line)
}

// clear takes the last line away.
func (s *screen) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.line != "" {
		s.line = ""
		_, _ = io.WriteString(s.w, eraseLine)
	}
}

func (s *screen) hints(commands []string) {
	s.say("try, in another terminal:\n  %s", strings.Join(commands, "\n  "))
}

// lineLogger passes lines on to a log.
type lineLogger struct{ log *slog.Logger }

func (l *lineLogger) Write(b []byte) (int, error) {
	l.log.Info(strings.TrimSpace(string(b)))
	return len(b), nil
}

// statusTeller is a transfer, for the screen.
type statusTeller interface{ Status() transfer.Status }

// watch shows index, changes a second and lag until ctx ends.
func (s *show) watch(ctx context.Context) {
	every := plainEvery
	if s.screen.terminal {
		every = terminalEvery
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	// The rate is taken over a while, so that it can be read.
	var seen []sample
	tell := func() {
		now := sample{time.Now(), s.home.Place().Index}
		seen = append(seen, now)
		for len(seen) > 2 && now.at.Sub(seen[0].at) > max(2*time.Second, every) {
			seen = seen[1:]
		}
		if len(seen) > 1 {
			s.screen.live(s.statusLine(seen[0], now))
		}
	}
	for tell(); ; tell() {
		select {
		case <-ctx.Done():
			tell()
			return
		case <-tick.C:
		}
	}
}

type sample struct {
	at    time.Time
	index millrace.Index
}

func (s *show) statusLine(from, to sample) string {
	rate := float64(to.index-from.index) / to.at.Sub(from.at).Seconds()
	line := fmt.Sprintf("index %v  %.0f changes/s", to.index, rate)
	if newest := s.home.Place().Time; !newest.IsZero() {
		line += fmt.Sprintf("  lag %.3f s", max(0, time.Since(newest).Seconds()))
	}
	if phase := s.transfer.Status().Phase; phase != transfer.PhasePublishing {
		line += "  transfer: " + phase
	}
	if !s.copied() {
		line += "  first copy under way"
	}
	return line
}

// copied reports whether readers see all tables, of the stream's epoch.
func (s *show) copied() bool {
	return s.home.View(context.Background(), func(v *edge.View) error {
		if v.Place().Epoch != s.epoch {
			return edge.ErrNoTable
		}
		for _, name := range s.stream.Source.Tables {
			if _, err := v.Table(name); err != nil {
				return err
			}
		}
		return nil
	}) == nil
}

// firstCopy waits until readers see all tables.
func (s *show) firstCopy(ctx context.Context) error {
	// Where a newer epoch was begun, its rows come with another store.
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		changed := s.home.Store().Changed()
		if s.copied() {
			return nil
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// hints are three commands to try: with the key of a row that is there.
func (s *show) hints(ctx context.Context) []string {
	table, key := s.stream.Source.Tables[0], "1"
	err := s.home.View(ctx, func(v *edge.View) error {
		for _, name := range s.stream.Source.Tables {
			t, err := v.Table(name)
			if err != nil {
				return err
			}
			err = t.Scan(nil, nil, 1, func(encoded []byte, _ *edge.Row) error {
				texts, err := t.Codec().Decode(encoded, nil)
				if err != nil {
					return err
				}
				values := make([]string, len(texts))
				for i := range texts {
					values[i] = string(texts[i])
				}
				table, key = name, millrace.FormatKeyPath(values)
				return errFound
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, errFound) {
		s.log.Warn("look for a row to try", "error", err)
	}
	file := s.config.File
	if here, err := os.Getwd(); err == nil {
		if near, err := filepath.Rel(here, file); err == nil && !strings.HasPrefix(near, "..") {
			file = near
		}
	}
	program := os.Args[0]
	return []string{
		fmt.Sprintf("curl '%s%s/%s'", "http://"+s.config.Edge.HTTP.Listen, rowsPath(s.stream.Name, table), key),
		fmt.Sprintf("%s get -c %s %s %s", program, file, table, shellWord(key)),
		fmt.Sprintf("%s status -c %s", program, file),
	}
}

var errFound = errors.New("found")

func shellWord(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || slices.Contains([]rune("-_.,%/:"), r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
