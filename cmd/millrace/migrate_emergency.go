package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/migrations"
)

func (a *app) migrateEmergency(file *string) *cobra.Command {
	var write, remove, dry, asJSON bool
	cmd := &cobra.Command{
		Use:   "emergency",
		Short: "Have the tables' names at the source lead to the target, for clients that still go there",
		Long: `Have the tables' names at the source lead to the target, for clients that still go there when writers have gone
over. The tables get another name, and under their own stand views of foreign tables of postgres_fdw. rollback is
refused until --remove; the way back is followed meanwhile. millrace migrate status says who uses them.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if write && remove {
				return usage("--write and --remove do not go together")
			}
			m, err := a.migration(*file)
			if err != nil {
				return err
			}
			o := migrations.EmergencyOptions{Writes: write}
			if dry {
				o.Dry = a.stdout
			}
			if remove {
				if err := m.RemoveEmergency(cmd.Context(), o.Dry); err != nil || dry {
					return err
				}
				fmt.Fprintln(a.stdout, "the names lead to the source's own tables")
				return nil
			}
			c, err := config.LoadMigration(*file, a.environ)
			if err != nil {
				return err
			}
			o.URL = c.Emergency.URL.Reveal()
			s, err := m.Emergency(cmd.Context(), o)
			if err != nil || dry {
				return err
			}
			if asJSON {
				return printJSON(a.stdout, s)
			}
			a.printEmergency(s)
			return nil
		},
	}
	cmd.Flags().BoolVar(&write, "write", false, "let clients write there too")
	cmd.Flags().BoolVar(&remove, "remove", false, "have the names lead to the source's own tables again")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "print the statements, and run none")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// printEmergency says what clients have now, and what they have to do without.
func (a *app) printEmergency(s *migrations.EmergencyStatus) {
	for _, t := range s.Tables {
		fmt.Fprintf(a.stdout, "%s leads to the target; the table itself is %s\n", t.Table, t.Aside)
		for _, text := range t.Lacks {
			fmt.Fprintf(a.stdout, "  %s\n", text)
		}
	}
	if s.Writes {
		fmt.Fprint(a.stdout, `rows may be read and written. Not possible there: TRUNCATE, COPY to the table, ON CONFLICT with a key, currval,
INSERT where the target's table has a column GENERATED ALWAYS AS IDENTITY.
A transaction's writes at both servers do not commit as one: if the source fails between the two, only the target has its.
`)
	} else {
		fmt.Fprintln(a.stdout, "rows may be read; writes fail (--write lets them through)")
	}
	for _, u := range s.Uses {
		fmt.Fprintf(a.stdout, "%s %s by role %s, application %s at %s: %d minutes, last %s\n", u.Kind, u.Table, u.Role, quote(u.Application), u.Address, u.Minutes, u.Last.UTC().Format("2006-01-02T15:04:05Z"))
	}
}
