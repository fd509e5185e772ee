package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/lineage"
	"github.com/millrace-db/millrace/internal/rowjson"
	"github.com/millrace-db/millrace/internal/topic"
)

func (a *app) tailCommand() *cobra.Command {
	var stream string
	var from, epoch uint64
	var follow, all bool
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Print the entries of a topic as JSON lines",
		Long: `Print the entries of a topic as JSON lines, as every reader understands them: the topic is folded from
its start, and --from only says where to begin printing.

An entry whose unit had not ended when its record was read is marked "provisional". If its publisher's reign
ends first, a line of kind "void" names the indexes that are free again. Lines of kind "term" tell of a new
reign. With --all, records that change nothing are told of too, as kind "stale", "repeated" or "state".`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.load()
			if err != nil {
				return err
			}
			var names []string
			for i := range c.Streams {
				names = append(names, c.Streams[i].Name)
			}
			s, err := one(c, stream, names)
			if err != nil {
				return err
			}
			if err := c.NeedKafka([]string{s.Name}); err != nil {
				return err
			}
			if epoch == 0 {
				newest, err := lineage.Newest(cmd.Context(), s, a.logger(c))
				if err != nil {
					return err
				}
				epoch = uint64(newest)
			}
			t, err := lineage.OpenTopic(cmd.Context(), s, topic.EpochName(s.Kafka.Topic, millrace.Epoch(epoch)), a.logger(c))
			if err != nil {
				return err
			}
			defer func() { _ = t.Close() }() // nothing is appended
			out := bufio.NewWriter(a.stdout)
			p := &tailPrinter{out: out, from: millrace.Index(from), all: all, schemas: map[millrace.SchemaVersion]*shown{}}
			p.tell = func(upTo millrace.Index) {
				fmt.Fprintf(a.stderr, "topic %s was trimmed: it begins behind index %v\n", t.Name(), upTo)
			}
			return errors.Join(a.tail(cmd.Context(), s, t, p, follow), out.Flush())
		},
	}
	cmd.Flags().StringVar(&stream, "stream", "", "stream to print, where there are several")
	cmd.Flags().Uint64Var(&epoch, "epoch", 0, "print the topic of this `EPOCH`; the newest that has begun otherwise")
	cmd.Flags().Uint64Var(&from, "from", 1, "print entries from this `INDEX` on")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what is appended")
	cmd.Flags().BoolVar(&all, "all", false, "print records that change nothing too")
	cmd.Flags().Bool("json", true, "entries are always printed as JSON")
	return cmd
}

func (a *app) tail(ctx context.Context, s *config.Stream, t *topic.Topic, p *tailPrinter, follow bool) error {
	info, err := t.Info(ctx)
	if err != nil {
		return err
	}
	reader, err := t.Read(ctx, info.Start)
	if err != nil {
		return err
	}
	defer reader.Close()
	for {
		message, err := nextMessage(ctx, reader, info.End, p, follow)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		record, err := millrace.DecodeRecord(message.Value, nil)
		if err != nil {
			return fmt.Errorf("topic %s, offset %v: %w", t.Name(), message.Offset, err)
		}
		if err := p.record(s, record, message); err != nil {
			return fmt.Errorf("topic %s, offset %v: %w", t.Name(), message.Offset, err)
		}
	}
}

// nextMessage reads the next record. Where it has to be waited for, what was
// printed goes out first.
func nextMessage(ctx context.Context, reader *topic.Reader, end millrace.Offset, p *tailPrinter, follow bool) (topic.Message, error) {
	message, err := reader.Until(ctx, end)
	if !errors.Is(err, io.EOF) || !follow {
		return message, err
	}
	if err := p.out.Flush(); err != nil {
		return message, errors.Join(errOutput, err)
	}
	return reader.Next(ctx)
}

// shown is a schema and how its rows are written.
type shown struct {
	schema *millrace.Schema
	codec  *millrace.KeyCodec
	json   *rowjson.Encoder
}

