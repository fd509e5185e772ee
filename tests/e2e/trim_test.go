package e2e

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/tests/harness"
)

const retained = ", retain: {time: 10m}"

// TestTrimAtEveryStep kills transfer behind its decision to trim the topic and behind
// the deletion, and stops it behind the decision until a successor reigns: that one
// deletes nothing when it wakes up. The stream goes on, and every row is there.
func TestTrimAtEveryStep(t *testing.T) {
	t.Parallel()
	rng, seed := harness.Rand(t)
	s := newSystem(t, kafkatest.Shared(t))
	s.Capture = harness.CaptureWAL // the witness follows the topic by looks at the slot
	r := newRunOn(t, rng, s, faultySize(), harness.Faulty)
	s.MoreKafka = retained
	r.edge.More = "  report: 1s\n"
	r.edge.WriteConfig()
	r.startCopied()
	for range harness.Trials(1, 100) {
		r.killTrimming("trim-decided", false)
		r.killTrimming("trimmed", true)
		r.zombieTrimming()
	}
	t.Logf("trim at every step: seed %d, %s", seed, r.finish())
}

// topicStart is the offset of the topic's first record.
func (r *run) topicStart() int64 {
	r.t.Helper()
	var shown struct {
		Epochs []struct {
			First int64 `json:"first_offset"`
		} `json:"epochs"`
	}
	p := r.s.Run(r.transfer.Config, "epoch", "show", "--json")
	if err := json.Unmarshal([]byte(p.Stdout()), &shown); err != nil || len(shown.Epochs) != 1 {
		r.t.Fatalf("epoch show: %v, %s", err, p.Stderr())
	}
	return shown.Epochs[0].First
}

// ripen lets transfer, which has just begun its reign and with it written a state
// record, have something to trim: the record is said to be old, and the edge has
// reported a later place.
func (r *run) ripen() {
	r.t.Helper()
	r.awaitProgress()
	newest := "0"
	harness.Until(r.t, progressLimit, "a place where the topic may begin is kept", func(context.Context) error {
		newest = r.s.DB.String(`SELECT coalesce(max(last_index), 0)::text FROM millrace.mark WHERE marked_at > now() - interval '30 min'`)
		if newest == "0" {
			return harness.NotYet("there is none")
		}
		return nil
	})
	// What the witness has read may go, and not what a later mark lets go.
	looks := r.watch.Looks.Load()
	harness.Until(r.t, progressLimit, "the witness has read the topic", func(context.Context) error {
		if r.watch.Looks.Load() < looks+2 {
			return harness.NotYet("it has not: %v", r.wrong())
		}
		return nil
	})
	r.s.DB.Exec(`UPDATE millrace.mark SET marked_at = marked_at - interval '1 hour' WHERE last_index <= ` + newest)
	harness.Until(r.t, progressLimit, "the edge has reported that it needs it no more", func(context.Context) error {
		if !r.transfer.Running() || r.transfer.Paused() {
			return nil // it has trimmed by itself
		}
		var plan struct {
			Start int64 `json:"start_offset"`
			To    int64 `json:"to_offset"`
		}
		p := r.s.Run(r.transfer.Config, "trim", "--dry-run", "--json")
		if err := json.Unmarshal([]byte(p.Stdout()), &plan); err != nil || plan.To <= plan.Start {
			return harness.NotYet("trim --dry-run: %s%s", p.Stdout(), p.Stderr())
		}
		return nil
	})
}

// armed starts transfer again, with a place at which something happens to it.
func (r *run) armed(failpoint string) {
	r.t.Helper()
	r.transfer.Kill()
	r.transfer = r.s.StartTransferWith(r.transfer.Config, r.transfer.Admin, "MILLRACE_FAILPOINT="+failpoint)
}

func (r *run) killTrimming(at string, gone bool) {
	r.t.Helper()
	r.armed(at)
	before := r.topicStart()
	r.ripen()
	r.s.Run(r.transfer.Config, "trim")
	if code := r.transfer.Wait(hitLimit); code != -1 {
		r.t.Fatalf("%s: transfer ended with exit code %d, want the kill", at, code)
	}
	if start := r.topicStart(); (start > before) != gone {
		r.t.Errorf("killed at %s: the topic began at %d and begins at %d", at, before, start)
	}
	r.faulted[at]++
	r.transfer = r.s.StartTransferWith(r.transfer.Config, r.transfer.Admin)
	r.awaitProgress()
}

func (r *run) zombieTrimming() {
	r.t.Helper()
	r.armed("trim-decided:1:stop")
	r.ripen()
	old := r.transfer
	trim := harness.Start(r.t, harness.Command{Name: "trim", Binary: harness.Binary(r.t, r.s.Variant), Args: []string{"trim", "-c", old.Config}, Dir: r.s.Dir})
	harness.Until(r.t, hitLimit, "transfer has stopped behind its decision", stopped(old))
	before := r.topicStart()
	r.s.MoreKafka = "" // the successor trims nothing
	r.transfer = r.s.StartTransfer()
	r.s.MoreKafka = retained
	r.awaitProgress()
	r.wake(old, "a transfer that was stopped behind its decision")
	trim.Wait(progressLimit)
	if start := r.topicStart(); start != before {
		r.t.Errorf("a deposed publisher has trimmed the topic from %d to %d", before, start)
	}
	r.faulted["zombie at trim-decided"]++
	r.transfer.Stop(stopLimit)
	r.transfer = r.s.StartTransfer()
}
