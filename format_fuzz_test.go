package millrace

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Each fuzz target takes any bytes. A decoder may refuse them, with an error
// that says they are malformed; what it takes must be what the generated code
// reads in them, and must survive being written and read again. The seeds are
// the golden files.

// seed gives f the golden files with the suffix, or what part makes of each,
// with more arguments where the target takes more.
func seed(f *testing.F, suffix string, part func([]byte) [][]byte, more ...any) {
	f.Helper()
	files, err := filepath.Glob(filepath.Join(goldenDir, "*"+suffix))
	if err != nil || len(files) == 0 {
		f.Fatalf("no golden files *%s: %v", suffix, err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		for _, p := range part(b) {
			f.Add(append([]any{p}, more...)...)
		}
	}
}

func whole(b []byte) [][]byte { return [][]byte{b} }

// payloads returns the payload of a record of the kind.
func payloads(kind RecordKind) func([]byte) [][]byte {
	return func(b []byte) [][]byte {
		r, err := DecodeRecord(b, nil)
		if err != nil || r.Kind != kind {
			return nil
		}
		return [][]byte{r.Payload}
	}
}

// bodies returns the encoded entries of a batch.
func bodies(b []byte) (out [][]byte) {
	for _, rest := range payloads(RecordBatch)(b) {
		for len(rest) > 0 {
			var h Head
			var err error
			if rest, err = NextHead(rest, &h); err != nil {
				return out
			}
			out = append(out, h.Body)
		}
	}
	return out
}

// refused reports whether the decoder refused the bytes, and that it did so
// properly.
func refused(t *testing.T, err error) bool {
	t.Helper()
	if err != nil && !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTooLarge) {
		t.Fatalf("got error %v, want one that says the data is malformed or too large", err)
	}
	return err != nil
}

// sameAsGenerated checks that the generated code reads in b what the hot path
// has read.
func sameAsGenerated(t *testing.T, b []byte, got proto.Message) {
	t.Helper()
	want := got.ProtoReflect().New().Interface()
	if err := proto.Unmarshal(b, want); err != nil {
		t.Fatalf("the generated code refuses what the hot path took: %v", err)
	}
	alwaysWritten(want.ProtoReflect())
	if !proto.Equal(got, want) {
		t.Fatalf("hot path read\n%v\ngenerated code read\n%v", got, want)
	}
}

// alwaysWritten sets the fields that millrace writes even at their default and
// takes as that default where they are missing.
func alwaysWritten(m protoreflect.Message) {
	sizes := map[protoreflect.FullName]int{
		"millrace.v1.VerifyRange.hash": 16, "millrace.v1.Recent.chain": 32,
		"millrace.v1.Checkpoint.publisher": 16,
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		switch {
		case sizes[fd.FullName()] > 0 && !m.Has(fd):
			m.Set(fd, protoreflect.ValueOfBytes(make([]byte, sizes[fd.FullName()])))
		case fd.FullName() == "millrace.v1.Checkpoint.position", fd.FullName() == "millrace.v1.Checkpoint.state":
			m.Mutable(fd)
		}
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.Kind() != protoreflect.MessageKind:
		case fd.IsList():
			for i := range v.List().Len() {
				alwaysWritten(v.List().Get(i).Message())
			}
		default:
			alwaysWritten(v.Message())
		}
		return true
	})
}

func FuzzDecodeRecord(f *testing.F) {
	seed(f, ".record", whole)
	f.Fuzz(func(t *testing.T, b []byte) {
		// Almost no mutation has a good CRC; the second try gives it one.
		for range 2 {
			before := bytes.Clone(b)
			r, err := DecodeRecord(b, make([]byte, 0, 64))
			if !bytes.Equal(b, before) {
				t.Fatal("decoding wrote into the record")
			}
			if !refused(t, err) {
				again, err := AppendRecord(nil, &r.Header, r.Payload, nil)
				if err != nil {
					t.Fatalf("encode what was decoded: %v", err)
				}
				s, err := DecodeRecord(again, nil)
				if err != nil {
					t.Fatalf("decode what was encoded: %v", err)
				}
				s.KeyID, s.Signature = r.KeyID, r.Signature
				if !bytes.Equal(s.Payload, r.Payload) || !sameHeader(&s.Header, &r.Header) {
					t.Fatalf("got record %+v, want %+v", s.Header, r.Header)
				}
			}
			if len(b) < signedSize+transportSize || len(b) < signedSize+transportSize+int(b[6])<<8+int(b[7]) {
				return
			}
			b = reseal(bytes.Clone(b))
		}
	})
}

