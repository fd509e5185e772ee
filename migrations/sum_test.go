package migrations

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
)

// TestSum adds up the same rows in both forms, cut anywhere and in any order, and wants
// a sum to tell of a row that is lost, doubled or altered.
func TestSum(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	text := func(rows ...string) []byte {
		var b bytes.Buffer
		for _, r := range rows {
			b.WriteString("1\t" + r + "\tderived\n")
		}
		return b.Bytes()
	}
	tuples := func(rows ...string) []byte {
		b := []byte(binaryHead)
		for _, r := range rows {
			b = append(b, 0, 3, 0, 0, 0, 1, '1', 0, 0, 0, byte(len(r)))
			b = append(b, r...)
			b = append(b, 0xff, 0xff, 0xff, 0xff) // NULL
		}
		return append(b, 0xff, 0xff)
	}
	for _, form := range []struct {
		binary bool
		write  func(rows ...string) []byte
	}{{false, text}, {true, tuples}} {
		add := func(rows ...string) *sum {
			s := &sum{columns: 2, binary: form.binary}
			for b := form.write(rows...); len(b) > 0; {
				n := 1 + random.IntN(len(b))
				if got, err := s.Write(b[:n]); got != n || err != nil {
					t.Fatalf("write: %d, %v, want %d", got, err, n)
				}
				b = b[n:]
			}
			if len(s.part) != 0 {
				t.Fatalf("%d bytes are left", len(s.part))
			}
			return s
		}
		all := add("a", "", "c\n?")
		if form.binary && all.rows != 3 {
			t.Fatalf("got %d rows, want 3", all.rows)
		}
		if !all.same(add("c\n?", "a", "")) {
			t.Error("another order: the sums differ")
		}
		for _, other := range [][]string{{"a", ""}, {"a", "", "c\n?", ""}, {"a", "", "c\n!"}, {"a", "a", "c\n?"}} {
			if all.same(add(other...)) {
				t.Errorf("%q: the sums are the same", other)
			}
		}
		// The rows of several heaps, and what is not hashed.
		s := add("a")
		for _, b := range [][]byte{form.write("", "c\n?"), form.write()} {
			if _, err := s.Write(b); err != nil {
				t.Fatal(err)
			}
		}
		if !s.same(all) {
			t.Error("two heaps: the sums differ")
		}
		s.reset()
		if !s.same(add()) {
			t.Error("reset: rows are left")
		}
	}
	s := &sum{columns: 2, binary: true}
	if _, err := s.Write([]byte("1\tthis is text and no binary form\n")); !errors.Is(err, errForm) {
		t.Errorf("text for binary: got %v", err)
	}
}
