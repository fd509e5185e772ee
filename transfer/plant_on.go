//go:build planted

package transfer

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/millrace-db/millrace"
)

// planted makes one mistake, so that a test can see whether its checker finds
// it. The environment variable MILLRACE_PLANT="name:n" says which, at the n-th
// unit or, for confirm_unfolded, from there on. The first four are made of the
// first unit from there on that changes rows: of a heartbeat they would be no
// mistake that shows.
//
//	drop_unit         a unit is left out
//	repeat_unit       a unit is published twice
//	swap_two          a unit changes places with the next one that changes rows
//	alter_byte        a byte of the last row of a unit changes before it is hashed
//	skip_index        an index is left out
//	confirm_unfolded  units are confirmed before the fold has accepted them
//	trim_past_edges   the topic is trimmed although an edge needs what goes
type planted struct {
	seen int64
	held *millrace.Unit
	made bool // one of the first four
}

func ofRows(name string) bool {
	switch name {
	case "drop_unit", "repeat_unit", "swap_two", "alter_byte":
		return true
	}
	return false
}

func (p *planted) due() string {
	name, n, counted := strings.Cut(os.Getenv("MILLRACE_PLANT"), ":")
	if !counted {
		return "" // a mistake of another stage
	}
	at, err := strconv.ParseInt(n, 10, 64)
	if err != nil {
		panic(fmt.Sprintf("MILLRACE_PLANT: %q is not a number", n))
	}
	now := p.seen == at
	switch {
	case ofRows(name):
		now = p.seen >= at && !p.made
	case name == "confirm_unfolded":
		now = p.seen >= at
	}
	if !now {
		return ""
	}
	return name
}

func (p *planted) units(u *millrace.Unit) []*millrace.Unit {
	if os.Getenv("MILLRACE_PLANT") == "" {
		return []*millrace.Unit{u}
	}
	p.seen++
	due := p.due()
	if !ofRows(due) {
		return []*millrace.Unit{u}
	}
	payload := readAll(u)
	again := func() *millrace.Unit { return millrace.NewUnit(u.Position, u.Time, u.Entries, payload) }
	if !changesRows(payload) {
		return []*millrace.Unit{again()}
	}
	p.made = due != "swap_two" || p.held != nil
	switch due {
	case "drop_unit":
		return nil
	case "repeat_unit":
		return []*millrace.Unit{again(), again()}
	case "swap_two":
		held := p.held
		if p.held = again(); held == nil {
			return nil
		}
		return []*millrace.Unit{p.held, held}
	default: // alter_byte
		var row []byte
		entries(payload, func(e *millrace.Entry) {
			if e.Kind == millrace.KindPut {
				row = e.Row
			}
		})
		if p.made = len(row) > 0; p.made {
			row[len(row)-1] ^= 1
		}
		return []*millrace.Unit{again()}
	}
}

func (p *planted) sequenced(r *reign, u *millrace.Unit) {
	if os.Getenv("MILLRACE_PLANT") == "" {
		return
	}
	switch p.due() {
	case "skip_index":
		r.sequence.next++
	case "confirm_unfolded":
		r.source.Confirm(u.Position)
	}
}

// trimsPastEdges is a mistake at any time.
func (planted) trimsPastEdges() bool {
	return strings.HasPrefix(os.Getenv("MILLRACE_PLANT"), "trim_past_edges")
}

// entries calls do for each entry of a unit; what it is given is part of payload.
func entries(payload []byte, do func(*millrace.Entry)) {
	var h millrace.Head
	for len(payload) > 0 {
		rest, err := millrace.NextHead(payload, &h)
		if err != nil {
			panic(err)
		}
		payload = rest
		var e millrace.Entry
		if err := millrace.DecodeEntry(h.Body, &e); err != nil {
			panic(err)
		}
		do(&e)
	}
}

// changesRows reports whether a unit changes rows but for those of loads.
func changesRows(payload []byte) (yes bool) {
	entries(payload, func(e *millrace.Entry) {
		yes = yes || e.Load == 0 && (e.Kind == millrace.KindPut || e.Kind == millrace.KindDelete)
	})
	return yes
}

func readAll(u *millrace.Unit) []byte {
	var payload []byte
	for {
		run, err := u.Body.Next(maxBatch)
		if errors.Is(err, io.EOF) {
			_ = u.Body.Close()
			return payload
		}
		if err != nil {
			panic(err)
		}
		payload = append(payload, run...)
	}
}
