package relay

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/millrace-db/millrace"
)

// rules are the times that the choice of an upstream goes by.
type rules struct {
	// stale is how long an upstream may bring nothing new before it is asked whether
	// others have more.
	stale time.Duration
	// margin is by how much, by the source's clock, another upstream must be fresher to
	// be gone over to.
	margin time.Duration
	// probe is how often the others are asked while there is reason to, check how often
	// anyway.
	probe, check time.Duration
	// retryMin and retryMax bound the pause after a failure.
	retryMin, retryMax time.Duration
	// silence is how long an upstream's word about itself counts.
	silence time.Duration
	// ban is how long an upstream that gave something untrue twice is not asked.
	ban time.Duration
}

// standing is where an upstream stands, or what is wanted of it.
type standing struct {
	epoch, next    millrace.Epoch
	oldest, newest millrace.Index
	time           time.Time
}

// failing is how many failures let an upstream count as not there.
const failing = 3

// candidate is an upstream as the choice knows it.
type candidate struct {
	url       string
	secondary bool
	// said is the newest of it, heard when that came; zero if nothing has.
	said  standing
	heard time.Time
	// fails counts failures with no time of calm in between, why is the newest, failed
	// when it was, notBefore the end of the pause after it. absent counts those since it
	// last said something.
	fails, absent     int
	why               error
	failed, notBefore time.Time
	// over is the highest epoch that it no longer has. lost is a place behind which it
	// had nothing any more, believed until forgiven.
	over     millrace.Epoch
	lost     millrace.Place
	forgiven time.Time
	// strikes counts what it gave that was untrue, at place the last time; certain tells
	// that nothing on the way can have made it so. banned is until when it is left alone
	// for that, untrue the newest.
	strikes int
	certain bool
	place   millrace.Place
	banned  time.Time
	untrue  error
	// ask is when it is probed next.
	ask time.Time
}

// bad tells that it gave something untrue, for certain or twice.
func (c *candidate) bad() bool { return c.strikes >= 2 || c.certain }

// lacks tells that it no longer has what is wanted.
func (c *candidate) lacks(now time.Time, want millrace.Place) bool {
	switch {
	case now.Before(c.forgiven) && c.lost.Epoch == want.Epoch && want.Index <= c.lost.Index:
		return true
	case want.Epoch == 0:
		return !c.heard.IsZero() && c.said.epoch != 0 && c.said.oldest > 1
	case c.over >= want.Epoch:
		return true
	}
	return !c.heard.IsZero() && c.said.epoch == want.Epoch && c.said.oldest > want.Index+1
}

// choice decides which upstream is followed. It does no I/O and reads no clock; it is
// not safe for concurrent use.
//
// An upstream is left when it fails (it is silent, refuses, or is gone), when it gave
// something untrue, when another has more that is younger by a margin, or, if it is a
// secondary, when a primary serves as well. That nothing comes is no reason by itself:
// where the source is quiet, no other has more.
type choice struct {
	rules
	rnd *rand.Rand
	all []*candidate
	// current is the one that is followed, -1 for none, since when; advanced is when it
	// last brought something new.
	current         int
	since, advanced time.Time
	// prefer is the one that is to be gone over to, -1 for none.
	prefer int
}

// newChoice takes the upstreams in the order in which they are tried; secondaries come
// after all primaries.
func newChoice(r rules, rnd *rand.Rand, primaries, secondaries []string) *choice {
	c := &choice{rules: r, rnd: rnd, current: -1, prefer: -1}
	for _, url := range primaries {
		c.all = append(c.all, &candidate{url: url})
	}
	for _, url := range secondaries {
		c.all = append(c.all, &candidate{url: url, secondary: true})
	}
	return c
}

// jitter varies a time by a quarter.
func (c *choice) jitter(d time.Duration) time.Duration {
	return d*3/4 + time.Duration(c.rnd.Float64()*float64(d)/2)
}

// verdict is what pick says when it names no upstream.
type verdict uint8

