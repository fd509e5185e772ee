package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/edgestatus"
	"github.com/millrace-db/millrace/transfer/admin"
)

func (a *app) verifyCommand() *cobra.Command {
	var stream string
	var wait, asJSON bool
	var limit time.Duration
	cmd := &cobra.Command{
		Use:   "verify [TABLE…]",
		Short: "Compare the rows of all edges with the source, beside the running stream",
		Long: `Compare the rows of all edges with the source, beside the running stream: transfer sends what the source has
in ranges of keys, and each edge compares what it has stored. TABLE is schema.table; all tables otherwise.

With --wait the results of all edges that report are awaited and printed, those behind relays in one line for each relay
at the top; exit code 1 if any differs or has no result. Without, millrace status shows them as they come. The command goes to this host's transfer, which must be
publishing the stream.`,
		Example: "  millrace verify --wait\n  millrace verify public.accounts",
		Args:    func(_ *cobra.Command, args []string) error { return qualified(args) },
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.commander(stream, asJSON)
			if err != nil {
				return err
			}
			tables, err := c.tablesOf(args)
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if limit > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeoutCause(ctx, limit, errVerifyLimit)
				defer cancel()
			}
			err = c.verify(ctx, tables, wait)
			if err != nil && errors.Is(context.Cause(ctx), errVerifyLimit) {
				return fmt.Errorf("%w within %v: %w", errVerifyLimit, limit, err)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&stream, "stream", "", "the stream, where transfer publishes several")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait for the results of all edges that report, and print them")
	cmd.Flags().DurationVar(&limit, "timeout", 0, "with --wait, give up after this `TIME`; never otherwise")
	return cmd
}

var errVerifyLimit = errors.New("not every edge has a result")

// verify begins passes over the tables and, with wait, awaits their results.
func (c *commander) verify(ctx context.Context, tables []string, wait bool) error {
	if wait {
		// Where results could not be seen nothing is begun.
		if _, err := readEdges(ctx, c.stream, ""); err != nil {
			return fmt.Errorf("what the edges of stream %s report cannot be read: %w", c.stream.Name, err)
		}
	}
	// What was before tells the passes of this command from earlier ones.
	var before []admin.VerifyStatus
	if err := c.send(ctx, http.MethodGet, "/verify", nil, &before); err != nil {
		return err
	}
	var all []admin.VerifyStatus
	if err := c.send(ctx, http.MethodPost, "/verify", admin.VerifyRequest{Tables: tables}, &all); err != nil {
		return err
	}
	if !wait {
		if c.asJSON {
			return c.printJSON(all)
		}
		fmt.Fprintf(c.stdout, "verification of %s begins at the next occasion; millrace status shows the results\n", strings.Join(tables, ", "))
		return nil
	}
	passes, err := c.passes(ctx, tables, before)
	if err != nil {
		return err
	}
	results, err := c.results(ctx, passes)
	if err != nil {
		return err
	}
	return c.printResults(results)
}

// passes waits until a pass over each table, newer than what was before, has
// been published.
func (c *commander) passes(ctx context.Context, tables []string, before []admin.VerifyStatus) ([]admin.VerifyStatus, error) {
	old := make(map[string]uint64)
	for _, v := range before {
		old[v.Table] = max(old[v.Table], v.ID)
	}
	done := make(map[string]admin.VerifyStatus)
	err := poll(ctx, c, "/verify", func(all []admin.VerifyStatus) (bool, error) {
		for _, v := range all {
			if !slices.Contains(tables, v.Table) || v.ID <= old[v.Table] {
				continue
			}
			switch v.Phase {
			case admin.PhaseFailed:
				return true, fmt.Errorf("verification of %s has failed: %s", v.Table, v.Problem)
			case admin.PhaseDone:
				done[v.Table] = v
			}
		}
		return len(done) == len(tables), c.askAgain(ctx, tables, done, all)
	})
	if err != nil {
		return nil, err
	}
	passes := make([]admin.VerifyStatus, 0, len(tables))
	for _, table := range tables {
		passes = append(passes, done[table])
	}
	return passes, nil
}

// askAgain asks once more for the passes that transfer knows nothing of: it has begun to
// publish anew meanwhile, and what the reign before was asked for is forgotten.
func (c *commander) askAgain(ctx context.Context, tables []string, done map[string]admin.VerifyStatus, all []admin.VerifyStatus) error {
	var forgotten []string
	for _, table := range tables {
		_, over := done[table]
		if !over && !slices.ContainsFunc(all, func(v admin.VerifyStatus) bool { return v.Table == table }) {
			forgotten = append(forgotten, table)
		}
	}
	if len(forgotten) == 0 {
		return nil
	}
	var taken []admin.VerifyStatus
	if err := c.send(ctx, http.MethodPost, "/verify", admin.VerifyRequest{Tables: forgotten}, &taken); err != nil && !passing(err) {
		return err
	}
	return nil
}

