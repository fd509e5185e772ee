package relay

import (
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/millrace-db/millrace"
)

const (
	// maxNode bounds the name of a node in bytes, maxPath the number of nodes above
	// one, maxText a text for people, maxFilter a filter.
	maxNode   = 255
	maxPath   = 32
	maxText   = 2 << 10
	maxFilter = 32 << 10
	maxTopic  = 255
)

// hello is what a child asks for.
type hello struct {
	// node is the child's name.
	node string
	// stream is the one it wants; zero for any.
	stream millrace.StreamID
	// epoch is the one it wants; 0 for the one that readers of the upstream use.
	epoch millrace.Epoch
	// index and chain are where it stands: what it wants comes after.
	index millrace.Index
	chain millrace.Chain
	// until is the index behind which it wants nothing; 0 for no end.
	until millrace.Index
	// newest tells that it wants what comes from now on, wherever it stands.
	newest bool
	// filter says what it wants of each record, in the words of who rewrites them.
	filter []byte
	// probe tells that it wants to know where the upstream stands, and no records.
	probe bool
}

// State says where a node stands.
type State struct {
	// Node is its name.
	Node string
	// Stream and Epoch are those of the log that is served; Next is a newer epoch that
	// has begun, 0 if none is known.
	Stream millrace.StreamID
	Epoch  millrace.Epoch
	Next   millrace.Epoch
	// Oldest and Newest are the first and the last index of the log; of an empty one,
	// Oldest is the index to come. Both are 0 if there is no log. Chain is the one at Newest, and Time when that unit was committed at the
	// source.
	Oldest, Newest millrace.Index
	Chain          millrace.Chain
	Time           time.Time
	// TopicID is Kafka's identity of the topic that the records came from first.
	TopicID string
	// Path are the nodes above it, the nearest first; none at one that reads Kafka.
	Path []string
	// From and FromChain are the place behind which records begin, in a welcome. They
	// are zero while the node has not come to the place that was asked for.
	From      millrace.Index
	FromChain millrace.Chain
}

// goodbye is an upstream's last word.
type goodbye struct {
	code  Code
	text  string
	state *State
}

// place is where a child stands.
type place struct {
	epoch millrace.Epoch
	index millrace.Index
}

const (
	helloNode   protowire.Number = 1
	helloStream protowire.Number = 2
	helloEpoch  protowire.Number = 3
	helloIndex  protowire.Number = 4
	helloChain  protowire.Number = 5
	helloUntil  protowire.Number = 6
	helloNewest protowire.Number = 7
	helloFilter protowire.Number = 8
	helloProbe  protowire.Number = 9

	stateNode      protowire.Number = 1
	stateStream    protowire.Number = 2
	stateEpoch     protowire.Number = 3
	stateNext      protowire.Number = 4
	stateOldest    protowire.Number = 5
	stateNewest    protowire.Number = 6
	stateChain     protowire.Number = 7
	stateTime      protowire.Number = 8
	stateTopic     protowire.Number = 9
	statePath      protowire.Number = 10
	stateFrom      protowire.Number = 11
	stateFromChain protowire.Number = 12

	closeCode  protowire.Number = 1
	closeText  protowire.Number = 2
	closeState protowire.Number = 3

	placeEpoch protowire.Number = 1
	placeIndex protowire.Number = 2
)

func appendHello(dst []byte, h *hello) []byte {
	dst = appendText(dst, helloNode, h.node)
	if !h.stream.IsZero() {
		dst = appendText(dst, helloStream, h.stream[:])
	}
	dst = appendNumber(dst, helloEpoch, h.epoch)
	dst = appendNumber(dst, helloIndex, h.index)
	if !h.chain.IsZero() {
		dst = appendText(dst, helloChain, h.chain[:])
	}
	dst = appendNumber(dst, helloUntil, h.until)
	dst = appendFlag(dst, helloNewest, h.newest)
	dst = appendText(dst, helloFilter, h.filter)
	return appendFlag(dst, helloProbe, h.probe)
}

