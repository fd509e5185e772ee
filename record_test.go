package millrace

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/golang/snappy"
	"pgregory.net/rapid"
)

func testKey(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
}

// sampleBatch is a batch of one unit with enough in it to be compressed.
func sampleBatch(t testing.TB) (Header, []byte) {
	t.Helper()
	var w UnitWriter
	for i := range 4 {
		row := AppendRow(nil, 1, []Datum{{Text: []byte("1")}, {Text: bytes.Repeat([]byte("water "), 6)}})
		if err := w.Put(16385, []byte{0x80, 0, 0, byte(i)}, nil, row, 0); err != nil {
			t.Fatal(err)
		}
	}
	payload, err := w.Finish(UnitEnd{Time: time.Unix(1700000000, 0), Token: 7, XID: 9})
	if err != nil {
		t.Fatal(err)
	}
	id := StreamID{1, 2, 3}
	return Header{
		Kind: RecordBatch, Stream: id, Epoch: 1, Term: 3, Publisher: PublisherID{4},
		First: 10, Count: 4, Prev: NewChain(id, 1), Chain: NewChain(id, 2),
		Position: Position{Mode: ModeWAL, SystemID: 7, Timeline: 1, Slot: "millrace_bank", LSN: 0x16B374D848},
		Time:     time.UnixMicro(1700000000123456).UTC(),
	}, payload
}

func mustRecord(t testing.TB, h *Header, payload []byte, key ed25519.PrivateKey) []byte {
	t.Helper()
	b, err := AppendRecord(nil, h, payload, key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRecordRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		h := Header{
			Kind:  RecordKind(rapid.IntRange(1, 3).Draw(rt, "kind")),
			Epoch: Epoch(rapid.Uint64Min(1).Draw(rt, "epoch")), Term: Term(rapid.Uint64Min(1).Draw(rt, "term")),
			Time: genTime(rt), Position: genPosition.Draw(rt, "position"),
		}
		genArray(rt, "stream", h.Stream[:])
		genArray(rt, "publisher", h.Publisher[:])
		genArray(rt, "prev", h.Prev[:])
		h.Stream[0], h.Publisher[0], h.Chain = 1, 1, h.Prev
		var payload []byte
		switch h.Kind {
		case RecordState:
			h.First = Index(rapid.Uint64Min(1).Draw(rt, "first"))
			payload = AppendState(nil, genState.Draw(rt, "state"))
		case RecordBatch:
			h.First = Index(rapid.Uint64Range(1, 1<<60).Draw(rt, "first"))
			h.Count = rapid.Uint32Min(1).Draw(rt, "count")
			genArray(rt, "chain", h.Chain[:])
			_, payload = genUnit(rt)
		}
		var key ed25519.PrivateKey
		if rapid.Bool().Draw(rt, "signed") {
			key = testKey(1)
		}
		prefix := []byte("before")
		b, err := AppendRecord(prefix, &h, payload, key)
		if err != nil {
			rt.Fatal(err)
		}
		b, ok := bytes.CutPrefix(b, prefix)
		if !ok {
			rt.Fatal("bytes before the record changed")
		}
		r, err := DecodeRecord(b, make([]byte, 0, rapid.IntRange(0, 300).Draw(rt, "buffer")))
		if err != nil {
			rt.Fatal(err)
		}
		if !bytes.Equal(r.Payload, payload) {
			rt.Fatalf("got payload %x, want %x", r.Payload, payload)
		}
		got := r.Header
		if key != nil {
			if err := r.VerifySignature(key.Public().(ed25519.PublicKey)); err != nil {
				rt.Fatal(err)
			}
			got.KeyID, got.Signature = KeyID{}, nil
		}
		got.Body = [32]byte{}
		if !reflect.DeepEqual(got, h) {
			rt.Fatalf("got header %+v, want %+v", got, h)
		}
	})
}

// TestRecordRefusesEveryFlippedBit holds for every bit of header, signature and
// payload, whether the payload is compressed or not.
func TestRecordRefusesEveryFlippedBit(t *testing.T) {
	h, payload := sampleBatch(t)
	raw := make([]byte, 200)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(raw)
	for name, b := range map[string][]byte{
		"compressed": mustRecord(t, &h, payload, nil),
		"signed":     mustRecord(t, &h, payload, testKey(1)),
		"raw":        mustRecord(t, &h, raw, nil),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := DecodeRecord(b, nil); err != nil {
				t.Fatalf("whole record: %v", err)
			}
			for bit := range 8 * len(b) {
				b[bit/8] ^= 1 << (bit % 8)
				if _, err := DecodeRecord(b, nil); !errors.Is(err, ErrMalformed) {
					t.Errorf("bit %d of byte %d flipped: got error %v, want ErrMalformed", bit%8, bit/8, err)
				}
				b[bit/8] ^= 1 << (bit % 8)
			}
			for n := range b {
				if _, err := DecodeRecord(b[:n:n], nil); !errors.Is(err, ErrMalformed) {
					t.Errorf("cut off at %d bytes: got error %v, want ErrMalformed", n, err)
				}
			}
			if _, err := DecodeRecord(append(b[:len(b):len(b)], 0), nil); !errors.Is(err, ErrMalformed) {
				t.Errorf("a byte more: got error %v, want ErrMalformed", err)
			}
		})
	}
}