// verifyResult is what one edge, or those below one, have found in one table.
type verifyResult struct {
	Edge string `json:"edge"`
	// Below tells that it is of so many edges that follow Edge, and not of Edge: Equal is
	// that of the one with the fewest ranges, Different and Skipped count edges.
	Below int    `json:"below,omitempty"`
	Table string `json:"table"`
	// Result is equal, different, skipped (some ranges were, or have no result),
	// or none.
	Result    string         `json:"result"`
	Index     millrace.Index `json:"index"`
	Equal     uint64         `json:"equal"`
	Different uint64         `json:"different"`
	Skipped   uint64         `json:"skipped"`
	Rows      uint64         `json:"rows"`
	// Why says what is not as it should be.
	Why         string                  `json:"why,omitempty"`
	Differences []edgestatus.Difference `json:"differences,omitempty"`
	// reports tells that a result was to be expected of the edge; apart that it is none
	// because it holds less than the table.
	reports, apart bool
}

// The results.
const (
	resultEqual     = "equal"
	resultDifferent = "different"
	resultSkipped   = "skipped"
	resultNone      = "none"
)

// results waits until every edge that reports has compared all ranges of the
// passes.
func (c *commander) results(ctx context.Context, passes []admin.VerifyStatus) ([]verifyResult, error) {
	var last millrace.Index
	for i := range passes {
		last = max(last, passes[i].Index)
	}
	var status []place
	if err := c.admin.get(ctx, "/v1/streams", &status); err != nil {
		return nil, err
	}
	at := slices.IndexFunc(status, func(p place) bool { return p.Stream == c.stream.Name })
	if at < 0 {
		return nil, fmt.Errorf("%s has no stream %s any more", c.admin.who, c.stream.Name)
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	said, read := "", time.Now()
	for {
		edges, err := readEdges(ctx, c.stream, status[at].StreamID)
		if err == nil {
			read = time.Now()
		} else if ctx.Err() == nil && time.Since(read) > commandPatience {
			return nil, err
		}
		late := behindPass(edges, millrace.Epoch(status[at].Epoch), last)
		if err == nil && len(late) == 0 {
			return resultsOf(edges, passes), nil
		}
		if text := strings.Join(late, ", "); text != "" && text != said {
			said = text
			if !c.asJSON {
				fmt.Fprintf(c.stderr, "waiting for the results up to index %v of: %s\n", last, text)
			}
		}
		select {
		case <-ctx.Done():
			if said == "" {
				return nil, err
			}
			return nil, fmt.Errorf("wait for %s: %w", said, ctx.Err())
		case <-tick.C:
		}
	}
}

// behindPass returns the edges that report and have not compared everything up
// to an index.
func behindPass(edges []edgestatus.Edge, epoch millrace.Epoch, last millrace.Index) []string {
	var late []string
	for i := range edges {
		e := &edges[i]
		compared := e.Epoch == epoch && e.Index >= last && (e.Verifying == 0 || e.Verifying > last)
		if !e.Reports() {
			continue
		}
		if !compared {
			late = append(late, plain(e.Edge))
		}
		if b := e.Below; b != nil {
			if n := b.Reporting - b.Verified(epoch, last); n > 0 {
				late = append(late, fmt.Sprintf("%d below %s", n, plain(e.Edge)))
			}
		}
	}
	return late
}

func resultsOf(edges []edgestatus.Edge, passes []admin.VerifyStatus) []verifyResult {
	var all []verifyResult
	for i := range edges {
		for j := range passes {
			all = append(all, resultOf(&edges[i], &passes[j]))
			if b := edges[i].Below; b != nil && b.Edges > 0 {
				all = append(all, resultBelow(&edges[i], &passes[j]))
			}
		}
	}
	return all
}

// resultBelow is what the edges have found that follow another one, and those that follow
// them.
func resultBelow(e *edgestatus.Edge, pass *admin.VerifyStatus) verifyResult {
	b := e.Below
	r := verifyResult{Edge: e.Edge, Below: b.Edges, Table: pass.Table, Result: resultNone, reports: true}
	if !e.Reports() || b.Reporting == 0 {
		r.reports, r.Why = false, "none of them reports"
		return r
	}
	p, ok := b.Pass(pass.Table)
	if !ok || p.ID != pass.ID {
		p = edgestatus.PassSummary{}
	}
	// Who holds less than all of the stream may not hold the table.
	lacking := b.Reporting - b.Partial - (p.Edges - p.Partial)
	if p.Edges > 0 {
		r.Equal = p.Equal
	}
	switch {
	case p.Different > 0:
		r.Result, r.Different = resultDifferent, uint64(p.Different)
		r.Why = fmt.Sprintf("ranges differ at %d of them; mend: millrace load %s", p.Different, pass.Table)
	case lacking > 0:
		r.Why = fmt.Sprintf("%d of %d that report have no result of this pass: they were started again since, or another pass has begun", lacking, b.Reporting)
	case p.Edges == 0:
		r.reports, r.apart, r.Why = false, true, "they hold less than all of the table"
	case p.Skipped > 0:
		r.Result, r.Skipped, r.Why = resultSkipped, uint64(p.Skipped), fmt.Sprintf("%d of them have passed over ranges", p.Skipped)
	case p.Equal < pass.Ranges:
		r.Result, r.Why = resultSkipped, fmt.Sprintf("at some of them %d of %d ranges have no result: they were started again meanwhile", pass.Ranges-p.Equal, pass.Ranges)
	default:
		r.Result = resultEqual
	}
	return r
}

func resultOf(e *edgestatus.Edge, pass *admin.VerifyStatus) verifyResult {
	r := verifyResult{Edge: e.Edge, Table: pass.Table, Result: resultNone}
	if r.reports = e.Reports(); !r.reports {
		r.Why = "the edge is " + plain(edgeState(e))
		return r
	}
	held, any := e.Held(pass.Table)
	if r.reports = any; !any {
		r.apart, r.Why = true, "the edge does not hold the table"
		return r
	}
	at := slices.IndexFunc(e.Verify, func(v edgestatus.TableVerify) bool { return v.Table == pass.Table })
	if at < 0 || e.Verify[at].Pass.ID != pass.ID {
		r.Why = "it has no result of this pass: it was started again since, or another pass has begun"
		if pass.Ranges == 0 {
			r.Why = "the pass had no ranges"
		}
		return r
	}
	v := &e.Verify[at]
	r.Index, r.Equal, r.Different, r.Skipped, r.Rows = v.Pass.To, v.Pass.Equal, v.Pass.Different, v.Pass.Skipped, v.Pass.Rows
	switch {
	case r.Different > 0:
		r.Result = resultDifferent
		for _, d := range v.Differences {
			if d.Index >= v.Pass.From {
				r.Differences = append(r.Differences, d)
			}
		}
		r.Why = "mend: millrace load " + pass.Table
		if len(r.Differences) > 0 {
			r.Why = keyRange(&r.Differences[0]) + ": " + plain(r.Differences[0].Reason) + "; " + r.Why
		}
	case r.Skipped > 0:
		r.Result, r.Why = resultSkipped, plain(v.SkipReason)
		if held.Prefixes > 0 {
			r.reports, r.apart = false, true // most ranges have other keys, too
		}
	case r.Equal < pass.Ranges:
		r.Result, r.Why = resultSkipped, fmt.Sprintf("%d of %d ranges have no result: the edge was started again meanwhile", pass.Ranges-r.Equal, pass.Ranges)
	default:
		r.Result = resultEqual
	}
	return r
}

func (c *commander) printResults(results []verifyResult) error {
	counts, reporting, apart := make(map[string]int), 0, 0
	for i := range results {
		if results[i].apart {
			apart++
		}
		counts[results[i].Result]++
		if results[i].reports {
			reporting++
		}
	}
	if c.asJSON {
		if results == nil {
			results = []verifyResult{}
		}
		if err := c.printJSON(results); err != nil {
			return err
		}
	} else if err := c.printTable(results); err != nil {
		return err
	}
	switch {
	case counts[resultDifferent] > 0:
		return fmt.Errorf("rows at the edges differ from the source's in %d of %d results; mend: millrace load of the tables, which edges answer from meanwhile", counts[resultDifferent], len(results))
	case reporting == 0 && apart == 0:
		return fmt.Errorf("no edge of stream %s reports; see that one runs and may write topic %s", c.stream.Name, edgestatus.TopicOf(c.stream.Kafka.Topic))
	case counts[resultEqual] < reporting:
		return fmt.Errorf("%d of %d results are equal; the others were skipped or are none", counts[resultEqual], reporting)
	}
	return nil
}

func (c *commander) printTable(results []verifyResult) error {
	w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "EDGE\tTABLE\tRESULT\tRANGES\tROWS\tINDEX\t")
	for i := range results {
		r := &results[i]
		edge := plain(r.Edge)
		if r.Below > 0 {
			edge = fmt.Sprintf("%d below %s", r.Below, edge)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d\t%s\n", edge, plain(r.Table), r.Result, r.Equal+r.Different+r.Skipped, r.Rows, r.Index, r.Why)
	}
	return w.Flush()
}
