package log

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
)

var (
	seedFlag   = flag.Uint64("seed", 0, "seed of the random tests; 0 takes another each time")
	roundsFlag = flag.Int("rounds", 150, "rounds of the random tests")
)

func seed(t testing.TB) uint64 {
	s := *seedFlag
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("repeat with -seed %d", s)
	return s
}

// deadline bounds every wait; the machine may be busy with other tests.
const deadline = time.Minute

func timeout(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	t.Cleanup(cancel)
	return ctx
}

// for ever keeps what the topic's made-up times would let go.
const forEver = 1 << 62

func open(t testing.TB, o Options) *Log {
	t.Helper()
	if o.Retain == 0 {
		o.Retain = forEver
	}
	o.indexStep = 700
	l, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return l
}

// compare compares what a log shows with what the topic has, read from an index on.
func compare(t testing.TB, l *Log, want []item, after millrace.Index) {
	t.Helper()
	status := l.Status()
	if status.Fault != nil {
		t.Fatalf("log has the fault %v", status.Fault)
	}
	r, err := l.Reader(after)
	if err != nil {
		t.Fatalf("Reader(%v) of %+v: %v", after, status, err)
	}
	defer func() { _ = r.Close() }()
	begin, end := 0, 0
	var from millrace.Index
	for i, w := range want {
		if w.whole && w.last <= after {
			begin, from = i+1, w.last
		}
		if w.whole && w.last <= max(status.Newest, after) {
			end = i + 1
		}
	}
	if got, _ := r.From(); got != from {
		t.Fatalf("Reader(%v) begins after %v, want %v", after, got, from)
	}
	for _, w := range want[begin:end] {
		got, err := r.Next(timeout(t))
		if err != nil {
			t.Fatalf("record at offset %v: %v", w.offset, err)
		}
		if got.Offset != w.offset || string(got.Value) != w.value {
			t.Fatalf("record at offset %v is not the one of offset %v", got.Offset, w.offset)
		}
	}
	nothingMore(t, r)
}

func nothingMore(t testing.TB, r *Reader) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if got, err := r.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("behind the end stands %+v, %v", got, err)
	}
}

// The log holds what the topic has, whatever is cut off or altered in its newest
// segment, wherever the store stands, and however much is dropped.
func TestModel(t *testing.T) {
	s := seed(t)
	p := newTopic(t, s)
	o := Options{Dir: t.TempDir(), MaxBytes: 60 << 10, SegmentBytes: 6 << 10}
	y := newPlayer(t, p, open(t, o))
	y.start()
	var begun millrace.Index // what was dropped does not come back, but for an older store
	for round := range *roundsFlag {
		for range 1 + p.rnd.IntN(8) {
			p.some()
		}
		y.play()
		switch p.rnd.IntN(4) {
		case 0: // go on
		case 1: // the attempt ends, and another begins
			y.start()
			y.play()
		default:
			at := y.at.Index
			crash(t, y, o)
			if y.at.Index < at {
				begun = 0
			}
			y.play()
		}
		y.commit()
		status := y.log.Status()
		if status.Fault != nil || y.log.index != y.at.Index || y.log.chain != y.at.Chain {
			t.Fatalf("round %d: log is at %+v, the store at %v", round, status, y.at.Index)
		}
		if most := o.MaxBytes + 2*o.SegmentBytes; status.Bytes > most {
			t.Fatalf("round %d: log has %d bytes, want at most %d", round, status.Bytes, most)
		}
		want := p.accepted()
		base := y.log.segments[0].begin.index
		if base < begun {
			t.Fatalf("round %d: log has come to reach back to %v, and was at %v", round, base, begun)
		}
		begun = base
		for range 3 {
			compare(t, y.log, want, base+millrace.Index(p.rnd.Uint64N(uint64(y.at.Index-base)+1)))
		}
		compare(t, y.log, want, base)
		if base > 0 {
			var pruned *PrunedError
			if _, err := y.log.Reader(base - 1); !errors.Is(err, ErrPruned) || !errors.As(err, &pruned) || pruned.Oldest != base {
				t.Fatalf("Reader(%v) of a log that begins after %v: %v", base-1, base, err)
			}
		}
		if _, err := y.log.Reader(y.at.Index + 1); !errors.Is(err, ErrAhead) {
			t.Fatalf("Reader beyond the end: %v", err)
		}
	}
}

