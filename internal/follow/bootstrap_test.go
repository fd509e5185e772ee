package follow

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/edge/image"
	"github.com/millrace-db/millrace/edge/serve"
	"github.com/millrace-db/millrace/internal/config"
)

// A new edge takes an image from a peer, which makes one because it is asked to, and
// follows the topic from there, which no longer reaches back; it says what is not proven.
func TestBootstrapNew(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	peer := b.edge(filepath.Join(t.TempDir(), "peer"))
	b.unit()
	peer.at(1)
	b.trim()
	b.heartbeat() // which confirms an image of what is gone
	dir := filepath.Join(t.TempDir(), "new")
	fresh := b.edge(dir, "http://127.0.0.1:1", peer.url)
	fresh.until("the image is taken", func() bool { return fresh.value() == 1 })
	b.unit()
	fresh.at(2)
	peer.at(2)
	boot := fresh.took()
	if boot.Reason != bootNew || !strings.HasPrefix(boot.From, peer.url) || boot.Rows != bankRows || boot.Bytes == 0 || boot.Bytes != boot.OfBytes {
		t.Errorf("shown is %+v", boot)
	}
	if u := fresh.stream.Home().Unproven(); u.Image != boot.Index || len(u.Tables) != 1 {
		t.Errorf("unproven are %+v, the image was of %v", u, boot.Index)
	}
	report, err := fresh.stream.report(t.Context())
	if err != nil || report.UnprovenSince != boot.Index || report.Bootstrap != "" {
		t.Errorf("report is %+v, %v", report, err)
	}
	// One whose peers have none yet asks again, because nothing else helps.
	images := t.TempDir()
	patient := b.edge(filepath.Join(t.TempDir(), "patient"), "file://"+images)
	patient.until("it cannot begin", func() bool {
		s := patient.stream.Bootstrap()
		return s != nil && s.Reason == bootGone && s.State == serve.BootstrapFailed
	})
	if err := patient.stream.Fault(); err == nil || !strings.Contains(err.Error(), "is empty, and the source begins at index") {
		t.Errorf("its fault is %v", err)
	}
	if err := os.CopyFS(filepath.Join(images, "bank"), os.DirFS(filepath.Join(peer.dir, "images", "bank"))); err != nil {
		t.Fatal(err)
	}
	patient.at(2)
	patient.end()
	// What it has fetched itself is there when its store is lost and no peer answers.
	if err := os.RemoveAll(filepath.Join(patient.dir, "data")); err != nil {
		t.Fatal(err)
	}
	patient = b.edge(patient.dir, "http://127.0.0.1:1")
	patient.at(2)
	if s := patient.took(); !strings.HasPrefix(s.From, "file://"+patient.dir) {
		t.Errorf("shown is %+v", s)
	}
	patient.end()

	// Another start takes no other.
	fresh.end()
	b.unit()
	again := b.edge(dir, peer.url)
	again.at(3)
	if got := again.stream.Bootstrap(); got != nil {
		t.Errorf("an edge that can go on takes an image: %+v", got)
	}
}

// An edge that was away longer than the topic reaches serves its rows until it has an
// image, from a directory that a server of files has; a program that has its store open
// is led to the new one.
func TestBootstrapGone(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	dir := b.wentAway(options{})
	peer := b.edge(filepath.Join(t.TempDir(), "peer"))
	b.unit()
	peer.at(2)
	b.trim()
	b.heartbeat()

	// The directory is not there yet.
	backups := t.TempDir()
	var held sync.Mutex
	held.Lock()
	files := http.FileServer(http.Dir(backups))
	server := httptest.NewServer(http.StripPrefix("/backups", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/rows") {
			held.Lock()
			defer held.Unlock()
		}
		files.ServeHTTP(w, r)
	})))
	t.Cleanup(server.Close)
	away := b.edge(dir, server.URL+"/backups")
	away.until("it has asked in vain", func() bool { s := away.stream.Bootstrap(); return s != nil && s.State == serve.BootstrapFailed })
	if away.value() != 1 || away.stream.Fault() == nil {
		t.Errorf("it has unit %d and fault %v", away.value(), away.stream.Fault())
	}
	reader, err := edge.Open(edge.Options{Dir: filepath.Join(dir, "data", "bank"), ReadOnly: true, MapSize: 1 << 28})
	if err == nil {
		err = reader.Close()
		t.Errorf("a store was opened twice in a process: %v", err)
	}
	peerImages := filepath.Join(peer.dir, "images", "bank")
	if _, err := image.Create(t.Context(), peer.stream.Home().Store(), image.Options{Dir: peerImages}); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(backups, "bank"), os.DirFS(peerImages)); err != nil {
		t.Fatal(err)
	}
	away.until("it downloads, and says so", func() bool {
		return away.stream.Bootstrap().State == serve.BootstrapDownloading && strings.Contains(away.log.String(), "state=downloading")
	})
	if away.value() != 1 { // and nothing else in the meantime
		t.Errorf("it has unit %d", away.value())
	}
	held.Unlock()
	away.at(2)
	b.unit()
	away.at(3)
	if boot := away.took(); boot.Reason != bootGone {
		t.Errorf("shown is %+v", boot)
	}
	away.until("nothing is wrong", func() bool { return away.stream.Fault() == nil })
	away.until("its log has what the store has", func() bool { // a moment after it
		l := away.stream.LogStatus()
		return l != nil && l.Newest == b.index && l.Fault == ""
	})
}

