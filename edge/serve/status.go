package serve

import (
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
)

// Status says how far a stream has come at an edge.
type Status struct {
	Stream   string         `json:"stream"`
	StreamID string         `json:"stream_id"`
	Epoch    millrace.Epoch `json:"epoch"`
	// Index is that of the newest unit that readers see, Chain the chain there
	// in hexadecimal, Term the term that published it.
	Index millrace.Index `json:"index"`
	Chain string         `json:"chain"`
	Term  millrace.Term  `json:"term"`
	// LagSeconds is the age of the newest unit by the clocks of source and edge;
	// null before the first.
	LagSeconds *float64 `json:"lag_seconds"`
	// Time is when the newest unit was committed at the source.
	Time *time.Time `json:"time"`
	// Token is the comparable part of the Position of the newest unit: what was
	// committed at the source up to there is here.
	Token uint64 `json:"token"`
	// Offset is that of the newest record of the topic taken in; null if none.
	Offset *millrace.Offset `json:"offset"`
	// Holds says what is held of the stream; null where that is everything.
	Holds []HeldTable `json:"holds,omitempty"`
	// Tables are those that readers see.
	Tables []TableStatus `json:"tables"`
	// Loading are the tables of which a load is under way.
	Loading []string `json:"loading,omitempty"`
	// Verify says of which tables Verify entries have come, and what became of
	// them; Verifying is the index of the oldest that are not compared yet, 0 if
	// there are none.
	Verify    []edge.TableVerify `json:"verify"`
	Verifying millrace.Index     `json:"verifying"`
	// Unproven are rows that came with an image and were not compared with the source
	// since; null if there are none.
	Unproven *UnprovenStatus `json:"unproven,omitempty"`
	// Bootstrap says how far the taking of an image is, or how the last one ended.
	Bootstrap *Bootstrap `json:"bootstrap,omitempty"`
	// Space is the room that the store takes and has.
	Space SpaceStatus `json:"space"`
	// Log is the edge's own log of the stream, if it keeps one.
	Log *LogStatus `json:"log,omitempty"`
	// Upstream is the edge that is followed, if it is not Kafka; Children are those
	// that follow this one.
	Upstream *UpstreamStatus `json:"upstream,omitempty"`
	Children []ChildStatus   `json:"children,omitempty"`
	// Fault says what keeps the stream from going on.
	Fault string `json:"fault,omitempty"`
	// Next is a newer epoch that is being copied while this one is read.
	Next *NextStatus `json:"next,omitempty"`
}

// HeldTable is a table that a partial edge holds.
type HeldTable struct {
	Table string `json:"table"`
	// Prefixes are the leading values of the keys that are held, in the form of keys in
	// URLs; null where all keys are.
	Prefixes []string `json:"prefixes,omitempty"`
}

func heldTables(f *millrace.Filter) (all []HeldTable) {
	for _, t := range f.Tables {
		h := HeldTable{Table: t.Name}
		for _, p := range t.Prefixes {
			h.Prefixes = append(h.Prefixes, millrace.FormatKeyPath(p))
		}
		all = append(all, h)
	}
	return all
}

// SpaceStatus says how much room a store takes and has.
type SpaceStatus struct {
	FileBytes int64 `json:"file_bytes"`
	MapBytes  int64 `json:"map_bytes"`
	DiskFree  int64 `json:"disk_free_bytes"`
	// Growth is in bytes a second; FullInSeconds is when there is no more room at
	// that rate, null if the file does not grow.
	Growth        float64  `json:"growth_bytes_per_second"`
	FullInSeconds *float64 `json:"full_in_seconds"`
	// Alarm says what is wrong and what mends it.
	Alarm string `json:"alarm,omitempty"`
}

func spaceStatus(s edge.Space) SpaceStatus {
	st := SpaceStatus{FileBytes: s.File, MapBytes: s.Map, DiskFree: s.Disk, Growth: s.Growth, Alarm: s.Alarm}
	if s.FullIn > 0 {
		seconds := s.FullIn.Seconds()
		st.FullInSeconds = &seconds
	}
	return st
}

