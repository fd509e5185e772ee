package relay

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"io"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/millrace-db/millrace"
)

// go test -run TestGolden -update ./edge/relay
var updateGolden = flag.Bool("update", false, "write the golden frames anew")

const goldenFile = "testdata/frames.txt"

func goldenState() State {
	return State{
		Node: "edge-2", Stream: testStream, Epoch: 3, Next: 4, Oldest: 17, Newest: 4711, Chain: millrace.Chain{1, 2, 3}, Time: testTime,
		TopicID: testTopic, Path: []string{"edge-1", "edge-0"}, From: 4000, FromChain: millrace.Chain{4, 5, 6},
	}
}

// goldenFrames are one of each kind, and what they say.
func goldenFrames() (kinds []frameKind, contents [][]byte, said []any) {
	add := func(kind frameKind, content []byte, what any) {
		kinds, contents, said = append(kinds, kind), append(contents, content), append(said, what)
	}
	h := &hello{
		node: "edge-3", stream: testStream, epoch: 3, index: 4000, chain: millrace.Chain{4, 5, 6}, until: 5000, newest: true,
		filter: []byte("public.t"), probe: true,
	}
	s := goldenState()
	g := &goodbye{CodePruned, "the log of edge-2 begins at index 17", &s}
	add(frameHello, appendHello(nil, h), h)
	add(frameWelcome, appendNodeState(nil, &s), &s)
	add(frameClose, appendGoodbye(nil, g), g)
	add(frameRecords, []byte("a piece of the log"), nil)
	add(frameState, appendNodeState(nil, &State{Node: "edge-2"}), &State{Node: "edge-2"})
	add(framePlace, appendPlace(nil, place{3, 4710}), place{3, 4710})
	add(frameReport, []byte("a report"), nil)
	return kinds, contents, said
}

// TestGolden: the bytes of frames are those that were agreed on.
func TestGolden(t *testing.T) {
	kinds, contents, _ := goldenFrames()
	var text strings.Builder
	for i, kind := range kinds {
		text.WriteString(hex.EncodeToString(appendFrame(nil, kind, contents[i])))
		text.WriteByte('\n')
	}
	if *updateGolden {
		if err := os.WriteFile(goldenFile, []byte(text.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	if text.String() != string(want) {
		t.Errorf("frames are\n%swant\n%s", text.String(), want)
	}
}

// TestRoundTrip: what was said is read, and a frame with one byte altered is not.
func TestRoundTrip(t *testing.T) {
	kinds, contents, said := goldenFrames()
	for i, kind := range kinds {
		frame := appendFrame(nil, kind, contents[i])
		got, content, size, err := (&frameReader{r: bytes.NewReader(frame)}).next()
		if err != nil || got != kind || size != len(contents[i]) || kind != frameRecords && !bytes.Equal(content, contents[i]) {
			t.Fatalf("kind %d is read as %d with %d bytes, error %v", kind, got, size, err)
		}
		if said[i] != nil {
			if what, err := decodeContent(kind, contents[i]); err != nil || !reflect.DeepEqual(what, said[i]) {
				t.Errorf("kind %d says %+v, error %v, want %+v", kind, what, err, said[i])
			}
		}
		for at := range frame {
			if kind == frameRecords && at >= frameHead {
				break // the records have CRCs of their own
			}
			b := bytes.Clone(frame)
			b[at] ^= 0x20
			if _, _, _, err := (&frameReader{r: bytes.NewReader(b)}).next(); !errors.Is(err, errFrame) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("kind %d with byte %d altered: %v", kind, at, err)
			}
		}
	}
}

// decodeContent decodes what a frame says, as its receiver does.
func decodeContent(kind frameKind, content []byte) (any, error) {
	switch kind {
	case frameHello:
		return decodeHello(content)
	case frameWelcome, frameState:
		return decodeNodeState(content)
	case frameClose:
		return decodeGoodbye(content)
	case framePlace:
		return decodePlace(content)
	}
	return content, nil
}

// TestUnknownField: what a later version adds to what is said is passed over.
func TestUnknownField(t *testing.T) {
	s := goldenState()
	b := appendText(appendNumber(appendNodeState(nil, &s), 99, uint64(7)), 100, "later")
	if got, err := decodeNodeState(b); err != nil || !reflect.DeepEqual(got, &s) {
		t.Errorf("%+v, error %v", got, err)
	}
}

// FuzzFrames: no bytes of a peer lead to a panic or to more room than they take, and what
// is read of what a frame says is written as something that says the same.
func FuzzFrames(f *testing.F) {
	kinds, contents, _ := goldenFrames()
	var all []byte
	for i, kind := range kinds {
		frame := appendFrame(nil, kind, contents[i])
		f.Add(frame)
		all = append(all, frame...)
	}
	f.Add(all)
	f.Fuzz(func(t *testing.T, b []byte) {
		in := bytes.NewReader(b)
		r := &frameReader{r: in}
		for {
			kind, content, size, err := r.next()
			if err != nil {
				return
			}
			if cap(r.buf) > 2*len(b)+128<<10 {
				t.Fatalf("%d bytes take a buffer of %d", len(b), cap(r.buf))
			}
			if kind == frameRecords {
				if _, err := io.CopyN(io.Discard, in, int64(size)); err != nil {
					return
				}
				continue
			}
			checkContent(t, kind, content)
		}
	})
}

// FuzzContent is FuzzFrames behind the CRC.
func FuzzContent(f *testing.F) {
	kinds, contents, _ := goldenFrames()
	for i, kind := range kinds {
		f.Add(byte(kind), contents[i])
	}
	f.Fuzz(func(t *testing.T, kind byte, content []byte) { checkContent(t, frameKind(kind), content) })
}

func checkContent(t *testing.T, kind frameKind, content []byte) {
	t.Helper()
	what, err := decodeContent(kind, content)
	if err != nil {
		if !errors.Is(err, errFrame) {
			t.Fatalf("kind %d: %v is no error of a frame", kind, err)
		}
		return
	}
	again, err := decodeContent(kind, appendContent(kind, what))
	if err != nil || !reflect.DeepEqual(again, what) {
		t.Fatalf("kind %d: %+v is written and read as %+v, error %v", kind, what, again, err)
	}
}

func appendContent(kind frameKind, what any) []byte {
	switch what := what.(type) {
	case *hello:
		return appendHello(nil, what)
	case *State:
		return appendNodeState(nil, what)
	case *goodbye:
		return appendGoodbye(nil, what)
	case place:
		return appendPlace(nil, what)
	case []byte:
		return what
	}
	panic(kind)
}
