package harness

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace/edge"
)

// maxFaults bounds the list of a Verdict, not its counts.
const maxFaults = 50

// judgeLimit bounds the comparison of all rows.
const judgeLimit = 10 * time.Minute

// Verdict is what all witnesses together say of a system at rest.
type Verdict struct {
	// Rows were compared, over all tables and both ways.
	Rows int
	// Lost counts acknowledged rows that the edge lacks, Differing all rows in
	// which source and edge or source and topic differ, Duplicates rows of
	// append-only tables that the topic brings more than once.
	Lost, Differing, Duplicates int
	// Faults says what is wrong, a line each; empty means nothing is.
	Faults []string
}

func (v *Verdict) fault(format string, args ...any) {
	if len(v.Faults) < maxFaults {
		v.Faults = append(v.Faults, fmt.Sprintf(format, args...))
	}
}

// Report makes each fault a failure of the test.
func (v *Verdict) Report(t testing.TB) {
	t.Helper()
	for _, fault := range v.Faults {
		t.Error(fault)
	}
}

// Witness opens a witness of the system's topic, closed with the test.
func (s *System) Witness() *Witness {
	s.T.Helper()
	w, err := NewWitness(s.Kafka.Brokers(), s.Topic)
	must(s.T, "open witness", err)
	s.T.Cleanup(w.Close)
	return w
}

// Settle waits until the edge has all that the source has committed. The
// source must be at rest; a marker row in the journal's table shows the end.
func (s *System) Settle(ctx context.Context, e *Edge, limit time.Duration) error {
	marker := fmt.Sprint(time.Now().UnixNano())
	if _, err := s.DB.Pool.Exec(ctx, "INSERT INTO public.journal VALUES (-1, "+marker+", 'marker')"); err != nil {
		return fmt.Errorf("write marker: %w", err)
	}
	err := Wait(ctx, limit, func(ctx context.Context) error {
		_, err := e.Row(ctx, JournalTable, "-1", marker)
		return err
	})
	if err != nil {
		return fmt.Errorf("wait until the last commit is at %s: %w", e.ID, err)
	}
	return nil
}

