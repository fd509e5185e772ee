package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/millrace-db/millrace/internal/config"
)

const defaultFile = "millrace.yaml"

// environment is what a run of the program has of its surroundings.
type environment struct {
	args           []string
	environ        []string
	stdout, stderr io.Writer
	stdin          io.Reader // may be nil
}

// app is what all commands share.
type app struct {
	*environment
	file string // of the configuration, -c
}

// run runs the program and returns its exit code.
func run(ctx context.Context, env *environment) int {
	a := &app{environment: env}
	root := a.root()
	root.SetArgs(env.args)
	root.SetOut(env.stdout)
	root.SetErr(env.stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	// What ends because it was told to has not failed.
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return exitOK
	}
	printError(env.stderr, err)
	return exitCode(err)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "millrace",
		Short: "Carry committed Postgres rows to local stores on edge hosts, in order and without a gap",
		Long: `millrace carries every committed change of chosen Postgres tables through a Kafka topic to
local stores on edge hosts, in order and without a gap. millrace dev shows all of it on one machine.

Exit codes: 0 done, 1 failed and worth another try, 2 command line or configuration,
3 another publisher reigns, 4 somebody has to act first.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SuggestionsMinimumDistance = 2
	file := defaultFile
	for _, entry := range a.environ {
		if value, ok := strings.CutPrefix(entry, "MILLRACE_CONFIG="); ok {
			file = value
		}
	}
	root.PersistentFlags().StringVarP(&a.file, "config", "c", file, "configuration `FILE`; MILLRACE_CONFIG names another default")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage("%v; see %s --help", err, cmd.CommandPath())
	})
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(
		a.initCommand(), a.uninstallCommand(), a.checkCommand(),
		a.transferCommand(), a.edgeCommand(), a.devCommand(), a.epochCommand(),
		a.statusCommand(), a.getCommand(), a.scanCommand(), a.watchCommand(), a.tailCommand(),
		a.loadCommand(), a.verifyCommand(), a.auditCommand(), a.imageCommand(),
		a.keysCommand(), a.trimCommand(), a.waitCommand(), a.accessCommand(), a.migrateCommand(),
		a.versionCommand(),
	)
	return root
}

// noArgs refuses arguments, as cobra's own does, with the exit code for it.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if !cmd.HasParent() {
		text := "unknown command " + quote(args[0])
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			text += "; did you mean " + quote(near[0]) + "?"
		} else {
			text += "; see millrace --help"
		}
		return usage("%s", text)
	}
	return usage("%s takes no argument, got %s; see %[1]s --help", cmd.CommandPath(), quote(args[0]))
}

func minArgs(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < n {
			return usage("%s needs %s; see %[1]s --help", cmd.CommandPath(), what)
		}
		return nil
	}
}

// exactArgs refuses any other number of arguments: what is passed over in silence was
// meant for something.
func exactArgs(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := minArgs(n, what)(cmd, args); err != nil {
			return err
		}
		if len(args) > n {
			return usage("%s takes %s, got %s; see %[1]s --help", cmd.CommandPath(), what, strings.Join(args, " "))
		}
		return nil
	}
}

// load reads the configuration.
func (a *app) load() (*config.Config, error) { return config.Load(a.file, a.environ) }

// logger makes the logger of a long-running command.
func (a *app) logger(c *config.Config) *slog.Logger { return newLogger(a.stderr, c.Log) }

func newLogger(w io.Writer, c config.Log) *slog.Logger {
	var level slog.Level
	// The configuration has checked the name.
	_ = level.UnmarshalText([]byte(c.Level))
	options := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// published loads the configuration for a command on the publishing side, and
// returns it with the streams that the command is about, which have sources.
func (a *app) published(stream string) (*config.Config, []string, error) {
	c, err := a.load()
	if err != nil {
		return nil, nil, err
	}
	names, err := selected(c, stream, c.Transfer.Streams)
	if err != nil {
		return nil, nil, err
	}
	return c, names, c.NeedSource(names)
}

// streamNames are the names of all streams of a configuration.
func streamNames(c *config.Config) []string {
	var all []string
	for i := range c.Streams {
		all = append(all, c.Streams[i].Name)
	}
	return all
}

// selected returns the streams that the command is about: the one that --stream
// names, or all of candidates.
func selected(c *config.Config, name string, candidates []string) ([]string, error) {
	if name == "" {
		return candidates, nil
	}
	if c.Stream(name) == nil {
		all := streamNames(c)
		return nil, usage("--stream %s: %s has no such stream; it has: %s", name, c.File, strings.Join(all, ", "))
	}
	return []string{name}, nil
}

// one is selected where the command is about exactly one stream.
func one(c *config.Config, name string, candidates []string) (*config.Stream, error) {
	names, err := selected(c, name, candidates)
	if err != nil {
		return nil, err
	}
	if len(names) != 1 {
		return nil, usage("%s has several streams; choose one with --stream: %s", c.File, strings.Join(names, ", "))
	}
	return c.Stream(names[0]), nil
}

// isTerminal reports whether a person looks at w.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && terminal(f)
}