const (
	// pickNow: the upstream is to be asked.
	pickNow verdict = iota
	// pickWait: none may be asked yet.
	pickWait
	// pickGone: none that can be reached has what is wanted any more.
	pickGone
	// pickUntrue: all have given something untrue.
	pickUntrue
)

// pick returns the upstream to ask for what comes after a place, or how long to wait.
// With pickGone, i is the one that reaches back farthest.
func (c *choice) pick(now time.Time, want millrace.Place) (i int, wait time.Duration, v verdict) {
	for _, i := range []int{c.prefer, c.current} {
		if i >= 0 && c.usable(now, i, want) {
			return i, 0, pickNow
		}
	}
	best := -1
	for i, one := range c.all {
		if c.usable(now, i, want) && (best < 0 || c.rank(now, one) < c.rank(now, c.all[best])) {
			best = i
		}
	}
	if best >= 0 {
		return best, 0, pickNow
	}
	var soonest time.Time
	lacking, bad, rest := -1, 0, false
	for i, one := range c.all {
		at := one.notBefore
		switch {
		case one.lacks(now, want):
			if lacking < 0 || c.reaches(one, c.all[lacking]) {
				lacking = i
			}
			continue
		case one.strikes >= 2:
			bad++
			at = one.banned
		case one.banned.After(at):
			at = one.banned
		}
		rest = rest || one.strikes < 2 && one.absent < failing
		if soonest.IsZero() || at.Before(soonest) {
			soonest = at
		}
	}
	switch {
	case bad == len(c.all):
		return -1, 0, pickUntrue
	case lacking >= 0 && !rest:
		return lacking, 0, pickGone
	}
	return -1, max(soonest.Sub(now), time.Millisecond), pickWait
}

// reaches tells that the log of a reaches farther back than that of b, or is of a newer
// epoch.
func (c *choice) reaches(a, b *candidate) bool {
	if lost := b.lost != (millrace.Place{}); lost != (a.lost != millrace.Place{}) {
		return lost // it is no log of an edge
	}
	if a.said.epoch != b.said.epoch {
		return a.said.epoch > b.said.epoch
	}
	return a.said.oldest < b.said.oldest
}

// rank orders those that may be asked: first who has not failed of late, and last who
// gave something untrue. Among equals the order of the list counts, in which secondaries
// come after primaries.
func (c *choice) rank(now time.Time, one *candidate) int {
	switch {
	case one.bad():
		return 2
	case c.shaky(now, one):
		return 1
	}
	return 0
}

// shaky tells that an upstream has failed of late: the more often, the longer it counts.
func (c *choice) shaky(now time.Time, one *candidate) bool {
	return one.fails > 0 && now.Sub(one.failed) < c.probe<<min(one.fails-1, 6)
}

// usable tells that an upstream may be asked now.
func (c *choice) usable(now time.Time, i int, want millrace.Place) bool {
	one := c.all[i]
	return !now.Before(one.notBefore) && !now.Before(one.banned) && !one.lacks(now, want)
}

// follow notes that an upstream serves.
func (c *choice) follow(now time.Time, i int, s standing) {
	c.current, c.since, c.advanced = i, now, now
	if c.prefer == i {
		c.prefer = -1
	}
	c.hear(now, i, s)
	c.all[i].why = nil
	for _, other := range c.all {
		if at := now.Add(c.jitter(c.check)); other.ask.IsZero() {
			other.ask = at
		}
	}
}

// hear notes where an upstream stands.
func (c *choice) hear(now time.Time, i int, s standing) {
	one := c.all[i]
	if i == c.current && (s.epoch != one.said.epoch || s.newest > one.said.newest) {
		c.advanced = now
	}
	if i == c.current && now.Sub(c.since) >= 2*c.silence {
		one.fails = 0
	}
	one.said, one.heard, one.absent = s, now, 0
}

// fail notes that an upstream does not serve. s is where it stands, if it said so.
func (c *choice) fail(now time.Time, i int, why error, s *standing) {
	one := c.all[i]
	one.fails++
	one.absent++
	one.why, one.failed = why, now
	one.notBefore = now.Add(c.jitter(min(c.retryMin<<min(one.fails-1, 20), c.retryMax)))
	if s != nil {
		c.hear(now, i, *s) // it is there, and says why it does not serve
	}
	c.drop(i)
}

