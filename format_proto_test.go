package millrace

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	millracev1 "github.com/millrace-db/millrace/proto/millrace/v1"
)

// The generated code is the judge of the hot path: what one writes the other
// writes too, byte for byte, and each reads what the other wrote.

// agree checks both directions for one value. encoded is what the hot path
// wrote for it, want what it is as a generated message, decode reads with the
// hot path and returns the value as a generated message again.
func agree(t *rapid.T, encoded []byte, want proto.Message, decode func([]byte) proto.Message) {
	t.Helper()
	generated, err := proto.MarshalOptions{Deterministic: true}.Marshal(want)
	if err != nil {
		t.Fatalf("marshal by generated code: %v", err)
	}
	if !bytes.Equal(encoded, generated) {
		t.Fatalf("hot path wrote\n%x\ngenerated code wrote\n%x", encoded, generated)
	}
	got := want.ProtoReflect().New().Interface()
	if err := proto.Unmarshal(encoded, got); err != nil {
		t.Fatalf("generated code does not read the hot path's bytes: %v", err)
	}
	if !proto.Equal(got, want) {
		t.Fatalf("generated code read\n%v\nwant\n%v", got, want)
	}
	if back := decode(generated); !proto.Equal(back, want) {
		t.Fatalf("hot path read\n%v\nwant\n%v", back, want)
	}
}

func TestEntryAgreesWithGeneratedCode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := genEntry.Draw(t, "entry")
		if rapid.Bool().Draw(t, "last") {
			e.Last, e.End = true, genEnd.Draw(t, "end")
		}
		agree(t, AppendEntry(nil, e), entryProto(e), func(b []byte) proto.Message {
			var got Entry
			if err := DecodeEntry(b, &got); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(&got, e) {
				t.Fatalf("got entry %+v, want %+v", &got, e)
			}
			return entryProto(&got)
		})
	})
}

func TestPayloadAgreesWithGeneratedCode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		entries, payload := genUnit(t)
		agree(t, payload, payloadProto(entries), func(b []byte) proto.Message {
			got, err := walkPayload(b)
			if err != nil {
				t.Fatal(err)
			}
			return payloadProto(got)
		})
	})
}

func TestSchemaAgreesWithGeneratedCode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := genSchema.Draw(t, "schema")
		agree(t, AppendSchema(nil, s), schemaProto(s), func(b []byte) proto.Message {
			got, err := DecodeSchema(b)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, s) {
				t.Fatalf("got schema %+v, want %+v", got, s)
			}
			return schemaProto(got)
		})
	})
}

func TestPositionAgreesWithGeneratedCode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := genPosition.Draw(t, "position")
		agree(t, AppendPosition(nil, p), positionProto(p), func(b []byte) proto.Message {
			got, err := DecodePosition(b)
			if err != nil || got != p {
				t.Fatalf("got position %v, %v, want %v", got, err, p)
			}
			return positionProto(got)
		})
	})
}

func TestStateAgreesWithGeneratedCode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := genState.Draw(t, "state")
		agree(t, AppendState(nil, s), stateProto(s), func(b []byte) proto.Message {
			got, err := DecodeState(b)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, s) {
				t.Fatalf("got state %+v, want %+v", got, s)
			}
			return stateProto(got)
		})
	})
}

func TestCheckpointAgreesWithGeneratedCode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := genCheckpoint.Draw(t, "checkpoint")
		agree(t, AppendCheckpoint(nil, c), checkpointProto(c), func(b []byte) proto.Message {
			got, err := DecodeCheckpoint(b)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, c) {
				t.Fatalf("got checkpoint %+v, want %+v", got, c)
			}
			return checkpointProto(got)
		})
	})
}

// Each of the functions below gives a value of the hot path as a message of the
// generated code.

func payloadProto(entries []*Entry) *millracev1.Payload {
	m := new(millracev1.Payload)
	for _, e := range entries {
		m.Entries = append(m.Entries, entryProto(e))
	}
	return m
}

