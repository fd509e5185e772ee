package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
)

// many makes an image of many small frames, and returns its directory of images.
func many(t *testing.T, dir string) (s *source, c *Created) {
	t.Helper()
	s = newSource(t, openStore(t, options(filepath.Join(dir, "store"))))
	rnd := rand.New(rand.NewPCG(1, 2))
	var all []*millrace.Entry
	for i := range 400 {
		text := []byte("1:")
		for range 2000 {
			text = append(text, byte('0'+rnd.IntN(64)))
		}
		all = append(all, put(t, 1, 0, strconv.Itoa(i), string(text)))
	}
	s.apply(all...)
	c, err := Create(t.Context(), s.store, Options{Dir: filepath.Join(dir, "images"), frame: 20_000})
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Manifest.Frames) < 30 {
		t.Fatalf("the image has %d frames", len(c.Manifest.Frames))
	}
	return s, c
}

// cutting ends an answer after so many bytes.
type cutting struct {
	http.ResponseWriter
	left int
	sent *atomic.Int64
}

func (c *cutting) Write(b []byte) (int, error) {
	if len(b) > c.left {
		n, _ := c.ResponseWriter.Write(b[:c.left])
		c.sent.Add(int64(n))
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= len(b)
	n, err := c.ResponseWriter.Write(b)
	c.sent.Add(int64(n))
	return n, err
}

// serve starts a server of images whose answers change may alter; it answers
// itself where change returns false.
func serve(t *testing.T, dir string, change func(w *http.ResponseWriter, r *http.Request) bool) string {
	t.Helper()
	h := Handler(dir, nil)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if change == nil || change(&w, r) {
			h.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// A download whose connection is cut again and again, with answers that say to
// come later between, comes to its end without sending what has come again.
func TestFetch(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	s, c := many(t, dir)
	var sent atomic.Int64
	requests := 0
	at := serve(t, filepath.Join(dir, "images"), func(w *http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/"+rowsName) {
			return true
		}
		requests++
		if requests%3 == 0 {
			http.Error(*w, "later", http.StatusServiceUnavailable)
			return false
		}
		*w = &cutting{*w, 20_000 + rnd.IntN(100_000), &sent}
		return true
	})
	there := filepath.Join(dir, "there")
	var last Progress
	got, err := Fetch(t.Context(), there, Source{URL: at, Stream: testStream, Pause: time.Millisecond, Progress: func(p Progress) { last = p }})
	if err != nil {
		t.Fatal(err)
	}
	size := c.Manifest.Stored()
	t.Logf("%d bytes were sent in %d answers, the rows have %d", sent.Load(), requests, size)
	// Of each answer that was cut, a part of a frame is lost.
	if most := size + int64(requests)*20_000; sent.Load() > most || last.Rows != last.Of || last.Rows != c.Manifest.Rows() {
		t.Errorf("%d bytes were sent, at most %d are to be; progress ends with %+v", sent.Load(), most, last)
	}
	if err := openImage(t, got.Path).Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if got := names(t, there); got != c.Manifest.Name()+" "+lockName {
		t.Errorf("there are %s", got)
	}
	home := filepath.Join(dir, "home")
	restoreTo(t, home, got.Path)
	want, _ := rowsOf(t, s.store)
	if rows, _ := rowsOf(t, openStore(t, options(home))); !slices.Equal(rows, want) {
		t.Error("the store restored from what was fetched has other rows")
	}
	if again, err := Fetch(t.Context(), there, Source{URL: at + "/" + c.Manifest.Name()}); err != nil || !again.Existed {
		t.Errorf("fetched again: %+v, %v", again, err)
	}
}

// What has come in part is gone on with, while it is to be had; where it is not,
// or is another one of the same name, the newest comes from its start.
func TestFetchGoesOn(t *testing.T) {
	dir := t.TempDir()
	s, c := many(t, dir)
	images, there := filepath.Join(dir, "images"), filepath.Join(dir, "there")
	var sent atomic.Int64
	at := serve(t, images, func(w *http.ResponseWriter, _ *http.Request) bool {
		*w = &cutting{*w, 1 << 30, &sent}
		return true
	})
	size := c.Manifest.Stored()
	// half fetches until half has come.
	half := func() {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		_, err := Fetch(ctx, there, Source{URL: at, Progress: func(p Progress) {
			if p.Rows > p.Of/2 {
				cancel()
			}
		}})
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("Fetch that is told to end: %v", err)
		}
	}
	half()
	s.unit(2)
	mustCreate(t, s, images, 0)
	sent.Store(0)
	got, err := Fetch(t.Context(), there, Source{URL: at})
	if err != nil || got.Manifest.Name() != c.Manifest.Name() {
		t.Fatalf("gone on with %+v, %v", got, err)
	}
	if n := sent.Load(); n > size*3/4 {
		t.Errorf("%d bytes were sent to go on, of %d", n, size)
	}
	// A byte of what has come is lost: it comes again from there.
	if err := os.Rename(got.Path, got.Path+loadSuffix); err != nil {
		t.Fatal(err)
	}
	rows := filepath.Join(got.Path+loadSuffix, rowsName)
	b, err := os.ReadFile(rows)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2]++
	if err := os.WriteFile(rows, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err = Fetch(t.Context(), there, Source{URL: at}); err != nil {
		t.Fatal(err)
	}
	if err := openImage(t, got.Path).Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
	// The one that has come in part is gone there.
	if err := os.Rename(got.Path, got.Path+loadSuffix); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(c.Path); err != nil {
		t.Fatal(err)
	}
	if got, err = Fetch(t.Context(), there, Source{URL: at}); err != nil || got.Manifest.Checkpoint.Index != s.index {
		t.Errorf("the newest: %+v, %v", got, err)
	}
	for i := range 3 { // older ones go, but for the one that was fetched
		if err := os.Mkdir(filepath.Join(there, imageName(3-millrace.Epoch(i), 1)), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if got, err = Fetch(t.Context(), there, Source{URL: at, Keep: 1}); err != nil || got.Removed != 3 {
		t.Errorf("with others that are not kept: %+v, %v", got, err)
	}
	if got := names(t, there); got != imageName(2, s.index)+" "+lockName {
		t.Errorf("there are %s", got)
	}
}

// A source that gives something else is refused by name, and leaves nothing that
// has the name of an image.
func TestFetchRefuses(t *testing.T) {
	dir := t.TempDir()
	_, c := many(t, dir)
	text, err := os.ReadFile(filepath.Join(c.Path, manifestName))
	if err != nil {
		t.Fatal(err)
	}
	name := c.Manifest.Name()
	var answer func(w http.ResponseWriter, r *http.Request) bool
	at := serve(t, filepath.Join(dir, "images"), func(w *http.ResponseWriter, r *http.Request) bool { return answer(*w, r) })
	say := func(suffix, text string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, suffix) {
				return true
			}
			_, _ = w.Write([]byte(text))
			return false
		}
	}
	here := Source{Stream: testStream, Pause: time.Millisecond}
	for what, x := range map[string]struct {
		url    string
		stream millrace.StreamID
		answer func(http.ResponseWriter, *http.Request) bool
		want   string
	}{
		"no URL":          {"ftp://x/y", testStream, nil, "not a URL"},
		"nobody there":    {"http://me:secret@127.0.0.1:1/images?sig=secret", testStream, nil, "get http://127.0.0.1:1/images: "},
		"no list":         {at, testStream, say("/", "<html>"), "not a list"},
		"empty list":      {at, testStream, say("/", `{"images":[]}`), "there is no image"},
		"name":            {at, testStream, say("/", `{"images":[{"name":"../../x"}]}`), "the name"},
		"endless list":    {at, testStream, say("/", strings.Repeat(" ", maxListing+1)), "has more than"},
		"nothing there":   {at + "/" + imageName(9, 9), testStream, say("none", ""), "404"},
		"manifest":        {at, testStream, say(manifestName, "x"), ErrMalformed.Error()},
		"other manifest":  {at + "/" + imageName(2, 7), testStream, say(manifestName, string(text)), "holds image " + name},
		"other stream":    {at, millrace.StreamID{9}, say("none", ""), "wanted is"},
		"rows":            {at, testStream, say(rowsName, strings.Repeat("x", 1<<20)), "the hash of a frame"},
		"short rows":      {at, testStream, say(rowsName, "x"), "unexpected EOF"},
		"no rows":         {at, testStream, say(rowsName, ""), "EOF"},
		"ranges that lie": {at, testStream, lyingRanges(c), "answers 206"},
	} {
		answer = x.answer
		here.URL, here.Stream = x.url, x.stream
		there := filepath.Join(dir, "there")
		if _, err := Fetch(t.Context(), there, here); err == nil || !strings.Contains(err.Error(), x.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want %q", what, err, x.want)
		}
		if all, err := List(there); err != nil || len(all) != 0 {
			t.Errorf("%s: there are %v, %v", what, all, err)
		}
		if err := os.RemoveAll(there); err != nil {
			t.Fatal(err)
		}
	}
}

// A source that has another image each time it is asked, of which none is of use, is left
// after so many of them.
func TestFetchEndsAtEverNewImages(t *testing.T) {
	dir := t.TempDir()
	_, c := many(t, dir)
	for _, cut := range []bool{false, true} {
		m := *c.Manifest
		checkpoint := *m.Checkpoint
		m.Checkpoint = &checkpoint
		frame, err := os.ReadFile(filepath.Join(c.Path, rowsName))
		if err != nil {
			t.Fatal(err)
		}
		listed := 0
		at := serve(t, filepath.Join(dir, "images"), func(w *http.ResponseWriter, r *http.Request) bool {
			switch path.Base(r.URL.Path) {
			case manifestName:
				text, err := AppendManifest(nil, &m)
				if err != nil {
					t.Error(err)
				}
				_, _ = (*w).Write(text)
			case rowsName:
				_, _ = (*w).Write(frame[:m.Frames[0].Stored])
			default:
				listed++
				m.Checkpoint.Index++
				_ = json.NewEncoder(*w).Encode(Listing{Images: []Listed{{Name: m.Name()}}})
			}
			return false
		})
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		_, err = Fetch(ctx, filepath.Join(dir, "there"), Source{URL: at, Pause: time.Microsecond, Accept: func(*Manifest) error {
			if cut {
				return nil
			}
			return errors.New("of no use")
		}})
		cancel()
		if err == nil || !strings.Contains(err.Error(), "one after the other") {
			t.Errorf("after %d lists: %v", listed, err)
		}
	}
}

// lyingRanges sends the first frame, and then what was not asked for.
func lyingRanges(c *Created) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, rowsName) {
			return true
		}
		if r.Header.Get("Range") == "" {
			b, _ := os.ReadFile(filepath.Join(c.Path, rowsName))
			_, _ = w.Write(b[:c.Manifest.Frames[0].Stored])
			return false
		}
		w.Header().Set("Content-Range", "bytes 0-9/10")
		w.WriteHeader(http.StatusPartialContent)
		return false
	}
}