// Rest waits until transfer has confirmed all that the source has committed and
// the edge has come to where transfer is. It looks at positions alone, so it
// comes to an end even where the rows are wrong.
func (s *System) Rest(ctx context.Context, e *Edge, limit time.Duration) error {
	var committed string
	if err := s.DB.Pool.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text").Scan(&committed); err != nil {
		return fmt.Errorf("read the source's position: %w", err)
	}
	err := Wait(ctx, limit, func(ctx context.Context) error {
		var behind string
		err := s.DB.Pool.QueryRow(ctx, `SELECT coalesce(min(confirmed_flush_lsn)::text, 'no slot') FROM pg_replication_slots
			WHERE database = current_database() AND confirmed_flush_lsn >= $1::text::pg_lsn`, committed).Scan(&behind)
		if err == nil && behind == "no slot" {
			err = NotYet("%s is not confirmed", committed)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("wait until all is published: %w", err)
	}
	w, err := NewWitness(s.Kafka.Brokers(), s.Topic)
	if err != nil {
		return err
	}
	defer w.Close()
	// Whatever is wrong in the topic, its end is where the edge has to come.
	if err := w.Advance(ctx); err != nil && !w.Broken() {
		return err
	}
	target := uint64(w.Index)
	err = Wait(ctx, limit, func(ctx context.Context) error {
		status, err := e.Status(ctx)
		if err == nil && status.Index < target {
			err = NotYet("it is at index %d, the topic ends at %d", status.Index, target)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("wait until %s has applied all: %w", e.ID, err)
	}
	return nil
}

// Judge compares, at rest: every row of every table at the source with the edge
// over HTTP and with what the topic's entries add up to; chain and index of
// transfer and edge with the topic; and, where there is a journal, that every
// acknowledged commit is there. Tables in appendOnly must have come exactly
// once.
func (s *System) Judge(e *Edge, w *Witness, statusConfig string, journal *Journal, appendOnly ...string) *Verdict {
	v := &Verdict{}
	ctx, cancel := context.WithTimeout(s.T.Context(), judgeLimit)
	defer cancel()
	if err := w.Advance(ctx); err != nil {
		v.fault("read the topic: %v", err)
		return v
	}
	for _, table := range s.Tables {
		if err := s.judgeTable(ctx, v, e, w, journal, table); err != nil {
			v.fault("judge %s: %v", table, err)
		}
	}
	for _, table := range appendOnly {
		for key, n := range w.Tables[table].Puts {
			if n != 1 {
				v.Duplicates++
				v.fault("%s: the topic brings row %x %d times", table, key, n)
			}
		}
	}
	if err := s.judgeStatus(ctx, v, e, w, statusConfig); err != nil {
		v.fault("judge status: %v", err)
	}
	return v
}

func (s *System) judgeTable(ctx context.Context, v *Verdict, e *Edge, w *Witness, journal *Journal, table string) error {
	key, err := KeyOf(ctx, s.DB, table)
	if err != nil {
		return err
	}
	want, err := SourceRows(ctx, s.DB, table, s.Sparse)
	if err != nil {
		return err
	}
	v.Rows += len(want)
	topic, err := WitnessRows(w.Tables[table], key, s.Sparse)
	if err != nil {
		return fmt.Errorf("in the topic: %w", err)
	}
	if d := Diff(want, topic); d.Count() > 0 {
		v.Differing += d.Count()
		v.fault("%s: the topic differs from the source in %d of %d rows: %v", table, d.Count(), len(want), d)
	}
	got, err := EdgeRows(ctx, e.Client, table, key, s.Sparse)
	if err != nil {
		return err
	}
	if d := Diff(want, got); d.Count() > 0 {
		v.Differing += d.Count()
		v.fault("%s: the edge differs from the source in %d of %d rows: %v", table, d.Count(), len(want), d)
	}
	if table != JournalTable || journal == nil {
		return nil
	}
	return v.judgeJournal(journal, want, got)
}

func (v *Verdict) judgeJournal(j *Journal, source, edge Rows) error {
	keys, err := j.Keys()
	if err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	for _, key := range keys {
		if _, ok := source[key]; !ok {
			return fmt.Errorf("acknowledged row %s is not at the source: the witness is at fault, or Postgres", key)
		}
		if _, ok := edge[key]; !ok {
			v.Lost++
			v.fault("acknowledged row %s is not at the edge", key)
		}
	}
	return nil
}

// judgeStatus holds what transfer and edge say against the topic. Heartbeats go
// on, so the topic may have come further since.
func (s *System) judgeStatus(ctx context.Context, v *Verdict, e *Edge, w *Witness, statusConfig string) error {
	atEdge, err := e.Status(ctx)
	if err != nil {
		return fmt.Errorf("ask the edge: %w", err)
	}
	atTransfer, err := s.Status(statusConfig)
	if err != nil {
		return fmt.Errorf("ask transfer: %w", err)
	}
	if err := w.Advance(ctx); err != nil {
		return err
	}
	for _, one := range []struct {
		who string
		Status
	}{{"edge", atEdge}, {"transfer", atTransfer}} {
		chain, ok := w.Chain(one.Index)
		if !ok {
			v.fault("%s says index %d, where no unit of the topic ends (it goes to %v)", one.who, one.Index, w.Index)
			continue
		}
		if !strings.EqualFold(one.Chain, chain.String()) {
			v.fault("%s says chain %s at index %d, the topic's entries give %v", one.who, one.Chain, one.Index, chain)
		}
		if one.Epoch != uint64(w.epoch) || one.StreamID != "" && one.StreamID != w.stream.String() {
			v.fault("%s says stream %s epoch %d, the topic has %v epoch %v", one.who, one.StreamID, one.Epoch, w.stream, w.epoch)
		}
	}
	return nil
}

// CheckStore walks the store of an edge that has ended.
func (e *Edge) CheckStore(ctx context.Context) error {
	store, err := edge.Open(edge.Options{Dir: e.StoreDir()})
	if err != nil {
		return err
	}
	return errors.Join(store.Check(ctx), store.Close())
}