// tailPrinter folds records and prints their entries.
type tailPrinter struct {
	out  *bufio.Writer
	from millrace.Index
	all  bool
	fold *millrace.Fold
	// tell is called where entries up to an index are not in the topic any more.
	tell func(upTo millrace.Index)

	schemas map[millrace.SchemaVersion]*shown
	tables  map[millrace.TableID]*shown // the newest of each
}

// tailLine is one line of the output.
type tailLine struct {
	Index   millrace.Index `json:"index,omitempty"`
	Kind    string         `json:"kind"`
	Table   string         `json:"table,omitempty"`
	Key     []string       `json:"key,omitempty"`
	FromKey []string       `json:"from_key,omitempty"`
	Row     any            `json:"row,omitempty"`
	// Unchanged names the columns that the source did not send.
	Unchanged []string     `json:"unchanged,omitempty"`
	Load      uint64       `json:"load,omitempty"`
	LoadInfo  *loadLine    `json:"load_info,omitempty"`
	Schema    *schemaLine  `json:"schema,omitempty"`
	Verify    *verifyLine  `json:"verify,omitempty"`
	Message   *messageLine `json:"message,omitempty"`
	Reason    string       `json:"reason,omitempty"`

	// UnitEnd stands on the last entry of a unit, with when it was committed.
	UnitEnd bool   `json:"unit_end,omitempty"`
	Time    string `json:"time,omitempty"`
	XID     uint32 `json:"xid,omitempty"`
	// LSN is that of capture wal, Tick that of capture trigger.
	LSN   string `json:"lsn,omitempty"`
	Tick  uint64 `json:"tick,omitempty"`
	Chain string `json:"chain,omitempty"`
	// SignedBy is the ID of the key that the record of a unit's end, of a term or of a
	// state is signed with; whether that key is trusted is not looked at.
	SignedBy string `json:"signed_by,omitempty"`
	// Provisional stands on the entries of a unit that had not ended.
	Provisional bool `json:"provisional,omitempty"`

	// First and Last are the indexes that a void, stale or repeated line is
	// about.
	First     millrace.Index  `json:"first,omitempty"`
	Last      millrace.Index  `json:"last,omitempty"`
	Term      millrace.Term   `json:"term,omitempty"`
	Publisher string          `json:"publisher,omitempty"`
	Offset    millrace.Offset `json:"offset"`
}

// verifyLine is what the source has in a range; the bounds are in the form of
// URLs, empty where there is none.
type verifyLine struct {
	ID      uint64 `json:"id"`
	Low     string `json:"low"`
	High    string `json:"high"`
	Buckets uint32 `json:"buckets,omitempty"`
	Bucket  uint32 `json:"bucket,omitempty"`
	Rows    uint64 `json:"rows"`
	Hash    string `json:"hash"`
	LeftOut int    `json:"left_out"`
}

func newVerifyLine(table *shown, v *millrace.VerifyRange) *verifyLine {
	bound := func(key []byte) string {
		// A bound need not be a key.
		texts, err := keyTexts(table, key)
		if err != nil || table == nil && len(key) > 0 {
			return fmt.Sprintf("0x%x", key)
		}
		return millrace.FormatKeyPath(texts)
	}
	return &verifyLine{v.ID, bound(v.Low), bound(v.High), v.Buckets, v.Bucket, v.Rows, fmt.Sprintf("%x", v.Hash), len(v.LeftOut)}
}

// loadLine has the notes of a load's progress by their sizes in bytes.
type loadLine struct {
	Reason   string `json:"reason,omitempty"`
	Rows     uint64 `json:"rows"`
	Progress int    `json:"progress_bytes,omitempty"`
	Added    int    `json:"added_bytes,omitempty"`
}

type schemaLine struct {
	Version uint64       `json:"version"`
	Columns []columnLine `json:"columns"`
}

type columnLine struct {
	Name string `json:"name"`
	Type string `json:"type"`
	Key  uint32 `json:"key,omitempty"`
}

