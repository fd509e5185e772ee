package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/millrace-db/millrace/internal/edgestatus"
	"github.com/millrace-db/millrace/internal/topic"
)

// epochWorld is a world that is copied, and what it holds besides.
type epochWorld struct {
	*world
	t *testing.T
}

func newEpochWorld(t *testing.T) *epochWorld {
	t.Helper()
	w := &epochWorld{newWorld(t), t}
	w.run("init")
	return w
}

func (w *epochWorld) run(args ...string) string {
	w.t.Helper()
	return program(w.t, w.dir, append(args, "-c", w.file)...)
}

// copied runs transfer until the edge has the first copy.
func (w *epochWorld) copied() (transfer, edge *process) {
	w.t.Helper()
	transfer = spawn(w.t, w.dir, nil, "transfer", "-c", w.file)
	edge = spawn(w.t, w.dir, nil, "edge", "-c", w.file)
	w.ready(w.t)
	return transfer, edge
}

// picture is all that a dry run must not change.
func (w *epochWorld) picture() string {
	w.t.Helper()
	registry := w.db.String(`SELECT (SELECT string_agg(s::text, ';') FROM millrace.stream s) || (SELECT count(*) FROM millrace.hold)
		|| (SELECT coalesce(string_agg(slot_name::text || coalesce(confirmed_flush_lsn::text, ''), ';'), '') FROM pg_replication_slots WHERE database = current_database())
		|| (SELECT string_agg(pubname::text, ';') FROM pg_publication)`)
	return registry + fmt.Sprint(w.topics())
}

