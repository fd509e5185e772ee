package kafkatest

import (
	"context"

	"go.uber.org/goleak"
)

// Leaks returns nil when all goroutines have ended but those that the options ignore, and an
// error that names those which are left when ctx ends. goleak itself waits for half a second,
// which is too little for connections to brokers on a busy machine.
func Leaks(ctx context.Context, options ...goleak.Option) error {
	for {
		if err := goleak.Find(options...); err == nil || ctx.Err() != nil {
			return err
		}
	}
}

// IgnoreFake are the connections of a Fake broker, which end with the test.
func IgnoreFake() []goleak.Option {
	return []goleak.Option{
		goleak.IgnoreAnyFunction("github.com/twmb/franz-go/pkg/kfake.(*clientConn).write"),
		goleak.IgnoreAnyFunction("github.com/twmb/franz-go/pkg/kfake.(*clientConn).read"),
	}
}
