package millrace

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/zeebo/blake3"
)

// TestMidstate holds the hash that can be sent against the library's, over sizes
// around every border of chunks and subtrees, in pieces of any size, and through the
// stored form.
func TestMidstate(t *testing.T) {
	seed := uint64(20261127)
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	data := make([]byte, 70<<10)
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	var sizes []int
	for chunks := range 68 {
		for _, d := range []int{-1, 0, 1, 63, 64, 65, 500} {
			if n := chunks*chunkSize + d; n > 0 {
				sizes = append(sizes, n)
			}
		}
	}
	for _, size := range sizes {
		want := blake3.Sum256(data[:size])
		var s midstate
		for at := 0; at < size; {
			n := min(size-at, 1+r.IntN(3000))
			s.write(data[at : at+n])
			at += n
			if r.IntN(4) == 0 {
				stored := s.append(nil)
				if got, want := s.sum(), blake3.Sum256(data[:at]); got != want {
					t.Fatalf("%d of %d bytes: %x, want %x", at, size, got, want)
				}
				s = midstate{}
				if err := s.decode(stored); err != nil {
					t.Fatalf("%d of %d bytes: %v", at, size, err)
				}
				if again := s.append(nil); !bytes.Equal(stored, again) || len(stored) > maxMidstate {
					t.Fatalf("%d of %d bytes: stored as %x, then as %x", at, size, stored, again)
				}
			}
		}
		if got := s.sum(); got != want {
			t.Fatalf("%d bytes: %x, want %x", size, got, want)
		}
	}
}

func TestMidstateRefuses(t *testing.T) {
	var s midstate
	s.write(make([]byte, 5000))
	good := s.append(nil)
	for name, b := range map[string][]byte{
		"nothing": nil, "cut off": good[:len(good)-1], "more": append(bytes.Clone(good), 0),
		"no bytes": make([]byte, 8), "2^64-1 bytes": bytes.Repeat([]byte{0xff}, 8), "too long": make([]byte, maxMidstate+1),
	} {
		if err := new(midstate).decode(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func BenchmarkMidstate(b *testing.B) {
	data := make([]byte, 1<<20)
	b.SetBytes(int64(len(data)))
	var s midstate
	for b.Loop() {
		s.write(data)
	}
}
