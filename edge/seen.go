package edge

import "time"

// lookAgain is how long the head of a snapshot is believed that another view has read:
// pages come from the disk again and again, also those of a store that is not written.
const lookAgain = time.Second

// seen is the head of a snapshot, which the views that come after the first one need
// not look up.
type seen struct {
	// id is that of the transactions that see the snapshot, at when it was looked at, as
	// reader.since has it.
	id   uintptr
	at   int64
	head head
}

// look reads the head of the view's snapshot. A Snapshot, which may be held for long,
// sees for itself.
func (v *View) look() error {
	since := v.r.since.Load()
	id := v.txn.ID()
	if sn := v.s.seen.Load(); since != 0 && sn != nil && sn.id == id && since-sn.at < int64(lookAgain) {
		v.head = sn.head
		return nil
	}
	if err := v.s.readHead(v.txn, &v.head); err != nil {
		return err
	}
	if since != 0 {
		v.s.seen.Store(&seen{id: id, at: since, head: v.head})
	}
	return nil
}
