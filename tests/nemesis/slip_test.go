package nemesis

import "fmt"

// A key that can be deferred lets two rows have it for a moment. So the images
// and the order of single changes say nothing of what is there in the end.

// slip returns a session that may change slip.
func (w *walker) slip() *txn {
	s := w.some(false)
	if w.locked(s, "slip", false) {
		return nil
	}
	if s.open {
		s.touched["slip"] = true
	}
	return s
}

// swap gives two rows each other's key, or turns a row of keys, in one statement.
func (w *walker) swap() bool {
	s := w.slip()
	if s == nil {
		return false
	}
	at := w.r.IntN(places-20)*stripes + s.stripe
	if w.r.IntN(2) == 0 {
		other := at + (1+w.r.IntN(15))*stripes
		w.say(s, "UPDATE slip SET id = CASE id WHEN %d THEN %d ELSE %d END WHERE id IN (%d, %d)", at, other, at, at, other)
		return true
	}
	n := 2 + w.r.IntN(12)
	w.say(s, "UPDATE slip SET id = %d + (id - %d + %d) %% %d, n = coalesce(n, 0) + 1 WHERE id %% %d = %d AND id BETWEEN %d AND %d",
		at, at, stripes, n*stripes, stripes, s.stripe, at, at+(n-1)*stripes)
	return true
}

// newBeforeOld inserts a row under a key before the row that has it is deleted:
// in one transaction, or by another one, which commits first.
func (w *walker) newBeforeOld() bool {
	s := w.slip()
	if s == nil {
		return false
	}
	w.names++
	id := w.r.IntN(places)*stripes + s.stripe
	insert := fmt.Sprintf("INSERT INTO slip VALUES (%d, %d, 'new %d', %s)", id, w.names, w.names, []string{"NULL", "big(7, 2500)"}[w.r.IntN(2)])
	if s.open || w.r.IntN(3) == 0 {
		w.atOnce(s, "SET CONSTRAINTS slip_pkey DEFERRED", insert,
			fmt.Sprintf("DELETE FROM slip WHERE id = %d AND note IS DISTINCT FROM 'new %d'", id, w.names), "SET CONSTRAINTS slip_pkey IMMEDIATE")
		return true
	}
	other := w.some(false)
	if other == s || other.open {
		return false
	}
	w.say(s, "BEGIN; SET CONSTRAINTS slip_pkey DEFERRED; %s", insert)
	if w.r.IntN(2) == 0 {
		w.pass()
	}
	w.say(other, "DELETE FROM slip WHERE id = %d", id)
	if w.r.IntN(2) == 0 {
		w.pass()
	}
	w.say(s, "COMMIT")
	return true
}
