package writer

// answer is what a side says.
type answer struct {
	active string // source or target: which takes writes
	side   string // and which this one is
	id     string // of the migration, "" where it does not say so
	term   int64
}

// where is a pool, or none.
type where int

const (
	toSource where = iota // the pool that the configuration calls so
	toTarget
	nowhere
)

// String is for people.
func (w where) String() string { return [...]string{"source", "target", "nowhere"}[w] }

func (w where) other() where { return toTarget - w }

// known is what the two pools have said, and what follows from it.
type known struct {
	pool where // that takes writes; that of the source until one has said something
	id   string
	term int64
	// answers are the newest of each pool in this migration.
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
// neither pool leads to. Nobody stays then with the pool that says that it does not take
// writes: when the migration is finished, nothing denies them there.
func (k *known) take(a *answer, from where) bool {
	if k.past[a.id] {
		return false
	}
	if a.id != k.id {
		k.past[k.id] = true
		k.id, k.answers = a.id, [2]*answer{}
	}
	if last := k.answers[from]; last != nil && last.term > a.term {
		return false // it was on its way for longer
	}
	k.answers[from] = a
	best, goes := a, from
	if other := k.answers[from.other()]; other != nil && other.term > a.term {
		best, goes = other, from.other()
	}
	if best.active != best.side {
		other := k.answers[goes.other()]
		if goes = goes.other(); k.id != "" && (other == nil || other.side != best.active) {
			goes = nowhere
		}
	}
	told := goes != k.pool || best.term != k.term
	k.pool, k.term = goes, best.term
	return told
}
