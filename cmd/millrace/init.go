package main

import (
	"github.com/spf13/cobra"
)

func (a *app) initCommand() *cobra.Command {
	var stream string
	var dry bool
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make what streams need at their sources and in Kafka",
		Long: `Make what streams need: the control schema and what captures the tables in the source database (a publication,
or logs of keys with the triggers that write them), the topic in Kafka, and the stream's entry in the registry. What
is there and fits is left as it is, so init can be run again, for instance after a table was added. A replication
slot, where capture needs one, is made by the first transfer.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, names, err := a.published(stream)
			if err != nil {
				return err
			}
			if err := c.NeedKafka(names); err != nil {
				return err
			}
			log := a.logger(c)
			for _, name := range names {
				u := &setup{stream: asOwner(c.Stream(name)), log: log, out: a.stdout, dry: dry}
				if _, err := u.run(cmd.Context()); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&stream, "stream", "", "only this stream; all of transfer.streams otherwise")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "print what would be made, with its SQL, and make nothing")
	return cmd
}