func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func entryProto(e *Entry) *millracev1.Entry {
	m := &millracev1.Entry{
		Kind: millracev1.Kind(e.Kind), Table: uint32(e.Table), Ordinal: e.Ordinal,
		Key: e.Key, From: e.From, Row: e.Row, Load: uint64(e.Load),
	}
	if e.LoadInfo != nil {
		m.LoadInfo = &millracev1.LoadInfo{Reason: e.LoadInfo.Reason, Rows: e.LoadInfo.Rows, Progress: e.LoadInfo.Progress, Added: e.LoadInfo.Added}
	}
	if e.Schema != nil {
		m.Schema = schemaProto(e.Schema)
	}
	if v := e.Verify; v != nil {
		m.Verify = &millracev1.VerifyRange{
			Id: v.ID, Low: v.Low, High: v.High, Buckets: v.Buckets, Bucket: v.Bucket,
			Rows: v.Rows, Hash: v.Hash[:], LeftOut: v.LeftOut, Snapshot: v.Snapshot,
		}
	}
	if e.Message != nil {
		m.Message = &millracev1.LogicalMessage{Prefix: e.Message.Prefix, Content: e.Message.Content}
	}
	if e.Quarantine != nil {
		m.Quarantine = &millracev1.Quarantined{Kind: millracev1.Kind(e.Quarantine.Kind), Reason: e.Quarantine.Reason}
	}
	if e.Last {
		m.End = &millracev1.UnitEnd{TimeUs: micros(e.End.Time), Token: e.End.Token, Xid: e.End.XID}
	}
	return m
}

func schemaProto(s *Schema) *millracev1.Schema {
	m := &millracev1.Schema{Version: uint64(s.Version), Table: uint32(s.Table), Namespace: s.Namespace, Name: s.Name}
	for _, c := range s.Columns {
		m.Columns = append(m.Columns, &millracev1.Column{
			Name: c.Name, Type: c.Type, Typmod: c.Typmod, Collation: c.Collation,
			Nondeterministic: c.Nondeterministic, NotNull: c.NotNull, KeyOrdinal: c.KeyOrdinal, Number: c.Number,
		})
	}
	for _, d := range s.Types {
		t := &millracev1.TypeDesc{
			Oid: d.OID, Kind: millracev1.TypeKind(d.Kind), Schema: d.Schema, Name: d.Name,
			Elem: d.Elem, Labels: d.Labels, Delim: uint32(d.Delim),
		}
		for _, a := range d.Attributes {
			t.Attributes = append(t.Attributes, &millracev1.Attribute{Name: a.Name, Type: a.Type})
		}
		m.Types = append(m.Types, t)
	}
	return m
}

func positionProto(p Position) *millracev1.Position {
	return &millracev1.Position{
		Mode: millracev1.Mode(p.Mode), SystemId: p.SystemID, Timeline: p.Timeline, Slot: p.Slot,
		Lsn: uint64(p.LSN), Tick: p.Tick, Snapshot: p.Snapshot,
	}
}

func stateProto(s *State) *millracev1.State {
	m := &millracev1.State{LastVersion: uint64(s.Catalog.LastVersion), LastLoad: uint64(s.Catalog.LastLoad)}
	for _, schema := range s.Catalog.Schemas {
		m.Schemas = append(m.Schemas, schemaProto(schema))
	}
	for _, l := range s.Catalog.Loads {
		m.Loads = append(m.Loads, &millracev1.Load{Id: uint64(l.ID), Table: uint32(l.Table), Progress: l.Progress})
	}
	for _, r := range s.Recent {
		m.Recent = append(m.Recent, &millracev1.Recent{First: uint64(r.First), Last: uint64(r.Last), Chain: r.Chain[:]})
	}
	return m
}

func checkpointProto(c *Checkpoint) *millracev1.Checkpoint {
	return &millracev1.Checkpoint{
		Stream: c.Stream[:], Epoch: uint64(c.Epoch), Index: uint64(c.Index), Chain: c.Chain[:],
		Term: uint64(c.Term), Publisher: c.Publisher[:], TopicId: c.TopicID, OffsetPlusOne: uint64(c.Offset + 1),
		Position: positionProto(c.Position), TimeUs: micros(c.Time),
		State: stateProto(&State{Catalog: c.Catalog, Recent: c.Recent}),
	}
}