// reseal writes a record's CRC anew after its bytes were altered on purpose.
func reseal(b []byte) []byte {
	transport := signedSize + int(binary.BigEndian.Uint16(b[6:]))
	binary.BigEndian.PutUint32(b[transport+12:], recordCRC(b, transport+12))
	return b
}

func TestRecordRefusesWhatItDoesNotKnow(t *testing.T) {
	h, payload := sampleBatch(t)
	state := h
	state.Kind, state.Count, state.Chain = RecordState, 0, state.Prev
	batch := mustRecord(t, &h, payload, nil)
	transport := signedSize + int(binary.BigEndian.Uint16(batch[6:]))
	tests := []struct {
		name   string
		record []byte
		alter  func([]byte)
		want   string
	}{
		{"magic", batch, func(b []byte) { b[0] = 'X' }, "does not begin as one of millrace"},
		{"version", batch, func(b []byte) { b[3] = 2 }, "format version 2"},
		{"kind", batch, func(b []byte) { b[4] = 9 }, "record kind 9"},
		{"reserved byte", batch, func(b []byte) { b[5] = 1 }, "reserved"},
		{"reserved word", batch, func(b []byte) { b[71] = 1 }, "reserved"},
		{"no stream", batch, func(b []byte) { clear(b[8:24]) }, "must be set"},
		{"no term", batch, func(b []byte) { clear(b[32:40]) }, "must be set"},
		{"no publisher", batch, func(b []byte) { clear(b[40:56]) }, "must be set"},
		{"index zero", batch, func(b []byte) { clear(b[56:64]) }, "bad index range"},
		{"no entries", batch, func(b []byte) { clear(b[64:68]) }, "bad index range"},
		{"indexes beyond the last", batch, func(b []byte) { copy(b[56:64], bytes.Repeat([]byte{0xff}, 8)) }, "bad index range"},
		{"body of a batch", batch, func(b []byte) { b[144] = 1 }, "it names a state's payload"},
		{"position", batch, func(b []byte) { b[signedSize+1] = 9 }, "unknown mode 9"},
		{"position field", batch, func(b []byte) { b[signedSize] = 0x78 }, "unknown field 15"},
		{"codec", batch, func(b []byte) { b[transport] = 7 }, "unknown codec 7"},
		{"form", batch, func(b []byte) { b[transport+1] = 2 }, "unknown form 2"},
		{"partial state", mustRecord(t, &state, nil, nil), func(b []byte) { b[transport+1] = 1 }, "unknown form 1"},
		{"signature length", batch, func(b []byte) { b[transport+3] = 1 }, "signature of 1 bytes"},
		{"payload length", batch, func(b []byte) { b[transport+7]++ }, "another length"},
		{"stored length", batch, func(b []byte) { b[transport+11]++ }, "says other lengths"},
		{"beyond the largest payload", batch, func(b []byte) { b[transport+4] = 2 }, "says other lengths"},
		{"compressed bytes", batch, func(b []byte) { clear(b[transport+18:]) }, "decompress"},
		{"other payload of a state", mustRecord(t, &state, AppendState(nil, &State{Catalog: Catalog{LastLoad: 5}}), nil), func(b []byte) { b[len(b)-1]++ }, "not the one of the header"},
		{"state with entries", mustRecord(t, &state, nil, nil), func(b []byte) { b[67] = 1 }, "bad place"},
		{"state between chains", mustRecord(t, &state, nil, nil), func(b []byte) { b[112]++ }, "bad place"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := bytes.Clone(tt.record)
			tt.alter(b)
			_, err := DecodeRecord(reseal(b), nil)
			if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want ErrMalformed with %q", err, tt.want)
			}
		})
	}
}

// TestRecordRefusesBomb holds a few bytes that claim gigabytes, with a header
// that agrees and one that does not, against the memory that reading them takes.
func TestRecordRefusesBomb(t *testing.T) {
	h, payload := sampleBatch(t)
	whole := mustRecord(t, &h, payload, nil)
	transport := signedSize + int(binary.BigEndian.Uint16(whole[6:]))
	for _, claim := range []uint32{1<<32 - 1, MaxPayload + 1, MaxPayload, 5} {
		for _, says := range []uint32{uint32(len(payload)), claim} {
			bomb := binary.AppendUvarint(nil, uint64(claim))
			bomb = append(bomb, 0x00, 'x')
			b := append(bytes.Clone(whole[:transport+transportSize]), bomb...)
			binary.BigEndian.PutUint32(b[transport+4:], says)
			binary.BigEndian.PutUint32(b[transport+8:], uint32(len(bomb)))
			reseal(b)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := DecodeRecord(b, nil)
			runtime.ReadMemStats(&after)
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("claim of %d under a header of %d: got error %v, want ErrMalformed", claim, says, err)
			}
			if got := after.TotalAlloc - before.TotalAlloc; got > 1<<20 {
				t.Errorf("claim of %d under a header of %d: takes %d bytes of memory", claim, says, got)
			}
		}
	}
}

