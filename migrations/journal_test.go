package migrations

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/pgtest"
)

var journalsFlag = flag.Int("migrate.journals", 2, "how many migrations TestJournals makes")

// client writes to one side for as long as it lives, without asking who takes writes, and
// notes in a journal that is synced what was accepted, and when.
func client(cfg *Config, at string) error {
	ctx := context.Background()
	where, file, _ := strings.Cut(at, ":")
	url := map[string]string{string(source): cfg.SourceURL, string(target): cfg.TargetURL}[where]
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	journal, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	me := rand.Int32()
	pace := time.NewTicker(4 * time.Millisecond)
	defer pace.Stop()
	for n := 0; ; n++ {
		<-pace.C
		began := time.Now()
		_, err := conn.Exec(ctx, "INSERT INTO journal (client, n) VALUES ($1, $2)", me, n)
		switch {
		case code(err) == "25006":
			continue
		case err != nil:
			return err
		}
		if _, err := fmt.Fprintf(journal, "%d %d %d %d\n", me, n, began.UnixNano(), time.Now().UnixNano()); err != nil {
			return err
		}
		if err := journal.Sync(); err != nil {
			return err
		}
	}
}

// noted is a write of a journal.
type noted struct {
	client     int32
	n          int
	began, end int64
}

// journals are the clients of both sides and what they have noted.
type journals struct {
	r    *rig
	dir  string
	live map[side][]*exec.Cmd
	next int
}

func (j *journals) start(where side) {
	j.next++
	cmd, _ := j.r.start(fmt.Sprintf("client:%s:%s", where, filepath.Join(j.dir, fmt.Sprintf("%s.%d", where, j.next))))
	j.live[where] = append(j.live[where], cmd)
}

// kill kills the oldest client of a side, which notes nothing more.
func (j *journals) kill(where side) {
	cmd := j.live[where][0]
	j.live[where] = j.live[where][1:]
	_ = cmd.Process.Kill()
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() >= 0 {
		j.r.t.Errorf("a client at the %s ended by itself: %v\n%s", where, err, cmd.Stderr)
	}
}

func (j *journals) stop() {
	for where, all := range j.live {
		for range all {
			j.kill(where)
		}
	}
}

