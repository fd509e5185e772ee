package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace/client"
	"github.com/millrace-db/millrace/edge/event"
)

// A service that asks the source for a token after its commit reads its own write at the
// edge, however busy others are, and whatever they have not committed yet.
func TestReadYourWrites(t *testing.T) {
	for _, capture := range []string{"wal", "trigger"} {
		t.Run(capture, func(t *testing.T) {
			t.Parallel()
			w := newWorldApart(t)
			if capture == "trigger" {
				w.source = fmt.Sprintf("capture: trigger, spool_dir: spool, setup_url: %q", w.db.URL)
				w.file = w.write(t, "millrace.yaml", w.config(w.db.URL, ""))
			}
			w.db.Exec(`CREATE TABLE elsewhere (id int PRIMARY KEY, n int); INSERT INTO elsewhere VALUES (1, 0)`)
			program(t, w.dir, "init", "-c", w.file)
			transfer := spawn(t, w.dir, nil, "transfer", "-c", w.file)
			edge := spawn(t, w.dir, nil, "edge", "-c", w.file)
			w.ready(t)
			w.freshReads(t)
			w.tokenRefuses(t)
			w.readyByLag(t)
			w.watched(t)
			transfer.stop(syscall.SIGTERM)
			edge.stop(syscall.SIGTERM)
		})
	}
}

func (w *world) connect(ctx context.Context, t *testing.T) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(ctx, w.db.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func (w *world) client(t *testing.T) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{Stream: "shop", Unix: filepath.Join(w.dir, "edge.sock"), Peers: []string{"http://" + w.edge}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// freshReads writes and reads, beside transactions that stay open, others that write
// elsewhere, and more changes of the same table.
func (w *world) freshReads(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*waitLimit)
	defer cancel()
	edge := w.client(t)
	noise, quiet := context.WithCancel(ctx)
	var others, writers sync.WaitGroup
	for i, statement := range []string{
		`UPDATE elsewhere SET n = n + 1 WHERE id = 1`,
		`BEGIN; UPDATE items SET note = note || '.' WHERE id = 29; SELECT pg_sleep(0.05); COMMIT`,
		`BEGIN; UPDATE items SET note = 'gone' WHERE id = 28; SELECT pg_sleep(0.01); ROLLBACK`,
	} {
		conn := w.connect(ctx, t)
		others.Go(func() {
			for noise.Err() == nil {
				if _, err := conn.Exec(ctx, statement, pgx.QueryExecModeSimpleProtocol); err != nil {
					t.Errorf("statement %d: %v", i, err)
					return
				}
				time.Sleep(time.Duration(rand.IntN(3)) * time.Millisecond)
			}
		})
	}
	var stale int
	var mu sync.Mutex
	for i := range 3 {
		writes, asks := w.connect(ctx, t), w.connect(ctx, t)
		writers.Go(func() {
			id, shop := i+1, fmt.Sprintf("s%d", (i+1)%3)
			for n := range 40 {
				want := fmt.Sprintf("%d of %d", n, i)
				_, err := writes.Exec(ctx, `UPDATE items SET note = $1 WHERE id = $2`, want, id)
				var token string
				if err == nil {
					err = asks.QueryRow(ctx, `SELECT millrace.token()`).Scan(&token)
				}
				if err != nil {
					t.Error(err)
					return
				}
				before, _, err := edge.Get(ctx, "public.items", shop, fmt.Sprint(id))
				if err != nil {
					t.Error(err)
					return
				}
				row, place, err := edge.After(token, 30*time.Second).Get(ctx, "public.items", shop, fmt.Sprint(id))
				var got struct{ Note string }
				if err == nil {
					err = row.Into(&got)
				}
				if err != nil || got.Note != want {
					t.Errorf("after token %s, at %v: got %q, %v, want %q", token, place.ID, got.Note, err, want)
					return
				}
				if string(before.JSON) != string(row.JSON) {
					mu.Lock()
					stale++
					mu.Unlock()
				}
			}
		})
	}
	writers.Wait()
	quiet()
	others.Wait()
	if stale == 0 {
		t.Error("no read without a token was stale, so nothing was shown")
	}
}

// tokenRefuses asks for tokens where there is none to be had.
func (w *world) tokenRefuses(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitLimit)
	defer cancel()
	conn := w.connect(ctx, t)
	if _, err := conn.Exec(ctx, `BEGIN; UPDATE items SET note = 'x' WHERE id = 5; SELECT millrace.token()`, pgx.QueryExecModeSimpleProtocol); err == nil || !strings.Contains(err.Error(), "after the commit") {
		t.Errorf("in the transaction that writes: %v", err)
	}
	if _, err := conn.Exec(ctx, `ROLLBACK`); err != nil {
		t.Fatal(err)
	}
	edge := w.client(t)
	for token, want := range map[string]string{
		"x":                          "bad_token",
		"1-7-0/1-1:1:":               "bad_token", // of another server
		w.token(t, "FFFFFFF/0", "9"): "behind",
	} {
		_, _, err := edge.After(token, time.Millisecond).Get(ctx, "public.items", "s1", "1")
		if err == nil || !strings.Contains(fmt.Sprint(code(err)), want) {
			t.Errorf("token %s: %v, want %s", token, err, want)
		}
	}
}

