package applier

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	edgelog "github.com/millrace-db/millrace/edge/log"
)

func openLog(t testing.TB, dir string) *edgelog.Log {
	t.Helper()
	l, err := edgelog.Open(edgelog.Options{Dir: dir, Retain: 1 << 62})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close log: %v", err)
		}
	})
	return l
}

func with(l *edgelog.Log) func(*Config) { return func(c *Config) { c.Log = l } }

// wantLog compares what the log has from an index on with records of the topic.
func wantLog(t *testing.T, l *edgelog.Log, topic *memoryTopic, after millrace.Index, offsets ...millrace.Offset) {
	t.Helper()
	if fault := l.Status().Fault; fault != nil {
		t.Fatalf("log: %v", fault)
	}
	r, err := l.Reader(after)
	if err != nil {
		t.Fatalf("Reader(%v): %v", after, err)
	}
	defer func() { _ = r.Close() }()
	var got []millrace.Offset
	for {
		if at, _ := r.At(); at == l.Status().Newest {
			break
		}
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		record, err := r.Next(ctx)
		cancel()
		if err != nil {
			t.Fatalf("read log: %v", err)
		}
		got = append(got, record.Offset)
		if string(record.Value) != string(topic.records[record.Offset]) {
			t.Errorf("log has other bytes than the topic at offset %v", record.Offset)
		}
	}
	if !slices.Equal(got, offsets) {
		t.Errorf("log has the records at %v, want %v", got, offsets)
	}
}

// The log has what was accepted and is complete, and nothing of a unit that is void,
// over attempts and processes.
func TestLog(t *testing.T) {
	topic, dir := newMemoryTopic(), t.TempDir()
	p := newPublisher(t, topic, 1)
	p.reign()                                     // 0
	p.copied(3, "a")                              // 1, 2, …
	copied := millrace.Offset(len(topic.records)) // the next
	next := p.successor()
	p.parts(1, p.put(2, "void"), p.put(3, "void"), p.put(9, "void"))(2) // copied, copied+1
	s, l := openStore(t, filepath.Join(dir, "store")), openLog(t, filepath.Join(dir, "log"))
	r := run(t, s, topic, with(l))
	r.reached(next.index)
	next.reign()                                                           // copied+2
	next.unit(next.put(3, "c"))                                            // copied+3
	next.parts(1, next.put(1, "d"), next.put(2, "d"), next.put(3, "d"))(3) // copied+4 …
	r.reached(next.index)
	r.quit()
	var want []millrace.Offset
	for o := range copied {
		want = append(want, o)
	}
	want = append(want, copied+2, copied+3, copied+4, copied+5, copied+6)
	wantLog(t, l, topic, 0, want...)

	next.unit(next.put(1, "e")) // copied+7
	r = run(t, s, topic, with(l))
	r.reached(next.index)
	r.quit()
	wantLog(t, l, topic, next.index-1, copied+7)
	wantContent(t, s, "1=e 2=d 3=d")
}

// A log that is shorter than its store after a crash is filled up from the topic.
// Where the topic no longer has that, the log begins anew, and the store goes on.
func TestLogIsFilledUp(t *testing.T) {
	topic, dir := newMemoryTopic(), t.TempDir()
	p := newPublisher(t, topic, 1)
	p.reign()
	p.copied(3, "a")
	for i := range 5 {
		p.unit(p.put(1, fmt.Sprint(i)))
	}
	s := openStore(t, filepath.Join(dir, "store"))
	short := func() *edgelog.Log {
		t.Helper()
		l := openLog(t, filepath.Join(dir, "log"))
		r := run(t, s, topic, with(l))
		r.reached(p.index)
		awaitLog(t, l, p.index)
		r.quit()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob(filepath.Join(dir, "log", "*", "*.mlog"))
		if err != nil || len(files) == 0 {
			t.Fatalf("segments: %v, %v", files, err)
		}
		newest := files[len(files)-1]
		info, err := os.Stat(newest)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(newest, info.Size()-int64(len(topic.records[len(topic.records)-1]))-20); err != nil {
			t.Fatal(err)
		}
		return openLog(t, filepath.Join(dir, "log"))
	}
	l := short()
	r := run(t, s, topic, with(l))
	awaitLog(t, l, p.index)
	p.unit(p.put(1, "b"))
	r.reached(p.index)
	r.quit()
	var all []millrace.Offset
	for o := range topic.records {
		all = append(all, millrace.Offset(o))
	}
	wantLog(t, l, topic, 0, all...)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}

	last := s.Place()
	offset := checkpoint(t, s).Offset
	l = short()
	p.unit(p.put(1, "c"))
	r = run(t, s, topic, with(l), func(c *Config) {
		c.OpenSource = func(ctx context.Context, after *millrace.Checkpoint) (Source, error) {
			if OffsetOf(after) < offset {
				return nil, fmt.Errorf("%w: it begins at offset %v", ErrSourceGone, offset)
			}
			return topic.open(ctx, after)
		}
	})
	r.reached(p.index)
	r.quit()
	if s := l.Status(); s.Fault != nil || s.Oldest != last.Index+1 || s.Newest != p.index {
		t.Errorf("log is %+v, want it to begin behind %v", s, last.Index)
	}
	wantContent(t, s, "1=c 2=a 3=a")
}

// awaitLog waits until the log has come to an index.
func awaitLog(t testing.TB, l *edgelog.Log, index millrace.Index) {
	t.Helper()
	over := time.After(deadline)
	for {
		changed := l.Changed()
		if l.Status().Newest >= index {
			return
		}
		select {
		case <-changed:
		case <-over:
			t.Fatalf("log is at %+v, want index %v", l.Status(), index)
		}
	}
}

func checkpoint(t *testing.T, s *edge.Store) (c *millrace.Checkpoint) {
	t.Helper()
	err := s.View(context.Background(), func(v *edge.View) (err error) {
		c, err = v.Checkpoint()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}
