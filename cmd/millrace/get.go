package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/millrace-db/millrace"
)

func (a *app) getCommand() *cobra.Command {
	var stream string
	cmd := &cobra.Command{
		Use:   "get TABLE KEY…",
		Short: "Print rows by key from this host's edge, as JSON lines",
		Long: `Print rows by key from this host's edge: one JSON object a line, null where there is no such row.
Several keys are read in one snapshot. A key of several columns has their values joined by commas;
a comma or percent sign within a value is written %2C or %25. Exit code 1 if a row is missing.`,
		Example: "  millrace get public.pgbench_accounts 4711\n  millrace get public.line_items 17,3 17,4",
		Args:    minArgs(2, "a table and at least one key"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.load()
			if err != nil {
				return err
			}
			s, err := one(c, stream, c.Edge.Streams)
			if err != nil {
				return err
			}
			return a.get(cmd, edgeClient(c), s.Name, args[0], args[1:])
		},
	}
	cmd.Flags().StringVar(&stream, "stream", "", "stream of the table, where the edge keeps several")
	cmd.Flags().Bool("json", true, "rows are always printed as JSON")
	return cmd
}

// rowKey names a row in a request for several.
type rowKey struct {
	Table string   `json:"table"`
	Key   []string `json:"key"`
}

func (a *app) get(cmd *cobra.Command, edge *httpClient, stream, table string, keys []string) error {
	request := struct {
		Keys []rowKey `json:"keys"`
	}{}
	for _, text := range keys {
		values, err := millrace.ParseKeyPath(text)
		if err != nil {
			return usage("key %s: %v", quote(text), err)
		}
		request.Keys = append(request.Keys, rowKey{table, values})
	}
	body, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("ask for rows: %w", err)
	}
	text, header, err := edge.ask(cmd.Context(), http.MethodPost, streamPath(stream)+"/rows:get", body)
	if err != nil {
		return err
	}
	var answer struct {
		Rows []json.RawMessage `json:"rows"`
	}
	if err := json.Unmarshal(text, &answer); err != nil || len(answer.Rows) != len(keys) {
		return fmt.Errorf("read the answer of %s: %d rows for %d keys: %w", edge.who, len(answer.Rows), len(keys), err)
	}
	missing := ""
	for i, row := range answer.Rows {
		if string(row) == "null" && missing == "" {
			missing = keys[i]
		}
		if err := printLine(a.stdout, row); err != nil {
			return err
		}
	}
	if missing != "" {
		return fmt.Errorf("%s has no row %s at index %s", table, missing, header.Get("X-Millrace-Index"))
	}
	return nil
}

func printLine(w io.Writer, text []byte) error {
	if _, err := w.Write(append(text, '\n')); err != nil {
		return errors.Join(errOutput, err)
	}
	return nil
}

var errOutput = errors.New("cannot write the output")
