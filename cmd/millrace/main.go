// Command millrace is the whole product in one binary: each file beside this one
// is a command, which joins stages and leaves their work to them.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the build (make build).
var version = "unknown"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	code := run(ctx, &environment{
		args: os.Args[1:], environ: os.Environ(), stdout: os.Stdout, stderr: os.Stderr, stdin: os.Stdin,
	})
	stop()
	os.Exit(code)
}