func (w *epochWorld) topics() []string {
	w.t.Helper()
	f, err := topic.NewFinder(topic.Config{Brokers: []string{w.broker}, Topic: "millrace.shop"})
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	epochs, err := f.All(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	var names []string
	for _, e := range epochs {
		names = append(names, topic.EpochName("millrace.shop", e))
	}
	return names
}

func (w *epochWorld) registered(want string) {
	w.t.Helper()
	if got := w.db.String(`SELECT epoch || ' ' || topic FROM millrace.stream`); got != want {
		w.t.Errorf("the registry has %s, want %s", got, want)
	}
}

// serves waits until the edge serves a row of an epoch.
func (w *epochWorld) serves(epoch uint64, key, word string) {
	w.t.Helper()
	until(w.t, fmt.Sprintf("the edge serves epoch %d", epoch), func() error {
		var all []place
		if err := json.Unmarshal([]byte(w.run("status", "--json")), &all); err != nil {
			return err
		}
		at := all[0]
		if at.Edge != nil {
			at = *at.Edge
		}
		if at.Epoch != epoch || at.From != "edge" {
			return fmt.Errorf("%s is at epoch %d: %s", at.From, at.Epoch, at.Fault)
		}
		if got := w.run("get", "public.items", key); !strings.Contains(got, word) {
			return fmt.Errorf("got %s", got)
		}
		return nil
	})
}

// logged waits until status says that the edge's log has all of the epoch that it
// serves, and looks that no other epoch's is kept.
func (w *epochWorld) logged(epoch uint64) {
	w.t.Helper()
	until(w.t, "the edge's log has the epoch", func() error {
		var all []struct {
			Edges []edgestatus.Edge `json:"edges"`
		}
		if err := json.Unmarshal([]byte(w.run("status", "--json")), &all); err != nil {
			return err
		}
		for _, e := range all[0].Edges {
			if uint64(e.Epoch) == epoch && e.Log != nil && e.Log.Oldest == 1 && e.Index > 0 && e.Log.Newest >= e.Index {
				return nil
			}
		}
		return fmt.Errorf("the edges have %+v", all[0].Edges)
	})
	dirs, err := filepath.Glob(filepath.Join(w.dir, "edge", "shop", "log", "epoch-*"))
	if err != nil || len(dirs) != 1 || filepath.Base(dirs[0]) != fmt.Sprintf("epoch-%d", epoch) {
		w.t.Errorf("logs are kept in %v, %v", dirs, err)
	}
}

func (w *epochWorld) dropSlot() {
	w.t.Helper()
	until(w.t, "the slot is dropped", func() error {
		if got := w.db.String(`SELECT count(pg_drop_replication_slot(slot_name)) FROM pg_replication_slots WHERE slot_name = 'millrace_shop' AND NOT active`); got != "1" {
			return fmt.Errorf("dropped %s", got)
		}
		return nil
	})
}

// TestEpochNew begins one as an operator does, from the fence that asks for it to
// the rows at the edge.
func TestEpochNew(t *testing.T) {
	w := newEpochWorld(t)
	if got := w.run("epoch", "new", "--json"); !strings.Contains(got, `"begun_before": true`) || !strings.Contains(got, `"epoch": 1`) {
		t.Errorf("epoch new of a stream in which nothing was published: %s", got)
	}
	w.registered("1 millrace.shop")
	transfer, edge := w.copied()
	refusal(t, w.dir, nil, exitUsage, []string{"--yes", "--dry-run"}, "epoch", "new", "-c", w.file)
	refusal(t, w.dir, nil, exitOperator, []string{"is being published", "server process", "stop millrace transfer"}, "epoch", "new", "shop", "--yes", "-c", w.file)
	w.run("check")
	transfer.stop(syscall.SIGTERM)
	w.dropSlot()
	refusal(t, w.dir, nil, exitOperator, []string{"slot millrace_shop", "dropped", "millrace epoch new shop"}, "transfer", "-c", w.file)
	refusal(t, w.dir, nil, exitOperator, []string{"slot millrace_shop", "millrace epoch new shop"}, "check", "-c", w.file)
	refusal(t, w.dir, nil, exitOperator, []string{"slot millrace_shop", "millrace epoch new shop"}, "check", "--fix", "-c", w.file)
	w.db.Exec(`UPDATE items SET note = 'second' WHERE id = 4; DELETE FROM items WHERE id = 5`)

	before := w.picture()
	dry := w.run("epoch", "new", "--dry-run")
	for _, word := range []string{"epoch 2", "millrace.shop.2", "UPDATE millrace.stream SET epoch = 2", "pg_drop_replication_slot", "retention.ms=-1"} {
		if !strings.Contains(dry, word) {
			t.Errorf("epoch new --dry-run does not say %q:\n%s", word, dry)
		}
	}
	if after := w.picture(); after != before {
		t.Errorf("epoch new --dry-run has changed\n%s to\n%s", before, after)
	}
	// A table that went is not copied anew: nothing is begun.
	w.db.Exec(`ALTER TABLE items RENAME TO gone`)
	refusal(t, w.dir, nil, exitOperator, []string{"public.items"}, "epoch", "new", "--yes", "-c", w.file)
	w.registered("1 millrace.shop")
	w.db.Exec(`ALTER TABLE gone RENAME TO items`)

	var plan epochPlan
	if err := json.Unmarshal([]byte(w.run("epoch", "new", "shop", "--yes", "--json")), &plan); err != nil || plan.Epoch != 2 || plan.Topic != "millrace.shop.2" || plan.TopicID == "" {
		t.Errorf("epoch new: %+v, %v", plan, err)
	}
	w.registered("2 millrace.shop.2")
	if got := w.run("get", "public.items", "s1,4"); !strings.Contains(got, "note 4") {
		t.Errorf("the edge serves %s", got)
	}
	// Again, before anything was published in it, it is the same one.
	if got := w.run("epoch", "new", "--yes"); !strings.Contains(got, "epoch 2 in topic millrace.shop.2 is new") {
		t.Errorf("epoch new, again: %s", got)
	}
	w.registered("2 millrace.shop.2")
	transfer = spawn(t, w.dir, nil, "transfer", "-c", w.file)
	w.serves(2, "s1,4", "second")
	w.logged(2)
	if got := strings.Count(w.run("scan", "public.items"), "\n"); got != 29 {
		t.Errorf("scan: got %d rows, want 29", got)
	}
	if got := w.run("check"); !strings.Contains(got, "no problems") {
		t.Errorf("check: %s", got)
	}
	if got := w.run("init"); !strings.Contains(got, "topic millrace.shop.2") {
		t.Errorf("init: %s", got)
	}
	if got := w.run("tail"); !strings.Contains(got, "second") {
		t.Errorf("tail prints another epoch: %s", got)
	}
	if got := w.run("tail", "--epoch", "1"); strings.Contains(got, "second") || !strings.Contains(got, "note 4") {
		t.Errorf("tail --epoch 1: %s", got)
	}
	shown := w.run("epoch", "show")
	for _, word := range []string{"epoch 2 in topic millrace.shop.2", "published by", "\n1 ", "\n2 *"} {
		if !strings.Contains(shown, word) {
			t.Errorf("epoch show does not say %q:\n%s", word, shown)
		}
	}
	// A new edge takes the newest epoch, and an edge that comes back is there
	// already.
	edge.stop(syscall.SIGTERM)
	other := w.write(t, "other.yaml", strings.NewReplacer("data_dir: edge", "data_dir: other", "edge.sock", "other.sock").Replace(w.config(w.db.URL, "")))
	edge = spawn(t, w.dir, nil, "edge", "-c", other)
	w.ready(t)
	// What an edge reported last may still be of the old epoch, so only this edge's
	// own place says where it began.
	var places []place
	if err := json.Unmarshal([]byte(program(t, w.dir, "status", "--json", "-c", other)), &places); err != nil || len(places) != 1 || places[0].Edge == nil || places[0].Edge.Epoch != 2 {
		t.Errorf("a new edge follows an old epoch: %+v, %v", places, err)
	}
	edge.stop(syscall.SIGTERM)
	edge = spawn(t, w.dir, nil, "edge", "-c", w.file)
	w.ready(t)
	w.serves(2, "s1,4", "second")
	edge.stop(syscall.SIGTERM)
	transfer.stop(syscall.SIGTERM)
}

// TestEpochOfRestoredRegistry: the source knows of fewer epochs than Kafka does,
// or of none.
func TestEpochOfRestoredRegistry(t *testing.T) {
	w := newEpochWorld(t)
	transfer, edge := w.copied()
	transfer.stop(syscall.SIGTERM)
	old := w.db.String(`SELECT topic_id FROM millrace.stream`)
	w.run("epoch", "new", "--yes")
	transfer = spawn(t, w.dir, nil, "transfer", "-c", w.file)
	w.serves(2, "s1,4", "note 4")
	transfer.stop(syscall.SIGTERM)
	w.db.Exec(`UPDATE items SET note = 'third' WHERE id = 4`)

	w.db.Exec(`UPDATE millrace.stream SET epoch = 1, topic = 'millrace.shop', topic_id = '` + old + `'`)
	if got := w.run("epoch", "show"); !strings.Contains(got, "registry does not know of it") {
		t.Errorf("epoch show: %s", got)
	}
	if got := w.run("epoch", "new", "--yes"); !strings.Contains(got, "millrace.shop.2 holds records") {
		t.Errorf("epoch new over a topic that is there: %s", got)
	}
	w.registered("3 millrace.shop.3")
	transfer = spawn(t, w.dir, nil, "transfer", "-c", w.file)
	w.serves(3, "s1,4", "third")
	transfer.stop(syscall.SIGTERM)

	// The registry is lost: without the stream's ID init refuses, with it the
	// stream goes on.
	id := w.db.String(`SELECT replace(id::text, '-', '') FROM millrace.stream`)
	w.db.Exec(`DROP SCHEMA millrace CASCADE; UPDATE items SET note = 'fourth' WHERE id = 4`)
	refusal(t, w.dir, nil, exitOperator, []string{"not registered", "millrace init", "streams.shop.id"}, "epoch", "new", "--yes", "-c", w.file)
	refusal(t, w.dir, nil, exitOperator, []string{"millrace.shop.3", id, "streams.shop.id"}, "init", "-c", w.file)
	edge.stop(syscall.SIGTERM)
	w.file = w.write(t, "known.yaml", strings.Replace(w.config(w.db.URL, ""), "- name: shop\n", "- name: shop\n    id: "+id+"\n", 1))
	if got := w.run("init"); !strings.Contains(got, "epoch 4") || !strings.Contains(got, id) {
		t.Errorf("init of a stream whose registry was lost: %s", got)
	}
	w.registered("4 millrace.shop.4")
	w.run("init")
	edge = spawn(t, w.dir, nil, "edge", "-c", w.file)
	transfer = spawn(t, w.dir, nil, "transfer", "-c", w.file)
	w.serves(4, "s1,4", "fourth")
	edge.stop(syscall.SIGTERM)
	transfer.stop(syscall.SIGTERM)
}

// TestEpochWithoutRoom: where the new epoch's store has no room, the old one is
// served, and says so, until there is.
func TestEpochWithoutRoom(t *testing.T) {
	w := newEpochWorld(t)
	sized := func(size string) string {
		return w.write(t, size+".yaml", strings.Replace(w.config(w.db.URL, ""), "  data_dir: edge\n", "  data_dir: edge\n  map_size: "+size+"\n", 1))
	}
	w.file = sized("16MiB")
	transfer, edge := w.copied()
	transfer.stop(syscall.SIGTERM)
	w.db.Exec(`INSERT INTO items SELECT 'big', i, repeat(md5(i::text), 32) FROM generate_series(1000, 21000) i; UPDATE items SET note = 'second' WHERE id = 4`)
	w.run("epoch", "new", "--yes")
	transfer = spawn(t, w.dir, nil, "transfer", "-c", w.file)
	until(t, "the edge says that there is no room", func() error {
		if got := w.run("status"); !strings.Contains(got, "map_size") || !strings.Contains(got, "copies epoch 2") {
			return fmt.Errorf("got %s", got)
		}
		return nil
	})
	if got := w.run("get", "public.items", "s1,4"); !strings.Contains(got, "note 4") {
		t.Errorf("the edge serves %s", got)
	}
	if !edge.process.Running() {
		t.Error("the edge has ended")
	}
	edge.stop(syscall.SIGTERM)
	w.file = sized("64MiB")
	edge = spawn(t, w.dir, nil, "edge", "-c", w.file)
	w.serves(2, "s1,4", "second")
	edge.stop(syscall.SIGTERM)
	transfer.stop(syscall.SIGTERM)
}

func TestAgreed(t *testing.T) {
	for answer, want := range map[string]bool{"y\n": true, "Yes\n": true, " y ": true, "\n": false, "": false, "n\n": false, "yep\n": false} {
		if got := agreed(strings.NewReader(answer)); got != want {
			t.Errorf("%q is taken for %v", answer, got)
		}
	}
}
