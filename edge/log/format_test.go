package log

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/millrace-db/millrace"
)

// To make the golden file anew: go test -run TestGolden -update ./edge/log
var updateFlag = flag.Bool("update", false, "write the golden file anew")

const goldenFile = "testdata/segment-1.mlog"

// golden brings a term, a batch, a void part, another term, a state and a unit of
// three batches into a log.
func golden(t testing.TB) *player {
	t.Helper()
	p := newTopic(t, 1)
	p.most = 24
	y := newPlayer(t, p, open(t, Options{Dir: t.TempDir()}))
	y.start()
	p.batch(2)
	p.parts(3, 2)
	p.reign()
	p.state()
	p.parts(3, 3)
	y.play()
	y.commit()
	return y
}

// The bytes of a segment do not change within a version.
func TestGolden(t *testing.T) {
	y := golden(t)
	got := read(t, y.log.segments[0].path)
	if *updateFlag {
		write(t, goldenFile, got)
	}
	want := read(t, goldenFile)
	if !bytes.Equal(got, want) {
		t.Errorf("segment is\n%s\nwant\n%s", hex.Dump(got), hex.Dump(want))
	}
	// And a log takes it from there.
	dir := t.TempDir()
	if err := os.Mkdir(epochDir(dir, 1), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(epochDir(dir, 1), filepath.Base(segmentPath("", 0))), want)
	l := open(t, Options{Dir: dir})
	if from := l.Start(y.at); from.Index != y.at.Index {
		t.Errorf("log of the golden file lacks what comes after %v", from.Index)
	}
	compare(t, l, y.p.accepted(), 0)
}

// Any bytes are a segment or are refused; what is read of them is what a log of the
// same bytes shows, and never more room is made than bytes are there.
func FuzzSegment(f *testing.F) {
	b, err := os.ReadFile(goldenFile)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)-1])
	f.Add(b[:40])
	f.Fuzz(func(t *testing.T, b []byte) {
		c, _, size, err := readSegmentHead(bytes.NewReader(b))
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("header: %v", err)
			}
			return
		}
		if again := appendSegmentHead(nil, c, 0); len(again) < segmentHead {
			t.Fatal("header cannot be written again")
		}
		r := newFrames(bytes.NewReader(b), size, int64(len(b)))
		tr := trackFrom(place{c.Index, c.Chain, size})
		var seen []place
		for {
			record, err := r.next()
			if err != nil {
				if !torn(err) {
					t.Fatalf("record: %v", err)
				}
				break
			}
			if head := appendHead(nil, record.Offset, record.Value); !bytes.HasSuffix(b[:r.pos], append(head, record.Value...)) {
				t.Fatal("record is not what is stored")
			}
			ended, err := tr.step(record.Header, r.pos)
			if err != nil {
				break
			}
			if ended {
				seen = append(seen, tr.unit)
			}
		}
		// Walking without looking at the payloads finds at least the same places.
		var walked []place
		_ = places(bytes.NewReader(b), "fuzz", place{c.Index, c.Chain, size}, int64(len(b)), func(p place) bool {
			walked = append(walked, p)
			return true
		})
		for i, p := range seen {
			if i >= len(walked) || walked[i] != p {
				t.Fatalf("unit %d ends at %+v, walking gives %+v", i, p, walked)
			}
		}
	})
}

// What a peer sends is decoded or refused; a length that it merely claims makes no
// room.
func FuzzDecoder(f *testing.F) {
	y := golden(f)
	r, err := y.log.Reader(0)
	if err != nil {
		f.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := r.CopyTo(f.Context(), &b, 1<<20); err != nil {
		f.Fatal(err)
	}
	_ = r.Close()
	f.Add(b.Bytes())
	f.Add([]byte{0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		d := NewDecoder(bytes.NewReader(b))
		for {
			record, err := d.Next()
			if cap(d.buf) > 2*len(b)+2*readStep {
				t.Fatalf("%d bytes have made room for %d", len(b), cap(d.buf))
			}
			if err != nil {
				if !errors.Is(err, ErrDamaged) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("error without a name: %v", err)
				}
				return
			}
			if record.Offset < millrace.NoOffset {
				t.Fatalf("offset %d", record.Offset)
			}
		}
	})
}
