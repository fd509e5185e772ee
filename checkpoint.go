package millrace

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// Checkpoint is what an edge has durably applied. It is written in the same
// store transaction as the rows, and a reader can begin from it.
type Checkpoint struct {
	Stream StreamID
	Epoch  Epoch
	// Index and Chain are those at the end of the newest applied unit.
	Index     Index
	Chain     Chain
	Term      Term
	Publisher PublisherID
	// TopicID is Kafka's identity of the topic the record came from, and Offset
	// the offset of the newest record that was taken in; NoOffset if none.
	TopicID string
	Offset  Offset
	// Position and Time are those of the newest applied unit.
	Position Position
	Time     time.Time
	Recent   []Recent
	Catalog  Catalog
}

const (
	checkpointStream    protowire.Number = 1
	checkpointEpoch     protowire.Number = 2
	checkpointIndex     protowire.Number = 3
	checkpointChain     protowire.Number = 4
	checkpointTerm      protowire.Number = 5
	checkpointPublisher protowire.Number = 6
	checkpointTopicID   protowire.Number = 7
	checkpointOffset    protowire.Number = 8
	checkpointPosition  protowire.Number = 9
	checkpointTime      protowire.Number = 10
	checkpointState     protowire.Number = 11
)

// AppendCheckpoint appends the encoded form of c.
func AppendCheckpoint(dst []byte, c *Checkpoint) []byte {
	dst = appendBytesField(dst, checkpointStream, c.Stream[:])
	dst = appendVarintField(dst, checkpointEpoch, uint64(c.Epoch))
	dst = appendVarintField(dst, checkpointIndex, uint64(c.Index))
	dst = appendBytesField(dst, checkpointChain, c.Chain[:])
	dst = appendVarintField(dst, checkpointTerm, uint64(c.Term))
	dst = appendBytesField(dst, checkpointPublisher, c.Publisher[:])
	dst = appendStringField(dst, checkpointTopicID, c.TopicID)
	// The offset is stored plus one, so that the default stands for none.
	dst = appendVarintField(dst, checkpointOffset, uint64(c.Offset+1))
	dst = appendMessageField(dst, checkpointPosition, func(dst []byte) []byte { return AppendPosition(dst, c.Position) })
	if !c.Time.IsZero() {
		dst = appendVarintField(dst, checkpointTime, uint64(c.Time.UnixMicro()))
	}
	return appendMessageField(dst, checkpointState, func(dst []byte) []byte {
		return AppendState(dst, &State{Catalog: c.Catalog, Recent: c.Recent})
	})
}

// DecodeCheckpoint reads what AppendCheckpoint wrote. The result does not alias
// b.
func DecodeCheckpoint(b []byte) (*Checkpoint, error) {
	c := &Checkpoint{Offset: NoOffset}
	err := eachField(b, "checkpoint", func(f *field) (err error) {
		var n uint64
		var nested []byte
		switch f.num {
		case checkpointStream:
			return f.fixedBytes(c.Stream[:])
		case checkpointEpoch:
			return f.varint((*uint64)(&c.Epoch))
		case checkpointIndex:
			return f.varint((*uint64)(&c.Index))
		case checkpointChain:
			return f.fixedBytes(c.Chain[:])
		case checkpointTerm:
			return f.varint((*uint64)(&c.Term))
		case checkpointPublisher:
			return f.fixedBytes(c.Publisher[:])
		case checkpointTopicID:
			return f.string(&c.TopicID)
		case checkpointOffset:
			err = f.varint(&n)
			c.Offset = Offset(n) - 1
			return err
		case checkpointPosition:
			if err = f.bytes(&nested); err == nil {
				c.Position, err = DecodePosition(nested)
			}
			return err
		case checkpointTime:
			return f.time(&c.Time)
		case checkpointState:
			if err = f.bytes(&nested); err != nil {
				return err
			}
			s, err := DecodeState(nested)
			if err == nil {
				c.Catalog, c.Recent = s.Catalog, s.Recent
			}
			return err
		}
		return f.unknown()
	})
	if err != nil {
		return nil, err
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return c, nil
}

// Validate says what makes c unusable.
func (c *Checkpoint) Validate() error {
	if c.Stream.IsZero() || c.Epoch == 0 || c.Chain.IsZero() || c.Offset < NoOffset {
		return fmt.Errorf("%w: checkpoint: stream, epoch and chain must be set", ErrMalformed)
	}
	return nil
}
