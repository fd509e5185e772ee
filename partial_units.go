package millrace

// UnitEnd says of a partial batch where the part of the unit ends that the entry belongs
// to which Next gave last, and whether the unit goes on in the next batch: the entry that
// says so may be left out. For a whole batch, whose entries all come, it is 0.
func (e *Entries) UnitEnd() (last Index, open bool) {
	if !e.partial || len(e.units) == 0 {
		return 0, false
	}
	return e.index + Index(e.units[0].entries) - 1, e.units[0].open
}
