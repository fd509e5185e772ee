package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/control"
)

// downgrade takes the control schemas of the streams' sources back to a version, or
// with dry prints how.
func (a *app) downgrade(ctx context.Context, c *config.Config, names []string, to int, dry bool) error {
	for _, name := range names {
		s := c.Stream(name).AsOwner()
		err := withSource(ctx, s, func(conn *pgx.Conn) error {
			if dry {
				applied, err := control.Applied(ctx, conn, to)
				for _, m := range applied {
					fmt.Fprintf(a.stdout, "-- control schema, file down/%s\n%s\n", m.Name, strings.TrimSpace(m.Down))
				}
				return err
			}
			undone, err := control.Downgrade(ctx, conn, to)
			for _, m := range undone {
				fmt.Fprintf(a.stdout, "source of %s, control schema: took back %s\n", name, m.Name)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
