package trigger

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/millrace-db/millrace/capture/chunk"
	"github.com/millrace-db/millrace/capture/trigger/keylog"
)

func snapshot(t testing.TB, text string) chunk.Snapshot {
	t.Helper()
	s, err := chunk.ParseSnapshot(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestUnseenBy(t *testing.T) {
	for _, c := range []struct{ before, now, want string }{
		{"10:10:", "10:10:", ""},
		{"10:10:", "12:12:", "x >= 10 AND x < 12"},
		{"10:12:10", "12:12:", "x = ANY ('{10}'::bigint[])"},
		{"10:12:10,11", "10:14:10,12", "x = ANY ('{11}'::bigint[]) OR x >= 13 AND x < 14"},
		{"10:10:", "11:15:11,13", "x >= 10 AND x < 11 OR x >= 12 AND x < 13 OR x >= 14 AND x < 15"},
		{"10:10:", "10:13:10,11", "x >= 12 AND x < 13"},
		{"10:12:11", "11:12:11", ""},
	} {
		u := unseenBy(snapshot(t, c.before), snapshot(t, c.now))
		if got := strings.Join(u.conditions("x"), " OR "); got != c.want || u.isEmpty() != (c.want == "") {
			t.Errorf("%s then %s: got %q, want %q", c.before, c.now, got, c.want)
		}
	}
}

// Whatever two snapshots a server takes one after the other: each transaction that
// the later sees and the earlier does not is named once; none is that the earlier
// sees; and there are few spans.
func TestUnseenByModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// A transaction begins at its number and ends some time later.
		const last = 40
		var ends [last]int
		for x := range ends {
			ends[x] = x + rapid.IntRange(1, 30).Draw(t, "life")
		}
		at := func(now int) (s chunk.Snapshot) {
			// It has seen those numbers that were given out, of which xmax follows the
			// highest that has ended.
			s.Xmax = 1
			for x := 1; x < now; x++ {
				if ends[x] <= now {
					s.Xmax = chunk.XID(x + 1)
				}
			}
			s.Xmin = s.Xmax
			for x := 1; x < min(now, int(s.Xmax)); x++ {
				if ends[x] > now {
					s.Running = append(s.Running, chunk.XID(x))
				}
			}
			if len(s.Running) > 0 {
				s.Xmin = s.Running[0]
			}
			return s
		}
		first := rapid.IntRange(1, last).Draw(t, "first")
		before, now := at(first), at(rapid.IntRange(first, last).Draw(t, "second"))
		u := unseenBy(before, now)
		if len(u.New) > maxSpans {
			t.Fatalf("%d spans", len(u.New))
		}
		for x := chunk.XID(1); x < last+2; x++ {
			named := 0
			if slices.Contains(u.Old, x) {
				named++
			}
			for _, s := range u.New {
				if x >= s.Low && x < s.High {
					named++
				}
			}
			switch {
			case named > 1, named == 1 && before.Sees(x), named == 0 && now.Sees(x) && !before.Sees(x):
				t.Fatalf("%v then %v: transaction %d is named %d times", before, now, x, named)
			}
		}
	})
}

func TestBackoff(t *testing.T) {
	b := backoff{shortest: 2 * time.Millisecond, longest: 50 * time.Millisecond}
	var got []time.Duration
	for range 8 {
		got = append(got, b.next())
	}
	if want := "[2ms 2ms 4ms 8ms 16ms 32ms 50ms 50ms]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
	b.came()
	if got := b.next(); got != 2*time.Millisecond {
		t.Errorf("after something came: got %v", got)
	}
}

func TestMarks(t *testing.T) {
	m := marks{Leaves: "l", Files: "f", Generated: []int16{3}, Plain: true, Noting: "n"}
	with := func(change func(*marks)) *marks {
		c := m
		change(&c)
		return &c
	}
	for _, c := range []struct {
		now       *marks
		truncated bool
		want      string
	}{
		{&m, false, ""},
		{with(func(m *marks) { m.Files = "g" }), false, rewritten},
		{with(func(m *marks) { m.Files = "g" }), true, ""},
		{with(func(m *marks) { m.Leaves = "k" }), true, "a partition came or went"},
		{with(func(m *marks) { m.Generated = nil }), false, "a column that was generated is not any more"},
		{with(func(m *marks) { m.Generated = []int16{3, 4} }), false, ""},
		{with(func(m *marks) { m.Choice = "c" }), false, "other columns or rows of it were chosen"},
	} {
		if got := c.now.differs(&m, c.truncated); got != c.want {
			t.Errorf("%+v: got %q, want %q", c.now, got, c.want)
		}
	}
	if got := m.differs(nil, true); got == "" {
		t.Error("nothing is known of it, and it is not loaded")
	}
	other, rewrite, create, alter := with(func(m *marks) { m.Noting = "o" }), keylog.Event{Tag: "ALTER TABLE", Rewritten: true}, keylog.Event{Tag: "CREATE TABLE"}, keylog.Event{Tag: "ALTER TABLE"}
	parts := with(func(m *marks) { m.Plain = false })
	for _, c := range []struct {
		now, before *marks
		reason      string
		kept        bool
		events      []keylog.Event
		want        bool
	}{
		{&m, &m, rewritten, true, nil, true},
		{&m, &m, rewritten, true, []keylog.Event{alter}, true},
		{&m, &m, rewritten, true, []keylog.Event{rewrite}, false},
		{&m, other, rewritten, true, nil, false},
		{&m, nil, rewritten, true, nil, false},
		{parts, parts, rewritten, true, nil, false},
		{parts, parts, partitioned, true, []keylog.Event{create}, true},
		{parts, parts, partitioned, true, []keylog.Event{create, alter}, false},
		{parts, parts, partitioned, true, nil, false},
		{parts, parts, partitioned, false, []keylog.Event{create}, false},
		{parts, parts, "another", true, []keylog.Event{create}, false},
	} {
		if got := c.now.excused(c.before, c.reason, c.kept, c.events); got != c.want {
			t.Errorf("%+v after %+v, %s, kept %v, %+v: got %v", c.now, c.before, c.reason, c.kept, c.events, got)
		}
	}
}

func TestWorthScan(t *testing.T) {
	for _, c := range []struct {
		keys, blocks uint64
		want         bool
	}{{9_999, 1, false}, {10_000, 10, true}, {10_000, 5_001, false}, {1_000_000, 20_000, true}, {1_000_000, 5_000_000, false}} {
		if got := worthScan(c.keys, c.blocks); got != c.want {
			t.Errorf("%d keys, %d blocks: got %v", c.keys, c.blocks, got)
		}
	}
}
