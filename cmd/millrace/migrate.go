package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture/table"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/mend"
	"github.com/millrace-db/millrace/migrations"
)

func (a *app) migrateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Move live tables to another Postgres cluster while they are written to",
		Long: `Move live tables to another Postgres cluster while they are written to. A migration file says which, from where
and to where; both databases keep how far it has come, so every step can be ended at any time and begun again,
from any host. docs/MIGRATIONS.md tells what each step does.

The steps: plan, prepare, copy, follow, verify, rehearse, cutover, (rollback,) finish. run takes several, and emergency
helps clients that were forgotten. abort gives the migration up.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var file string
	cmd.PersistentFlags().StringVarP(&file, "file", "f", "migration.yaml", "migration `FILE`")
	open := func() (*migrations.Migration, error) { return a.migration(file) }
	cmd.AddCommand(
		a.migratePlan(open), a.migratePrepare(open), a.migrateCopy(open), a.migrateFollow(open),
		a.migrateVerify(open), a.migrateRun(open), a.migrateStatus(open), a.migratePause(open, true), a.migratePause(open, false),
		a.migrateAbort(open), a.migrateFinish(open), a.migrateEmergency(&file),
		a.migrateMove(open, "rehearse", "Do all that cutover does but going over, and say how long writers were held", (*migrations.Migration).Rehearse),
		a.migrateMove(open, "cutover", "Have the target take writes in place of the source, within the pause budget", (*migrations.Migration).Cutover),
		a.migrateMove(open, "rollback", "Have the source take writes again", (*migrations.Migration).Rollback),
	)
	return cmd
}

// opening makes the migration of the migration file.
type opening func() (*migrations.Migration, error)

// run is what a command does that has the migration do one thing.
func (open opening) run(do func(context.Context, *migrations.Migration) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		m, err := open()
		if err != nil {
			return err
		}
		return do(cmd.Context(), m)
	}
}

func (a *app) migration(file string) (*migrations.Migration, error) {
	c, err := config.LoadMigration(file, a.environ)
	if err != nil {
		return nil, err
	}
	cfg := migrations.Config{
		Name: c.Name, SourceURL: c.Source.URL.Reveal(), TargetURL: c.Target.URL.Reveal(), Memory: int64(c.Source.Memory), SpoolDir: c.Source.SpoolDir,
		Workers: c.Copy.Workers, Chunk: int64(c.Copy.Chunk), RowsPerSecond: c.Copy.RowsPerSecond, MaxReplicaLag: time.Duration(c.Copy.MaxReplicaLag),
		MaxActive: c.Copy.MaxActive, NoChecksums: c.Copy.Checksums == "off", LeaveForeignKeys: c.Target.ForeignKeys == "leave",
		BatchInterval: time.Duration(c.Follow.BatchInterval), BatchBytes: int64(c.Follow.BatchBytes), PauseBudget: time.Duration(c.PauseBudget), Logger: newLogger(a.stderr, c.Log),
	}
	modes := map[string]millrace.Mode{config.CaptureWAL: millrace.ModeWAL, config.CaptureTrigger: millrace.ModeTrigger}
	cfg.Capture, cfg.TargetCapture = modes[c.Source.Capture], modes[c.Target.Capture]
	for _, t := range c.Tables {
		names, err := table.ParseNames([]string{t.From})
		if err != nil {
			return nil, usage("%s: %v", file, err)
		}
		schema, name, _ := strings.Cut(t.To, ".")
		cfg.Tables = append(cfg.Tables, migrations.Table{
			From: names[0], To: table.Name{Schema: schema, Name: name}, Columns: t.Columns, Expressions: t.Expressions, Omit: t.Omit,
			PartitionBy: t.Partition.By, PartitionCount: t.Partition.Count,
		})
	}
	for _, b := range c.Bouncers {
		cfg.Bouncers = append(cfg.Bouncers, migrations.Bouncer{Admin: b.Admin.Reveal(), Database: b.Database, Source: b.Source, Target: b.Target, File: b.File, Command: b.Command})
	}
	return migrations.New(cfg)
}

func (a *app) migratePlan(open opening) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "Say what blocks the migration, what should be known, and who touches the tables; changes nothing",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := open()
			if err != nil {
				return err
			}
			r, err := m.Plan(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(a.stdout, r)
			} else {
				err = printPlan(a.stdout, r)
			}
			if err == nil && r.Blocked() {
				return operator("the migration is blocked until the problems are mended")
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func printPlan(w io.Writer, r *migrations.Report) error {
	fmt.Fprintf(w, "migration %s: %v\n", r.Name, r.Step)
	for _, f := range r.Findings {
		fmt.Fprintf(w, "%s: %s\n", f.Level, mend.OneLine(f.String()))
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "TABLE\tTO\tROWS\tSIZE\n")
	for _, p := range r.Tables {
		to := p.To
		if p.Make {
			to += " (made by prepare)"
		}
		fmt.Fprintf(t, "%s\t%s\t~%d\t%s\n", p.From, to, p.Rows, megabytes(p.Bytes))
	}
	if len(r.Users) > 0 {
		fmt.Fprintf(t, "\nROLE\tAPPLICATION\tSESSIONS\tLOCKS\tCALLS\n")
	}
	for _, u := range r.Users {
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\n", u.Role, u.Application, u.Sessions, u.Locks, u.Calls)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, b := range r.Bouncers {
		fmt.Fprintf(w, "PgBouncer %s, database %s: pool_mode %s\n", strings.TrimPrefix(b.Version, "PgBouncer "), b.Database, b.PoolMode)
	}
	if len(r.Tables) > 0 {
		fmt.Fprintf(w, "needs about %s at the target; the copy takes about %v (%s)\n", megabytes(r.Bytes), r.Duration(), r.CopyBasis)
	}
	return nil
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

func (a *app) migratePrepare(open opening) *cobra.Command {
	var dry bool
	cmd := &cobra.Command{
		Use:   "prepare",
		Short: "Make what the migration needs at both sides: its state, the target's tables, the publication or the triggers",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := open()
			if err != nil {
				return err
			}
			if dry {
				return m.Prepare(cmd.Context(), a.stdout)
			}
			return m.Prepare(cmd.Context(), nil)
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "print the statements, and run none")
	return cmd
}

func (a *app) migrateCopy(open opening) *cobra.Command {
	var dry bool
	cmd := &cobra.Command{
		Use:   "copy",
		Short: "Copy the rows that are there, in chunks; goes on with those that are left",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := open()
			if err != nil {
				return err
			}
			if dry {
				return a.migrateWould(cmd.Context(), m, migrations.StepCopied)
			}
			return m.Copy(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "say what would be copied, and copy nothing")
	return cmd
}

func (a *app) migrateFollow(open opening) *cobra.Command {
	var dry, converged bool
	cmd := &cobra.Command{
		Use:   "follow",
		Short: "Apply changes as they come, until it is stopped",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := open()
			if err != nil {
				return err
			}
			switch {
			case dry:
				return a.migrateWould(cmd.Context(), m, migrations.StepFollowing)
			case converged:
				return m.Follow(cmd.Context(), migrations.Converged)
			}
			return m.Follow(cmd.Context(), migrations.Forever)
		},
	}
	cmd.Flags().BoolVar(&converged, "until-converged", false, "end when the target is the source at an index")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "say from where on changes would be applied, and apply none")
	return cmd
}

// migrateWould says what a step would do.
func (a *app) migrateWould(ctx context.Context, m *migrations.Migration, step migrations.Step) error {
	s, err := m.Status(ctx)
	if err != nil {
		return err
	}
	run, err := s.Step.Next(step)
	if err != nil {
		return err
	}
	switch {
	case !run && step == migrations.StepCopied:
		fmt.Fprintln(a.stdout, "the copy is done already")
	case step == migrations.StepCopied && s.Copy != nil:
		fmt.Fprintf(a.stdout, "would copy the %d chunks that are left of %d\n", s.Copy.Chunks-s.Copy.ChunksDone, s.Copy.Chunks)
	case step == migrations.StepCopied:
		r, err := m.Plan(ctx)
		if err != nil {
			return err
		}
		fmt.Fprintf(a.stdout, "would have changes kept and copy %d tables of %s, in about %v\n", len(r.Tables), megabytes(r.Bytes), r.Duration())
	case s.Follow != nil:
		behind := megabytes(s.Follow.LagBytes) + " of WAL"
		if s.Follow.LagKeys > 0 {
			behind = fmt.Sprintf("%d logged changes", s.Follow.LagKeys)
		}
		fmt.Fprintf(a.stdout, "would apply changes behind index %s, %s behind the source\n", s.Follow.Index, behind)
	}
	return nil
}

func (a *app) migrateVerify(open opening) *cobra.Command {
	var asJSON, full bool
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Compare all rows of both sides while they are written to; ends with 4 if any differ",
		Long: `Compare all rows of both sides while they are written to; ends with 4 if any differ. Ranges that were equal