// read returns what the clients of a side have noted.
func (j *journals) read(where side) []noted {
	j.r.t.Helper()
	files, err := filepath.Glob(filepath.Join(j.dir, string(where)+".*"))
	j.r.must("look for journals", err)
	var all []noted
	for _, file := range files {
		f, err := os.Open(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		j.r.must("open a journal", err)
		for in := bufio.NewReader(f); ; {
			line, err := in.ReadString('\n')
			if errors.Is(err, io.EOF) {
				break // the rest of a line is of a client that was killed
			}
			j.r.must("read a journal", err)
			var w noted
			if _, err := fmt.Sscan(line, &w.client, &w.n, &w.began, &w.end); err != nil {
				j.r.t.Fatalf("journal %s: %q: %v", file, line, err)
			}
			all = append(all, w)
		}
		j.r.must("close a journal", f.Close())
	}
	return all
}

// more waits until a side has accepted some more writes.
func (j *journals) more(where side) {
	j.r.t.Helper()
	before := len(j.read(where))
	waitFor(j.r.t, fmt.Sprintf("writes at the %s", where), func() bool { return len(j.read(where)) > before+20 })
}

// once wants every write of both journals to be at a side exactly once, and no other write
// there twice.
func (j *journals) once(db *pgtest.DB) {
	t := j.r.t
	t.Helper()
	there := make(map[string]int)
	for row := range strings.SplitSeq(db.String("SELECT string_agg(client || '/' || n, ' ') FROM journal"), " ") {
		if there[row]++; there[row] > 1 {
			t.Errorf("write %s is there %d times", row, there[row])
		}
	}
	missing := 0
	for _, where := range []side{source, target} {
		for _, w := range j.read(where) {
			if there[fmt.Sprintf("%d/%d", w.client, w.n)] == 0 {
				if missing++; missing <= 5 {
					t.Errorf("write %d of client %d was accepted at the %s and is lost", w.n, w.client, where)
				}
			}
		}
	}
	if missing > 0 {
		t.Errorf("%d writes are lost", missing)
	}
}

// apart wants no write to have been accepted at the source wholly within the time in
// which the target took writes.
func (j *journals) apart() {
	j.r.t.Helper()
	var first, last int64
	for _, w := range j.read(target) {
		if first == 0 || w.end < first {
			first = w.end
		}
		last = max(last, w.began)
	}
	for _, w := range j.read(source) {
		if w.began > first && w.end < last {
			j.r.t.Fatalf("write %d of client %d was made at the source %v after the target had accepted one, and %v before it accepted its last", w.n, w.client, time.Duration(w.began-first), time.Duration(last-w.end))
		}
	}
}

// TestJournals makes whole migrations in processes that are killed at random, in every
// step, while clients that are killed too write at both sides without asking. What was
// accepted is there once, and at no moment did both sides accept writes.
func TestJournals(t *testing.T) {
	for run := range *journalsFlag {
		seed := *seedFlag
		if seed == 0 {
			seed = rand.Uint64()
		}
		t.Run(fmt.Sprint(run), func(t *testing.T) {
			migrateJournals(t, millrace.ModeWAL, seed, run%2 == 0, run%4 == 0 || run%4 == 3)
		})
	}
}

// TestJournalsByTriggers is TestJournals between clusters that do not allow logical
// decoding: there, back and there again.
func TestJournalsByTriggers(t *testing.T) {
	for run := range (*journalsFlag + 1) / 2 {
		seed := *seedFlag
		if seed == 0 {
			seed = rand.Uint64()
		}
		t.Run(fmt.Sprint(run), func(t *testing.T) { migrateJournals(t, millrace.ModeTrigger, seed, true, run%2 == 0) })
	}
}

func migrateJournals(t *testing.T, mode millrace.Mode, seed uint64, back, partitioned bool) {
	t.Logf("seed %d: again with -run TestJournals -migrate.seed %[1]d", seed)
	random := rand.New(rand.NewPCG(seed, 2<<32))
	version := 15 + 2*random.IntN(2)
	if *targetFlag != 0 {
		version = *targetFlag
	}
	r := newRigBy(t, mode, version, `CREATE TABLE journal (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, client int, n int, big text DEFAULT repeat('j', 200));
		INSERT INTO journal (client, n) SELECT -1, n FROM generate_series(1, 5000) n`, tablesOf("journal")...)
	r.cfg.PauseBudget = 20 * time.Second // the machine may be busy
	if partitioned {                     // no key over all partitions keeps what is doubled out
		r.cfg.Tables[0].PartitionBy, r.cfg.Tables[0].PartitionCount = "mod(id, 4)", 4
	}
	r.renew()
	r.must("prepare", r.m.Prepare(r.ctx(), nil))
	j := &journals{r: r, dir: t.TempDir(), live: make(map[side][]*exec.Cmd)}
	defer j.stop()
	j.start(source)
	j.start(source)
	kills := map[string]int{"copy": r.killed(random, "copy", 200*time.Millisecond)}
	j.kill(source)
	j.start(source)
	kills["converge"] = r.killed(random, "converge", 300*time.Millisecond)
	_, err := r.m.Rehearse(r.ctx()) // from here on the target denies writes
	r.must("rehearse", err)
	j.start(target)
	j.start(target)
	j.more(source)
	kills["cutover"] = r.killed(random, "cutover:", 150*time.Millisecond)
	j.more(target)
	j.kill(target)
	j.start(target)
	if back {
		kills["follow back"] = r.killed(random, "back", 200*time.Millisecond)
		j.more(target)
		kills["rollback"] = r.killed(random, "rollback:", 150*time.Millisecond)
		j.more(source)
	}
	if mode == millrace.ModeTrigger {
		certificate, err := r.m.Verify(r.ctx()) // while it is written to
		if err != nil || !certificate.Equal {
			t.Errorf("verify: %v, %+v", err, certificate)
		}
	}
	j.stop()
	j.apart()
	if back {
		r.must("follow", r.m.Follow(r.ctx(), r.reached()))
		j.once(r.src)
		r.same()
	}
	switch {
	case back && mode == millrace.ModeWAL:
		r.must("abort", r.m.Abort(r.ctx()))
	default:
		if back {
			_, err := r.m.Cutover(r.ctx())
			r.must("cutover again", err)
		}
		kills["finish"] = r.killed(random, "finish", 50*time.Millisecond)
	}
	j.once(r.dst)
	t.Logf("target %d, %d partitions, back: %v; %d writes at the source, %d at the target; killed %v", version, r.cfg.Tables[0].PartitionCount, back, len(j.read(source)), len(j.read(target)), kills)
}