type messageLine struct {
	Prefix  string `json:"prefix"`
	Content []byte `json:"content_base64,omitempty"`
}

func (p *tailPrinter) print(line *tailLine) error {
	text, err := json.Marshal(line)
	if err != nil {
		return fmt.Errorf("write entry %v: %w", line.Index, err)
	}
	return printLine(p.out, text)
}

// begin makes the fold from the topic's first record.
func (p *tailPrinter) begin(s *config.Stream, r *millrace.Record) error {
	if err := lineage.Want(s, "the topic", r.Stream); err != nil {
		return err
	}
	p.tables = map[millrace.TableID]*shown{}
	if r.Kind != millrace.RecordState {
		p.fold = millrace.NewFold(r.Stream, r.Epoch)
		return nil
	}
	// A topic that was trimmed begins with an accepted state record.
	fold, err := millrace.FoldFromState(r)
	if err != nil {
		return err
	}
	p.fold = fold
	if p.from <= fold.Index() && p.tell != nil {
		p.tell(fold.Index())
	}
	for _, schema := range fold.Catalog().Schemas {
		if err := p.learn(schema); err != nil {
			return err
		}
	}
	return nil
}

func (p *tailPrinter) record(s *config.Stream, r *millrace.Record, m topic.Message) error {
	if p.fold == nil {
		if err := p.begin(s, r); err != nil {
			return err
		}
	}
	index, next := p.fold.Index(), p.fold.Next()
	outcome, err := p.fold.Step(r)
	if err != nil {
		return err
	}
	line := tailLine{Kind: outcome.String(), SignedBy: signedBy(r), Term: r.Term, Publisher: r.Publisher.String(), Offset: m.Offset}
	switch outcome {
	case millrace.Accepted:
		return p.batch(r, m.Offset)
	case millrace.Reign:
		if next > index+1 {
			void := tailLine{Kind: "void", First: index + 1, Last: next - 1, Term: r.Term, Publisher: r.Publisher.String(), Offset: m.Offset}
			if err := p.print(&void); err != nil {
				return err
			}
		}
		line.Kind, line.Time = "term", timeText(r.Time)
		return p.print(&line)
	case millrace.Noted:
		line.Kind, line.Index, line.Chain = "state", index, r.Chain.String()
	case millrace.Repeated, millrace.Stale:
		if r.Kind == millrace.RecordBatch {
			line.First, line.Last = r.First, r.Last()
		}
	}
	if !p.all {
		return nil
	}
	return p.print(&line)
}

// signedBy is the ID of the key that a record is signed with, if it is.
func signedBy(r *millrace.Record) string {
	if len(r.Signature) == 0 {
		return ""
	}
	return hex.EncodeToString(r.KeyID[:])
}

// batch prints the entries of an accepted batch.
func (p *tailPrinter) batch(r *millrace.Record, offset millrace.Offset) error {
	payload := r.Payload
	var h millrace.Head
	var err error
	for i := r.First; i <= r.Last(); i++ {
		if payload, err = millrace.NextHead(payload, &h); err != nil {
			return err
		}
		var e millrace.Entry
		if err := millrace.DecodeEntry(h.Body, &e); err != nil {
			return err
		}
		if e.Schema != nil {
			if err := p.learn(e.Schema); err != nil {
				return err
			}
		}
		if i < p.from {
			p.forget(&e)
			continue
		}
		line := tailLine{Index: i, Kind: e.Kind.String(), Offset: offset, Provisional: i > p.fold.Index()}
		if err := p.entry(&line, &e); err != nil {
			return fmt.Errorf("entry %v: %w", i, err)
		}
		switch {
		case e.Last && r.Position.Mode == millrace.ModeTrigger:
			line.Tick = e.End.Token
		case e.Last:
			line.LSN = millrace.LSN(e.End.Token).String()
		}
		if e.Last && i == p.fold.Index() {
			line.Chain = p.fold.Chain().String()
		}
		if e.Last {
			line.SignedBy = signedBy(r)
		}
		if err := p.print(&line); err != nil {
			return err
		}
		p.forget(&e)
	}
	return nil
}