// crash ends the log as a process or system may, and opens it again.
func crash(t *testing.T, y *player, o Options) {
	t.Helper()
	dir, files := y.log.dir, []string(nil)
	if err := y.log.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := segmentFiles(dir)
	if err != nil || len(files) == 0 {
		t.Fatalf("segments: %v, %v", files, err)
	}
	newest := files[len(files)-1]
	switch y.rnd.IntN(5) {
	case 0: // a process was killed
	case 1: // cut off anywhere
		b := read(t, newest)
		write(t, newest, b[:y.rnd.IntN(len(b)+1)])
	case 2: // bytes did not reach the disk
		b := read(t, newest)
		i := y.rnd.IntN(len(b))
		n := min(len(b)-i, 1+y.rnd.IntN(64))
		clear(b[i : i+n])
		write(t, newest, b)
	case 3: // the newest segment is missing
		if err := os.Remove(newest); err != nil {
			t.Fatal(err)
		}
	case 4: // the store is an older one
		n := y.rnd.IntN(min(len(y.committed), 12))
		y.committed = y.committed[:len(y.committed)-n]
		y.at = y.committed[len(y.committed)-1]
	}
	y.log = open(t, o)
	y.start()
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// filled is a log of n steps of a topic.
func filled(t testing.TB, seed uint64, n int, o Options) *player {
	t.Helper()
	p := newTopic(t, seed)
	y := newPlayer(t, p, open(t, o))
	y.start()
	for range n {
		p.some()
	}
	p.batch(1)
	y.play()
	y.commit()
	return y
}

// Whatever bytes are altered, wherever, a reader gives right records only, and the
// log drops what lies up to the damage.
func TestDamage(t *testing.T) {
	s := seed(t)
	rnd := rand.New(rand.NewPCG(s, 2)) //nolint:gosec // a test that can be repeated
	o := Options{Dir: t.TempDir(), SegmentBytes: 6 << 10}
	y := filled(t, s, 120, o)
	if n := len(y.log.segments); n < 4 {
		t.Fatalf("log has %d segments", n)
	}
	met := 0
	for range max(1, *roundsFlag/4) {
		segment := y.log.segments[rnd.IntN(len(y.log.segments))]
		if segment.end == segment.begin.pos {
			continue // just begun
		}
		b := read(t, segment.path)
		i := int(segment.begin.pos + rnd.Int64N(segment.end-segment.begin.pos))
		b[i] ^= 1 << rnd.IntN(8)
		f, err := os.OpenFile(segment.path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(b[i:i+1], int64(i)); err != nil {
			t.Fatal(err)
		}
		closeQuietly(f)
		base := y.log.segments[0].begin.index
		after := base + millrace.Index(rnd.Uint64N(uint64(segment.begin.index-base)+1))
		if err := readThrough(t, y, after); !errors.Is(err, ErrDamaged) {
			t.Fatalf("byte %d of %s was altered, and reading from %v gives %v", i, segment.path, after, err)
		}
		met++
		// The next commits drop it.
		for range 3 {
			y.p.batch(3)
		}
		y.play()
		y.commit()
		if base := y.log.segments[0].begin.index; base <= segment.begin.index {
			t.Fatalf("log still reaches back to %v, and is damaged behind %v", base, segment.begin.index)
		}
		want := y.p.accepted()
		compare(t, y.log, want, y.log.segments[0].begin.index)
		for len(y.log.segments) < 4 {
			y.p.some()
			y.play()
			y.commit()
		}
	}
	t.Logf("%d times damaged", met)
}

// readThrough reads what is shown from an index on, and fails if a record is wrong.
func readThrough(t testing.TB, y *player, after millrace.Index) error {
	t.Helper()
	r, err := y.log.Reader(after)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	for {
		if at, _ := r.At(); at == y.log.Status().Newest {
			return nil
		}
		got, err := r.Next(timeout(t))
		if err != nil {
			return err
		}
		if int(got.Offset) >= len(y.p.values) || !bytes.Equal(got.Value, y.p.values[got.Offset]) {
			t.Fatalf("a record that is not the one at offset %v", got.Offset)
		}
	}
}

// What is damaged in a segment that an earlier process ended leaves no hole: the log
// begins behind it.
func TestHole(t *testing.T) {
	o := Options{Dir: t.TempDir(), SegmentBytes: 6 << 10}
	y := filled(t, 5, 80, o)
	segments := y.log.segments
	if err := y.log.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(segments[1].path, segments[1].end-1); err != nil {
		t.Fatal(err)
	}
	y.log = open(t, o)
	y.start()
	if got, want := y.log.segments[0].begin.index, segments[2].begin.index; got != want {
		t.Errorf("log begins after %v, want %v", got, want)
	}
	compare(t, y.log, y.p.accepted(), segments[2].begin.index)
	if _, err := os.Stat(segments[0].path); !os.IsNotExist(err) {
		t.Errorf("segment before the hole is still there: %v", err)
	}
}

// A log of another history, be it of another stream or of another chain, is set aside.
func TestOtherHistory(t *testing.T) {
	o := Options{Dir: t.TempDir(), SegmentBytes: 6 << 10}
	y := filled(t, 5, 40, o)
	if err := y.log.Close(); err != nil {
		t.Fatal(err)
	}
	for _, change := range []func(*millrace.Checkpoint){
		func(c *millrace.Checkpoint) { c.Chain[0]++ },
		func(c *millrace.Checkpoint) { c.Stream[0]++ },
	} {
		c := *y.at
		change(&c)
		held, err := segmentFiles(epochDir(o.Dir, 1))
		if err != nil || len(held) == 0 {
			t.Fatalf("segments: %v, %v", held, err)
		}
		l := open(t, o)
		if from := l.Start(&c); from.Index != c.Index || l.Status().Fault != nil {
			t.Fatalf("Start gives %v, %+v", from.Index, l.Status())
		}
		if s := l.Status(); s.Newest != 0 || s.Segments != 1 {
			t.Errorf("log of another history holds %+v", s)
		}
		aside, err := segmentFiles(filepath.Join(epochDir(o.Dir, 1), "aside"))
		if err != nil || len(aside) != len(held) {
			t.Errorf("set aside are %v, %v; want %d segments", aside, err, len(held))
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A store that is far ahead, as one that came from an image, is not waited for.
func TestFarAhead(t *testing.T) {
	o := Options{Dir: t.TempDir()}
	y := filled(t, 5, 20, o)
	c := *y.at
	c.Index += refillMost + 1
	if from := y.log.Start(&c); from.Index != c.Index {
		t.Errorf("Start wants records from %v on", from.Index)
	}
	if s := y.log.Status(); s.Fault != nil || s.Newest != 0 || y.log.index != c.Index {
		t.Errorf("log is %+v at %v", s, y.log.index)
	}
}

// Old segments go by the source's clock, and a segment does not stay in use for ever.
func TestRetain(t *testing.T) {
	p := newTopic(t, 5)
	p.now = time.Now().Add(-3 * time.Hour)
	l := open(t, Options{Dir: t.TempDir(), Retain: time.Hour})
	y := newPlayer(t, p, l)
	y.start()
	for range 3*60 + 1 {
		p.now = p.now.Add(time.Minute - time.Second)
		p.batch(1)
		y.play()
		y.commit()
	}
	if n := len(l.segments); n < 2 || n > 20 {
		t.Errorf("an hour lies in %d segments", n)
	}
	if age := time.Since(l.segments[0].time); age < 50*time.Minute || age > 70*time.Minute {
		t.Errorf("the oldest record is %v old, want an hour", age)
	}
	compare(t, l, p.accepted(), l.segments[0].begin.index)
}

// Readers that follow get every record, or are told that they were overtaken, while
// segments are ended and dropped under them.
func TestReadersBesidePruning(t *testing.T) {
	s := seed(t)
	y := filled(t, s, 20, Options{Dir: t.TempDir(), MaxBytes: 30 << 10, SegmentBytes: 3 << 10})
	for range 600 {
		y.p.some()
	}
	y.p.batch(1)
	want := make(map[millrace.Offset]string)
	for _, w := range y.p.accepted() {
		want[w.offset] = w.value
	}
	end := y.p.fold.Index()
	ctx := timeout(t)
	var readers sync.WaitGroup
	for i := range 6 {
		readers.Go(func() {
			var r *Reader
			var err error
			var at millrace.Index
			for at < end && ctx.Err() == nil {
				if r == nil {
					r, err = y.log.Reader(at)
					var pruned *PrunedError
					if errors.As(err, &pruned) {
						at = pruned.Oldest
						continue
					}
					if err != nil {
						t.Errorf("Reader(%v): %v", at, err)
						return
					}
				}
				if i%2 == 0 {
					err = viaNext(ctx, r, want)
				} else {
					err = viaCopy(ctx, r, want)
				}
				at, _ = r.At()
				if errors.Is(err, ErrPruned) {
					_ = r.Close()
					r = nil
					continue
				}
				if err != nil {
					t.Errorf("after index %v: %v", at, err)
					return
				}
			}
			if r != nil {
				_ = r.Close()
			}
		})
	}
	y.play()
	y.commit()
	readers.Wait()
	if y.log.Status().Newest != end || ctx.Err() != nil {
		t.Errorf("log is at %+v, want %v; %v", y.log.Status(), end, ctx.Err())
	}
}

func viaNext(ctx context.Context, r *Reader, want map[millrace.Offset]string) error {
	got, err := r.Next(ctx)
	if err == nil && want[got.Offset] != string(got.Value) {
		err = fmt.Errorf("wrong record at offset %v", got.Offset)
	}
	return err
}

func viaCopy(ctx context.Context, r *Reader, want map[millrace.Offset]string) error {
	var b bytes.Buffer
	if _, err := r.CopyTo(ctx, &b, 8<<10); err != nil {
		return err
	}
	return decodeAll(&b, want)
}

func decodeAll(b io.Reader, want map[millrace.Offset]string) error {
	for d := NewDecoder(b); ; {
		got, err := d.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if want[got.Offset] != string(got.Value) {
			return fmt.Errorf("wrong record at offset %v", got.Offset)
		}
	}
}

// A socket gets the stored bytes, and what it gets continues.
func TestCopyToSocket(t *testing.T) {
	y := filled(t, seed(t), 150, Options{Dir: t.TempDir(), SegmentBytes: 20 << 10})
	want := y.p.accepted()
	listener, err := new(net.ListenConfig).Listen(timeout(t), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	sent := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			sent <- err
			return
		}
		defer func() { _ = conn.Close() }()
		r, err := y.log.Reader(0)
		if err != nil {
			sent <- err
			return
		}
		defer func() { _ = r.Close() }()
		for at := millrace.Index(0); at < y.at.Index && err == nil; at, _ = r.At() {
			_, err = r.CopyTo(timeout(t), conn, 4<<10)
		}
		sent <- err
	}()
	conn, err := new(net.Dialer).DialContext(timeout(t), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	d := NewDecoder(conn)
	for i := 0; ; i++ {
		got, err := d.Next()
		if errors.Is(err, io.EOF) {
			for ; i < len(want); i++ {
				if want[i].whole {
					t.Fatalf("socket ends before offset %v", want[i].offset)
				}
			}
			break
		}
		if err != nil || got.Offset != want[i].offset || string(got.Value) != want[i].value {
			t.Fatalf("record %d: %v", i, err)
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

// A log that cannot be written holds nobody up, and begins anew, behind the gap.
func TestFaultBeginsAnew(t *testing.T) {
	y := filled(t, 5, 30, Options{Dir: t.TempDir()})
	before := y.at.Index
	_ = y.log.w.f.Close() // as a disk that is gone
	y.p.batch(1)
	y.play()
	y.commit()
	if s := y.log.Status(); s.Fault == nil || s.Newest != before {
		t.Fatalf("log that cannot be written is %+v", s)
	}
	check := func(after millrace.Index, want error) {
		t.Helper()
		r, err := y.log.Reader(after)
		if !errors.Is(err, want) {
			t.Fatalf("Reader(%v): %v, want %v", after, err, want)
		}
		if err == nil {
			_ = r.Close()
		}
	}
	check(before-1, nil) // what is there is served
	// Not where a Term has come behind the batch: it would be missing.
	y.p.batch(1)
	y.p.reign()
	steps := func() {
		t.Helper()
		y.log.w.retry = time.Time{}
		for ; int(y.next) < len(y.p.values); y.next++ {
			y.step()
		}
		y.commit()
	}
	steps()
	if s := y.log.Status(); s.Fault == nil {
		t.Fatalf("log begins anew before a Term record: %+v", s)
	}
	y.p.batch(1)
	steps()
	anew := y.at.Index
	if s := y.log.Status(); s.Fault != nil || y.log.index != anew {
		t.Fatalf("log is %+v, at %v, the store at %v", s, y.log.index, anew)
	}
	y.p.batch(2)
	steps()
	compare(t, y.log, y.p.accepted(), anew)
	check(before-1, ErrPruned)
}

// Two processes cannot keep one log.
func TestInUse(t *testing.T) {
	o := Options{Dir: t.TempDir()}
	y := filled(t, 5, 5, o)
	l := open(t, o)
	l.Start(y.at)
	if s := l.Status(); !errors.Is(s.Fault, ErrInUse) {
		t.Errorf("second log has the fault %v", s.Fault)
	}
}

// Epochs that are over are forgotten.
func TestForget(t *testing.T) {
	o := Options{Dir: t.TempDir()}
	y := filled(t, 5, 5, o)
	if err := y.log.Close(); err != nil {
		t.Fatal(err)
	}
	for _, before := range []millrace.Epoch{1, 2} {
		if err := Forget(o.Dir, before); err != nil {
			t.Fatal(err)
		}
		_, err := os.Stat(epochDir(o.Dir, 1))
		if gone := os.IsNotExist(err); gone != (before == 2) {
			t.Errorf("Forget before %v: %v", before, err)
		}
	}
}