// LogStatus says what an edge's own log holds, which other edges may follow.
type LogStatus struct {
	// Oldest and Newest are the first and last index; 0 if it holds none.
	Oldest millrace.Index `json:"oldest"`
	Newest millrace.Index `json:"newest"`
	Bytes  int64          `json:"bytes"`
	// Fault says why it cannot be written, which does not keep the stream from going
	// on here.
	Fault string `json:"fault,omitempty"`
}

// NextStatus says how far the copy of a newer epoch is.
type NextStatus struct {
	Epoch millrace.Epoch `json:"epoch"`
	Index millrace.Index `json:"index"`
}

// TableStatus says what an edge has of a table.
type TableStatus struct {
	Name     string           `json:"name"`
	ID       millrace.TableID `json:"id"`
	Rows     uint64           `json:"rows"`
	Loading  bool             `json:"loading,omitempty"`
	Diverged string           `json:"diverged,omitempty"`
	Indexes  []IndexStatus    `json:"indexes,omitempty"`
}

// IndexStatus says what an edge has of an index.
type IndexStatus struct {
	Columns []string `json:"columns"`
	// State is whole, building (Covered is the key up to which it has come),
	// waiting to be made, or refused (Reason says why).
	State   string `json:"state"`
	Covered string `json:"covered,omitempty"`
	Reason  string `json:"reason,omitempty"`
}

func indexStatus(all []edge.IndexInfo) []IndexStatus {
	var list []IndexStatus
	for i := range all {
		ix := &all[i]
		s := IndexStatus{Columns: ix.Columns, State: "waiting", Covered: ix.Covered}
		switch {
		case ix.Whole:
			s.State = "whole"
		case ix.Refused != "":
			s.State, s.Reason = "refused", ix.Refused
		case ix.Building:
			s.State = "building"
		}
		list = append(list, s)
	}
	return list
}

// TableDescription is a TableStatus with the table's columns.
type TableDescription struct {
	TableStatus
	Version millrace.SchemaVersion `json:"schema_version"`
	// Key are the names of the key's columns, in its order.
	Key     []string            `json:"key"`
	Columns []ColumnDescription `json:"columns"`
}

// ColumnDescription describes a column.
type ColumnDescription struct {
	Name    string `json:"name"`
	Type    string `json:"type"`
	NotNull bool   `json:"not_null"`
}

func (s *Server) readStatus(st *stream, v *edge.View, now time.Time) (*Status, error) {
	checkpoint, err := v.Checkpoint()
	if err != nil {
		return nil, err
	}
	status := &Status{Stream: st.name, Tables: []TableStatus{}}
	if id := st.store.Stream(); !id.IsZero() {
		status.StreamID = id.String()
	}
	if checkpoint != nil {
		status.StreamID = checkpoint.Stream.String()
		status.Epoch, status.Index, status.Term = checkpoint.Epoch, checkpoint.Index, checkpoint.Term
		status.Chain = checkpoint.Chain.String()
		status.Token = checkpoint.Position.Token()
		if checkpoint.Offset != millrace.NoOffset {
			status.Offset = &checkpoint.Offset
		}
		if newest := v.Time(); !newest.IsZero() {
			newest = newest.UTC()
			status.Time = &newest
			status.LagSeconds = lagSeconds(newest, now)
		}
		for _, load := range checkpoint.Catalog.Loads {
			schema := checkpoint.Catalog.Schema(load.Table)
			if schema == nil {
				continue
			}
			if _, held := v.Filter().Table(schema.QualifiedName()); held {
				status.Loading = append(status.Loading, schema.QualifiedName())
			}
		}
	}
	status.Holds = heldTables(v.Filter())
	infos, err := v.Tables()
	if err != nil {
		return nil, err
	}
	for i := range infos {
		status.Tables = append(status.Tables, tableStatus(&infos[i]))
	}
	status.Verify, status.Verifying = st.store.Verified(), st.store.Verifying()
	status.Unproven = unprovenStatus(st.store.Unproven(), infos)
	if s.config.Bootstrap != nil {
		status.Bootstrap = s.config.Bootstrap(st.name)
	}
	status.Space = spaceStatus(st.store.Space())
	if s.config.Log != nil {
		status.Log = s.config.Log(st.name)
	}
	if s.config.Relays != nil {
		status.Upstream, status.Children = s.config.Relays.Upstream(st.name), s.config.Relays.Children(st.name)
	}
	if s.config.Fault != nil {
		if err := s.config.Fault(st.name); err != nil {
			status.Fault = err.Error()
		}
	}
	if s.config.Next != nil {
		if epoch, place := s.config.Next(st.name); epoch != 0 {
			status.Next = &NextStatus{Epoch: epoch, Index: place.Index}
		}
	}
	return status, nil
}

