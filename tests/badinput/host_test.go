package badinput

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace-db/millrace/tests/harness"
)

// nobody is the user that owns nothing.
const nobody = 65534

func TestPortTaken(t *testing.T) {
	t.Parallel()
	r := start(t, newSystem(t))
	r.stop()
	config, admin := r.TransferConfig()
	for _, address := range []string{admin, r.edge.Address} {
		var listen net.ListenConfig
		l, err := listen.Listen(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }() // closed below, where nothing fails before
		if address == admin {
			harness.WantRefusal(t, r.StartTransferWith(config, admin).Process, harness.ExitFailure, address, "transfer.admin")
		} else {
			r.edge.Start()
			harness.WantRefusal(t, r.edge.Process, harness.ExitFailure, address, "http.listen")
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	r.goesOn(t)
}

func TestDataDirectoryNotWritable(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.Init()
	t.Run("a file is in its place", func(t *testing.T) {
		e := s.NewEdge("edge-file")
		if err := os.WriteFile(e.DataDir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		e.Start()
		harness.WantRefusal(t, e.Process, e.Wait(applyLimit), e.DataDir)
		wantNonZero(t, e)
	})
	t.Run("of another user", func(t *testing.T) {
		if os.Geteuid() != 0 {
			// Without root the directory is made unwritable for this very user.
			e := s.NewEdge("edge-mode")
			if err := os.Mkdir(e.DataDir, 0o500); err != nil { //nolint:gosec // it has to be entered
				t.Fatal(err)
			}
			e.Start()
			harness.WantRefusal(t, e.Process, e.Wait(applyLimit), e.DataDir, "mend")
			wantNonZero(t, e)
			return
		}
		e := s.NewEdge("edge-user")
		if err := os.Mkdir(e.DataDir, 0o755); err != nil { //nolint:gosec // the other user has to see it
			t.Fatal(err)
		}
		e.StartAs(nobody)
		harness.WantRefusal(t, e.Process, e.Wait(applyLimit), e.DataDir, "mend")
		wantNonZero(t, e)
	})
}

func wantNonZero(t *testing.T, e *harness.Edge) {
	t.Helper()
	if e.ExitCode() == 0 {
		t.Error("the edge ended with exit code 0")
	}
}

// TestSecondEdgeOnTheData starts a second edge over the data of a running one.
func TestSecondEdgeOnTheData(t *testing.T) {
	t.Parallel()
	r := start(t, newSystem(t))
	second := r.NewEdge("edge-2")
	second.DataDir = r.edge.DataDir
	second.WriteConfig()
	second.Start()
	harness.WantRefusal(t, second.Process, second.Wait(applyLimit), r.edge.StoreDir(), "in use")
	wantNonZero(t, second)
	r.DB.Exec(`UPDATE items SET note = 'after' WHERE id = 1`)
	r.settle(t)
	r.judge(t)
	r.stop()
}

// TestDamagedStore flips a byte of a row where LMDB keeps it. The edge must not
// answer with it, and says so; the other rows are answered.
func TestDamagedStore(t *testing.T) {
	t.Parallel()
	r := start(t, newSystem(t))
	r.DB.Exec(`UPDATE items SET note = 'a text that stands in one page only' WHERE id = 42`)
	r.settle(t)
	r.edge.Stop(stopLimit)
	file := filepath.Join(r.edge.StoreDir(), "data.mdb")
	if n := alterFile(t, file, "a text that stands in one page only", "a text that stands in one pagE only"); n == 0 {
		t.Fatal("the row is not in the store's file")
	}
	r.edge.Start()
	good := r.edge.AwaitRow(applyLimit, "public.items", "41")
	if len(good.Body) == 0 {
		t.Error("the edge does not answer for a row that is whole")
	}
	_, err := r.edge.Row(t.Context(), "public.items", "42")
	if err == nil || !strings.Contains(err.Error(), "public.items") || !strings.Contains(err.Error(), "mend") {
		t.Errorf("asked for a damaged row the edge says %v, want an error that names the table and the mend", err)
	}
	r.edge.Stop(stopLimit)
	if err := r.edge.CheckStore(t.Context()); err == nil || !strings.Contains(err.Error(), "public.items") {
		t.Errorf("check of the store says %v, want the damage", err)
	}
	// The mend: the store moved away, a new one filled from the topic.
	if err := os.Rename(r.edge.StoreDir(), r.edge.StoreDir()+".damaged"); err != nil {
		t.Fatal(err)
	}
	r.transfer.Stop(stopLimit)
	r.goesOn(t)
}

// TestDamagedStoreHead damages what an edge needs to start at all.
func TestDamagedStoreHead(t *testing.T) {
	t.Parallel()
	r := start(t, newSystem(t))
	r.stop()
	file := filepath.Join(r.edge.StoreDir(), "data.mdb")
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	// The named database "meta" holds the checkpoint, with the topic's ID in it.
	topic := r.DB.String(`SELECT topic_id FROM millrace.stream`)
	if n := alterFile(t, file, topic, strings.Repeat("x", len(topic))); n == 0 {
		t.Fatal("the checkpoint is not in the store's file")
	}
	r.edge.Start()
	harness.WantRefusal(t, r.edge.Process, harness.ExitOperator, r.edge.StoreDir(), "mend")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	r.goesOn(t)
}

// alterFile puts one text in the place of another of the same length wherever it
// stands in a file, and returns how often.
func alterFile(t *testing.T, path, from, to string) int {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, from, to)), 0o600); err != nil {
		t.Fatal(err)
	}
	return strings.Count(text, from)
}
