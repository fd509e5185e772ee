package main

import (
	"encoding/json"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"
)

// scanPage is how many rows one request asks for.
const scanPage = 500

func (a *app) scanCommand() *cobra.Command {
	var stream string
	var limit int
	cmd := &cobra.Command{
		Use:   "scan TABLE [PREFIX]",
		Short: "Print rows in key order from this host's edge, as JSON lines",
		Long: `Print rows in key order from this host's edge, one JSON object a line. PREFIX gives leading key
columns, joined by commas; with a trailing * the last one is the start of a text. Long scans are read
in pages, each from the newest snapshot.`,
		Example: "  millrace scan public.line_items 17\n  millrace scan public.customers 'smi*' --limit 10",
		Args:    minArgs(1, "a table"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 2 {
				return usage("%s takes a table and at most one prefix, got %s more", cmd.CommandPath(), quote(args[2]))
			}
			if limit < 0 {
				return usage("--limit %d: want a number from 0", limit)
			}
			c, err := a.load()
			if err != nil {
				return err
			}
			s, err := one(c, stream, c.Edge.Streams)
			if err != nil {
				return err
			}
			prefix := ""
			if len(args) == 2 {
				prefix = args[1]
			}
			return a.scan(cmd, edgeClient(c), s.Name, args[0], prefix, limit)
		},
	}
	cmd.Flags().StringVar(&stream, "stream", "", "stream of the table, where the edge keeps several")
	cmd.Flags().IntVar(&limit, "limit", 0, "print at most this many `ROWS`; 0 for all")
	cmd.Flags().Bool("json", true, "rows are always printed as JSON")
	return cmd
}

func (a *app) scan(cmd *cobra.Command, edge *httpClient, stream, table, prefix string, limit int) error {
	cursor := ""
	for printed := 0; ; {
		page := scanPage
		if limit > 0 {
			page = min(page, limit-printed)
		}
		query := url.Values{"limit": {strconv.Itoa(page)}}
		if prefix != "" {
			query.Set("prefix", prefix)
		}
		if cursor != "" {
			query.Set("cursor", cursor)
		}
		var answer struct {
			Rows   []json.RawMessage `json:"rows"`
			Cursor string            `json:"cursor"`
		}
		if err := edge.get(cmd.Context(), rowsPath(stream, table)+"?"+query.Encode(), &answer); err != nil {
			return err
		}
		for _, row := range answer.Rows {
			if err := printLine(a.stdout, row); err != nil {
				return err
			}
		}
		printed += len(answer.Rows)
		if cursor = answer.Cursor; cursor == "" || limit > 0 && printed >= limit {
			return nil
		}
	}
}
