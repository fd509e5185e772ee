package log

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
)

var (
	testStream = millrace.StreamID{7, 7}
	testTime   = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
)

// topic makes the records of a stream, with publishers that die within units.
type topic struct {
	t     testing.TB
	rnd   *rand.Rand
	epoch millrace.Epoch
	term  millrace.Term
	fold  *millrace.Fold
	// values are the records, by offset; now is the time of the next unit.
	values [][]byte
	now    time.Time
	// most bounds the size of a message.
	most int
}

func newTopic(t testing.TB, seed uint64) *topic {
	p := &topic{t: t, rnd: rand.New(rand.NewPCG(seed, 1)), epoch: 1, now: testTime, most: 600} //nolint:gosec // a test that can be repeated
	p.fold = millrace.NewFold(testStream, p.epoch)
	p.reign()
	return p
}

func (p *topic) add(h millrace.Header, payload []byte) {
	p.t.Helper()
	value, err := millrace.AppendRecord(nil, &h, payload, nil)
	if err != nil {
		p.t.Fatalf("encode record: %v", err)
	}
	r, err := millrace.DecodeRecord(value, nil)
	if err == nil {
		_, err = p.fold.Step(r)
	}
	if err != nil {
		p.t.Fatalf("fold record: %v", err)
	}
	p.values = append(p.values, value)
}

func (p *topic) header(kind millrace.RecordKind) millrace.Header {
	return millrace.Header{Kind: kind, Stream: testStream, Epoch: p.epoch, Term: p.term, Publisher: millrace.PublisherID{byte(p.term), 1}, Time: p.now}
}

func (p *topic) reign() {
	p.term++
	p.add(p.header(millrace.RecordTerm), nil)
}

func (p *topic) state() { p.add(p.fold.StateRecord()) }

// unit returns the encoded entries of a unit.
func (p *topic) unit(entries int) []byte {
	p.t.Helper()
	p.now = p.now.Add(time.Second)
	var w millrace.UnitWriter
	for range entries {
		content := make([]byte, p.rnd.IntN(p.most))
		for i := range content {
			content[i] = byte(p.rnd.Uint32())
		}
		if err := w.Append(&millrace.Entry{Kind: millrace.KindMessage, Message: &millrace.LogicalMessage{Prefix: "test", Content: content}}); err != nil {
			p.t.Fatal(err)
		}
	}
	body, err := w.Finish(millrace.UnitEnd{Time: p.now, Token: uint64(p.now.Unix())})
	if err != nil {
		p.t.Fatal(err)
	}
	return body
}

// batch adds a batch of whole units.
func (p *topic) batch(units int) {
	p.t.Helper()
	h := p.header(millrace.RecordBatch)
	h.First, h.Prev, h.Chain = p.fold.Next(), p.fold.Chain(), p.fold.Chain()
	var payload []byte
	for range units {
		n := 1 + p.rnd.IntN(3)
		body := p.unit(n)
		var unit millrace.UnitHash
		unit.Add(0, body)
		h.Chain = unit.Chain(h.Chain)
		h.Count += uint32(n)
		payload = append(payload, body...)
	}
	p.finish(&h)
	p.add(h, payload)
}

func (p *topic) finish(h *millrace.Header) {
	h.Time = p.now
	h.Position = millrace.Position{Mode: millrace.ModeWAL, SystemID: 1, Timeline: 1, Slot: "millrace_test", LSN: millrace.LSN(p.now.Unix())}
}

// parts adds a unit in parts batches of one entry each, of which only the first added
// get into the topic.
func (p *topic) parts(parts, added int) {
	p.t.Helper()
	rest := p.unit(parts)
	prev := p.fold.Chain()
	var unit millrace.UnitHash
	for range added {
		h := p.header(millrace.RecordBatch)
		h.First, h.Count, h.Prev = p.fold.Next(), 1, prev
		var run millrace.Run
		var head millrace.Head
		part := rest
		var err error
		if rest, err = millrace.NextHead(rest, &head); err != nil {
			p.t.Fatal(err)
		}
		run.Extend(&unit, &head)
		run.Flush(&unit)
		h.Chain = unit.Chain(prev)
		unit.Absorb()
		p.finish(&h)
		p.add(h, part[:len(part)-len(rest)])
	}
}

