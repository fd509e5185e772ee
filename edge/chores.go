package edge

// HasChores reports whether Chore has something to do.
func (w *Writer) HasChores() bool {
	declared := w.s.declared.Load()
	if w.indexing.idle && w.indexing.idleFor == declared {
		return false
	}
	if w.garbage() != nil || w.indexTask() != nil || w.cat.narrowing != nil {
		return true
	}
	w.indexing.idle, w.indexing.idleFor = true, declared
	return false
}

// Chore does a slice of what is to be done in the background, in a transaction of
// its own: it removes some rows of generations that are gone or of keys that are not
// held any more, or makes, goes on
// building, or drops an index. It takes a few milliseconds, and reports whether
// there is more to do. It must not be called within a transaction.
func (w *Writer) Chore() (more bool, err error) {
	g, task := w.garbage(), w.indexTask()
	if g != nil && task != nil {
		// Neither waits for all of the other.
		if w.indexing.turn = !w.indexing.turn; w.indexing.turn {
			g = nil
		}
	}
	switch {
	case w.cat.narrowing != nil:
		err = w.narrowSlice()
	case g != nil:
		err = w.sweep(g)
	case task != nil:
		err = w.doIndexTask(task)
	}
	if err != nil {
		return false, err
	}
	return w.HasChores(), nil
}

// Sweep does those of the chores that give room back, as Chore does, and reports
// whether there is more to remove. It is for a store that is full.
func (w *Writer) Sweep() (more bool, err error) {
	g := w.garbage()
	if g == nil {
		return false, nil
	}
	if err := w.sweep(g); err != nil {
		return false, err
	}
	return w.garbage() != nil, nil
}

// garbage returns a generation to be removed, or nil.
func (w *Writer) garbage() *generation {
	var first *generation
	for _, g := range w.cat.generations {
		if g.usage == garbage && (first == nil || g.name < first.name) {
			first = g
		}
	}
	return first
}