func sameHeader(a, b *Header) bool {
	sameSignature := bytes.Equal(a.Signature, b.Signature)
	c, d := *a, *b
	c.Signature, d.Signature = nil, nil
	return sameSignature && c.Kind == d.Kind && c.Stream == d.Stream && c.Epoch == d.Epoch && c.Term == d.Term &&
		c.Publisher == d.Publisher && c.First == d.First && c.Count == d.Count && c.Prev == d.Prev && c.Chain == d.Chain &&
		c.Body == d.Body && c.Position == d.Position && c.Time.Equal(d.Time) && c.KeyID == d.KeyID
}

func FuzzDecodeEntry(f *testing.F) {
	seed(f, ".record", bodies)
	f.Fuzz(func(t *testing.T, b []byte) {
		var e Entry
		if refused(t, DecodeEntry(b, &e)) {
			return
		}
		sameAsGenerated(t, b, entryProto(&e))
		var again Entry
		if err := DecodeEntry(AppendEntry(nil, &e), &again); err != nil {
			t.Fatalf("decode what was encoded: %v", err)
		}
		if !proto.Equal(entryProto(&again), entryProto(&e)) {
			t.Fatalf("got entry %+v, want %+v", &again, &e)
		}
		var h Head
		payload := prefixLength(append([]byte{payloadTag}, b...), 1)
		if rest, err := NextHead(payload, &h); err != nil || len(rest) != 0 || !bytes.Equal(h.Body, b) {
			t.Fatalf("the head of an entry that decodes: %v, %d bytes left", err, len(rest))
		}
	})
}

func FuzzPayload(f *testing.F) {
	seed(f, ".record", payloads(RecordBatch))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := walkPayload(b)
		if errors.Is(err, errHeadDiffers) {
			t.Fatal(err)
		}
		if refused(t, err) {
			return
		}
		sameAsGenerated(t, b, payloadProto(entries))
	})
}

func FuzzDecodeRow(f *testing.F) {
	seed(f, ".row", whole)
	seed(f, ".record", func(b []byte) (rows [][]byte) {
		for _, body := range bodies(b) {
			var e Entry
			if err := DecodeEntry(body, &e); err == nil && e.Row != nil {
				rows = append(rows, e.Row)
			}
		}
		return rows
	})
	f.Fuzz(func(t *testing.T, b []byte) {
		var r, again Row
		if refused(t, DecodeRow(b, &r)) {
			return
		}
		// Lengths have longer forms that say the same, so bytes may differ.
		encoded := AppendRow(nil, r.Version, r.Columns)
		if len(encoded) > len(b) {
			t.Fatalf("%d bytes became %d", len(b), len(encoded))
		}
		if err := DecodeRow(encoded, &again); err != nil || again.Version != r.Version || len(again.Columns) != len(r.Columns) {
			t.Fatalf("got row %+v, %v, want %+v", again, err, r)
		}
		for i := range r.Columns {
			if again.Columns[i].State != r.Columns[i].State || !bytes.Equal(again.Columns[i].Text, r.Columns[i].Text) {
				t.Fatalf("column %d: got %+v, want %+v", i, again.Columns[i], r.Columns[i])
			}
		}
	})
}

