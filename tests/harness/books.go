package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/millrace-db/millrace/edge"
)

// auditShare is how many times as long as an audit the pause after it is: the
// auditor must not take the processor that the audited needs.
const auditShare = 2

// auditLimit is how long an audit may keep its snapshot, on a loaded machine.
const auditLimit = 10 * time.Minute

// httpAudits is the pause between two audits over HTTP.
const httpAudits = 50 * time.Millisecond

// Books are the sums that agree in every state that pgbench ever commits.
type Books struct {
	Epoch, Index                         uint64
	Accounts, Tellers, Branches, History int64
	// Transactions is the number of rows in pgbench_history.
	Transactions uint64
}

// Balance says what is wrong with the books.
func (b Books) Balance() error {
	if b.Accounts == b.Branches && b.Tellers == b.Branches && b.History == b.Branches {
		return nil
	}
	return fmt.Errorf("at epoch %d index %d accounts sum to %d, tellers to %d, branches to %d, history to %d: a torn or incomplete unit",
		b.Epoch, b.Index, b.Accounts, b.Tellers, b.Branches, b.History)
}

// BookReader audits pgbench's books at an edge while it runs, in two ways: from
// the store, opened by this process beside the edge, with all four sums in one
// snapshot; and over HTTP with branches and tellers in one request. A failed
// audit ends it with an error.
type BookReader struct {
	// Dir of the store, Client of the edge. Scale of pgbench.
	Dir    string
	Client *Client
	Scale  int
	// Views and Requests count audits that balanced, each at an index of its
	// own. Newest is the highest index audited, of the epoch in Epoch.
	Views, Requests, Newest, Epoch atomic.Int64
	// Strict takes an edge that does not answer for a failed audit: nothing has
	// killed it.
	Strict atomic.Bool

	// ended is why auditing has failed, waits why the store cannot be opened now.
	ended, waits atomic.Pointer[error]
}

// Ended says why auditing has failed, or waits; nil while it does neither.
func (r *BookReader) Ended() error {
	if err := r.ended.Load(); err != nil {
		return *err
	}
	if err := r.waits.Load(); err != nil {
		return fmt.Errorf("the reader waits for the store: %w", *err)
	}
	return nil
}

// after tells whether an audit at (epoch, index) is of a later state than one at
// (oldEpoch, oldIndex).
func after(epoch, index, oldEpoch, oldIndex uint64) bool {
	return epoch > oldEpoch || epoch == oldEpoch && index > oldIndex
}

// Run audits until ctx ends. The edge may come and go meanwhile, and its store
// need not be there yet.
func (r *BookReader) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	web := make(chan error, 1)
	go func() {
		defer cancel() // one failed audit ends both
		web <- r.overHTTP(ctx)
	}()
	err := r.inStore(ctx)
	cancel()
	err = errors.Join(err, <-web)
	if err != nil {
		r.ended.Store(&err)
	}
	return err
}

func (r *BookReader) open(ctx context.Context) (store *edge.Store, err error) {
	err = Wait(ctx, time.Hour, func(context.Context) (err error) {
		if store, err = edge.Open(edge.Options{Dir: r.Dir, ReadOnly: true, MaxViewAge: auditLimit}); err != nil {
			r.waits.Store(&err)
		}
		return err
	})
	if err == nil {
		r.waits.Store(nil)
	}
	return store, err
}

func (r *BookReader) inStore(ctx context.Context) error {
	store, err := r.open(ctx)
	if ctx.Err() != nil && errors.Is(err, edge.ErrNoStore) {
		return nil // it never came; the caller wants views and finds none
	}
	if err != nil {
		return err
	}
	var lastEpoch, last uint64
	for ctx.Err() == nil && err == nil {
		var b Books
		var loaded bool
		began := time.Now()
		b, loaded, err = audit(ctx, store)
		if errors.Is(err, edge.ErrSuperseded) {
			if err = store.Close(); err == nil {
				if store, err = r.open(ctx); store == nil {
					return nil // the edge and the test have ended meanwhile
				}
			}
			continue
		}
		if err != nil {
			break
		}
		if !loaded {
			if last > 0 {
				err = fmt.Errorf("at epoch %d index %d there are no tables any more", b.Epoch, b.Index)
			}
			Pass(ctx, pollInterval)
			continue
		}
		if after(lastEpoch, last, b.Epoch, b.Index) {
			err = fmt.Errorf("the store went back from epoch %d index %d to %d, %d", lastEpoch, last, b.Epoch, b.Index)
			break
		}
		if err = b.Balance(); err == nil && after(b.Epoch, b.Index, lastEpoch, last) {
			lastEpoch, last = b.Epoch, b.Index
			r.Views.Add(1)
			r.Epoch.Store(int64(b.Epoch)) //nolint:gosec // far from the limit
			r.Newest.Store(int64(last))   //nolint:gosec // far from the limit
		}
		Pass(ctx, auditShare*time.Since(began))
	}
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		err = nil
	}
	return errors.Join(err, store.Close())
}

