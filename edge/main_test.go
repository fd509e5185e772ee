package edge

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// childVariable makes the test binary run one of children in place of the tests.
const childVariable = "MILLRACE_EDGE_TEST_CHILD"

var children = map[string]func() error{
	"damage":  damageChild,
	"writer":  writerChild,
	"hold":    holdChild,
	"view":    viewChild,
	"follow":  followChild,
	"pid":     pidChild,
	"full":    fullChild,
	"grow":    growChild,
	"compact": compactChild,
	"succeed": succeedChild,
	"mirror":  mirrorChild,
	"nothing": func() error { return nil },
}

func TestMain(m *testing.M) {
	if name := os.Getenv(childVariable); name != "" {
		if err := children[name](); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}