func tableStatus(t *edge.TableInfo) TableStatus {
	return TableStatus{Name: t.Name, ID: t.ID, Rows: t.Rows, Loading: t.Loading, Diverged: t.Diverged, Indexes: indexStatus(t.Indexes)}
}

// status answers how far the stream is.
func (q *request) status() error {
	var status *Status
	err := q.stream.store.View(q.r.Context(), func(v *edge.View) (err error) {
		q.at(v)
		status, err = q.s.readStatus(q.stream, v, q.now)
		return err
	})
	if err != nil {
		return err
	}
	return q.sendJSON(q.visible(status))
}

// listStreams answers how far all streams are, in the order of their names.
func (q *request) listStreams() error {
	all := make([]*Status, 0, len(q.s.names))
	for _, name := range q.s.names {
		if !q.who.Stream(name) {
			continue
		}
		st := q.s.streams[name]
		err := st.store.View(q.r.Context(), func(v *edge.View) error {
			status, err := q.s.readStatus(st, v, q.now)
			if err == nil {
				all = append(all, q.visible(status))
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return q.sendJSON(all)
}

// tables answers what tables there are and what they look like.
func (q *request) tables() error {
	all := []TableDescription{}
	err := q.stream.store.View(q.r.Context(), func(v *edge.View) error {
		q.at(v)
		infos, err := v.Tables()
		if err != nil {
			return err
		}
		for i := range infos {
			if q.mayTable(infos[i].Name) != nil {
				continue
			}
			t, err := v.Table(infos[i].Name)
			if err != nil {
				return err
			}
			schema := t.Schema()
			d := TableDescription{TableStatus: tableStatus(&infos[i]), Version: schema.Version, Key: keyNames(schema)}
			for j := range schema.Columns {
				c := &schema.Columns[j]
				d.Columns = append(d.Columns, ColumnDescription{Name: c.Name, Type: typeName(schema, c.Type), NotNull: c.NotNull})
			}
			all = append(all, d)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return q.sendJSON(all)
}

// typeName names a type as people write it: elements of arrays with brackets,
// and types that users made with their schema.
func typeName(s *millrace.Schema, oid uint32) string {
	suffix := ""
	for range millrace.MaxTypeNesting {
		t := s.Type(oid)
		switch {
		case t == nil:
			return "unknown" + suffix
		case t.Kind == millrace.TypeArray:
			suffix += "[]"
			oid = t.Elem
			continue
		case t.Schema == "pg_catalog":
			return t.Name + suffix
		}
		return t.Schema + "." + t.Name + suffix
	}
	return "unknown" + suffix
}

// ready answers whether every stream has rows to read.
func (q *request) ready() error {
	const mend = "wait for the first copy to end; /v1/streams shows how far it is"
	if len(q.s.names) == 0 {
		return unavailable("not_ready", "configure a stream", "this edge has no streams")
	}
	for _, name := range q.s.names {
		st := q.s.streams[name]
		err := st.store.View(q.r.Context(), func(v *edge.View) error {
			if v.Index() == 0 {
				return unavailable("not_ready", mend, "%s has not been copied yet", q.named(name))
			}
			tables, err := v.Tables()
			if err != nil {
				return err
			}
			if len(tables) == 0 {
				return unavailable("not_ready", mend, "%s has no tables yet", q.named(name))
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	limits, err := q.lagLimits()
	if err != nil {
		return err
	}
	if limits.age >= 0 || limits.entries >= 0 {
		return q.near(limits)
	}
	q.body = append(q.body[:0], "{\"ready\":true}\n"...)
	return nil
}