// some adds whatever a stream may have.
func (p *topic) some() {
	switch n := p.rnd.IntN(20); {
	case n < 12:
		p.batch(1 + p.rnd.IntN(3))
	case n < 14:
		n := 2 + p.rnd.IntN(4)
		p.parts(n, n)
	case n < 16:
		n := 2 + p.rnd.IntN(4)
		p.parts(n, 1+p.rnd.IntN(n-1))
		p.reign()
	case n < 18:
		p.state()
	default:
		p.reign()
	}
}

// item is a record that belongs to the history.
type item struct {
	offset millrace.Offset
	value  string
	// last is the index at which a batch ends, whole whether a unit does.
	last  millrace.Index
	whole bool
}

// accepted returns what belongs to the history of a topic.
func (p *topic) accepted() []item {
	p.t.Helper()
	var all []item
	fold := millrace.NewFold(testStream, p.epoch)
	unit := 0
	for offset, value := range p.values {
		r, err := millrace.DecodeRecord(value, nil)
		if err != nil {
			p.t.Fatal(err)
		}
		open := fold.Open()
		outcome, err := fold.Step(r)
		if err != nil {
			p.t.Fatal(err)
		}
		i := item{offset: millrace.Offset(offset), value: string(value)}
		switch outcome {
		case millrace.Reign:
			if open {
				all = all[:unit]
			}
		case millrace.Accepted:
			if !open {
				unit = len(all)
			}
			i.last, i.whole = r.Last(), !fold.Open()
		case millrace.Noted:
		default:
			p.t.Fatalf("record %d is %v", offset, outcome)
		}
		all = append(all, i)
	}
	return all
}

// player brings a topic into a log as the applier does, without a store.
type player struct {
	t   testing.TB
	p   *topic
	log *Log
	rnd *rand.Rand
	// at is the store's checkpoint, pending one that is complete and not committed.
	at, pending *millrace.Checkpoint
	fold        *millrace.Fold
	next        millrace.Offset
	refill      *millrace.Checkpoint
	// committed are the checkpoints at which the store was.
	committed []*millrace.Checkpoint
}

func newPlayer(t testing.TB, p *topic, l *Log) *player {
	c := millrace.NewFold(testStream, p.epoch).Checkpoint()
	c.TopicID = "topic"
	return &player{t: t, p: p, log: l, rnd: p.rnd, at: &c, committed: []*millrace.Checkpoint{&c}}
}

func (y *player) start() {
	from := y.log.Start(y.at)
	y.fold, y.next, y.pending, y.refill = millrace.FoldFrom(from), from.Offset+1, nil, nil
	if from.Index != y.at.Index {
		y.refill = y.at
	}
}

// play goes on to the end of the topic. Units are committed now and then, and always
// before a part of another.
func (y *player) play() {
	y.t.Helper()
	for ; int(y.next) < len(y.p.values); y.next++ {
		y.step()
		if y.pending != nil && y.rnd.IntN(3) == 0 {
			y.commit()
		}
	}
}

func (y *player) step() {
	y.t.Helper()
	value := y.p.values[y.next]
	r, err := millrace.DecodeRecord(value, nil)
	if err != nil {
		y.t.Fatal(err)
	}
	open := y.fold.Open()
	outcome, err := y.fold.Step(r)
	if err != nil {
		y.t.Fatalf("fold at offset %v: %v", y.next, err)
	}
	if outcome != millrace.Accepted {
		y.log.Append(y.next, value, r, false)
		return
	}
	whole := !y.fold.Open()
	if !whole && !open {
		y.commit()
	}
	y.log.Append(y.next, value, r, whole)
	if !whole {
		return
	}
	c := y.fold.Checkpoint()
	c.TopicID, c.Offset = "topic", y.next
	if y.refill == nil {
		y.pending = &c
		return
	}
	y.log.Commit(&c)
	if c.Index == y.refill.Index {
		y.refill = nil
	}
}

func (y *player) commit() {
	if y.pending != nil {
		y.at, y.pending = y.pending, nil
		y.committed = append(y.committed, y.at)
		y.log.Commit(y.at)
	}
}
