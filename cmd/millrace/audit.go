package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/audit"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/control"
	"github.com/millrace-db/millrace/internal/lineage"
	"github.com/millrace-db/millrace/internal/mend"
	"github.com/millrace-db/millrace/internal/topic"
)

// auditPage is how many ticks or rows of the ledger are read at once.
const auditPage = 2000

func (a *app) auditCommand() *cobra.Command {
	var stream string
	var since time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Compare what the source counted, what the topic holds, and what the ledger says",
		Long: `Compare three accounts of a stream: what the source counted by SQL when its changes were read (with capture
trigger, which keeps that for an hour), what the topic holds, and what the ledger says was captured and read back.
The topic is read from the newest state record before --since to the newest row of the ledger. Nothing is changed,
and transfer need not run here. Exit code 1 if the accounts differ.`,
		Example: "  millrace audit\n  millrace audit --since 24h --json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if since <= 0 {
				return usage("--since %v: want a time above 0", since)
			}
			c, names, err := a.published(stream)
			if err != nil {
				return err
			}
			if err := c.NeedKafka(names); err != nil {
				return err
			}
			var all []*audited
			for _, name := range names {
				found, err := a.audit(cmd.Context(), c, c.Stream(name), since)
				if err != nil {
					return mend.Error(name, fmt.Errorf("audit of stream %s: %w", name, err))
				}
				all = append(all, found)
			}
			return a.printAudits(all, asJSON)
		},
	}
	cmd.Flags().StringVar(&stream, "stream", "", "only this stream; all of transfer.streams otherwise")
	cmd.Flags().DurationVar(&since, "since", time.Hour, "compare what was published within this `TIME`, at least")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array, one object a stream")
	return cmd
}

// audited is what an audit of a stream has found.
type audited struct {
	Stream  string         `json:"stream"`
	Epoch   millrace.Epoch `json:"epoch"`
	Capture string         `json:"capture"`
	Equal   bool           `json:"equal"`
	*audit.Report
	// Trimmed tells that the topic was trimmed, so that it is compared from a later place
	// on than was asked for.
	Trimmed bool `json:"trimmed,omitempty"`
	// Names are those of the tables, by their IDs.
	Names map[millrace.TableID]string `json:"names"`
}

func (a *app) audit(ctx context.Context, c *config.Config, s *config.Stream, since time.Duration) (found *audited, err error) {
	err = withSource(ctx, s, func(conn *pgx.Conn) error {
		registered, err := control.LoadStream(ctx, conn, s.Name)
		if err != nil {
			return err
		}
		if err := sameStream(s, registered); err != nil {
			return err
		}
		// The ledger is read first: the topic is never behind it.
		newest, err := control.NewestLedger(ctx, conn, s.Name, registered.Epoch)
		if err != nil {
			return err
		}
		if newest == nil {
			return fmt.Errorf("nothing was published in epoch %v yet: the ledger has no row", registered.Epoch)
		}
		t, err := lineage.OpenTopic(ctx, s, registered.Topic, a.logger(c))
		if err != nil {
			return err
		}
		defer func() { _ = t.Close() }() // nothing is appended
		j := &auditor{conn: conn, stream: registered, topic: t, newest: newest}
		report, err := j.run(ctx, since)
		if err != nil {
			return err
		}
		found = &audited{Stream: s.Name, Epoch: registered.Epoch, Capture: registered.Capture, Equal: report.Equal(), Report: report, Trimmed: j.trimmed, Names: j.names()}
		return nil
	})
	return found, err
}

// auditor reads the accounts of one stream.
type auditor struct {
	conn   *pgx.Conn
	stream control.Stream
	topic  *topic.Topic
	newest *control.LedgerRow
	fold   *millrace.Fold
	// trimmed tells that the topic begins later than was asked for.
	trimmed bool
}

func (j *auditor) run(ctx context.Context, since time.Duration) (*audit.Report, error) {
	info, err := j.topic.Info(ctx)
	if err != nil {
		return nil, err
	}
	if err := sameTopic(j.stream, true, info); err != nil {
		return nil, err
	}
	reader, err := j.begin(ctx, info, since)
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	cfg := audit.Config{Rows: func(ctx context.Context, after millrace.Index) ([]*control.LedgerRow, error) {
		return control.LedgerAfter(ctx, j.conn, j.stream.Name, j.stream.Epoch, after, auditPage)
	}}
	if j.stream.Capture == control.CaptureTrigger {
		cfg.Ticks = func(ctx context.Context, after uint64) ([]control.Tick, error) {
			return control.TicksAfter(ctx, j.conn, j.stream.Name, j.stream.Epoch, after, auditPage)
		}
		cfg.Oldest = func(ctx context.Context) (uint64, error) {
			return control.OldestTick(ctx, j.conn, j.stream.Name, j.stream.Epoch)
		}
	}
	judge := audit.New(cfg, j.fold.Index(), j.fold.Position().Token())
	counter := audit.NewCounter(j.fold)
	for j.fold.Index() < j.newest.Last {
		m, err := reader.Until(ctx, info.End)
		if errors.Is(err, io.EOF) {
			return nil, operator("topic %s ends with index %v, and the ledger knows that it went on to %v: records were lost; mend: bring the topic back as it was, or %s",
				j.topic.Name(), j.fold.Index(), j.newest.Last, mend.EpochCommand(j.stream.Name))
		}
		if err != nil {
			return nil, err
		}
		record, err := millrace.DecodeRecord(m.Value, nil)
		if err == nil {
			err = counter.Step(ctx, record, judge.Unit)
		}
		if err != nil {
			return nil, fmt.Errorf("topic %s, offset %v: %w", j.topic.Name(), m.Offset, err)
		}
	}
	return judge.End(ctx)
}

