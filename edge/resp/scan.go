package resp

import (
	"bytes"
	"container/list"
	"errors"
	"math/rand/v2"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"github.com/millrace-db/millrace/edge"
)

const (
	defaultCount = 10
	maxCount     = 10_000
)

// scanQuery is what SCAN is asked.
type scanQuery struct {
	cursor uint64
	match  string // as it was given; empty for all
	count  int
	none   bool // of another type than there is
}

func parseScan(args [][]byte) (*scanQuery, error) {
	q := &scanQuery{count: defaultCount}
	var err error
	if q.cursor, err = strconv.ParseUint(string(args[1]), 10, 64); err != nil {
		return nil, refuse("ERR invalid cursor '%s'; begin with 0, and go on with what the answer gives", short(args[1]))
	}
	rest := args[2:]
	for ; len(rest) >= 2; rest = rest[2:] {
		value := string(rest[1])
		switch strings.ToUpper(short(rest[0])) {
		case "MATCH":
			q.match = value
		case "COUNT":
			if q.count, err = strconv.Atoi(value); err != nil || q.count < 1 {
				return nil, refuse("ERR COUNT %s is not a positive number", short(rest[1]))
			}
			q.count = min(q.count, maxCount)
		case "TYPE":
			// A row is both.
			if t := strings.ToLower(value); t != "string" && t != "hash" {
				q.none = true
			}
		default:
			return nil, refuse("ERR SCAN knows MATCH, COUNT and TYPE, not '%s'", short(rest[0]))
		}
	}
	if len(rest) > 0 {
		return nil, refuse("ERR syntax error: %s of SCAN lacks its value", short(rest[0]))
	}
	return q, nil
}

// pattern is what a MATCH selects: tables whose names, as keys have them, begin with
// table, or are it; of one table, keys that begin with key.
type pattern struct {
	table string
	// open tells that table is the start of a name, and key nothing.
	open bool
	key  string
	// star tells that key is a start.
	star bool
}

// parsePattern reads a MATCH: a key, or its start with a star behind it.
func parsePattern(match string) (*pattern, error) {
	const want = "what is matched is a key, or the start of one with a star behind it, as in public.accounts:*; a ?, [, *, or \\ that stands for itself has a \\ before it"
	var plain strings.Builder
	star := false
	for i := 0; i < len(match); i++ {
		switch b := match[i]; b {
		case '\\':
			if i++; i == len(match) {
				return nil, refuse("ERR MATCH ends in a \\; %s", want)
			}
			plain.WriteByte(match[i])
		case '*':
			if strings.Trim(match[i:], "*") != "" {
				return nil, refuse("ERR MATCH has a star before its end; %s", want)
			}
			star = true
			i = len(match)
		case '?', '[':
			return nil, refuse("ERR MATCH has a %c; %s", b, want)
		default:
			plain.WriteByte(b)
		}
	}
	p := &pattern{star: star}
	var one bool
	p.table, p.key, one = strings.Cut(plain.String(), ":")
	p.open = !one
	if p.open && !star {
		return nil, refuse("ERR MATCH '%s' names no table; %s", short([]byte(match)), want)
	}
	return p, nil
}

func (p *pattern) selects(table string) bool {
	if p.open {
		return strings.HasPrefix(tablePart(table), p.table)
	}
	name, err := url.PathUnescape(p.table)
	return err == nil && name == table
}

// prefix encodes the start of the keys that are selected.
func (p *pattern) prefix(t *edge.Table) ([]byte, error) {
	if p.open || p.key == "" {
		return nil, nil
	}
	texts, partial := strings.Split(p.key, ","), p.star
	if partial && texts[len(texts)-1] == "" {
		texts, partial = texts[:len(texts)-1], false
	}
	encoded := make([][]byte, len(texts))
	for i, text := range texts {
		value, err := url.PathUnescape(text)
		if err != nil {
			return nil, refuse("ERR MATCH '%s' is not percent-encoded; write a percent sign as %%25", short([]byte(p.key)))
		}
		encoded[i] = []byte(value)
	}
	var err error
	var prefix []byte
	if p.star {
		prefix, err = t.Codec().AppendPrefix(nil, encoded, partial)
	} else {
		prefix, err = t.Codec().Append(nil, encoded)
	}
	if err != nil {
		return nil, refuse("ERR MATCH '%s': %v; the key of %s is %s", short([]byte(p.key)), err, t.Name(), keyForm(t))
	}
	return prefix, nil
}

var errPageEnd = errors.New("the page is full")

