package chunk

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/millrace-db/millrace"
)

func TestParseSnapshot(t *testing.T) {
	for _, text := range []string{"3:3:", "10:20:10,14,19", "4294967300:4294967310:4294967301"} {
		s, err := ParseSnapshot(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.String(); got != text {
			t.Errorf("got %q, want %q", got, text)
		}
	}
	for _, text := range []string{
		"", "1", "1:2", "1:2:3", "0:2:", "2:1:", "1:4:2,", "1:4:,2", "1:4:3,2", "1:4:2,2", "5:9:4", "1:4:x", "-1:4:", "1:2::", "1:18446744073709551616:",
	} {
		if s, err := ParseSnapshot(text); !errors.Is(err, errSnapshot) {
			t.Errorf("parse %q: got %v, %v, want an error", text, s, err)
		}
	}
}

func TestSnapshotSees(t *testing.T) {
	s, err := ParseSnapshot("10:20:10,14")
	if err != nil {
		t.Fatal(err)
	}
	for x, want := range map[XID]bool{3: true, 9: true, 10: false, 11: true, 14: false, 19: true, 20: false, 1 << 40: false} {
		if got := s.Sees(x); got != want {
			t.Errorf("sees %d: got %v, want %v", x, got, want)
		}
	}
}

func TestWiden(t *testing.T) {
	for _, c := range []struct {
		xid  uint32
		near XID
		want XID
	}{
		{700, 710, 700},
		{710, 700, 710},
		{5, 1<<32 + 3, 1<<32 + 5},
		{math.MaxUint32, 1<<32 + 3, 1<<32 - 1},
		{3, 7<<32 + math.MaxUint32, 8<<32 + 3},
	} {
		if got := Widen(c.xid, c.near); got != c.want {
			t.Errorf("widen %d near %d: got %d, want %d", c.xid, c.near, got, c.want)
		}
	}
}

// TestPendingStaysSmall plays a server on which one commit waits for its standby.
func TestPendingStaysSmall(t *testing.T) {
	p := NewPending(Snapshot{Xmin: 100, Xmax: 100})
	for x := uint32(100); x < 10_000; x++ {
		p.Emitted(x)
		if x%100 == 99 {
			p.Show(Snapshot{Xmin: 150, Xmax: XID(x) + 1, Running: []XID{150}})
		}
	}
	if got := p.Len(); got > 100 {
		t.Errorf("%d transactions are pending", got)
	}
	w := p.Open(1 << 20)
	if w.Accept(Snapshot{Xmin: 150, Xmax: 10_000, Running: []XID{150}}) {
		t.Error("a snapshot was accepted that does not see an emitted transaction")
	}
	if !w.Accept(Snapshot{Xmin: 10_000, Xmax: 10_000}) {
		t.Error("a snapshot that sees all was not accepted")
	}
}

// TestLoadOfTableWithoutHeaps: a partitioned table without partitions.
func TestLoadOfTableWithoutHeaps(t *testing.T) {
	l := NewLoad(Limits{})
	p := NewPending(Snapshot{Xmin: 5, Xmax: 5})
	w := l.Open(p)
	if !w.Accept(Snapshot{Xmin: 6, Xmax: 6}) {
		t.Fatal("not accepted")
	}
	l.Match(w, nil)
	c := l.Next(w)
	if c.Leaf != 0 || len(c.Keys) != 0 {
		t.Errorf("got %+v, want nothing to read", c)
	}
	l.Done(w, c)
	if !l.Finished() {
		t.Error("the load is not finished")
	}
	if _, err := Resume(l.Progress(), Limits{}); err != nil {
		t.Error(err)
	}
}

// TestLoadLeaves reads the heaps of a partitioned table one after the other.
func TestLoadLeaves(t *testing.T) {
	l := NewLoad(Limits{Blocks: 10})
	p := NewPending(Snapshot{Xmin: 5, Xmax: 5})
	blocks := map[millrace.TableID]uint32{7: 25, 8: 0, 9: 10}
	leaves := []Leaf{{7, 70}, {8, 80}, {9, 90}}
	var got string
	for !l.Finished() {
		w := l.Open(p)
		if !w.Accept(Snapshot{Xmin: 6, Xmax: 6}) {
			t.Fatal("not accepted")
		}
		l.Match(w, leaves)
		c := l.Next(w)
		c.Bound(blocks[c.Leaf])
		got += fmt.Sprintf("%d:%d-%d ", c.Leaf, c.From, c.To)
		l.Row([]byte{byte(c.Leaf), byte(c.From)})
		l.Done(w, c)
		again, err := Resume(l.Progress(), Limits{Blocks: 10})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again.Progress(), l.Progress()) {
			t.Fatal("a resumed load has another progress")
		}
		l = again
	}
	if want := "7:0-10 7:10-20 7:20-0 8:0-0 9:0-0 "; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if l.Rows() != 5 {
		t.Errorf("got %d rows, want 5", l.Rows())
	}
}

