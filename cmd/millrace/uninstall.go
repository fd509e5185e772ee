package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/control"
	"github.com/millrace-db/millrace/internal/edgestatus"
)

func (a *app) uninstallCommand() *cobra.Command {
	var stream string
	var yes bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove what init and transfer made in the source databases",
		Long: `Remove what init and transfer made in the source databases: publication and replication slot, or triggers and
logs of keys, and the stream's rows in the control schema; with the last stream the control schema itself. Topics
and the data of edges are left: delete them by hand when nothing needs them any more.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, names, err := a.published(stream)
			if err != nil {
				return err
			}
			if !yes {
				return usage("uninstall ends the streams %v for good: what was not carried yet is lost to their edges; say --yes if that is meant", names)
			}
			for _, name := range names {
				if err := a.uninstall(cmd, c, c.Stream(name)); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&stream, "stream", "", "only this stream; all of transfer.streams otherwise")
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	return cmd
}

func (a *app) uninstall(cmd *cobra.Command, c *config.Config, s *config.Stream) error {
	ctx := cmd.Context()
	return withSource(ctx, s.AsOwner(), func(conn *pgx.Conn) error {
		registered, err := control.LoadStream(ctx, conn, s.Name)
		if err != nil && !errors.Is(err, control.ErrNoStream) && !errors.Is(err, control.ErrNotInitialised) {
			return err
		}
		holder, err := control.LookHolder(ctx, conn, s.Name)
		if err != nil && !errors.Is(err, control.ErrNotInitialised) {
			return err
		}
		if holder != nil && holder.Silent < duration(c.Transfer.Lease) {
			return operator("stream %s is being published (server process %d): stop millrace transfer first", s.Name, holder.PID)
		}
		if err := a.dropSlot(ctx, c, s, registered); err != nil {
			return err
		}
		capture, err := newCapture(s.AsOwner(), registered, a.logger(c), nil)
		if err != nil {
			return err
		}
		if err := capture.Uninstall(ctx); err != nil {
			return err
		}
		dropped, err := control.DropStream(ctx, conn, s.Name)
		if err != nil {
			return err
		}
		what := capture.removed() + " removed"
		if dropped {
			what += ", control schema too"
		}
		rest, err := a.dropRoles(ctx, conn, capture, dropped)
		if err != nil {
			return err
		}
		what += rest
		left := s.Kafka.Topic
		if registered.Topic != "" {
			left = registered.Topic
		}
		fmt.Fprintf(a.stdout, "stream %s: %s; topic %s is left, as is %s\n", s.Name, what, left, edgestatus.TopicOf(s.Kafka.Topic))
		return nil
	})
}

// dropRoles drops the roles of capture when the last stream goes that captures in
// that way, and says which are left.
func (a *app) dropRoles(ctx context.Context, conn *pgx.Conn, capture capturing, dropped bool) (string, error) {
	roles, ok := capture.(roled)
	if !ok {
		return "", nil
	}
	if !dropped {
		streams, err := control.ListStreams(ctx, conn)
		if err != nil || slices.ContainsFunc(streams, func(s control.Stream) bool { return s.Capture == control.CaptureTrigger }) {
			return "", err
		}
	}
	left, err := roles.UninstallRoles(ctx)
	if err != nil || len(left) == 0 {
		return "", err
	}
	return fmt.Sprintf("; roles %s are used elsewhere and left", strings.Join(left, ", ")), nil
}

// dropSlot drops the replication slot of a stream that has one, as the role that
// made it, which may be another one than owns the tables.
func (a *app) dropSlot(ctx context.Context, c *config.Config, s *config.Stream, registered control.Stream) error {
	if s.Source.SetupURL == "" {
		return nil // Uninstall drops it
	}
	capture, err := newCapture(s, registered, a.logger(c), nil)
	if err != nil {
		return err
	}
	if slots, ok := capture.(slotted); ok {
		_, err = slots.DropSlot(ctx)
	}
	return err
}
