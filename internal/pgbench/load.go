package pgbench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/millrace-db/millrace/internal/child"
)

// Load says how to load the database.
type Load struct {
	// Clients is the number of connections at work, at least 1.
	Clients int
	// Rate is how many transactions to begin a second, over all clients; 0 as
	// many as go.
	Rate int
}

// forever is longer than any run, in seconds.
const forever = "100000000"

// Run loads the database with pgbench's TPC-B-like transaction until ctx ends,
// which is no error. pgbench is told not to empty pgbench_history at its start.
func (b *Bench) Run(ctx context.Context, load Load) error {
	if load.Clients < 1 || load.Rate < 0 {
		return fmt.Errorf("run pgbench: %d clients at %d transactions a second: want at least 1, and not less than 0", load.Clients, load.Rate)
	}
	run := b.runProgram
	if b.Program == "" {
		run = b.runHere
	}
	err := run(ctx, load)
	if err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

func (b *Bench) runProgram(ctx context.Context, load Load) error {
	args := []string{"--no-vacuum", "--client", strconv.Itoa(load.Clients), "--jobs", strconv.Itoa(min(load.Clients, 2)), "--time", forever}
	if load.Rate > 0 {
		args = append(args, "--rate", strconv.Itoa(load.Rate))
	}
	cmd, err := b.command(context.WithoutCancel(ctx), args...)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	process, err := child.Start(cmd, syscall.SIGKILL)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return process.Kill()
	case <-process.Done():
		return fmt.Errorf("%s ended by itself: %w: %s", b.Program, process.Err(), lastLine(out.String()))
	}
}

// runHere is pgbench's load without pgbench.
func (b *Bench) runHere(ctx context.Context, load Load) error {
	group, ctx := errgroup.WithContext(ctx)
	begin := make(chan struct{})
	if load.Rate > 0 {
		group.Go(func() error {
			tick := time.NewTicker(time.Second / time.Duration(load.Rate))
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return nil
				case <-tick.C:
				}
				select {
				case begin <- struct{}{}:
				case <-ctx.Done():
					return nil
				}
			}
		})
	} else {
		close(begin)
	}
	for range load.Clients {
		group.Go(func() error { return b.client(ctx, begin) })
	}
	return group.Wait()
}

func (b *Bench) client(ctx context.Context, begin <-chan struct{}) error {
	conn, err := pgx.Connect(ctx, b.URL)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = conn.Close(closing) // an open transaction is rolled back
	}()
	var scale int
	if err := conn.QueryRow(ctx, "SELECT count(*) FROM public.pgbench_branches").Scan(&scale); err != nil {
		return fmt.Errorf("read scale: %w", err)
	}
	if scale == 0 {
		return errNoAccounts
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-begin:
		}
		if err := transaction(ctx, conn, scale); err != nil {
			return errors.Join(ctx.Err(), err)
		}
	}
}

// transaction is pgbench's TPC-B-like one.
func transaction(ctx context.Context, conn *pgx.Conn, scale int) error {
	aid, tid, bid := 1+rand.IntN(100000*scale), 1+rand.IntN(10*scale), 1+rand.IntN(scale)
	delta := rand.IntN(10001) - 5000
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		batch := &pgx.Batch{}
		batch.Queue("UPDATE public.pgbench_accounts SET abalance = abalance + $1 WHERE aid = $2", delta, aid)
		batch.Queue("SELECT abalance FROM public.pgbench_accounts WHERE aid = $1", aid)
		batch.Queue("UPDATE public.pgbench_tellers SET tbalance = tbalance + $1 WHERE tid = $2", delta, tid)
		batch.Queue("UPDATE public.pgbench_branches SET bbalance = bbalance + $1 WHERE bid = $2", delta, bid)
		batch.Queue("INSERT INTO public.pgbench_history (tid, bid, aid, delta, mtime) VALUES ($1, $2, $3, $4, CURRENT_TIMESTAMP)", tid, bid, aid, delta)
		return tx.SendBatch(ctx, batch).Close()
	})
}
