package main

import (
	"github.com/spf13/cobra"
)

func (a *app) initCommand() *cobra.Command {
	var stream string
	var dry bool
	var downgrade int
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make what streams need at their sources and in Kafka",
		Long: `Make what streams need: the control schema and what captures the tables in the source database (a publication,
or logs of keys with the triggers that write them), the topic in Kafka, and the stream's entry in the registry. What
is there and fits is left as it is, so init can be run again, for instance after a table was added. A replication
slot, where capture needs one, is made by the first transfer.

With --downgrade-to the control schema is taken back to an older version in place of that, for an older millrace.
What a registered stream needs is never taken away: millrace uninstall comes first then.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, names, err := a.published(stream)
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("downgrade-to") {
				return a.downgrade(cmd.Context(), c, names, downgrade, dry)
			}
			if err := c.NeedKafka(names); err != nil {
				return err
			}
			log := a.logger(c)
			for _, name := range names {
				u := &setup{stream: c.Stream(name).AsOwner(), log: log, out: a.stdout, dry: dry}
				if _, err := u.run(cmd.Context()); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&stream, "stream", "", "only this stream; all of transfer.streams otherwise")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "print what would be made, with its SQL, and make nothing")
	cmd.Flags().IntVar(&downgrade, "downgrade-to", 0, "take the control schema back to this `VERSION`; 0 for none at all")
	return cmd
}
