package topic

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/kafkatest"
)

func TestEpochNames(t *testing.T) {
	for epoch, want := range map[millrace.Epoch]string{1: "a.b", 2: "a.b.2", 10: "a.b.10"} {
		if got := EpochName("a.b", epoch); got != want {
			t.Errorf("epoch %v: got %s, want %s", epoch, got, want)
		}
		if got, ok := EpochOf("a.b", want); !ok || got != epoch {
			t.Errorf("%s: got %v, %v", want, got, ok)
		}
	}
	for _, name := range []string{"a", "a.b.", "a.b.1", "a.b.0", "a.b.02", "a.b.+2", "a.b.2.3", "a.b.c", "a.bc.2", "a.b.99999999999999999999"} {
		if got, ok := EpochOf("a.b", name); ok {
			t.Errorf("%s is taken for the topic of epoch %v", name, got)
		}
	}
}

func TestFinder(t *testing.T) {
	both(t, func(t *testing.T, brokers []string) {
		ctx := testContext(t)
		base := kafkatest.Topic(t)
		for _, name := range []string{base, base + ".3", base + ".7", base + ".x", base + ".200"} {
			if err := openConfig(t, Config{Brokers: brokers, Topic: name}).Create(ctx, 1); err != nil {
				t.Fatal(err)
			}
		}
		// Where nobody listens the next broker is asked.
		f, err := NewFinder(Config{Brokers: append([]string{"127.0.0.1:1"}, brokers...), Topic: base})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		after := func(epoch millrace.Epoch, want string) {
			t.Helper()
			if got, err := f.After(ctx, epoch); err != nil || fmt.Sprint(got) != want {
				t.Errorf("after %v: got %v, %v, want %s", epoch, got, err, want)
			}
		}
		after(0, "[1 3 7]")
		after(1, "[3 7]")
		after(3, "[7]")
		after(7, "[]")
		after(150, "[200]")
		f.dialer.cut() // the connection breaks
		after(3, "[7]")
		// Asking for topics has made none.
		if got, err := f.All(ctx); err != nil || fmt.Sprint(got) != "[1 3 7 200]" {
			t.Errorf("all: got %v, %v", got, err)
		}
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := f.After(ended, 1); !errors.Is(err, context.Canceled) {
			t.Errorf("with a context that has ended: %v", err)
		}
		after(3, "[7]")
	})
}
