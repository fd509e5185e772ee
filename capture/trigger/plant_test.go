//go:build planted

package trigger

import (
	"fmt"
	"runtime"
	"testing"
	"time"
)

// TestPlanted plays each scene with the rule broken that it is for, and wants that
// to be seen.
func TestPlanted(t *testing.T) {
	for _, s := range scenes {
		t.Run(s.plant, func(t *testing.T) {
			t.Setenv("MILLRACE_PLANT", s.plant)
			if quiet := played(t, s.play); !quiet.failed {
				t.Error("nothing was noticed")
			} else {
				t.Log(quiet.said)
			}
		})
	}
}

// quietT is a test whose failures are wanted.
type quietT struct {
	testing.TB
	failed bool
	said   string
}

// played plays a scene in a goroutine, which a fatal error ends.
func played(t *testing.T, play func(testing.TB)) *quietT {
	quiet := &quietT{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		play(quiet)
	}()
	<-done
	return quiet
}

func (q *quietT) Helper() {}

// patience is how long a step may take: a mistake may be that nothing comes.
func (q *quietT) patience() time.Duration { return 15 * time.Second }

func (q *quietT) Error(args ...any) { q.note(fmt.Sprint(args...)) }

func (q *quietT) Errorf(format string, args ...any) { q.note(fmt.Sprintf(format, args...)) }

func (q *quietT) Fatal(args ...any) {
	q.note(fmt.Sprint(args...))
	runtime.Goexit()
}

func (q *quietT) Fatalf(format string, args ...any) {
	q.note(fmt.Sprintf(format, args...))
	runtime.Goexit()
}

func (q *quietT) note(text string) {
	if !q.failed {
		q.failed, q.said = true, text
	}
}
