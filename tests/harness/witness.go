package harness

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-db/millrace"
)

// Witness reads a stream's topic with a client of its own and judges it by a
// rule of its own: which records count, that their indexes are dense, that each
// chain follows from the entries. It builds the rows that an exact reader must
// have. It is used by one goroutine.
type Witness struct {
	client *kgo.Client
	topic  string
	next   int64 // offset of the next record

	stream    millrace.StreamID
	epoch     millrace.Epoch
	term      millrace.Term
	publisher millrace.PublisherID
	chain     millrace.Chain
	token     uint64            // of the newest transaction
	open      []millrace.Record // accepted parts of a unit that has not ended

	// Index and Position are those of the newest complete unit.
	Index    millrace.Index
	Position millrace.Position
	// Units counts complete units, Reigns term records that counted, Stale
	// records of publishers that did not reign, Void entries of units that a
	// new reign cut off, Repeats batches that stand in the topic twice.
	Units, Reigns, Stale, Void, Repeats int
	// Tables are the rows by the tables' qualified names.
	Tables map[string]*WitnessTable

	broken error // the history is wrong; nothing mends that

	byID   map[millrace.TableID]*WitnessTable
	seen   map[millrace.Index]millrace.Chain // chain at the end of each batch, for repeats
	chains map[millrace.Index]millrace.Chain // chain at the end of each unit
}

// WitnessTable is what the entries of a table add up to.
type WitnessTable struct {
	// Schema is the newest.
	Schema *millrace.Schema
	// Rows are encoded rows by encoded key; nil until the first load has ended.
	Rows map[string][]byte
	// Puts counts, by key, how often a row was put since the table's newest
	// LoadBegin that has an end; a row of the load itself counts as 1, whatever was
	// before. An append-only table has 1 everywhere.
	Puts map[string]int

	schemas    map[millrace.SchemaVersion]*millrace.Schema
	shadow     map[string][]byte
	shadowPuts map[string]int
	load       millrace.LoadID
	loaded     uint64 // rows of the load
}

// NewWitness makes a witness of a topic that exists.
func NewWitness(brokers []string, topic string) (*Witness, error) {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(brokers...),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().At(0)}}),
		kgo.FetchMaxPartitionBytes(16<<20), kgo.FetchMaxWait(100*time.Millisecond),
	)
	if err != nil {
		return nil, fmt.Errorf("open witness of topic %s: %w", topic, err)
	}
	w := newWitness()
	w.client, w.topic = client, topic
	return w, nil
}

func newWitness() *Witness {
	return &Witness{
		Tables: map[string]*WitnessTable{}, byID: map[millrace.TableID]*WitnessTable{},
		seen: map[millrace.Index]millrace.Chain{}, chains: map[millrace.Index]millrace.Chain{},
	}
}

// Close ends the witness.
func (w *Witness) Close() { w.client.Close() }

// Chain returns the chain at the end of the unit that ends at index.
func (w *Witness) Chain(index uint64) (millrace.Chain, bool) {
	c, ok := w.chains[millrace.Index(index)]
	return c, ok
}

// Advance reads to what is now the end of the topic.
//
// An error of reading may be gone at the next call; Broken tells one of the
// history, which stays.
func (w *Witness) Advance(ctx context.Context) error {
	if w.broken != nil {
		return w.broken
	}
	return w.each(ctx, func(offset int64, value []byte) error {
		if err := w.step(value); err != nil {
			w.broken = fmt.Errorf("witness of topic %s: offset %d: %w", w.topic, offset, err)
		}
		return w.broken
	})
}

// each gives the records from next to what is now the end of the topic to fn.
func (w *Witness) each(ctx context.Context, fn func(offset int64, value []byte) error) error {
	end, err := w.end(ctx)
	if err != nil {
		return err
	}
	for w.next < end {
		fetches := w.client.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			return fmt.Errorf("read topic %s: %w", w.topic, err)
		}
		for _, fe := range fetches.Errors() {
			return fmt.Errorf("read topic %s: %w", fe.Topic, fe.Err)
		}
		for iter := fetches.RecordIter(); !iter.Done(); {
			r := iter.Next()
			if r.Offset < w.next {
				continue
			}
			if err := fn(r.Offset, r.Value); err != nil {
				return err
			}
			w.next = r.Offset + 1
		}
	}
	return nil
}

// Broken reports whether the witness has found the history wrong.
func (w *Witness) Broken() bool { return w.broken != nil }