before, and that no change has gone into since, are not read again (--full reads all). Killed, it goes on where it was.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := open()
			if err != nil {
				return err
			}
			verify := m.Verify
			if full {
				verify = m.VerifyFull
			}
			c, failed := verify(cmd.Context())
			if c == nil {
				return failed
			}
			if asJSON {
				return errors.Join(printJSON(a.stdout, c), failed)
			}
			fmt.Fprintf(a.stdout, "index %s, chain %s, position %s\n", c.Index, c.Chain, c.Position)
			for _, t := range c.Tables {
				fmt.Fprintf(a.stdout, "%s: %d rows in %d ranges, hash %s, compared at index %s to %s, %d ranges carried forward, %d changed since: ", t.Table, t.Rows, t.Ranges, t.Hash, t.FirstIndex, t.LastIndex, t.Carried, t.Changed)
				if t.Differing == 0 {
					fmt.Fprintln(a.stdout, "equal")
				} else {
					fmt.Fprintf(a.stdout, "%d ranges differ: %s\n", t.Differing, t.Found)
				}
			}
			for _, k := range c.ForeignKeys {
				fmt.Fprintf(a.stdout, "foreign key %s does not hold\n", k)
			}
			return failed
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the certificate as JSON")
	cmd.Flags().BoolVar(&full, "full", false, "read every range, whatever was compared before")
	return cmd
}