// token makes one of this source, of another moment.
func (w *world) token(t *testing.T, lsn, more string) string {
	t.Helper()
	parts := strings.Split(w.db.String(`SELECT millrace.token()`), "-")
	snapshot := strings.Split(parts[len(parts)-1], ":")
	return strings.Join([]string{parts[0], parts[1], lsn, fmt.Sprintf("%s:%s%s:", snapshot[0], snapshot[1], more)}, "-")
}

func code(err error) string {
	var answer *client.Error
	if errors.As(err, &answer) {
		return answer.Code
	}
	return ""
}

func (w *world) readyByLag(t *testing.T) {
	t.Helper()
	until(t, "the edge is near enough", func() error {
		return httpOK("http://" + w.edge + "/readyz?max_lag=30s&max_lag_entries=100000")
	})
	if err := httpOK("http://" + w.edge + "/readyz?max_lag=0"); err == nil || !strings.Contains(err.Error(), "503") || !strings.Contains(err.Error(), "seconds behind at index") {
		t.Errorf("max_lag=0: %v", err)
	}
	if err := httpOK("http://" + w.edge + "/readyz?max_lag=x"); err == nil || !strings.Contains(err.Error(), "bad_lag") {
		t.Errorf("max_lag=x: %v", err)
	}
}

// watched compares what the command prints with what was written.
func (w *world) watched(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitLimit)
	defer cancel()
	_, place, err := w.client(t).Get(ctx, "public.items", "s1", "7")
	if err != nil {
		t.Fatal(err)
	}
	p := spawn(t, w.dir, nil, "watch", "shop", "public.items", "s1,7", "--from", place.String(), "-c", w.file)
	w.db.Exec(`UPDATE items SET note = 'watched' WHERE id = 7; DELETE FROM items WHERE id = 7; INSERT INTO items VALUES ('s1', 7, 'note 7')`)
	want := []string{`put {"shop":"s1","id":7,"note":"watched"}`, `delete `, `put {"shop":"s1","id":7,"note":"note 7"}`}
	if strings.Contains(w.source, "trigger") {
		want = want[2:] // a window shows what there is at its end
	}
	until(t, "the command has printed the changes", func() error {
		var got []string
		for line := range strings.Lines(p.out()) {
			var e event.Event
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				return err
			}
			got = append(got, string(e.Op)+" "+string(e.Row))
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Errorf("got %q, want %q", got, want)
		}
		return nil
	})
	p.stop(syscall.SIGTERM)
}

// told watches what load writes, through whatever happens to the edge, and wants all of it
// in order. The function that it returns ends that.
func (u *upgrading) told() (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	w := u.client(u.t).Watch(client.WatchOptions{Tables: []string{"public.items"}, Prefix: "s2,2", Heartbeat: time.Second})
	var work sync.WaitGroup
	changes, next := 0, -1
	work.Go(func() {
		defer w.Close()
		for {
			e, err := w.Next(ctx)
			if err != nil {
				if ctx.Err() == nil {
					u.t.Errorf("watch: %v", err)
				}
				return
			}
			var row struct{ Note string }
			var n int
			if err := json.Unmarshal(e.Row, &row); err != nil || e.Op != event.Put {
				u.t.Errorf("watch: %+v, %v", e, err)
				return
			}
			if _, err := fmt.Sscanf(row.Note, "now %d", &n); err != nil || next >= 0 && n != next {
				u.t.Errorf("watch: %q after number %d, %v", row.Note, next-1, err)
				return
			}
			changes, next = changes+1, n+1
		}
	})
	end = sync.OnceFunc(func() {
		cancel()
		work.Wait()
		u.t.Logf("a watch was told %d changes", changes)
		if changes == 0 {
			u.t.Error("a watch was told nothing")
		}
	})
	u.t.Cleanup(end)
	return end
}
