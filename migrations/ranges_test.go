package migrations

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/millrace-db/millrace/capture"
)

// TestRanges compares what is known of ranges with a model that knows it of each key.
func TestRanges(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	const keys = 32
	key := func(k int) []byte {
		if k == 0 || k == keys { // the ends
			return nil
		}
		return []byte{byte(k)}
	}
	for range 300 {
		r := ranges{left: []capture.KeyRange{{}}}
		var left [keys]bool
		var in [keys]int // the clean range that a key is in, 0 for none
		for k := range keys {
			left[k] = true
		}
		forget := func(id int) {
			for k := range in {
				if id != 0 && in[k] == id {
					in[k] = 0
				}
			}
		}
		for n := 1; n < 40; n++ {
			a, b := random.IntN(keys), random.IntN(keys+1)
			switch {
			case random.IntN(3) == 0:
				r.touch([]byte{byte(a)})
				forget(in[a])
			case random.IntN(30) == 0:
				r.touchAll()
				in = [keys]int{}
			case a != b:
				a, b := min(a, b), max(a, b)
				clean := random.IntN(4) > 0
				r.compared(capture.KeyRange{Low: key(a), High: key(b)}, clean)
				for k := a; k < b; k++ {
					forget(in[k])
				}
				for k := a; k < b; k++ {
					left[k] = false
					if clean {
						in[k] = n
					}
				}
			}
			for k := range keys {
				isClean, isLeft, gap := holds(r.clean, k), holds(r.left, k), holds(between(r.clean), k)
				if isClean != (in[k] != 0) || isLeft != left[k] || gap == isClean {
					t.Fatalf("key %d: clean %v, want %v; left %v, want %v; between clean ones %v\n%v\n%v", k, isClean, in[k] != 0, isLeft, left[k], gap, r.clean, r.left)
				}
			}
		}
	}
}

func holds(all []capture.KeyRange, k int) (in bool) {
	for _, x := range all {
		in = in || x.Holds([]byte{byte(k)})
	}
	return in
}

// TestVerifyCarriesForward reads ranges again that changes have gone into, and no others,
// whichever process has applied the changes; a pass that was cut off is gone on with, and
// on demand all is read.
func TestVerifyCarriesForward(t *testing.T) {
	r := newRig(t, 15, `CREATE TABLE wide (id int PRIMARY KEY, n int); INSERT INTO wide SELECT i, i FROM generate_series(1, 35000) i;
		CREATE TABLE small (id int PRIMARY KEY); INSERT INTO small VALUES (1)`, tablesOf("small", "wide")...)
	r.follow()
	verify := func(full bool, carried, changed int64) *Certificate {
		t.Helper()
		do := r.m.Verify
		if full {
			do = r.m.VerifyFull
		}
		c, err := do(r.ctx())
		if err != nil || !c.Equal || len(c.Tables) != 2 || c.Index == "" || len(c.Chain) != 64 || c.Tables[0].Rows != 1 {
			t.Fatalf("verify: %v, %+v", err, c)
		}
		if w := c.Tables[1]; w.Rows != 35000 || w.Ranges != 4 || w.Carried != carried || w.Changed != changed {
			t.Fatalf("verify: %+v, want 4 ranges of 35,000 rows, %d carried forward, %d changed since", w, carried, changed)
		}
		return c
	}
	first := verify(false, 0, 0)
	if again := verify(false, 4, 0); again.Tables[1].Hash != first.Tables[1].Hash {
		t.Errorf("the same rows have hash %s and then %s", first.Tables[1].Hash, again.Tables[1].Hash)
	}
	r.src.Exec("UPDATE wide SET n = 0 WHERE id IN (15000, 15001)")
	r.catchUp()
	if changed := verify(false, 3, 0); changed.Tables[1].Hash == first.Tables[1].Hash {
		t.Error("other rows have the same hash")
	}
	r.src.Exec("BEGIN; DELETE FROM wide WHERE id = 20001; INSERT INTO wide VALUES (20001, 20001); UPDATE wide SET id = 40000 WHERE id = 5; COMMIT")
	r.renew() // another process
	r.catchUp()
	verify(false, 1, 0)

	// Cut off when two ranges were read, one of which is changed then: it has been
	// compared for this pass.
	r.src.Exec("UPDATE wide SET n = -1 WHERE id % 100 = 1")
	r.catchUp()
	r.dst.Exec("UPDATE millrace.migration_wanted SET done_at = NULL, wanted_at = clock_timestamp()")
	r.must("follow", r.m.Follow(r.ctx(), func(f *follower) bool {
		for _, c := range f.certify.tables {
			if c.from.Name == "wide" && f.certify.begun && len(c.clean) >= 2 {
				return true
			}
		}
		return false
	}))
	before := r.dst.String("SELECT count(*) FROM millrace.migration_range WHERE table_name = 'public.wide'")
	if before == "4" {
		t.Fatal("the pass was not cut off")
	}
	r.src.Exec("UPDATE wide SET n = -2 WHERE id = 2")
	r.catchUp()
	verify(false, 0, 1)
	if got := r.dst.String("SELECT count(*) FROM millrace.migration_range WHERE table_name = 'public.wide' AND index < (SELECT max(touched) FROM millrace.migration_range)"); got != before {
		t.Errorf("%s ranges were compared before the pass was cut off, and %s of these are in the certificate", before, got)
	}

	// What nobody has told is found on demand, or where the table is another one.
	verify(false, 3, 0)
	r.dst.Exec("UPDATE wide SET n = 77 WHERE id = 7")
	verify(false, 4, 0)
	if c, err := r.m.VerifyFull(r.ctx()); !errors.Is(err, ErrDiffers) || c.Tables[1].Differing != 1 || c.Tables[1].Carried != 0 {
		t.Errorf("full verification where somebody else has written: %v, %+v", err, c)
	}
	if c, err := r.m.Verify(r.ctx()); !errors.Is(err, ErrDiffers) || c.Tables[1].Differing != 1 || c.Tables[1].Carried != 3 {
		t.Errorf("verification behind one that found something: %v, %+v", err, c)
	}
	r.dst.Exec("UPDATE wide SET n = 7 WHERE id = 7")
	r.dst.Exec("VACUUM FULL wide")
	verify(false, 0, 0)
	verify(true, 0, 0)
	r.src.Exec("TRUNCATE wide; INSERT INTO wide SELECT i, i FROM generate_series(1, 35000) i")
	r.catchUp()
	verify(false, 0, 0)
	if got := r.dst.String("SELECT count(*) FROM millrace.migration_range"); got != "5" {
		t.Errorf("%s ranges are kept, want those that are there now, 5", got)
	}
}
