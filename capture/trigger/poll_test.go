package trigger

import (
	"testing"

	"github.com/millrace-db/millrace/capture/chunk"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// A poll that finds nothing is remembered, so that the next one does not look for
// the same transactions; one that was still running is found when it has ended.
func TestPollsRememberNothing(t *testing.T) {
	db := pgtest.New(t)
	db.Exec("create table a (id int primary key, v text); create table other (id int)")
	r := newRig(t, db, nil, "a")
	r.begin()
	poll := func(want bool) {
		t.Helper()
		r.src.turn.Lock()
		defer r.src.turn.Unlock()
		found, err := r.src.poll(r.ctx())
		if err != nil || found != want {
			t.Errorf("poll: got %v, %v, want %v", found, err, want)
		}
	}
	// Other databases of the cluster may be at work, so this may take a few.
	until(t, "a poll that has nothing to look for", func() bool {
		poll(false)
		now, err := chunk.ParseSnapshot(db.String("select pg_current_snapshot()"))
		if err != nil {
			t.Fatal(err)
		}
		u := unseenBy(r.src.known(), now)
		return u.isEmpty()
	})
	open := r.client()
	open.exec("begin; insert into a values (1, 'late')")
	poll(false)
	db.Exec("insert into other values (1)")
	poll(false)
	open.exec("commit")
	poll(true)
	poll(true) // until a window has it
	r.next()
	r.equal()
	poll(false)
}
