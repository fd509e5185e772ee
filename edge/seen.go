package edge

import (
	"slices"
	"time"
)

// What a view looks up before it comes to its row is the same for all views of a
// snapshot: the head, and where the trees of the databases begin. The writer leaves both
// with its commit, for databases that were read lately; where it has not, or another
// process writes, the first views find them, for those that come after.

// lookAgain is how long what was seen of a snapshot is believed: pages come from the disk
// again and again, also those of a store that is not written.
const lookAgain = time.Second

// maxSeenTrees is how many databases are remembered at once. The writer looks up each of
// them with every commit, and a view goes through the list.
const maxSeenTrees = 32

// seen is what is known of a snapshot. It is not changed, but replaced.
type seen struct {
	// id is that of the transactions that see the snapshot, at when it was looked at, as
	// reader.since has it.
	id   uintptr
	at   int64
	head head
	// trees are the records of databases that were read since listed.
	trees  []seenTree
	listed int64
}

type seenTree struct {
	database string
	tree     tree
}

// tree returns the record of a database, nil if it is not known.
func (sn *seen) tree(database string) *tree {
	if sn == nil {
		return nil
	}
	for i := range sn.trees {
		if sn.trees[i].database == database {
			return &sn.trees[i].tree
		}
	}
	return nil
}

// look reads the head of the view's snapshot. A Snapshot, which may be held for long,
// sees for itself.
func (v *View) look() error {
	v.seen = nil
	since := v.r.since.Load()
	id := v.txn.ID()
	known := v.s.seen.Load()
	if since != 0 && known != nil && known.id == id && since-known.at < int64(lookAgain) {
		v.head, v.seen = known.head, known
		return nil
	}
	if coming := v.s.coming.Load(); since != 0 && coming != nil && coming.id == id && since-coming.at < int64(lookAgain) {
		v.head, v.seen = coming.head, coming
		return nil
	}
	v.r.tree = treeAt{}
	if err := v.s.readHead(v.txn, &v.head); err != nil {
		return err
	}
	if since != 0 && (known == nil || known.id <= id) {
		sn := &seen{id: id, at: since, head: v.head, listed: since}
		if v.s.seen.CompareAndSwap(known, sn) {
			v.seen = sn
		}
	}
	return nil
}

// note adds the record of a database to what is known of the view's snapshot.
func (v *View) note(database string, t tree) {
	known := v.s.seen.Load()
	if v.seen == nil || known == nil || known.id != v.seen.id || len(known.trees) == maxSeenTrees || known.tree(database) != nil {
		return
	}
	sn := *known
	sn.trees = append(slices.Clip(known.trees), seenTree{database, t})
	if v.s.seen.CompareAndSwap(known, &sn) {
		v.seen = &sn
	}
}

// announce tells readers the head that the open transaction has written, for those that see
// it before leave has told them more. None does before it is committed, and where that
// fails it must be taken back: the next one has the same ID.
func (w *Writer) announce() (id uintptr) {
	id = w.txn.ID()
	sn := &seen{id: id, at: w.s.readers.now()}
	if w.s.readHead(w.txn, &sn.head) == nil {
		w.s.coming.Store(sn)
	}
	return id
}

// leave leaves to readers what is to be known of the snapshot that the transaction with
// the ID has made. It is read like a reader does, from the snapshot itself. What cannot be
// read is left out: who needs it finds out why.
func (w *Writer) leave(id uintptr) {
	s, r := w.s, &w.reader
	if r.txn == nil {
		if s.readers.begin(r) != nil {
			return
		}
	} else if s.readers.renew(r) != nil {
		w.endReader()
		return
	}
	defer r.txn.Reset()
	if r.txn.ID() != id {
		return
	}
	now := s.readers.now()
	sn := &seen{id: id, at: now, listed: now}
	if s.readHead(r.txn, &sn.head) != nil {
		return
	}
	// Now and then the list begins anew, so that it has what is still being read.
	if before := s.seen.Load(); before != nil && now-before.listed < int64(lookAgain) {
		sn.listed = before.listed
		sn.trees = make([]seenTree, 0, len(before.trees))
		for i := range before.trees {
			database := before.trees[i].database
			if t, err := s.readTree(r.txn, database); err == nil {
				sn.trees = append(sn.trees, seenTree{database, t})
			}
		}
	}
	s.seen.Store(sn)
	s.coming.Store(nil)
}

// endReader gives up the writer's read transaction.
func (w *Writer) endReader() {
	if w.reader.txn != nil {
		w.reader.txn.Abort()
		w.reader.txn = nil
	}
}