// TestLoadLargeMissing: what does not fit into the bounds makes the pass begin
// anew, never a key be forgotten.
func TestLoadLargeMissing(t *testing.T) {
	l := NewLoad(Limits{Missing: 1000, Progress: 300})
	p := NewPending(Snapshot{Xmin: 5, Xmax: 5})
	w := l.Open(p)
	w.Accept(Snapshot{Xmin: 6, Xmax: 6})
	l.Match(w, []Leaf{{1, 1}})
	c := l.Next(w)
	l.Done(w, c) // a range
	if l.Progress() == nil {
		t.Error("no progress")
	}
	for k := range 3 {
		l.Emitted(Change{Kind: millrace.KindPut, Key: bytes.Repeat([]byte{byte(k)}, 100), Unchanged: true})
	}
	if l.Progress() != nil {
		t.Error("a progress beyond its limit was written down")
	}
	w = l.Open(p)
	l.Emitted(Change{Kind: millrace.KindPut, Key: make([]byte, 2000), Unchanged: true})
	w.Accept(Snapshot{Xmin: 6, Xmax: 6})
	l.Match(w, []Leaf{{1, 1}})
	c = l.Next(w)
	l.Done(w, c)
	if _, _, block := l.Place(); block != 0 {
		t.Error("a chunk whose window opened before the pass began anew counts")
	}
}

// TestLoadAbsent: a key whose row lacks columns, and of which the source has no row
// any more although the stream has not deleted it, is named, so that what lacks
// columns does not stay.
func TestLoadAbsent(t *testing.T) {
	l := NewLoad(Limits{})
	p := NewPending(Snapshot{Xmin: 5, Xmax: 5})
	leaves := []Leaf{{1, 1}}
	read := func(rows ...string) (Chunk, [][]byte) {
		w := l.Open(p)
		w.Accept(Snapshot{Xmin: 6, Xmax: 6})
		l.Match(w, leaves)
		c := l.Next(w)
		c.Bound(1)
		for _, key := range rows {
			l.Row([]byte(key))
		}
		return c, l.Done(w, c)
	}
	for _, key := range []string{"a", "b", "c"} {
		l.Emitted(Change{Kind: millrace.KindPut, Key: []byte(key), Unchanged: true})
	}
	leaves[0].File = 2 // truncated, which the stream does not tell
	if _, absent := read("a"); absent != nil {
		t.Errorf("a range of blocks names %q", absent)
	}
	l.Emitted(Change{Kind: millrace.KindDelete, Key: []byte("b")})
	if c, absent := read(); len(c.Keys) != 1 || len(absent) != 1 || string(absent[0]) != "c" {
		t.Errorf("after a chunk of %q: %q are absent, want c", c.Keys, absent)
	}
	if !l.Finished() {
		t.Error("the load is not finished")
	}
}

func FuzzResume(f *testing.F) {
	l := NewLoad(Limits{})
	f.Add([]byte(nil))
	l.leaves = []Leaf{{5, 6}, {1 << 31, 9}}
	l.block = 77
	l.add([]byte("key"))
	f.Add(l.Progress())
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := Resume(b, Limits{})
		if err != nil {
			return
		}
		again, err := Resume(l.Progress(), Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(l.Progress(), again.Progress()) {
			t.Errorf("progress changes: %x, %x", l.Progress(), again.Progress())
		}
		if !l.Finished() && l.leaves != nil {
			w := l.Open(NewPending(Snapshot{Xmin: 5, Xmax: 5}))
			l.Next(w)
		}
	})
}