func (a *app) migrateRun(open opening) *cobra.Command {
	var until string
	steps := []string{"prepare", "copy", "follow"}
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Take all steps up to one; follow goes on until it is stopped",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			last := slices.Index(steps, until)
			if last < 0 {
				return usage("--until %s: want %s", quote(until), strings.Join(steps, ", "))
			}
			m, err := open()
			if err != nil {
				return err
			}
			for _, step := range []func(context.Context) error{
				func(ctx context.Context) error { return m.Prepare(ctx, nil) },
				m.Copy,
				func(ctx context.Context) error { return m.Follow(ctx, migrations.Forever) },
			}[:last+1] {
				if err := step(cmd.Context()); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&until, "until", "follow", "the last `STEP`: prepare, copy or follow")
	return cmd
}

func (a *app) migrateStatus(open opening) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Say how far the migration has come, as JSON",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := open()
			if err != nil {
				return err
			}
			s, err := m.Status(cmd.Context())
			if err != nil {
				return err
			}
			return printJSON(a.stdout, s)
		},
	}
}

func (a *app) migratePause(open opening, pause bool) *cobra.Command {
	cmd := &cobra.Command{Use: "resume", Short: "Let copy and follow go on"}
	if pause {
		cmd = &cobra.Command{Use: "pause", Short: "Have copy and follow wait, in whichever process they are"}
	}
	cmd.Args = noArgs
	cmd.RunE = open.run(func(ctx context.Context, m *migrations.Migration) error { return m.Pause(ctx, pause) })
	return cmd
}

func (a *app) migrateAbort(open opening) *cobra.Command {
	return &cobra.Command{
		Use:   "abort",
		Short: "Take away slot, publication or triggers, gates and state; the target's tables stay, with what they have",
		Args:  noArgs,
		RunE:  open.run(func(ctx context.Context, m *migrations.Migration) error { return m.Abort(ctx) }),
	}
}

func (a *app) migrateMove(open opening, name, short string, move func(*migrations.Migration, context.Context) (*migrations.Pause, error)) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   name,
		Short: short,
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := open()
			if err != nil {
				return err
			}
			p, err := move(m, cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(a.stdout, p)
			}
			if p.Total > 0 {
				fmt.Fprintf(a.stdout, "writers were held for %v: locked after %v, drained after %v\n", p.Total.Round(time.Microsecond), p.Locked.Round(time.Microsecond), p.Drained.Round(time.Microsecond))
				var steps []string
				for _, one := range p.Steps {
					steps = append(steps, fmt.Sprintf("%s %v", one.Step, one.At.Round(time.Microsecond)))
				}
				fmt.Fprintf(a.stdout, "of that: %s\n", strings.Join(steps, ", "))
			}
			fmt.Fprintf(a.stdout, "the %s takes writes (term %d)\n", p.Active, p.Term)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON; times are in nanoseconds")
	return cmd
}

func (a *app) migrateFinish(open opening) *cobra.Command {
	return &cobra.Command{
		Use:   "finish",
		Short: "Take gates, ways and state away where writers are to stay at the target; no way leads back then",
		Args:  noArgs,
		RunE:  open.run(func(ctx context.Context, m *migrations.Migration) error { return m.Finish(ctx) }),
	}
}