func TestRecordEncodeRefuses(t *testing.T) {
	h, payload := sampleBatch(t)
	tests := []struct {
		name    string
		alter   func(*Header)
		payload []byte
		want    error
	}{
		{"no entries", func(h *Header) { h.Count = 0 }, payload, ErrMalformed},
		{"no term", func(h *Header) { h.Term = 0 }, payload, ErrMalformed},
		{"no stream", func(h *Header) { h.Stream = StreamID{} }, payload, ErrMalformed},
		{"unknown kind", func(h *Header) { h.Kind = 9 }, payload, ErrMalformed},
		{"term with entries", func(h *Header) { h.Kind = RecordTerm }, payload, ErrMalformed},
		{"half a position", func(h *Header) { h.Position.Slot = "" }, payload, ErrMalformed},
		{"long position", func(h *Header) {
			h.Position = Position{Mode: ModeTrigger, SystemID: 1, Snapshot: strings.Repeat("9", 1<<16)}
		}, payload, ErrTooLarge},
		{"large payload", func(*Header) {}, make([]byte, MaxPayload+1), ErrTooLarge},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := h
			tt.alter(&h)
			got, err := AppendRecord([]byte("before"), &h, tt.payload, nil)
			if !errors.Is(err, tt.want) || string(got) != "before" {
				t.Errorf("got %q, error %v, want error %v", got, err, tt.want)
			}
		})
	}
}

// TestRecordSizes holds the largest payload, one that does not compress,
// against the limit that the topic is made with.
func TestRecordSizes(t *testing.T) {
	h, _ := sampleBatch(t)
	h.Position = Position{Mode: ModeTrigger, SystemID: 1, Tick: 1, Snapshot: strings.Repeat("9", 1<<16-64)}
	payload := make([]byte, MaxPayload)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(payload)
	b := mustRecord(t, &h, payload, testKey(1))
	if len(b) > MaxRecord {
		t.Errorf("record has %d bytes, the limit is %d", len(b), MaxRecord)
	}
	r, err := DecodeRecord(b, nil)
	if err != nil || !bytes.Equal(r.Payload, payload) {
		t.Errorf("largest record does not come back: %v", err)
	}
}

func TestRecordSignature(t *testing.T) {
	h, payload := sampleBatch(t)
	key, other := testKey(1), testKey(2)
	decode := func(b []byte) *Record {
		r, err := DecodeRecord(b, nil)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	pub := key.Public().(ed25519.PublicKey)
	if err := decode(mustRecord(t, &h, payload, nil)).VerifySignature(pub); !errors.Is(err, ErrSignature) {
		t.Errorf("unsigned record: got error %v, want ErrSignature", err)
	}
	if err := decode(mustRecord(t, &h, payload, other)).VerifySignature(pub); !errors.Is(err, ErrSignature) {
		t.Errorf("record of another key: got error %v, want ErrSignature", err)
	}
	// A CRC is no obstacle to somebody who alters a record on purpose; every
	// byte of the signed part must be covered by the signature.
	whole := mustRecord(t, &h, payload, key)
	transport := signedSize + int(binary.BigEndian.Uint16(whole[6:]))
	for i := range transport {
		b := bytes.Clone(whole)
		b[i] ^= 0x01
		if i == 6 || i == 7 {
			continue // another length moves everything behind it
		}
		r, err := DecodeRecord(reseal(b), nil)
		if err != nil {
			continue // no record any more
		}
		if err := r.VerifySignature(pub); !errors.Is(err, ErrSignature) {
			t.Errorf("byte %d altered: got error %v, want ErrSignature", i, err)
		}
	}
	// What the transport part holds may change on the way: here the codec.
	r := decode(whole)
	if err := r.VerifySignature(pub); err != nil {
		t.Fatal(err)
	}
	raw := bytes.Clone(whole[:transport+transportSize+signatureSize])
	raw[transport] = byte(CodecNone)
	binary.BigEndian.PutUint32(raw[transport+8:], uint32(len(payload)))
	repacked := decode(reseal(append(raw, payload...)))
	if err := repacked.VerifySignature(pub); err != nil || !bytes.Equal(repacked.Payload, payload) {
		t.Errorf("record that was stored uncompressed on its way: %v", err)
	}
}

func TestRecordCompressesWhereItHelps(t *testing.T) {
	h, _ := sampleBatch(t)
	for _, tt := range []struct {
		name    string
		payload []byte
		want    Codec
	}{
		{"short", bytes.Repeat([]byte{1}, 63), CodecNone},
		{"long and plain", bytes.Repeat([]byte{1}, 64), CodecSnappy},
	} {
		b := mustRecord(t, &h, tt.payload, nil)
		transport := signedSize + int(binary.BigEndian.Uint16(b[6:]))
		if got := Codec(b[transport]); got != tt.want {
			t.Errorf("%s: codec %d, want %d", tt.name, got, tt.want)
		}
	}
	if n := snappy.MaxEncodedLen(MaxPayload); n < 0 {
		t.Errorf("the largest payload cannot be compressed: %d", n)
	}
}