// Loaded reports whether the first copy of the tables is complete.
func (w *Witness) Loaded() bool {
	for _, t := range w.Tables {
		if t.Rows == nil {
			return false
		}
	}
	return len(w.Tables) > 0
}

func (w *Witness) end(ctx context.Context) (int64, error) {
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID = -1
	topic := kmsg.NewListOffsetsRequestTopic()
	topic.Topic = w.topic
	partition := kmsg.NewListOffsetsRequestTopicPartition()
	partition.Timestamp = -1 // the end
	topic.Partitions = append(topic.Partitions, partition)
	req.Topics = append(req.Topics, topic)
	resp, err := req.RequestWith(ctx, w.client)
	if err != nil {
		return 0, fmt.Errorf("ask for the end of topic %s: %w", w.topic, err)
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 || resp.Topics[0].Partitions[0].ErrorCode != 0 {
		return 0, fmt.Errorf("ask for the end of topic %s: unexpected answer %+v", w.topic, resp.Topics)
	}
	return resp.Topics[0].Partitions[0].Offset, nil
}

// step judges one record. The rule in full: a term record counts if its term is
// higher than all before; it makes void what the last reign left unfinished. A
// batch counts if it is of the reign. It must then begin at the next index, or
// be the very batch that stands there already.
func (w *Witness) step(value []byte) error {
	r, err := millrace.DecodeRecord(value, nil)
	if err != nil {
		return err
	}
	if w.stream.IsZero() {
		w.stream, w.epoch, w.chain = r.Stream, r.Epoch, millrace.NewChain(r.Stream, r.Epoch)
	}
	if r.Stream != w.stream || r.Epoch != w.epoch {
		return fmt.Errorf("record of stream %v epoch %v in the topic of stream %v epoch %v", r.Stream, r.Epoch, w.stream, w.epoch)
	}
	if r.Kind == millrace.RecordTerm {
		if r.Term <= w.term {
			w.Stale++
			return nil
		}
		w.term, w.publisher = r.Term, r.Publisher
		w.Reigns++
		for i := range w.open {
			w.Void += int(w.open[i].Count)
			delete(w.seen, w.open[i].Last())
		}
		w.open = nil
		return nil
	}
	if r.Term != w.term || r.Publisher != w.publisher {
		if r.Term > w.term {
			return fmt.Errorf("%v record of term %v that has no term record", r.Kind, r.Term)
		}
		w.Stale++
		return nil
	}
	if r.Kind == millrace.RecordState {
		if r.First-1 != w.Index || r.Chain != w.chain || len(w.open) != 0 {
			return fmt.Errorf("state record at index %v with chain %v, the entries give index %v and chain %v", r.First-1, r.Chain, w.Index, w.chain)
		}
		return nil
	}
	return w.batch(r)
}

func (w *Witness) batch(r *millrace.Record) error {
	next := w.Index + 1
	if n := len(w.open); n > 0 {
		next = w.open[n-1].Last() + 1
	}
	if r.First != next {
		if chain, ok := w.seen[r.Last()]; ok && chain == r.Chain {
			w.Repeats++
			return nil
		}
		return fmt.Errorf("batch %v to %v stands where index %v should come", r.First, r.Last(), next)
	}
	if r.Prev != w.chain {
		return fmt.Errorf("batch %v to %v continues chain %v, the entries give %v", r.First, r.Last(), r.Prev, w.chain)
	}
	w.open = append(w.open, *r)
	w.seen[r.Last()] = r.Chain
	var payloads [][]byte
	for i := range w.open {
		payloads = append(payloads, w.open[i].Payload)
	}
	entries, err := parseEntries(payloads)
	if err != nil {
		return fmt.Errorf("batch %v to %v: %w", r.First, r.Last(), err)
	}
	if got, want := millrace.Index(len(entries)), r.Last()-w.Index; got != want {
		return fmt.Errorf("batch %v to %v: there are %v entries since index %v, want %v", r.First, r.Last(), got, w.Index, want)
	}
	return w.units(r, entries)
}

// units takes the whole units off the entries since Index.
func (w *Witness) units(r *millrace.Record, entries []witnessEntry) error {
	for len(entries) > 0 {
		end := slices.IndexFunc(entries, func(e witnessEntry) bool { return e.Last })
		if end < 0 {
			break
		}
		unit := entries[:end+1]
		entries = entries[end+1:]
		// Transactions come in the order of their commits, each once.
		if last := unit[end].End; last.XID != 0 {
			if last.Token <= w.token {
				return fmt.Errorf("transaction %d, committed at %v, comes after one that committed at %v", last.XID, millrace.LSN(last.Token), millrace.LSN(w.token))
			}
			w.token = last.Token
		}
		w.chain = chainAfter(w.chain, unit)
		for i := range unit {
			if unit[i].Ordinal != uint64(i) {
				return fmt.Errorf("entry %v: ordinal %d, want %d", w.Index+millrace.Index(i)+1, unit[i].Ordinal, i)
			}
			if err := w.apply(&unit[i].Entry); err != nil {
				return fmt.Errorf("entry %v: %w", w.Index+millrace.Index(i)+1, err)
			}
		}
		w.Index += millrace.Index(len(unit))
		w.chains[w.Index] = w.chain
		w.Units++
		w.open = nil
	}
	at := w.chain
	if len(entries) > 0 {
		if len(w.open) == 0 {
			return errors.New("part of a unit stands in a batch with other units")
		}
		at = chainAfter(w.chain, entries)
	} else {
		// Windows come in the order of their ticks; loads stay at the tick before.
		if p := r.Position; p.Mode == millrace.ModeTrigger && p.Tick < w.Position.Tick {
			return fmt.Errorf("batch %v to %v is of tick %d, after tick %d", r.First, r.Last(), p.Tick, w.Position.Tick)
		}
		w.Position = r.Position
	}
	if at != r.Chain {
		return fmt.Errorf("batch %v to %v says chain %v, its entries give %v", r.First, r.Last(), r.Chain, at)
	}
	return nil
}

// witnessEntry is an entry and its bytes in payload form.
type witnessEntry struct {
	millrace.Entry
	raw []byte
}

func parseEntries(payloads [][]byte) ([]witnessEntry, error) {
	var entries []witnessEntry
	for _, payload := range payloads {
		for len(payload) > 0 {
			var h millrace.Head
			rest, err := millrace.NextHead(payload, &h)
			if err != nil {
				return nil, err
			}
			e := witnessEntry{raw: h.Raw}
			if err := millrace.DecodeEntry(h.Body, &e.Entry); err != nil {
				return nil, err
			}
			entries = append(entries, e)
			payload = rest
		}
	}
	return entries, nil
}

// apply enters one entry of a complete unit.
func (w *Witness) apply(e *millrace.Entry) error {
	if e.Kind == millrace.KindSchema {
		t := w.byID[e.Table]
		if t == nil {
			t = &WitnessTable{schemas: map[millrace.SchemaVersion]*millrace.Schema{}}
			w.byID[e.Table] = t
		}
		t.Schema, t.schemas[e.Schema.Version] = e.Schema, e.Schema
		w.Tables[e.Schema.QualifiedName()] = t
		return nil
	}
	t := w.byID[e.Table]
	switch e.Kind {
	case millrace.KindHeartbeat, millrace.KindMessage, millrace.KindVerify, millrace.KindQuarantine, millrace.KindLoadProgress:
		return nil
	case millrace.KindDrop:
		if t == nil {
			return fmt.Errorf("%v of table %v that has no schema", e.Kind, e.Table)
		}
		delete(w.byID, e.Table)
		if name := t.Schema.QualifiedName(); w.Tables[name] == t {
			delete(w.Tables, name)
		}
		return nil
	}
	if t == nil {
		return fmt.Errorf("%v of table %v that has no schema", e.Kind, e.Table)
	}
	return t.apply(e)
}

func (t *WitnessTable) apply(e *millrace.Entry) error {
	switch e.Kind {
	case millrace.KindLoadBegin:
		t.load, t.loaded, t.shadow, t.shadowPuts = e.Load, 0, map[string][]byte{}, map[string]int{}
	case millrace.KindLoadEnd:
		if t.load != e.Load {
			return fmt.Errorf("load %v ends, %v is under way", e.Load, t.load)
		}
		// A row may come more than once: it moves from block to block.
		if e.LoadInfo != nil && t.loaded < e.LoadInfo.Rows {
			return fmt.Errorf("load %v brought %d rows and says %d", e.Load, t.loaded, e.LoadInfo.Rows)
		}
		for key, row := range t.shadow {
			if r, err := decodeRow(row); err != nil {
				return err
			} else if lacks(r) {
				return fmt.Errorf("load %v ends without having brought all columns of row %x", e.Load, key)
			}
		}
		t.Rows, t.Puts, t.load, t.shadow, t.shadowPuts = t.shadow, t.shadowPuts, 0, nil, nil
	case millrace.KindTruncate:
		if t.Rows == nil && t.shadow == nil {
			return fmt.Errorf("%v before any load", e.Kind)
		}
		t.each(func(rows map[string][]byte, _ map[string]int) { clear(rows) })
	case millrace.KindDelete:
		t.each(func(rows map[string][]byte, _ map[string]int) { delete(rows, string(e.Key)) })
	case millrace.KindPut:
		return t.put(e)
	}
	return nil
}

// each calls fn for the live rows and for those of a load under way.
func (t *WitnessTable) each(fn func(map[string][]byte, map[string]int)) {
	if t.Rows != nil {
		fn(t.Rows, t.Puts)
	}
	if t.shadow != nil {
		fn(t.shadow, t.shadowPuts)
	}
}

func (t *WitnessTable) put(e *millrace.Entry) error {
	if e.Load != 0 {
		if e.Load != t.load {
			return fmt.Errorf("row of load %v, %v is under way", e.Load, t.load)
		}
		// It is the row as it is here: what the stream has brought of it before is
		// not a second one.
		t.shadow[string(e.Key)] = e.Row
		t.shadowPuts[string(e.Key)] = 1
		t.loaded++
		return nil
	}
	if t.Rows == nil && t.shadow == nil {
		return errors.New("row of a table that was never loaded")
	}
	from := e.Key
	if len(e.From) > 0 {
		from = e.From
	}
	loading := t.shadow != nil
	if t.Rows != nil {
		row, err := t.complete(e.Row, t.Rows[string(from)])
		if err != nil && !loading {
			return err
		}
		// While an altered table is loaded anew its old rows may not have all that
		// is needed; they go with the end of the load.
		if err == nil {
			t.Rows[string(e.Key)] = row
			t.Puts[string(e.Key)]++
		}
	}
	if loading {
		row, err := t.begun(e.Row, t.shadow[string(from)])
		if err != nil {
			return err
		}
		t.shadow[string(e.Key)] = row
		t.shadowPuts[string(e.Key)]++
	}
	return nil
}

// begun completes a row of a load under way; what it cannot is missing until the
// load brings the row.
func (t *WitnessTable) begun(row, base []byte) ([]byte, error) {
	r, err := decodeRow(row)
	if err != nil || !r.HasUnchanged() {
		return row, err
	}
	var b *millrace.Row
	if base != nil {
		if b, err = decodeRow(base); err != nil {
			return nil, err
		}
	}
	for i := range r.Columns {
		if r.Columns[i].State != millrace.ColumnUnchanged {
			continue
		}
		d := millrace.Datum{State: millrace.ColumnMissing}
		if b != nil {
			if j := t.sameColumn(b.Version, r.Version, i); j >= 0 {
				d = b.Columns[j]
			}
		}
		r.Columns[i] = d
	}
	return millrace.AppendRow(nil, r.Version, r.Columns), nil
}

func lacks(r *millrace.Row) bool {
	return slices.ContainsFunc(r.Columns, func(d millrace.Datum) bool { return d.State == millrace.ColumnMissing })
}

// complete fills the unchanged columns of row from base, which may be of another
// schema.
func (t *WitnessTable) complete(row, base []byte) ([]byte, error) {
	r, err := decodeRow(row)
	if err != nil {
		return nil, err
	}
	if !r.HasUnchanged() {
		return row, nil
	}
	if base == nil {
		return nil, errors.New("row with unchanged columns and no row to take them from")
	}
	b, err := decodeRow(base)
	if err != nil {
		return nil, err
	}
	for i := range r.Columns {
		if r.Columns[i].State != millrace.ColumnUnchanged {
			continue
		}
		j := t.sameColumn(b.Version, r.Version, i)
		if j < 0 || b.Columns[j].State == millrace.ColumnMissing {
			return nil, fmt.Errorf("unchanged column %d, which the row it comes from does not have", i+1)
		}
		r.Columns[i] = b.Columns[j]
	}
	return millrace.AppendRow(nil, r.Version, r.Columns), nil
}

// sameColumn returns the place that column i of schema version is has in version
// was, or -1: a column is the same if the catalog numbers it the same.
func (t *WitnessTable) sameColumn(was, is millrace.SchemaVersion, i int) int {
	if was == is {
		return i
	}
	if t.schemas[was] == nil || t.schemas[is] == nil {
		return -1
	}
	column := &t.schemas[is].Columns[i]
	return slices.IndexFunc(t.schemas[was].Columns, func(c millrace.Column) bool {
		if c.Number == 0 {
			return c.Name == column.Name
		}
		return c.Number == column.Number
	})
}

func decodeRow(b []byte) (*millrace.Row, error) {
	var r millrace.Row
	return &r, millrace.DecodeRow(b, &r)
}
