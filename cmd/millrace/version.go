package main

import (
	"encoding/json"
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/millrace-db/millrace/internal/control"
)

func (a *app) versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this binary",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			migrations, err := control.Migrations()
			if err != nil {
				return err
			}
			about := struct {
				Version       string `json:"version"`
				Go            string `json:"go"`
				Platform      string `json:"platform"`
				ControlSchema int    `json:"control_schema"`
			}{version, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH, len(migrations)}
			if asJSON {
				return json.NewEncoder(a.stdout).Encode(about)
			}
			_, err = fmt.Fprintf(a.stdout, "millrace %s (%s, %s, control schema %d)\n", about.Version, about.Go, about.Platform, about.ControlSchema)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