// ended notes that an upstream no longer has an epoch.
func (c *choice) ended(i int, epoch millrace.Epoch) {
	c.all[i].over = max(c.all[i].over, epoch)
}

// lose notes that an upstream which cannot say how far it reaches back had nothing any
// more behind a place. It is asked again after a while.
func (c *choice) lose(now time.Time, i int, want millrace.Place) {
	one := c.all[i]
	one.lost, one.forgiven = want, now.Add(c.jitter(c.retryMax))
}

// drop forgets that an upstream is followed, or to be.
func (c *choice) drop(i int) {
	if c.current == i {
		c.current = -1
	}
	if c.prefer == i {
		c.prefer = -1
	}
}

// reject notes that an upstream gave something untrue; certain tells that nothing on the
// way can have made it so. After the first time it may be asked once more, others first;
// after the second, with nothing true in between, it is left alone for long. It tells
// whether it has become bad by that.
func (c *choice) reject(now time.Time, i int, at millrace.Place, why error, certain bool) (news bool) {
	one := c.all[i]
	was := one.bad()
	one.strikes, one.place, one.untrue = min(one.strikes+1, 2), at, why
	one.certain = one.certain || certain
	pause := c.retryMin
	if one.strikes == 2 {
		pause = c.ban
	}
	one.banned = now.Add(c.jitter(pause))
	c.drop(i)
	return one.bad() && !was
}

// clear notes that what an upstream gave was found to be of the history, up to a place.
// It tells whether the upstream was bad.
func (c *choice) clear(i int, at millrace.Place) bool {
	one := c.all[i]
	if one.strikes == 0 || at.Compare(one.place) <= 0 {
		return false
	}
	was := one.bad()
	one.strikes, one.certain, one.untrue, one.banned = 0, false, nil, time.Time{}
	return was
}

// probes returns the upstreams that are to be asked where they stand.
func (c *choice) probes(now time.Time) []int {
	if c.current < 0 {
		return nil
	}
	var due []int
	for i, one := range c.all {
		if i == c.current || now.Before(one.banned) {
			continue
		}
		every := c.check
		if c.reason(now, one) {
			every = c.probe
		}
		if most := now.Add(every * 5 / 4); one.ask.After(most) || one.ask.IsZero() {
			one.ask = now.Add(c.jitter(every)) // there is reason now, and was none
		}
		if !now.Before(one.ask) {
			one.ask = now.Add(c.jitter(every))
			due = append(due, i)
		}
	}
	return due
}

// reason tells that there may be a reason to go over to one.
func (c *choice) reason(now time.Time, one *candidate) bool {
	current := c.all[c.current]
	return now.Sub(c.advanced) >= c.stale || current.secondary && !one.secondary
}

// better decides, after an upstream has said where it stands, whether to go over to it.
// want is the place that is to be gone on from.
func (c *choice) better(now time.Time, i int, want millrace.Place) (reason string, leave bool) {
	if c.current < 0 || i == c.current || c.all[i].bad() || !c.usable(now, i, want) {
		return "", false
	}
	one, current := c.all[i], c.all[c.current]
	if c.shaky(now, one) {
		return "", false // it has to be well for a while
	}
	if now.Sub(current.heard) > c.silence {
		return "", false // nothing is read of it now: who is slow is this edge
	}
	a, b := one.said, current.said
	if a.epoch != want.Epoch || b.epoch != want.Epoch {
		return "", false // a newer epoch is gone over to in another way
	}
	ahead := a.time.Sub(b.time)
	switch {
	case a.newest > b.newest && ahead >= c.margin:
		reason = fmt.Sprintf("it is %v behind", ahead.Round(time.Millisecond))
	case current.secondary && !one.secondary && -ahead < c.margin/2:
		reason = "a primary serves again"
	default:
		return "", false
	}
	c.prefer = i
	return reason, true
}
