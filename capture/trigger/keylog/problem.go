package keylog

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Kind says what is amiss with a log.
type Kind string

// The kinds. After each of them changes may be missing in the log.
const (
	// TableDropped: the table is gone.
	TableDropped Kind = "table dropped"
	// TriggerMissing: one of the triggers is gone.
	TriggerMissing Kind = "trigger missing"
	// TriggerDisabled: it does not fire for everybody now.
	TriggerDisabled Kind = "trigger disabled"
	// TriggerReplaced: it is another than the one that was left there, or was
	// disabled and enabled again.
	TriggerReplaced Kind = "trigger replaced"
	// FunctionMissing: a function that a trigger runs is gone.
	FunctionMissing Kind = "function missing"
	// FunctionReplaced: it is another than the one that was left there.
	FunctionReplaced Kind = "function replaced"
	// SegmentMissing: a table of the log is gone.
	SegmentMissing Kind = "segment missing"
	// SegmentEmptied: it was truncated or rewritten by somebody else.
	SegmentEmptied Kind = "segment emptied"
	// KeyChanged: a column of the logged key was dropped, renamed or altered.
	KeyChanged Kind = "key columns changed"
	// WrittenElsewhere: the table can be written in a way that its triggers by
	// statement do not see: through a parent, or by a subscription.
	WrittenElsewhere Kind = "written elsewhere"
	// PartitionTriggers: a partition lacks a trigger, or one of its triggers does
	// not fire for everybody, or was altered since it was made.
	PartitionTriggers Kind = "partition without triggers"
)

// Problem is one thing that is amiss.
type Problem struct {
	Kind Kind
	// Text says what it is, with the names of the things.
	Text string
}

// String is for people.
func (p Problem) String() string { return p.Text }

// mark is how things were left, or are. Each value begins with what is told from
// the rest.
type mark struct {
	Triggers  map[string]string `json:"triggers"`
	Functions map[string]string `json:"functions"`
	Segments  map[string]string `json:"segments"`
	Key       map[string]string `json:"key"`
}

// differences says in which respects things are not as they were left.
func (m *mark) differences(now *mark) []Problem {
	var all []Problem
	each(m.Triggers, now.Triggers, func(name, left, is string) {
		enabled, _, _ := strings.Cut(is, " ")
		switch {
		case is == "":
			all = append(all, Problem{TriggerMissing, "trigger " + name + " is missing"})
		case enabled != "A":
			all = append(all, Problem{TriggerDisabled, "trigger " + name + " is " + enabledWords(enabled)})
		default:
			all = append(all, Problem{TriggerReplaced, "trigger " + name + " was disabled for a time, or made again"})
		}
	})
	each(m.Functions, now.Functions, func(name, _, is string) {
		if is == "" {
			all = append(all, Problem{FunctionMissing, "function millrace." + name + " is missing"})
		} else {
			all = append(all, Problem{FunctionReplaced, "function millrace." + name + " was altered or replaced"})
		}
	})
	each(m.Segments, now.Segments, func(name, _, is string) {
		if is == "" {
			all = append(all, Problem{SegmentMissing, "table millrace." + name + " is missing"})
		} else {
			all = append(all, Problem{SegmentEmptied, "table millrace." + name + " was truncated or rewritten by somebody else"})
		}
	})
	each(m.Key, now.Key, func(name, _, is string) {
		if is == "" {
			all = append(all, Problem{KeyChanged, "column " + name + " of the key is gone or has another name"})
		} else {
			all = append(all, Problem{KeyChanged, "column " + name + " of the key was altered"})
		}
	})
	return all
}

// each calls f for what was left otherwise than it is, by name. is is empty for
// what is gone. What has come since is not looked at: it takes nothing away.
func each(left, now map[string]string, f func(name, left, is string)) {
	var names []string
	for name := range left {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if is := now[name]; is != left[name] {
			f(name, left[name], is)
		}
	}
}

// enabledWords says what a pg_trigger.tgenabled other than A means.
func enabledWords(enabled string) string {
	switch enabled {
	case "D":
		return "disabled"
	case "O":
		return "no longer ENABLE ALWAYS: sessions with session_replication_role = replica pass it by"
	case "R":
		return "enabled for replicas only"
	}
	return fmt.Sprintf("in state %q", enabled)
}

// problems finds what is amiss with a log that was looked at.
func (l *Log) problems(left, now *mark) []Problem {
	if l.kind == "" {
		return []Problem{{TableDropped, "the table was dropped"}}
	}
	var all []Problem
	if left != nil && now != nil {
		all = left.differences(now)
	}
	if l.kind == "r" && l.inherits && !l.partition {
		all = append(all, Problem{WrittenElsewhere, "the table takes part in plain inheritance, and is written through a parent, or its rows are spread over children"})
	}
	if l.Mode == Statement {
		if l.partition {
			all = append(all, Problem{WrittenElsewhere, "the table has become a partition, and is written through its parent without calling its triggers by statement"})
		}
		if l.subscribed {
			all = append(all, Problem{WrittenElsewhere, "a subscription writes the table, and calls no triggers by statement"})
		}
	}
	for _, p := range l.touched {
		text := fmt.Sprintf("triggers of partition %s were disabled for a time, or made again", p.Name)
		if p.Always != len(rowKinds) {
			text = fmt.Sprintf("partition %s has %d of %d triggers ENABLE ALWAYS", p.Name, p.Always, len(rowKinds))
		}
		all = append(all, Problem{PartitionTriggers, text})
	}
	return all
}

// Err returns the problems of a log as one error, or nil if there are none. Last
// is what the event trigger saw of it, if anything.
func (l *Log) Err(last *Event) error {
	if len(l.Problems) == 0 {
		return nil
	}
	var texts []string
	for _, p := range l.Problems {
		texts = append(texts, p.Text)
	}
	by := ""
	if last != nil {
		by = fmt.Sprintf(" (%s by %s at %s: %s)", last.Tag, cmp.Or(last.Who, "somebody"), last.At.UTC().Format("2006-01-02 15:04:05"), last.Command)
	}
	return fmt.Errorf("%w: table %v: %s%s, so changes may be missing in its log; mend: millrace init, which makes it whole and has the table loaded again",
		ErrTriggers, &l.Table, strings.Join(texts, "; "), by)
}
