package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace-db/millrace/internal/pgtest"
	"github.com/millrace-db/millrace/tests/harness"
)

// TestMigratedStream moves the tables of a stream to another server, and then the
// stream: edges serve the rows of the source until those of the target are complete,
// and go over once. Readers look on all the while: no sum that does not agree, no row
// that goes, nothing older than before.
func TestMigratedStream(t *testing.T) {
	t.Parallel()
	rng, _ := harness.Rand(t)
	s := newEpochSystem(t)
	r := newEpochRun(t, rng, s, harness.Release)
	r.begin(true)
	r.books.Strict.Store(true)
	dst := pgtest.On(t, pgtest.Cluster(t, pgtest.Options{Version: 17, FSync: true})) // FSync: with an identifier of its own

	file := filepath.Join(s.Dir, "migration.yaml")
	text := fmt.Sprintf("name: %s\nsource: {url: %q, spool_dir: %q}\ntarget: {url: %q}\npause_budget: 30s\ntables:\n", s.Stream, s.SourceURL, filepath.Join(s.Dir, "spool-migration"), dst.URL)
	for _, name := range s.Tables {
		text += "  - {from: " + name + "}\n"
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	migrate := func(args ...string) {
		t.Helper()
		c := harness.Command{Name: "migrate-" + args[0], Binary: harness.Binary(t, s.Variant), Args: append(append([]string{"migrate"}, args...), "-f", file), Dir: s.Dir}
		p := harness.Start(t, c)
		if code := p.Wait(copyLimit); code != 0 {
			t.Fatalf("migrate %s: exit code %d: %s%s", args[0], code, p.Stdout(), p.Stderr())
		}
	}
	migrate("run", "--until", "copy")
	migrate("follow", "--until-converged")
	// Writers go over when they have written their last at the source.
	r.stopLoad()
	if err := r.awaitLoad(); err != nil {
		t.Fatal(err)
	}
	migrate("cutover")
	id := s.DB.String("SELECT replace(id::text, '-', '') FROM millrace.stream WHERE name = '" + s.Stream + "'")
	source := s.DB
	s.DB, s.SourceURL = dst, dst.URL
	r.bench.At(dst)
	r.journal.At(dst.URL)
	r.loads(true)

	// The way back brings the source, and with it the edges, what is written at the
	// target, until the stream is moved.
	back := harness.Start(t, harness.Command{Name: "migrate-back", Binary: harness.Binary(t, s.Variant), Args: []string{"migrate", "follow", "-f", file}, Dir: s.Dir})
	if err := s.Settle(t.Context(), r.edge, r.size.settle); err != nil {
		t.Fatalf("changes of the target do not come to the edge by way of the source: %v", err)
	}
	r.transfer.Stop(stopLimit)

	config, admin := s.TransferConfig()
	p := s.Run(config, "init")
	if p.ExitCode() == 0 {
		t.Fatal("init at the target, without the stream's ID, begins another stream on the topic of this one")
	}
	t.Logf("init without the ID: %s", p.Stderr())
	was, err := os.ReadFile(config) //nolint:gosec // the test's own
	if err != nil {
		t.Fatal(err)
	}
	with := strings.Replace(string(was), "    source: ", "    id: "+id+"\n    source: ", 1)
	if err := os.WriteFile(config, []byte(with), 0o600); err != nil {
		t.Fatal(err)
	}
	if p := s.Run(config, "init"); p.ExitCode() != 0 {
		t.Fatalf("init at the target: exit code %d: %s%s", p.ExitCode(), p.Stdout(), p.Stderr())
	}
	r.epoch++
	if got, want := dst.String("SELECT epoch || ' ' || topic || ' ' || replace(id::text, '-', '') FROM millrace.stream WHERE name = '"+s.Stream+"'"), fmt.Sprint(r.epoch, " ", r.topic(), " ", id); got != want {
		t.Fatalf("the target's registry has %s, want %s", got, want)
	}
	r.transfer = s.StartTransferWith(config, admin)
	r.goneOver()
	back.Stop(stopLimit)
	migrate("finish")
	if got := source.String("SELECT count(*) FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid WHERE s.database = current_database()"); got != "0" {
		t.Errorf("%s processes still read the source", got)
	}
	r.books.Strict.Store(false)
	r.judge(r.journal)
}
