package millrace_test

import (
	"errors"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/millrace-db/millrace"
)

func TestParseToken(t *testing.T) {
	for _, text := range []string{"16/B374D848", "1-7401234567890123456-16/B374D848-742:745:742,744", "1--7401234567890123456-0/1-742:742:", "1-7-0/1-"} {
		token, err := millrace.ParseToken(text)
		if err != nil || token.String() != text {
			t.Errorf("%s: got %v, %v", text, token, err)
		}
	}
	for _, text := range []string{
		"", "0/0", "x", "16", "1-2", "2-7-0/1-1:1:", "1-x-0/1-1:1:", "1-0-0/1-1:1:", "1-7-0/0-1:1:", "1-7-1-1:1:", "1-7-0/1-1:1", "1-7-0/1-2:1:",
		"1-7-0/1-1:5:7", "1-7-0/1-1:5:x", "1-7-0/1-1:1:-", "1-99999999999999999999-0/1-1:1:", "1-7-0/1-1:99999999999999999999:",
	} {
		if token, err := millrace.ParseToken(text); !errors.Is(err, millrace.ErrMalformed) {
			t.Errorf("%q: got %v, %v", text, token, err)
		}
	}
}

func TestCoversWAL(t *testing.T) {
	at := millrace.Position{Mode: millrace.ModeWAL, SystemID: 7, Timeline: 1, Slot: "s", LSN: 100}
	for lsn, want := range map[millrace.LSN]bool{99: true, 100: true, 101: false} {
		if got, err := at.Covers(millrace.Token{SystemID: 7, LSN: lsn}); got != want || err != nil {
			t.Errorf("LSN %d of 100: %v, %v", lsn, got, err)
		}
	}
	if got, err := at.Covers(millrace.Token{SystemID: 8, LSN: 1}); got || !errors.Is(err, millrace.ErrMalformed) {
		t.Errorf("of another system: %v, %v", got, err)
	}
	if got, err := (millrace.Position{}).Covers(millrace.Token{SystemID: 8, LSN: 1}); got || err != nil {
		t.Errorf("of a stream that has not begun: %v, %v", got, err)
	}
	trigger := millrace.Position{Mode: millrace.ModeTrigger, SystemID: 7, Tick: 1, Snapshot: "5:5:"}
	if got, err := trigger.Covers(millrace.Token{LSN: 1}); got || !errors.Is(err, millrace.ErrMalformed) {
		t.Errorf("an LSN for triggers: %v, %v", got, err)
	}
}

// A snapshot covers another one exactly if each transaction that the other sees as ended
// has ended for it.
func TestCoversModel(t *testing.T) {
	const most = 12
	snapshot := func(rnd *rand.Rand) (string, [most]bool) {
		var seen [most]bool
		next := 1 + rnd.IntN(most)
		var running []string
		low := next
		for n := 1; n < next; n++ {
			// The last number below next has ended, or next were lower.
			if n < next-1 && rnd.IntN(3) == 0 {
				running = append(running, strconv.Itoa(n))
				low = min(low, n)
				continue
			}
			seen[n] = true
		}
		return strconv.Itoa(low) + ":" + strconv.Itoa(next) + ":" + strings.Join(running, ","), seen
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	covered := 0
	for range 20_000 {
		here, sees := snapshot(rnd)
		there, wanted := snapshot(rnd)
		want := true
		for n := range wanted {
			want = want && (sees[n] || !wanted[n])
		}
		at := millrace.Position{Mode: millrace.ModeTrigger, SystemID: 7, Tick: 1, Snapshot: here}
		got, err := at.Covers(millrace.Token{SystemID: 7, LSN: 1, Snapshot: there})
		if err != nil || got != want {
			t.Fatalf("%s of %s: got %v, %v, want %v", here, there, got, err, want)
		}
		if got {
			covered++
		}
	}
	if covered < 1000 {
		t.Errorf("only %d pairs covered each other", covered)
	}
}
