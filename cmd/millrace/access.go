package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/millrace-db/millrace/edge/access"
)

func (a *app) accessCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "access",
		Short: "Make the tokens that other hosts show to an edge",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.accessNewCommand())
	return cmd
}

func (a *app) accessNewCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "new NAME RIGHT...",
		Short: "Make a token, and print it and its line for edge.tls.access",
		Long: `Make a token for NAME, and print it and the line for the file that edge.tls.access names. The line holds the token's
hash only; the token is shown once and kept nowhere. Rights are read:STREAM, read:STREAM/SCHEMA.TABLE,
read:STREAM/SCHEMA.*, relay:STREAM, images:STREAM and admin; * stands for all streams.`,
		Example: "  millrace access new billing read:bank/public.accounts\n  millrace access new edge-2 'relay:*' 'images:*'",
		Args:    minArgs(2, "a name and at least one right"),
		RunE: func(_ *cobra.Command, args []string) error {
			token, shown := access.NewToken()
			line := args[0] + " " + shown + " " + strings.Join(args[1:], " ")
			if _, err := access.Parse([]byte(line)); err != nil {
				return usage("%v", err)
			}
			if asJSON {
				return json.NewEncoder(a.stdout).Encode(map[string]string{"name": args[0], "token": token, "line": line})
			}
			fmt.Fprintf(a.stdout, "token  %s\nline   %s\n", token, line)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
