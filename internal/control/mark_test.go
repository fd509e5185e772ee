package control

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
)

func TestMarks(t *testing.T) {
	_, conn, s := bank(t)
	ctx := testContext(t)
	insert := func(epoch millrace.Epoch, m Mark) {
		t.Helper()
		if err := InsertMark(ctx, conn, s.Name, epoch, m); err != nil {
			t.Fatal(err)
		}
	}
	offsets := func(epoch millrace.Epoch) (got string) {
		t.Helper()
		all, err := Marks(ctx, conn, s.Name, epoch)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range all {
			got += fmt.Sprintf("%v@%v/%d ", m.Offset, m.Index, m.Bytes)
			if m.Age < 0 || m.Age > time.Minute {
				t.Errorf("mark %v has the age %v", m.Offset, m.Age)
			}
		}
		return got
	}
	insert(1, Mark{Offset: 3, Index: 5, Bytes: 900})
	insert(2, Mark{Offset: 20, Index: 18446744073709551615, Bytes: 18446744073709551615})
	insert(2, Mark{Offset: 10, Index: 7, Bytes: 100})
	insert(2, Mark{Offset: 10, Index: 8, Bytes: 101}) // it is there
	if got, want := offsets(2), "10@7/100 20@18446744073709551615/18446744073709551615 "; got != want {
		t.Errorf("marks are %q, want %q", got, want)
	}
	if err := DropMarks(ctx, conn, s.Name, 2, 20); err != nil {
		t.Fatal(err)
	}
	if got := offsets(1) + offsets(2); got != "20@18446744073709551615/18446744073709551615 " {
		t.Errorf("after the trim to offset 20: %q", got)
	}
	if err := InsertMark(ctx, conn, "other", 1, Mark{}); !errors.Is(err, ErrNoStream) {
		t.Errorf("mark of a stream that is none: %v", err)
	}
}

// TestThinMarks: of old marks the first of each hour stays, and the first of all.
func TestThinMarks(t *testing.T) {
	_, conn, s := bank(t)
	ctx := testContext(t)
	_, err := conn.Exec(ctx, `
INSERT INTO millrace.mark (stream, epoch, log_offset, last_index, bytes, marked_at)
SELECT $1, 1, n, n, n, date_trunc('hour', now()) - interval '50 hours' + n * interval '10 minutes' FROM generate_series(1, 300) n`, s.Name)
	if err != nil {
		t.Fatal(err)
	}
	var old, thinned, young int
	for range 2 {
		if err := ThinMarks(ctx, conn, s.Name, 1); err != nil {
			t.Fatal(err)
		}
	}
	err = conn.QueryRow(ctx, `
SELECT count(DISTINCT date_trunc('hour', marked_at)) FILTER (WHERE marked_at < now() - interval '1 day'),
    count(*) FILTER (WHERE marked_at < now() - interval '1 day'), count(*) FILTER (WHERE marked_at >= now() - interval '1 day')
FROM millrace.mark`).Scan(&old, &thinned, &young)
	if err != nil {
		t.Fatal(err)
	}
	if old < 25 || thinned != old || young < 130 {
		t.Errorf("%d marks of %d old hours are left, %d younger ones", thinned, old, young)
	}
}

// TestDecideTrim: a publisher whose successor has written anything decides nothing, nor
// does one of an old epoch.
func TestDecideTrim(t *testing.T) {
	_, conn, s := bank(t)
	ctx := testContext(t)
	decide := func(epoch millrace.Epoch, term millrace.Term, offset millrace.Offset) error {
		return DecideTrim(ctx, conn, Trim{Stream: s.Name, Epoch: epoch, Term: term, Publisher: millrace.PublisherID{byte(term)}, Offset: offset, Index: 5})
	}
	refused := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, ErrDeposed) {
			t.Errorf("%s: %v, want ErrDeposed", what, err)
		}
	}
	for _, offset := range []millrace.Offset{10, 20, 20, 15} { // one that was not carried out is taken back
		if err := decide(1, 3, offset); err != nil {
			t.Fatalf("offset %v: %v", offset, err)
		}
	}
	refused("of an earlier term than the newest decision", decide(1, 2, 30))
	row := LedgerRow{
		Stream: s.Name, Epoch: 1, Term: 4, Publisher: millrace.PublisherID{4}, First: 1, Last: 2, TopicID: "abc", LastOffset: 40,
		StateOffset: 39, Captured: Counts{}, ReadBack: Counts{}, SourceTime: time.Now(),
	}
	if err := InsertLedger(ctx, conn, &row); err != nil {
		t.Fatal(err)
	}
	refused("of an earlier term than the ledger's", decide(1, 3, 30))
	if err := decide(1, 4, 30); err != nil {
		t.Errorf("the one who reigns: %v", err)
	}
	refused("of an epoch that the registry does not have", decide(2, 9, 50))
	to := s
	to.Epoch, to.Topic, to.TopicID = 2, "millrace.bank.2", "def"
	if err := BeginEpoch(ctx, conn, s, to); err != nil {
		t.Fatal(err)
	}
	refused("of the epoch before", decide(1, 4, 40))
	if err := decide(2, 1, 3); err != nil {
		t.Errorf("of the new epoch: %v", err)
	}
}