func decodeHello(b []byte) (*hello, error) {
	h := new(hello)
	err := eachField(b, func(f *field) error {
		switch f.num {
		case helloNode:
			return f.text(&h.node, maxNode)
		case helloStream:
			return f.fixed(h.stream[:])
		case helloEpoch:
			return number(f, &h.epoch)
		case helloIndex:
			return number(f, &h.index)
		case helloChain:
			return f.fixed(h.chain[:])
		case helloUntil:
			return number(f, &h.until)
		case helloNewest:
			return f.flag(&h.newest)
		case helloFilter:
			return f.bytes(&h.filter, maxFilter)
		case helloProbe:
			return f.flag(&h.probe)
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case h.node == "":
		return nil, fmt.Errorf("%w: hello names no node", errFrame)
	case h.index > 0 && (h.epoch == 0 || h.chain.IsZero()):
		return nil, fmt.Errorf("%w: hello names index %v without epoch and chain", errFrame, h.index)
	}
	return h, nil
}

func appendNodeState(dst []byte, s *State) []byte {
	dst = appendText(dst, stateNode, s.Node)
	if !s.Stream.IsZero() {
		dst = appendText(dst, stateStream, s.Stream[:])
	}
	dst = appendNumber(dst, stateEpoch, s.Epoch)
	dst = appendNumber(dst, stateNext, s.Next)
	dst = appendNumber(dst, stateOldest, s.Oldest)
	dst = appendNumber(dst, stateNewest, s.Newest)
	if !s.Chain.IsZero() {
		dst = appendText(dst, stateChain, s.Chain[:])
	}
	if !s.Time.IsZero() {
		dst = appendNumber(dst, stateTime, uint64(s.Time.UnixMicro()))
	}
	dst = appendText(dst, stateTopic, s.TopicID)
	for _, node := range s.Path {
		dst = appendText(dst, statePath, node)
	}
	dst = appendNumber(dst, stateFrom, s.From)
	if !s.FromChain.IsZero() {
		dst = appendText(dst, stateFromChain, s.FromChain[:])
	}
	return dst
}

func decodeNodeState(b []byte) (*State, error) {
	s := new(State)
	err := eachField(b, func(f *field) error {
		switch f.num {
		case stateNode:
			return f.text(&s.Node, maxNode)
		case stateStream:
			return f.fixed(s.Stream[:])
		case stateEpoch:
			return number(f, &s.Epoch)
		case stateNext:
			return number(f, &s.Next)
		case stateOldest:
			return number(f, &s.Oldest)
		case stateNewest:
			return number(f, &s.Newest)
		case stateChain:
			return f.fixed(s.Chain[:])
		case stateTime:
			var us uint64
			if err := number(f, &us); err != nil {
				return err
			}
			if us != 0 {
				s.Time = time.UnixMicro(int64(us)).UTC()
			}
			return nil
		case stateTopic:
			return f.text(&s.TopicID, maxTopic)
		case statePath:
			var node string
			if err := f.text(&node, maxNode); err != nil {
				return err
			}
			if len(s.Path) == maxPath || node == "" {
				return fmt.Errorf("%w: node %q is number %d above one, at most %d are possible", errFrame, node, len(s.Path)+1, maxPath)
			}
			s.Path = append(s.Path, node)
			return nil
		case stateFrom:
			return number(f, &s.From)
		case stateFromChain:
			return f.fixed(s.FromChain[:])
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case s.Node == "":
		return nil, fmt.Errorf("%w: a state names no node", errFrame)
	case s.Oldest > s.Newest && s.Oldest != s.Newest+1:
		return nil, fmt.Errorf("%w: a log from index %v to %v", errFrame, s.Oldest, s.Newest)
	}
	return s, nil
}

func appendGoodbye(dst []byte, g *goodbye) []byte {
	dst = appendNumber(dst, closeCode, g.code)
	dst = appendText(dst, closeText, oneLine(g.text))
	if g.state != nil {
		dst = appendText(dst, closeState, appendNodeState(nil, g.state))
	}
	return dst
}

func decodeGoodbye(b []byte) (*goodbye, error) {
	g := new(goodbye)
	err := eachField(b, func(f *field) (err error) {
		switch f.num {
		case closeCode:
			var code uint64
			err = number(f, &code)
			g.code = Code(min(code, 255))
			return err
		case closeText:
			err = f.text(&g.text, 2*maxText)
			g.text = oneLine(g.text)
			return err
		case closeState:
			var b []byte
			if err = f.bytes(&b, maxControl); err == nil {
				g.state, err = decodeNodeState(b)
			}
			return err
		}
		return nil
	})
	if err == nil && g.code == 0 {
		err = fmt.Errorf("%w: it closes without a reason", errFrame)
	}
	if err != nil {
		return nil, err
	}
	return g, nil
}

func appendPlace(dst []byte, p place) []byte {
	return appendNumber(appendNumber(dst, placeEpoch, p.epoch), placeIndex, p.index)
}

func decodePlace(b []byte) (p place, err error) {
	err = eachField(b, func(f *field) error {
		switch f.num {
		case placeEpoch:
			return number(f, &p.epoch)
		case placeIndex:
			return number(f, &p.index)
		}
		return nil
	})
	return p, err
}

func appendNumber[T ~uint8 | ~uint64](dst []byte, num protowire.Number, v T) []byte {
	if v == 0 {
		return dst
	}
	return protowire.AppendVarint(protowire.AppendTag(dst, num, protowire.VarintType), uint64(v))
}

func appendFlag(dst []byte, num protowire.Number, v bool) []byte {
	if !v {
		return dst
	}
	return appendNumber(dst, num, uint64(1))
}

func appendText[T ~string | ~[]byte](dst []byte, num protowire.Number, v T) []byte {
	if len(v) == 0 {
		return dst
	}
	dst = protowire.AppendTag(dst, num, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(len(v)))
	return append(dst, v...)
}

// field is one field of a message that is being read.
type field struct {
	num     protowire.Number
	varint  bool
	n       uint64
	content []byte
}

// eachField calls fn with the fields of a message. Fields of kinds that a later version
// may add are left out, as fn leaves out numbers that it does not know.
func eachField(b []byte, fn func(*field) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("%w: bad field tag", errFrame)
		}
		b = b[n:]
		f := field{num: num, varint: typ == protowire.VarintType}
		switch typ {
		case protowire.VarintType:
			f.n, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			f.content, n = protowire.ConsumeBytes(b)
		case protowire.Fixed32Type, protowire.Fixed64Type:
			n = protowire.ConsumeFieldValue(num, typ, b)
		default:
			return fmt.Errorf("%w: field %d is of an unknown type", errFrame, num)
		}
		if n < 0 {
			return fmt.Errorf("%w: field %d is cut off", errFrame, num)
		}
		b = b[n:]
		if typ != protowire.VarintType && typ != protowire.BytesType {
			continue
		}
		if err := fn(&f); err != nil {
			return err
		}
	}
	return nil
}

var errFieldType = errors.New("wrong type")

func (f *field) wrong(err error) error { return fmt.Errorf("%w: field %d: %w", errFrame, f.num, err) }

func number[T ~uint64](f *field, dst *T) error {
	if !f.varint {
		return f.wrong(errFieldType)
	}
	*dst = T(f.n)
	return nil
}

func (f *field) flag(dst *bool) error {
	if !f.varint || f.n > 1 {
		return f.wrong(errFieldType)
	}
	*dst = f.n == 1
	return nil
}

func (f *field) fixed(dst []byte) error {
	if f.varint || len(f.content) != len(dst) {
		return f.wrong(fmt.Errorf("%d bytes, want %d", len(f.content), len(dst)))
	}
	copy(dst, f.content)
	return nil
}

func (f *field) bytes(dst *[]byte, most int) error {
	if f.varint || len(f.content) > most {
		return f.wrong(fmt.Errorf("%d bytes, at most %d are possible", len(f.content), most))
	}
	if *dst = nil; len(f.content) > 0 {
		*dst = slices.Clone(f.content)
	}
	return nil
}

func (f *field) text(dst *string, most int) error {
	if f.varint || len(f.content) > most || !utf8.Valid(f.content) {
		return f.wrong(fmt.Errorf("%d bytes of text, at most %d are possible", len(f.content), most))
	}
	*dst = string(f.content)
	return nil
}