func FuzzDecodeSchema(f *testing.F) {
	seed(f, ".record", func(b []byte) (schemas [][]byte) {
		for _, body := range bodies(b) {
			var e Entry
			if err := DecodeEntry(body, &e); err == nil && e.Schema != nil {
				schemas = append(schemas, AppendSchema(nil, e.Schema))
			}
		}
		return schemas
	})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := DecodeSchema(b)
		if refused(t, err) {
			return
		}
		sameAsGenerated(t, b, schemaProto(s))
		again, err := DecodeSchema(AppendSchema(nil, s))
		if err != nil || !again.SameAs(s) || again.Version != s.Version {
			t.Fatalf("got schema %+v, %v, want %+v", again, err, s)
		}
		// What a reader does first with a schema must not fail in other ways.
		if _, err := NewKeyCodec(s); err != nil && !NeedsOperator(err) {
			t.Fatalf("key codec: %v", err)
		}
	})
}

func FuzzDecodePosition(f *testing.F) {
	seed(f, ".position", whole)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := DecodePosition(b)
		if refused(t, err) {
			return
		}
		sameAsGenerated(t, b, positionProto(p))
		if again, err := DecodePosition(AppendPosition(nil, p)); err != nil || again != p {
			t.Fatalf("got position %v, %v, want %v", again, err, p)
		}
	})
}

func FuzzDecodeState(f *testing.F) {
	seed(f, ".record", payloads(RecordState))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := DecodeState(b)
		if refused(t, err) {
			return
		}
		sameAsGenerated(t, b, stateProto(s))
		again, err := DecodeState(AppendState(nil, s))
		if err != nil || !proto.Equal(stateProto(again), stateProto(s)) {
			t.Fatalf("got state %+v, %v, want %+v", again, err, s)
		}
	})
}

func FuzzDecodeCheckpoint(f *testing.F) {
	seed(f, ".checkpoint", whole)
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := DecodeCheckpoint(b)
		if refused(t, err) {
			return
		}
		sameAsGenerated(t, b, checkpointProto(c))
		again, err := DecodeCheckpoint(AppendCheckpoint(nil, c))
		if err != nil || !proto.Equal(checkpointProto(again), checkpointProto(c)) {
			t.Fatalf("got checkpoint %+v, %v, want %+v", again, err, c)
		}
		// A fold can begin at whatever a store holds.
		if got := FoldFrom(c).Checkpoint(); got.Index != c.Index || got.Chain != c.Chain {
			t.Fatalf("the fold begins at %v, want %v", got.Index, c.Index)
		}
	})
}

// FuzzReaderBody holds the body that reads a file against the one in memory:
// over whole entries both give the same runs; otherwise the one that reads a
// file must not end as if the unit had ended.
func FuzzReaderBody(f *testing.F) {
	for _, limit := range []int{-1, 0, 1, 64, 1 << 12} {
		seed(f, ".record", payloads(RecordBatch), limit)
	}
	f.Fuzz(func(t *testing.T, b []byte, limit int) {
		limit = min(limit, 1<<12)
		_, broken := walkSizes(b)
		for _, file := range []Body{
			NewReaderBody(bytes.NewReader(b), nil),
			NewReaderBody(iotest.HalfReader(bytes.NewReader(b)), nil),
		} {
			memory := &memoryBody{rest: b}
			var err error
			for err == nil {
				var got, want []byte
				got, err = file.Next(limit)
				if broken != nil {
					continue
				}
				var wantErr error
				if want, wantErr = memory.Next(limit); !bytes.Equal(got, want) || (err == nil) != (wantErr == nil) {
					t.Fatalf("file gave %x, %v, memory gave %x, %v", got, err, want, wantErr)
				}
			}
			if errors.Is(err, io.EOF) != (broken == nil) {
				t.Fatalf("file ended with %v, entries end with %v", err, broken)
			}
		}
	})
}

// walkSizes counts the entries of a payload by their lengths alone.
func walkSizes(b []byte) (n int, err error) {
	for len(b) > 0 {
		size, err := entrySize(b)
		if err != nil {
			return n, err
		}
		if size > len(b) {
			return n, errShort
		}
		b = b[size:]
		n++
	}
	return n, nil
}