// audit sums the tables in one view. loaded is false while none of them is
// there; some without the others is an error.
func audit(ctx context.Context, store *edge.Store) (b Books, loaded bool, err error) {
	err = store.View(ctx, func(v *edge.View) error {
		b.Epoch, b.Index = uint64(v.Place().Epoch), uint64(v.Index())
		absent := 0
		for _, one := range []struct {
			table, column string
			sum           *int64
		}{
			{"public.pgbench_branches", "bbalance", &b.Branches},
			{"public.pgbench_tellers", "tbalance", &b.Tellers},
			{"public.pgbench_history", "delta", &b.History},
			{"public.pgbench_accounts", "abalance", &b.Accounts},
		} {
			table, err := v.Table(one.table)
			if errors.Is(err, edge.ErrNoTable) {
				absent++
				continue
			}
			if err != nil {
				return err
			}
			if one.column == "delta" {
				if b.Transactions, err = table.Rows(); err != nil {
					return err
				}
			}
			if *one.sum, err = sumColumn(ctx, table, one.column); err != nil {
				return err
			}
		}
		loaded = absent == 0
		if absent != 0 && absent != 4 {
			return fmt.Errorf("at index %d %d of pgbench's 4 tables are there: the first copy was shown in part", b.Index, 4-absent)
		}
		return nil
	})
	return b, loaded, err
}

func sumColumn(ctx context.Context, table *edge.Table, column string) (int64, error) {
	var sum int64
	err := table.Scan(nil, nil, 0, func(_ []byte, row *edge.Row) error {
		i := row.Schema.ColumnIndex(column)
		if i < 0 {
			return fmt.Errorf("table %s has no column %s", row.Schema.QualifiedName(), column)
		}
		n, err := strconv.ParseInt(string(row.Columns[i].Text), 10, 64)
		if err != nil {
			return err
		}
		sum += n
		return ctx.Err()
	})
	return sum, err
}

// overHTTP audits branches against tellers. An edge that is down answers
// nothing, which is no failed audit.
func (r *BookReader) overHTTP(ctx context.Context) error {
	var keys []RowKey
	for i := range r.Scale {
		keys = append(keys, RowKey{"public.pgbench_branches", []string{strconv.Itoa(i + 1)}})
	}
	for i := range 10 * r.Scale {
		keys = append(keys, RowKey{"public.pgbench_tellers", []string{strconv.Itoa(i + 1)}})
	}
	var lastEpoch, last uint64
	for ctx.Err() == nil {
		strict := r.Strict.Load() // when the request begins, or it is one of before
		a, err := r.Client.Get(ctx, keys)
		if err != nil && strict && ctx.Err() == nil {
			return fmt.Errorf("the edge answers with an error although nothing has killed it: %w", err)
		}
		if err != nil || a.Index == last && a.Epoch == lastEpoch {
			Pass(ctx, pollInterval)
			continue
		}
		if !after(a.Epoch, a.Index, lastEpoch, last) {
			return fmt.Errorf("the edge answered at epoch %d index %d after %d, %d", a.Epoch, a.Index, lastEpoch, last)
		}
		var got struct {
			Rows []map[string]any `json:"rows"`
		}
		if err := json.Unmarshal(a.Body, &got); err != nil {
			return fmt.Errorf("read rows: %w", err)
		}
		var branches, tellers float64
		var rows int
		for _, row := range got.Rows {
			if row == nil {
				continue
			}
			rows++
			if v, ok := row["bbalance"].(float64); ok {
				branches += v
			}
			if v, ok := row["tbalance"].(float64); ok {
				tellers += v
			}
		}
		if rows != len(keys) {
			return fmt.Errorf("the edge answered with %d of %d branches and tellers at index %d", rows, len(keys), a.Index)
		}
		if branches != tellers {
			return fmt.Errorf("over HTTP at index %d branches sum to %.0f and tellers to %.0f: a torn unit", a.Index, branches, tellers)
		}
		lastEpoch, last = a.Epoch, a.Index
		r.Requests.Add(1)
		Pass(ctx, httpAudits)
	}
	return nil
}