// begin opens the topic at the newest state record that the ledger attested before
// the time that is asked for, or at the topic's start.
func (j *auditor) begin(ctx context.Context, info topic.Info, since time.Duration) (*topic.Reader, error) {
	row, err := control.LedgerBefore(ctx, j.conn, j.stream.Name, j.stream.Epoch, since, info.Start)
	if err != nil {
		return nil, err
	}
	if row == nil && info.Start > 0 {
		// It was trimmed: what is older than that cannot be read any more.
		if row, err = control.LedgerFrom(ctx, j.conn, j.stream.Name, j.stream.Epoch, info.Start); err != nil {
			return nil, err
		}
		j.trimmed = row != nil
	}
	from := info.Start
	if row != nil {
		from = row.StateOffset
	} else if info.Start > 0 {
		return nil, fmt.Errorf("topic %s begins at offset %v, and no row of the ledger names a place in it to begin at; mend: raise transfer.ledger_keep", j.topic.Name(), info.Start)
	}
	reader, err := j.topic.Read(ctx, from)
	if err != nil {
		return nil, err
	}
	j.fold = millrace.NewFold(j.stream.ID, j.stream.Epoch)
	if row == nil {
		return reader, nil
	}
	m, err := reader.Next(ctx)
	if err == nil {
		var record *millrace.Record
		if record, err = millrace.DecodeRecord(m.Value, nil); err == nil {
			j.fold, err = millrace.FoldFromState(record)
		}
	}
	if err != nil {
		reader.Close()
		return nil, fmt.Errorf("state record at offset %v that the ledger attests: %w", from, err)
	}
	return reader, nil
}

// names are those of the tables at the end of what was read.
func (j *auditor) names() map[millrace.TableID]string {
	names := make(map[millrace.TableID]string)
	for _, s := range j.fold.Catalog().Schemas {
		names[s.Table] = s.Namespace + "." + s.Name // the newest of a table is the last
	}
	return names
}

func (a *app) printAudits(all []*audited, asJSON bool) error {
	var different uint64
	for _, found := range all {
		different += found.Different
	}
	if asJSON {
		encoder := json.NewEncoder(a.stdout)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(all); err != nil {
			return err
		}
	} else {
		for _, found := range all {
			if err := a.printAudit(found); err != nil {
				return err
			}
		}
	}
	if different > 0 {
		return fmt.Errorf("source, topic and ledger differ in %d places; mend: keep the topic and the logs for whoever looks into it, and millrace load the tables that are named", different)
	}
	return nil
}

func (a *app) printAudit(f *audited) error {
	fmt.Fprintf(a.stdout, "stream %s, epoch %v: indexes %v to %v, %d units\n", f.Stream, f.Epoch, f.First, f.Last, f.Units)
	if f.Trimmed {
		fmt.Fprintf(a.stdout, "the topic was trimmed: what is before index %v is not there to be compared\n", f.First)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	logged := f.Capture == control.CaptureTrigger
	if logged {
		fmt.Fprintln(w, "TABLE\tINSERTED\tUPDATED\tDELETED\tTRUNCATED\tKEYS\tPUTS\tDELETES\tTRUNCATES\tLOADED")
	} else {
		fmt.Fprintln(w, "TABLE\tPUTS\tDELETES\tTRUNCATES\tLOADED")
	}
	for i := range f.Tables {
		t := &f.Tables[i]
		name := f.Names[t.ID]
		if name == "" {
			name = t.ID.String()
		}
		fmt.Fprintf(w, "%s\t", plain(name))
		if l := &t.Logged; logged {
			fmt.Fprintf(w, "%d\t%d\t%d\t%d\t%d\t", l.Inserted, l.Updated, l.Deleted, l.Truncated, l.Keys)
		}
		p := &t.Published
		fmt.Fprintf(w, "%d\t%d\t%d\t%d\n", p.Puts, p.Deletes, p.Truncates, p.Loaded)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if logged {
		fmt.Fprintf(a.stdout, "ticks: %d compared", f.Ticks)
		if f.Void > 0 {
			fmt.Fprintf(a.stdout, "; %d of windows that were never published", f.Void)
		}
		if f.Gone > 0 {
			fmt.Fprintf(a.stdout, "; %d not kept any more", f.Gone)
		}
		fmt.Fprintln(a.stdout)
	}
	fmt.Fprintf(a.stdout, "ledger: %d rows compared", f.Rows)
	if f.Unledgered > 0 {
		fmt.Fprintf(a.stdout, "; %d entries in none: their reign ended before it wrote its row", f.Unledgered)
	}
	fmt.Fprintln(a.stdout)
	for _, d := range f.Differences {
		fmt.Fprintf(a.stdout, "differs: %s\n", plain(d))
	}
	if f.Equal {
		fmt.Fprintln(a.stdout, "equal")
	}
	return nil
}
