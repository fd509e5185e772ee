package applier

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/millrace-db/millrace"
)

// suspects are two sources of one topic of which the first alters a record, each time.
type suspects struct {
	topic *memoryTopic
	alter func([]byte) ([]byte, error)
	// alone tells that there is no other one.
	alone bool

	mu       sync.Mutex
	rejected []error
}

type suspect struct {
	Source
	s *suspects
}

func (s *suspects) open(ctx context.Context, after *millrace.Checkpoint) (Source, error) {
	src, err := s.topic.open(ctx, after)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.rejected) > 0 && !s.alone {
		return src, err
	}
	return suspect{src, s}, err
}

func (s suspect) Next(ctx context.Context) (millrace.Offset, []byte, error) {
	offset, value, err := s.Source.Next(ctx)
	if err == nil && offset == 4 {
		value, err = s.s.alter(value)
	}
	return offset, value, err
}

var errNobodyElse = errors.New("nobody else is to be asked; mend: none")

func (s suspect) Reject(err error) error {
	s.s.mu.Lock()
	defer s.s.mu.Unlock()
	s.s.rejected = append(s.s.rejected, err)
	if s.s.alone && len(s.s.rejected) > 1 {
		return errors.Join(millrace.ErrStop, errNobodyElse)
	}
	return errors.New("another one is asked")
}

// A record that is not of the history is held against a source that is not the arbiter,
// and what follows is for that to say.
func TestSuspect(t *testing.T) {
	topic := newMemoryTopic()
	p := newPublisher(t, topic, 1)
	p.reign()
	p.copied(1, "a")
	p.unit(p.put(1, "b"))
	p.unit(p.put(1, "c"))
	forge := func(value []byte) ([]byte, error) {
		r, err := millrace.DecodeRecord(value, nil)
		if err != nil {
			return nil, err
		}
		h := r.Header
		h.Prev[0]++
		return millrace.AppendRecord(nil, &h, r.Payload, nil)
	}
	for name, alter := range map[string]func([]byte) ([]byte, error){"diverged": forge, "malformed": altered} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, t.TempDir())
			two := &suspects{topic: topic, alter: alter}
			r := run(t, s, topic, func(c *Config) { c.OpenSource = two.open })
			r.reached(p.index)
			r.quit()
			wantContent(t, s, "1=c")
			if len(two.rejected) != 1 {
				t.Errorf("rejected: %v, want one", two.rejected)
			}

			s = openStore(t, t.TempDir())
			one := &suspects{topic: topic, alter: alter, alone: true}
			r = run(t, s, topic, func(c *Config) { c.OpenSource = one.open })
			r.ended(errNobodyElse)
			if len(one.rejected) != 2 {
				t.Errorf("rejected: %v, want two", one.rejected)
			}
		})
	}
}