func (c *conn) scan(v *edge.View) error {
	q, err := parseScan(c.args)
	if err != nil {
		return err
	}
	p := &pattern{open: true, star: true}
	if q.match != "" {
		if p, err = parsePattern(q.match); err != nil {
			return err
		}
	}
	from := place{stream: c.stream.name, match: q.match}
	if q.cursor != 0 {
		at, ok := c.s.cursors.get(q.cursor)
		if !ok || at.stream != from.stream || at.match != from.match {
			return refuse("ERR cursor %d is too old, or of another SCAN; begin again with 0", q.cursor)
		}
		from = at
	}
	infos, err := v.Tables()
	if err != nil {
		return err
	}
	var keys []string
	size := 0
	var next *place
	for i := range infos {
		name := infos[i].Name
		if q.none || name < from.table || !p.selects(name) || !c.who.Table(c.stream.name, name) {
			continue
		}
		t, err := v.Table(name)
		if err != nil {
			return err
		}
		prefix, err := p.prefix(t)
		if err != nil {
			return err
		}
		var after, last []byte
		if name == from.table {
			after = from.after
		}
		full := func() bool { return len(keys) >= q.count || size >= c.s.config.MaxAnswer }
		err = t.Scan(prefix, after, 0, func(key []byte, _ *edge.Row) error {
			if full() {
				return errPageEnd
			}
			if !p.open && !p.star && !bytes.Equal(key, prefix) {
				return nil
			}
			text, err := keyText(t, key)
			if err != nil {
				return err
			}
			keys = append(keys, text)
			size += len(text)
			last = append(last[:0], key...)
			return nil
		})
		if errors.Is(err, errPageEnd) {
			if last == nil { // the page was full before
				last = after
			}
			next = &place{stream: from.stream, match: from.match, table: name, after: last}
			break
		}
		if err != nil {
			return err
		}
	}
	if !c.reserveOut(size) {
		return refuse("BUSY too many large answers are being written at once; ask again, for less at once")
	}
	var cursor uint64
	if next != nil {
		cursor = c.s.cursors.put(*next)
	}
	c.out.array(2)
	c.out.text(strconv.FormatUint(cursor, 10))
	c.out.array(len(keys))
	for _, key := range keys {
		c.out.text(key)
	}
	return nil
}

// keyText writes a row's key as clients name it.
func keyText(t *edge.Table, key []byte) (string, error) {
	texts, err := t.Codec().Decode(key, nil)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString(tablePart(t.Name()))
	for i, text := range texts {
		b.WriteByte(":,"[min(i, 1)])
		for _, c := range text {
			switch c {
			case ',':
				b.WriteString("%2C")
			case '%':
				b.WriteString("%25")
			default:
				b.WriteByte(c)
			}
		}
	}
	return b.String(), nil
}

// dbsize answers with the number of rows.
func (c *conn) dbsize(v *edge.View) error {
	infos, err := v.Tables()
	if err != nil {
		return err
	}
	var n uint64
	for i := range infos {
		if c.who.Table(c.stream.name, infos[i].Name) {
			n += infos[i].Rows
		}
	}
	c.out.int(int64(n))
	return nil
}

// place is where a SCAN goes on: behind a key of a table.
type place struct {
	stream, match string
	table         string
	after         []byte
}

func (p *place) size() int { return len(p.match) + len(p.table) + len(p.after) + 100 }

const (
	// cursorBits keep a cursor exact where a client takes it for a floating number.
	cursorBits = 52
	maxCursors = 10_000
	// maxCursorBytes bounds what cursors hold: keys can be long.
	maxCursorBytes = 16 << 20
)

// cursors are the places of SCANs that go on. A cursor of the protocol is a number,
// so the place it stands for is kept here, for clients that ask over any of their
// connections; the oldest are forgotten.
type cursors struct {
	mu    sync.Mutex
	byID  map[uint64]*list.Element
	order list.List // of cursorItem, the newest first
	bytes int
}

type cursorItem struct {
	id uint64
	at place
}

func (c *cursors) put(at place) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byID == nil {
		c.byID = make(map[uint64]*list.Element)
	}
	id := uint64(0)
	for id == 0 || c.byID[id] != nil {
		id = rand.Uint64N(1 << cursorBits)
	}
	c.byID[id] = c.order.PushFront(&cursorItem{id, at})
	c.bytes += at.size()
	for c.order.Len() > 1 && (c.order.Len() > maxCursors || c.bytes > maxCursorBytes) {
		old, _ := c.order.Remove(c.order.Back()).(*cursorItem)
		delete(c.byID, old.id)
		c.bytes -= old.at.size()
	}
	return id
}

// get finds a place, and keeps it: an answer may get lost, and be asked for again.
func (c *cursors) get(id uint64) (place, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byID[id]
	if e == nil {
		return place{}, false
	}
	c.order.MoveToFront(e)
	item, _ := e.Value.(*cursorItem)
	return item.at, true
}