// The handler gives nothing but images.
func TestHandler(t *testing.T) {
	dir := t.TempDir()
	_, c := many(t, dir)
	if err := os.WriteFile(filepath.Join(dir, "images", "secret"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := Handler(filepath.Join(dir, "images"), nil)
	get := func(method, path, ranges string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		r := httptest.NewRequestWithContext(t.Context(), method, "http://x/", nil)
		r.URL.Path = path
		if ranges != "" {
			r.Header.Set("Range", ranges)
		}
		h.ServeHTTP(w, r)
		return w
	}
	name := c.Manifest.Name()
	if w := get("GET", "/", ""); w.Code != 200 || !strings.Contains(w.Body.String(), strconv.Quote(name)) {
		t.Errorf("list: %d %s", w.Code, w.Body)
	}
	if w := get("GET", "/"+name+"/rows", "bytes=10-19"); w.Code != 206 || w.Body.Len() != 10 {
		t.Errorf("range: %d, %d bytes", w.Code, w.Body.Len())
	}
	if w := get("HEAD", "/"+name+"/rows", ""); w.Code != 200 || w.Header().Get("Content-Length") != fmt.Sprint(c.Manifest.Stored()) {
		t.Errorf("HEAD: %d, %v", w.Code, w.Header())
	}
	for path, want := range map[string]int{
		"/secret": 404, "/" + name: 404, "/" + name + "/other": 404, "/../store/data.mdb": 404, "/" + name + "/../secret": 404,
		"/" + name + "/rows/..": 404, "/image-2-1/rows": 404, "/" + lockName: 404,
	} {
		if w := get("GET", path, ""); w.Code != want {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
	if w := get("POST", "/", ""); w.Code != 405 {
		t.Errorf("POST: %d", w.Code)
	}
	for range maxSending {
		h.(*handler).sending <- struct{}{}
	}
	if w := get("GET", "/"+name+"/rows", ""); w.Code != 503 || w.Header().Get("Retry-After") == "" {
		t.Errorf("when as many are sent as may be: %d", w.Code)
	}
}

// fetchChild fetches what its parent serves.
func fetchChild() error {
	fmt.Println("began")
	_, err := Fetch(context.Background(), os.Getenv("IMAGES"), Source{URL: os.Getenv("URL"), Pause: time.Millisecond})
	return err
}

// Whenever a process that downloads dies, the next one goes on, and what has the
// name of an image is whole.
func TestKilledFetch(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	many(t, dir)
	there := filepath.Join(dir, "there")
	// Answers are cut, so that a download takes its time.
	var sent atomic.Int64
	at := serve(t, filepath.Join(dir, "images"), func(w *http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, rowsName) {
			*w = &cutting{*w, 100_000, &sent}
		}
		return true
	})
	came := 0
	for range *killsFlag {
		kill(t, rnd, "fetch", 80*time.Millisecond, nil, "IMAGES="+there, "URL="+at)
		all, err := List(there)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range all {
			i := openImage(t, e.Path)
			if err := i.Verify(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			_ = i.Close()
			came++
			if err := os.RemoveAll(e.Path); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("%d images came in %d rounds", came, *killsFlag)
	if c, err := Fetch(t.Context(), there, Source{URL: at, Pause: time.Millisecond}); err != nil {
		t.Error(err)
	} else if err := openImage(t, c.Path).Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

// dripping sends bytes one by one, with pauses, once so many have gone.
type dripping struct {
	http.ResponseWriter
	context context.Context
	at      int
}

func (d *dripping) Write(b []byte) (int, error) {
	n := min(len(b), d.at)
	if _, err := d.ResponseWriter.Write(b[:n]); err != nil {
		return 0, err
	}
	d.at -= n
	for i := range b[n:] {
		if _, err := d.ResponseWriter.Write(b[n+i:][:1]); err != nil {
			return 0, err
		}
		d.ResponseWriter.(http.Flusher).Flush()
		select {
		case <-time.After(5 * time.Millisecond):
		case <-d.context.Done():
			return 0, d.context.Err()
		}
	}
	return len(b), nil
}

// A peer that gives bytes one by one, over as many connections as it likes, is given up;
// what has come of it need not come again from the next one.
func TestFetchLeavesWhoDrips(t *testing.T) {
	dir := t.TempDir()
	_, c := many(t, dir)
	there := filepath.Join(dir, "there")
	requests := 0
	drips := serve(t, filepath.Join(dir, "images"), func(w *http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/"+rowsName) {
			quick := 21_000 // a frame: each connection comes further
			if requests++; requests == 1 {
				quick = int(c.Manifest.Stored()) / 2
			}
			*w = &dripping{*w, r.Context(), quick}
		}
		return true
	})
	began := time.Now()
	_, err := Fetch(t.Context(), there, Source{URL: drips, Pause: time.Millisecond, least: 30_000, within: 500 * time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "sends too little") || errors.Is(err, context.Canceled) {
		t.Fatalf("from a peer that drips: %v", err)
	}
	t.Logf("given up after %d requests and %v", requests, time.Since(began))
	var sent atomic.Int64
	at := serve(t, filepath.Join(dir, "images"), func(w *http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/"+rowsName) {
			*w = &cutting{*w, 1 << 30, &sent}
		}
		return true
	})
	got, err := Fetch(t.Context(), there, Source{URL: at})
	if err != nil {
		t.Fatal(err)
	}
	if n, size := sent.Load(), c.Manifest.Stored(); n == 0 || n > size/2+20_000 {
		t.Errorf("%d bytes came of the second, of %d", n, size)
	}
	if err := openImage(t, got.Path).Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
}