// What peers give that is untrue, or of no use, is refused with an alarm, nothing of it
// is shown, and the next peer is asked.
func TestBootstrapRefuses(t *testing.T) {
	t.Parallel()
	seed := make([]byte, ed25519.SeedSize)
	key := ed25519.NewKeyFromSeed(seed)
	other := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, ed25519.SeedSize))
	ring, err := millrace.NewKeyring([]millrace.TrustedKey{{Key: key.Public().(ed25519.PublicKey), From: millrace.Place{Epoch: 1, Index: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	b := newBankWith(t, key)
	dir := b.wentAway(options{trusted: ring})
	old, good := imageOf(b, 1), imageOf(b, 1)
	b.trim()
	b.heartbeat()
	damaged := t.TempDir()
	if err := os.CopyFS(damaged, os.DirFS(good)); err != nil {
		t.Fatal(err)
	}
	rows := filepath.Join(onlyImage(t, damaged), "rows")
	text, err := os.ReadFile(rows)
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)/2]++
	if err := os.WriteFile(rows, text, 0o600); err != nil {
		t.Fatal(err)
	}
	unsigned := imageOf(newBankWith(t, nil), 9)
	forged := imageOf(newBankWith(t, other), 9)

	file := func(dir string) string { return "file://" + dir }
	away := b.edgeWith(dir, options{trusted: ring}, file(old), file(damaged), file(unsigned), file(forged))
	problem := "" // which the next attempt takes from what is shown
	away.until("it has asked in vain", func() bool {
		s := away.stream.Bootstrap()
		if s != nil && s.State == serve.BootstrapFailed {
			problem = s.Problem
		}
		return problem != ""
	})
	if away.value() != 1 {
		t.Errorf("it has unit %d", away.value())
	}
	for _, want := range []string{"the topic begins at", "hash of a frame", "there is no signed header", "is signed by key"} {
		if !strings.Contains(problem, want) {
			t.Errorf("the problem does not say %q: %s", want, problem)
		}
	}
	if n := strings.Count(away.log.String(), "level=ERROR msg=\"a peer's image is refused\""); n < 3 {
		t.Errorf("%d alarms", n)
	}
	away.end()
	if all, err := image.List(filepath.Join(dir, "images", "bank")); err != nil || len(all) != 0 {
		t.Errorf("there are images %v, %v", all, err)
	}
	away = b.edgeWith(dir, options{trusted: ring}, file(old), file(damaged), file(unsigned), file(forged), file(good))
	away.at(b.unitNo)
	b.unit()
	away.at(b.unitNo)
}

// An image of another history, which nothing shows before its source goes on, is followed
// beside the rows that are served, and given up; where it is whole otherwise.
func TestBootstrapDiverged(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	dir := b.wentAway(options{})
	good := imageOf(b, 1)
	forged := t.TempDir()
	if err := os.CopyFS(forged, os.DirFS(good)); err != nil {
		t.Fatal(err)
	}
	manifest := filepath.Join(onlyImage(t, forged), "manifest")
	text, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	m, err := image.DecodeManifest(text)
	if err != nil {
		t.Fatal(err)
	}
	m.Checkpoint.Chain[0] ^= 1
	if text, err = image.AppendManifest(nil, m); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(manifest, text, 0o600); err != nil {
		t.Fatal(err)
	}
	// While the source has the record that the image says it was taken at, nothing of it
	// comes; a new edge follows from the start.
	fresh := b.edge(filepath.Join(t.TempDir(), "new"), "file://"+forged)
	fresh.at(2)
	if s := fresh.stream.Bootstrap(); s == nil || s.Bytes != 0 || !strings.Contains(s.Problem, "history diverged") {
		t.Errorf("shown is %+v", s)
	}
	fresh.end()

	b.trim()
	away := b.edge(dir, "file://"+forged)
	away.until("the image is followed", func() bool { s := away.stream.Bootstrap(); return s != nil && s.State == serve.BootstrapFollowing })
	if away.value() != 1 {
		t.Errorf("it has unit %d", away.value())
	}
	b.unit()
	away.until("it is given up", func() bool { return away.stream.Bootstrap().State == serve.BootstrapFailed })
	away.until("the alarm is raised", func() bool { return strings.Contains(away.log.String(), "history diverged") })
	if away.value() != 1 {
		t.Errorf("it has unit %d", away.value())
	}
	away.end()
	// What was untrue does not stay for others to take, nor in the way of the true one of
	// its name, which another peer has.
	if all, err := image.List(filepath.Join(dir, "images", "bank")); err != nil || len(all) != 0 {
		t.Errorf("there are images %v, %v", all, err)
	}
	away = b.edge(dir, "file://"+forged)
	away.until("it is refused once more", func() bool {
		return away.stream.Bootstrap() != nil && away.stream.Bootstrap().State == serve.BootstrapFailed
	})
	if err := os.RemoveAll(filepath.Join(forged, "bank")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(forged, "bank"), os.DirFS(filepath.Join(good, "bank"))); err != nil {
		t.Fatal(err)
	}
	away.at(3)
}

// A topic that was deleted is what it was: no image mends it, a new epoch does.
func TestBootstrapLost(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	dir := b.wentAway(options{})
	newer := imageOf(b, 1)
	b.remove()
	away := b.edge(dir, "file://"+newer)
	away.until("the loss is told", func() bool { return strings.Contains(away.log.String(), "the stream's topic is lost") })
	if away.value() != 1 || away.stream.Bootstrap() != nil {
		t.Errorf("it has unit %d, bootstrap %+v", away.value(), away.stream.Bootstrap())
	}
	b.begin(2)
	b.unit()
	b.unit()
	away.until("it has gone over to the new epoch", func() bool { return away.stream.Home().Place().Epoch == 2 && away.value() == 2 })
	if away.stream.Bootstrap() != nil {
		t.Errorf("bootstrap %+v", away.stream.Bootstrap())
	}
}

// An edge that was away through the begin of an epoch whose topic was trimmed since takes
// an image of that epoch.
func TestBootstrapIntoEpoch(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	dir := b.wentAway(options{})
	b.remove()
	b.begin(2)
	b.unit()
	from := imageOf(b, 1)
	b.trim()
	b.heartbeat()
	away := b.edge(dir, "file://"+from)
	away.until("it has gone over", func() bool { return away.stream.Home().Place().Epoch == 2 && away.value() == 2 })
	b.unit()
	away.at(3)
}

// An edge that is far behind takes an image where that is less than what there is to
// follow, and follows otherwise.
func TestBootstrapBehind(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	dir := b.wentAway(options{})
	next := int64(b.end)
	from := imageOf(b, 4)

	// From here on the broker holds back what comes next for the edge.
	freed := make(chan struct{})
	t.Cleanup(func() { close(freed) })
	b.cluster.ControlKey(int16(kmsg.Fetch), func(q kmsg.Request) (kmsg.Response, error, bool) {
		b.cluster.KeepControl()
		for _, asked := range q.(*kmsg.FetchRequest).Topics {
			if len(asked.Partitions) == 1 && asked.Partitions[0].FetchOffset == next {
				b.cluster.SleepControl(func() { <-freed })
			}
		}
		return nil, nil, false
	})
	rules := func(few uint64) options {
		return options{rules: func(r *bootRules) { r.behindEvery, r.lag, r.few = 10*time.Millisecond, 0, few }}
	}
	away := b.edgeWith(dir, rules(4*bankRows+1), "file://"+from)
	away.until("it has looked", func() bool {
		s := away.stream.Bootstrap()
		return s != nil && strings.Contains(s.Problem, "200 entries are to be followed")
	})
	if away.value() != 1 {
		t.Errorf("it has unit %d", away.value())
	}
	away.end()
	away = b.edgeWith(dir, rules(4*bankRows), "file://"+from)
	away.at(5)
	// What is shown is of the next look by now. There was nothing else to come to unit 5 by.
	if !strings.Contains(away.log.String(), `msg="an image is taken from a peer" reason="`+bootBehind) {
		t.Error("no image was taken for being behind")
	}
	b.unit()
	away.at(6)
}

// A peer that makes an image and does not come on with it is left for the next one.
func TestBootstrapBesideHungMaker(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	b.unit()
	hung := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"images":[],"making":{"rows":1,"of":2,"started_at":"2026-01-01T00:00:00Z"}}`))
	}))
	defer hung.Close()
	fresh := b.edgeWith(filepath.Join(t.TempDir(), "new"), options{rules: func(r *bootRules) { r.still = 100 * time.Millisecond }}, hung.URL)
	fresh.at(1)
	if s := fresh.stream.Bootstrap(); s == nil || !strings.Contains(s.Problem, "nothing has come of it") {
		t.Errorf("shown is %+v", s)
	}
}

// An image that is ahead of everybody who could confirm it is not answered from, by an edge
// that has no rows either, until somebody does; and says so.
func TestBootstrapUnconfirmed(t *testing.T) {
	t.Parallel()
	office := newBranchOffice(t)
	b := newBankWith(t, nil, kfake.ListenFn(office.listen))
	up := b.edgeWith(filepath.Join(t.TempDir(), "up"), options{config: func(k *config.Config) {
		k.Streams[0].Kafka.Brokers = []string{office.far.Addr().String()}
	}})
	b.unit()
	up.at(1)
	office.cable.cut()
	ahead := imageOf(b, 2)
	unconfirmed := func(x *branch) bool {
		s := x.stream.Bootstrap()
		return s != nil && s.State == serve.BootstrapUnconfirmed
	}
	rules := func(giveUp time.Duration) func(*bootRules) {
		return func(r *bootRules) { r.confirm, r.unconfirmed = 50*time.Millisecond, giveUp }
	}
	follows := func(k *config.Config) { k.Streams[0].Kafka.Brokers, k.Edge.Upstream = nil, []string{up.url} }
	fresh := b.edgeWith(filepath.Join(t.TempDir(), "new"), options{config: follows, rules: rules(time.Hour)}, "file://"+ahead)
	alone := b.edgeWith(filepath.Join(t.TempDir(), "alone"), options{
		config: func(k *config.Config) { k.Streams[0].Kafka.Brokers = []string{"127.0.0.1:1"} }, rules: rules(time.Hour),
	}, "file://"+ahead)
	for _, x := range []*branch{fresh, alone} {
		x.until("it says that nobody has confirmed the image", func() bool {
			return unconfirmed(x) && strings.Contains(x.log.String(), "no source has confirmed the image") || x.value() >= 0
		})
		if x.value() >= 0 {
			t.Errorf("edge %s has unit %d of an image that nobody has confirmed", filepath.Base(x.dir), x.value())
		}
	}
	// Nobody will: what there is to follow is followed.
	tired := b.edgeWith(filepath.Join(t.TempDir(), "tired"), options{config: follows, rules: rules(50 * time.Millisecond)}, "file://"+ahead)
	tired.at(1)
	if s := tired.stream.Bootstrap(); !strings.Contains(s.Problem, "no source has confirmed") {
		t.Errorf("shown is %+v", s)
	}
	office.cable.heal()
	b.heartbeat()
	fresh.at(3)
	fresh.took()
	b.unit()
	fresh.at(4)
	tired.at(4)
	if alone.value() >= 0 || !unconfirmed(alone) {
		t.Errorf("it has unit %d, bootstrap %+v", alone.value(), alone.stream.Bootstrap())
	}
}

// Where nothing was published since the image, and all before it was trimmed, what the topic
// begins with confirms it, and denies another one.
func TestBootstrapConfirmedByState(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	from := imageOf(b, 1)
	b.trim()
	b.state()
	fresh := b.edge(filepath.Join(t.TempDir(), "new"), "file://"+from)
	fresh.at(1)
	if s := fresh.took(); s.Reason != bootNew {
		t.Errorf("shown is %+v", s)
	}
	b.unit()
	fresh.at(2)
	b.trim()
	// That a reign begins says nothing of history, nor does the state of one that is over.
	b.term = 2
	b.append(b.header(millrace.RecordTerm), nil)
	b.term = 1
	b.state()
	other := b.edgeWith(filepath.Join(t.TempDir(), "other"), options{rules: func(r *bootRules) { r.confirm, r.unconfirmed = 50*time.Millisecond, time.Hour }}, fresh.url)
	other.until("nobody has confirmed the image", func() bool {
		s := other.stream.Bootstrap()
		return s != nil && s.State == serve.BootstrapUnconfirmed || other.value() >= 0
	})
	b.term = 2
	b.chain[0]++
	b.state()
	other.until("it is given up", func() bool { return strings.Contains(other.log.String(), "history diverged") })
	if other.value() != -1 {
		t.Errorf("it has unit %d", other.value())
	}
}

// Peers that have no image of a newer epoch whose topic was trimmed are asked with pauses,
// however often it is seen that the epoch has begun.
func TestBootstrapIntoEpochPauses(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	dir := b.wentAway(options{})
	b.begin(2)
	b.unit()
	b.trim()
	b.heartbeat()
	var asked, looked atomic.Int64
	peer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		http.NotFound(w, nil)
	}))
	defer peer.Close()
	away := b.edgeWith(dir, options{rules: func(r *bootRules) { r.look, r.retryMin, r.retryMax = 10*time.Millisecond, time.Hour, time.Hour }}, peer.URL+"/images")
	away.until("peers were asked in vain", func() bool { s := away.stream.Bootstrap(); return s != nil && s.State == serve.BootstrapFailed })
	b.cluster.ControlKey(int16(kmsg.Metadata), func(kmsg.Request) (kmsg.Response, error, bool) {
		b.cluster.KeepControl()
		looked.Add(1)
		return nil, nil, false
	})
	once := asked.Load()
	away.until("it has looked for newer epochs again", func() bool { return looked.Load() > 20 })
	if n := asked.Load(); n != once || away.value() != 1 {
		t.Errorf("peers were asked %d times, %d of them without a pause; it has unit %d", n, n-once, away.value())
	}
	if again := time.Until(away.stream.Bootstrap().AgainAt); again < 20*time.Minute {
		t.Errorf("they are asked again in %v", again)
	}
	away.end()
	// Where no peer is named, the copy is not begun at every look either.
	away = b.edgeWith(dir, options{rules: func(r *bootRules) { r.look, r.retryMin, r.retryMax = 10*time.Millisecond, time.Hour, time.Hour }})
	away.until("the copy has stopped", func() bool { return strings.Contains(away.log.String(), "the next epoch cannot be gone over to yet") })
	looked.Store(0)
	away.until("it has looked for newer epochs again", func() bool { return looked.Load() > 20 })
	if n := strings.Count(away.log.String(), "a newer epoch has begun"); n != 1 {
		t.Errorf("the copy was begun %d times", n)
	}
	away.end()
	// And after the pause they are asked, as is whether the topic was made again.
	away = b.edgeWith(dir, options{rules: func(r *bootRules) { r.look = 10 * time.Millisecond }}, peer.URL+"/images")
	once = asked.Load()
	away.until("they are asked again", func() bool { return asked.Load() > once+5 })
	if n := strings.Count(away.log.String(), "a newer epoch has begun"); n < 2 {
		t.Errorf("the copy was begun %d times", n)
	}
}

// A stop of readers' epoch ends the stream also where a newer one has begun that can neither
// be copied nor be taken as an image, whichever of both is found first.
func TestStopBesideAnEpochOutOfReach(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	dir := filepath.Join(t.TempDir(), "away")
	away := b.edge(dir)
	b.unit()
	away.at(1)
	away.end()
	first, index := b.log, b.index
	b.begin(2)
	b.unit()
	b.trim()
	b.heartbeat()
	never := options{rules: func(r *bootRules) { r.look, r.retryMin, r.retryMax = 10*time.Millisecond, time.Hour, time.Hour }}
	stops := func() {
		t.Helper()
		select {
		case <-away.ended:
			if !errors.Is(away.err, millrace.ErrDiverged) {
				t.Errorf("the stream has ended with %v", away.err)
			}
		case <-time.After(bootWait):
			t.Fatalf("the stream goes on; it is at %d, fault %v", away.value(), away.stream.Fault())
		}
		away.end()
	}
	away = b.edgeWith(dir, never)
	away.until("the copy has stopped", func() bool { return strings.Contains(away.log.String(), "the next epoch cannot be gone over to yet") })
	b.log, b.epoch, b.index, b.chain = first, 1, index, millrace.Chain{1}
	b.unit()
	stops()
	away = b.edgeWith(dir, never)
	stops()
}