// forget lets go of a table that e takes out of the stream.
func (p *tailPrinter) forget(e *millrace.Entry) {
	if e.Kind == millrace.KindDrop {
		delete(p.tables, e.Table)
	}
}

func (p *tailPrinter) learn(schema *millrace.Schema) error {
	codec, err := millrace.NewKeyCodec(schema)
	if err != nil {
		return err
	}
	encoder, err := rowjson.New(schema)
	if err != nil {
		return err
	}
	s := &shown{schema, codec, encoder}
	p.schemas[schema.Version], p.tables[schema.Table] = s, s
	return nil
}

// entry fills the line of an entry.
func (p *tailPrinter) entry(line *tailLine, e *millrace.Entry) (err error) {
	table := p.tables[e.Table]
	if e.Table != 0 {
		line.Table = "table " + e.Table.String()
		if table != nil {
			line.Table = table.schema.QualifiedName()
		}
	}
	if line.Key, err = keyTexts(table, e.Key); err != nil {
		return err
	}
	if line.FromKey, err = keyTexts(table, e.From); err != nil {
		return err
	}
	if len(e.Row) > 0 {
		if line.Row, line.Unchanged, err = p.row(e.Row); err != nil {
			return err
		}
	}
	line.Load = uint64(e.Load)
	if e.LoadInfo != nil {
		line.LoadInfo = &loadLine{e.LoadInfo.Reason, e.LoadInfo.Rows, len(e.LoadInfo.Progress), len(e.LoadInfo.Added)}
	}
	if e.Schema != nil {
		line.Schema = &schemaLine{Version: uint64(e.Schema.Version)}
		for i := range e.Schema.Columns {
			c := &e.Schema.Columns[i]
			line.Schema.Columns = append(line.Schema.Columns, columnLine{c.Name, e.Schema.Type(c.Type).Name, c.KeyOrdinal})
		}
	}
	if e.Verify != nil {
		line.Verify = newVerifyLine(table, e.Verify)
	}
	if e.Message != nil {
		line.Message = &messageLine{e.Message.Prefix, e.Message.Content}
	}
	if e.Quarantine != nil {
		line.Reason = e.Quarantine.Reason
	}
	if e.Last {
		line.UnitEnd, line.Time, line.XID = true, timeText(e.End.Time), e.End.XID
	}
	return nil
}

func keyTexts(table *shown, key []byte) ([]string, error) {
	if len(key) == 0 || table == nil {
		return nil, nil
	}
	texts, err := table.codec.Decode(key, nil)
	if err != nil {
		return nil, err
	}
	values := make([]string, len(texts))
	for i := range texts {
		values[i] = string(texts[i])
	}
	return values, nil
}

// row writes a row as JSON. One that has unchanged columns shows the others as
// their texts, because JSON equal to the source's needs all of them.
func (p *tailPrinter) row(encoded []byte) (shown any, unchanged []string, err error) {
	var row millrace.Row
	if err := millrace.DecodeRow(encoded, &row); err != nil {
		return nil, nil, err
	}
	s := p.schemas[row.Version]
	if s == nil || len(s.schema.Columns) != len(row.Columns) {
		return nil, nil, fmt.Errorf("%w: row of schema version %v, which the topic has not described", millrace.ErrMalformed, row.Version)
	}
	if !row.HasUnchanged() {
		text, err := s.json.AppendRow(nil, &row)
		return json.RawMessage(text), nil, err
	}
	columns := make(map[string]any, len(row.Columns))
	for i := range row.Columns {
		switch d := &row.Columns[i]; d.State {
		case millrace.ColumnValue:
			columns[s.schema.Columns[i].Name] = string(d.Text)
		case millrace.ColumnNull:
			columns[s.schema.Columns[i].Name] = nil
		default:
			unchanged = append(unchanged, s.schema.Columns[i].Name)
		}
	}
	return columns, unchanged, nil
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}
