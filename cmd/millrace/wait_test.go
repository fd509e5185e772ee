package main

import (
	"testing"

	"github.com/millrace-db/millrace/edge/event"
)

func TestWaitFor(t *testing.T) {
	for _, tt := range []struct {
		index string
		epoch uint64
		want  event.ID
		fails bool
	}{
		{"", 0, event.ID{}, false},
		{"", 2, event.ID{Epoch: 2}, false},
		{"4711", 0, event.ID{Index: 4711}, false},
		{"4711", 2, event.ID{Epoch: 2, Index: 4711}, false},
		{"2-4711", 0, event.ID{Epoch: 2, Index: 4711}, false},
		{"2-4711", 2, event.ID{Epoch: 2, Index: 4711}, false},
		{"2-4711", 3, event.ID{}, true},
		{"0-4711", 0, event.ID{}, true},
		{"x", 0, event.ID{}, true},
	} {
		if got, err := waitFor(tt.index, tt.epoch); (err != nil) != tt.fails || err == nil && got != tt.want {
			t.Errorf("--index %q --epoch %d: %v, %v; want %v", tt.index, tt.epoch, got, err, tt.want)
		}
	}
}
