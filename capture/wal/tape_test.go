package wal

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
)

// A tape gives back what was written and not cut off, wherever it lies.
func TestTape(t *testing.T) {
	seed := testSeed(t)
	random := rand.New(rand.NewPCG(seed, 1))
	d := testDecoder(t, nil)
	for range 50 {
		var (
			tp    tape
			pool  = blockPool{limit: 3}
			want  [][]byte
			sizes []int64
		)
		for range 40 {
			switch random.IntN(6) {
			case 0:
				if err := tp.spill(&pool, d.spool); err != nil {
					t.Fatal(err)
				}
			case 1:
				if n := len(want); n > 0 {
					n = random.IntN(n)
					if err := tp.truncate(&pool, sizes[n]); err != nil {
						t.Fatal(err)
					}
					want, sizes = want[:n], sizes[:n]
				}
			default:
				b := bytes.Repeat([]byte{byte(random.Uint32())}, random.IntN([]int{10, 1000, blockSize, 3 * gulpSize}[random.IntN(4)]))
				sizes = append(sizes, tp.size)
				want = append(want, append([]byte{'I'}, b...))
				tp.append(&pool, 'I', b)
			}
		}
		var got [][]byte
		if err := tp.play(func(kind byte, rest []byte) error {
			got = append(got, append([]byte{kind}, rest...))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if !slices.EqualFunc(got, want, bytes.Equal) {
			t.Fatalf("%d messages came back, want %d, or others", len(got), len(want))
		}
		if err := tp.release(&pool); err != nil {
			t.Fatal(err)
		}
		if pool.used != 0 || len(pool.spare) > pool.limit {
			t.Fatalf("pool: %d blocks used, %d spare", pool.used, len(pool.spare))
		}
	}
	if left, err := os.ReadDir(d.spool.dir); err != nil || len(left) != 0 {
		t.Errorf("files are left: %v, %v", left, err)
	}
}

func TestSubtransactions(t *testing.T) {
	const top = 0xFFFFFFFE // what comes after it goes round
	var s subtransactions
	s.add(top+1, 10)
	s.add(7, 30)
	s.add(7, 40)
	s.add(5, 50) // begun before 7, which it holds
	s.add(9, 60)
	if got, want := fmt.Sprint(s), fmt.Sprint(subtransactions{{top + 1, 10}, {5, 30}, {7, 30}, {9, 60}}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if _, ok := s.cut(6); ok {
		t.Error("one that is not there was cut")
	}
	if at, ok := s.cut(7); at != 30 || !ok || len(s) != 2 {
		t.Errorf("cut at %d, %v, left %v", at, ok, s)
	}
	if at, ok := s.cut(5); at != 30 || !ok || len(s) != 1 {
		t.Errorf("cut at %d, %v, left %v", at, ok, s)
	}
}
