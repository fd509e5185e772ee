package writer

// answer is what a side says.
type answer struct {
	active string // source or target: which takes writes
	side   string // and which this one is
	id     string // of the migration, "" where it does not say so
	term   int64
}

// known is what the two pools have said, and what follows from it.
type known struct {
	target bool // the pool that takes writes
	id     string
	term   int64
	// answers are the newest of each pool in this migration, by whether it is that of the target.
	answers [2]*answer
	// past are migrations of the same name that were before it.
	past map[string]bool
}

// take takes an answer of a pool and reports whether another pool takes writes now, or
// for another term.
//
// Terms of another migration of the same name begin anew, and it may go the other way; what
// a migration has said that was before it is of no account. A pool is gone over to
// only if it has answered for the same migration: another one may lead to a database that
// neither pool leads to, and what is left of the last one may be open.
func (k *known) take(a *answer, target bool) bool {
	if k.past[a.id] {
		return false
	}
	if a.id != k.id {
		k.past[k.id] = true
		k.id, k.answers = a.id, [2]*answer{}
	}
	at := func(target bool) **answer {
		if target {
			return &k.answers[1]
		}
		return &k.answers[0]
	}
	if last := *at(target); last != nil && last.term > a.term {
		return false // it was on its way for longer
	}
	*at(target) = a
	best, goes := a, target
	if other := *at(!target); other != nil && other.term > a.term {
		best, goes = other, !target
	}
	if best.active != best.side {
		if other := *at(!goes); k.id == "" || other != nil && other.side == best.active {
			goes = !goes
		}
	}
	told := goes != k.target || best.term != k.term
	k.target, k.term = goes, best.term
	return told
}
