package edge

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
)

// Ranges of keys in both directions, in pages, compared with a sorted list.
func TestScanRange(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	s := openStore(t, t.TempDir())
	f := newFeed(t, s)
	schema := testSchema(1, 1, "k", oidText, "note")
	tf := f.loaded(schema)
	some := func() string {
		n := rng.IntN(6)
		if rng.IntN(4) == 0 {
			n += 470 // some keys are long, and differ within what stays of them
		}
		b := make([]byte, n)
		for i := range b {
			b[i] = "ab\x00"[rng.IntN(2+rng.IntN(2))%3]
		}
		return string(b)
	}
	keys := make(map[string][]byte)
	for range 120 {
		k := some()
		if keys[k] == nil {
			keys[k] = encodeKey(t, schema, k)
			f.must(tf.put(k, "v"))
		}
	}
	err := s.View(context.Background(), func(v *View) error {
		table, err := v.Table("public.k")
		if err != nil {
			return err
		}
		for range 400 {
			var r Range
			bound := func() []byte { return encodeKey(t, schema, some()) }
			switch rng.IntN(4) {
			case 0:
			case 1:
				r.From = bound()
			case 2:
				r.To = bound()
			case 3:
				r.From, r.To = bound(), bound()
			}
			if rng.IntN(3) == 0 {
				if r.Prefix, err = table.Codec().AppendPrefix(nil, [][]byte{[]byte(some())}, true); err != nil {
					return err
				}
			}
			r.Descending = rng.IntN(2) == 0
			var want [][]byte
			for _, k := range keys {
				if bytes.HasPrefix(k, r.Prefix) && bytes.Compare(k, r.From) >= 0 && (len(r.To) == 0 || bytes.Compare(k, r.To) < 0) {
					want = append(want, millrace.StoreKey(nil, k))
				}
			}
			slices.SortFunc(want, bytes.Compare)
			if r.Descending {
				slices.Reverse(want)
			}
			var got [][]byte
			page := 1 + rng.IntN(20)
			for {
				n := 0
				err := table.ScanRange(r, page, func(key []byte, _ *Row) error {
					got = append(got, millrace.StoreKey(nil, key))
					r.After = bytes.Clone(key)
					n++
					return nil
				})
				if err != nil {
					return err
				}
				if n < page {
					break
				}
			}
			if !slices.EqualFunc(got, want, bytes.Equal) {
				t.Fatalf("range %x %x %x descending %v: %d keys, want %d", r.Prefix, r.From, r.To, r.Descending, len(got), len(want))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A range of an empty table has no rows.
func TestScanRangeOfEmptyTable(t *testing.T) {
	s := openStore(t, t.TempDir())
	newFeed(t, s).loaded(testSchema(1, 1, "k", oidText, "note"))
	err := s.View(context.Background(), func(v *View) error {
		table, err := v.Table("public.k")
		if err != nil {
			return err
		}
		for _, r := range []Range{{}, {Descending: true}, {From: []byte("a"), Descending: true}, {To: []byte("b"), Descending: true}} {
			if err := table.ScanRange(r, 0, func([]byte, *Row) error { t.Errorf("%+v has a row", r); return nil }); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A wait on a home goes on at the store that readers have gone over to.
func TestHomeWaitGoesOver(t *testing.T) {
	h := openHome(t, t.TempDir())
	fill(t, h.Store(), 1)
	next := prepare(t, h, 2)
	fill(t, next, 2)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := h.WaitIndex(ctx, h.Place().Index); err != nil {
		t.Errorf("wait for what is there: %v", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- h.WaitIndex(ctx, 1<<40) }()
	switchHome(t, h)
	cancel()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), context.Canceled.Error()) {
		t.Errorf("a wait beside the switch ended with %v, want to be canceled", err)
	}
}
