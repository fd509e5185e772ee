package image

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A directory of images is fetched from wherever its files are: a server that knows
// nothing of them, a copy of it made elsewhere, and a path of this host. What is not
// accepted gives way to an older one.
func TestStatic(t *testing.T) {
	dir := t.TempDir()
	images := filepath.Join(dir, "images")
	s := newSource(t, openStore(t, options(filepath.Join(dir, "store"))))
	s.unit(1)
	old := mustCreate(t, s, images, 0)
	s.unit(2)
	newest := mustCreate(t, s, images, 0)
	want, _ := rowsOf(t, s.store)
	server := httptest.NewServer(http.StripPrefix("/backups", http.FileServer(http.Dir(dir))))
	t.Cleanup(server.Close)
	for name, url := range map[string]string{
		"directory of a server": server.URL + "/backups/images",
		"with a slash":          server.URL + "/backups/images/",
		"one image":             server.URL + "/backups/images/" + newest.Manifest.Name(),
		"path of this host":     "file://" + images,
		"image of this host":    "file://" + newest.Path,
	} {
		there := t.TempDir()
		got, err := Fetch(t.Context(), there, Source{URL: url, Stream: testStream, Pause: time.Millisecond})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got.Manifest.Name() != newest.Manifest.Name() {
			t.Errorf("%s: got %s, want the newest", name, got.Manifest.Name())
		}
		restoreTo(t, filepath.Join(there, "home"), got.Path)
		if rows, _ := rowsOf(t, openStore(t, options(filepath.Join(there, "home")))); len(rows) != len(want) {
			t.Errorf("%s: %d rows, want %d", name, len(rows), len(want))
		}
	}

	errOld := errors.New("too new")
	accept := func(m *Manifest) error {
		if m.Checkpoint.Index > old.Manifest.Checkpoint.Index {
			return errOld
		}
		return nil
	}
	got, err := Fetch(t.Context(), t.TempDir(), Source{URL: "file://" + images, Accept: accept})
	if err != nil || got.Manifest.Name() != old.Manifest.Name() {
		t.Errorf("the newest is not accepted: %+v, %v", got, err)
	}
	for name, url := range map[string]string{"of several": "file://" + images, "of one": "file://" + newest.Path} {
		if _, err := Fetch(t.Context(), t.TempDir(), Source{URL: url, Accept: func(*Manifest) error { return errOld }}); !errors.Is(err, errOld) {
			t.Errorf("none %s is accepted: %v", name, err)
		}
	}

	// The list follows what is there, also by removing; what is not whole is not in it.
	s.unit(3)
	c := mustCreate(t, s, images, 1)
	if err := os.Truncate(filepath.Join(old.Path+"x", rowsName), 0); err == nil {
		t.Fatal("an image is there that was not made")
	}
	if l, err := listing(images); err != nil || len(l.Images) != 1 || l.Images[0].Name != c.Manifest.Name() || l.Images[0].Rows != c.Manifest.Rows() || l.Images[0].Bytes != c.Manifest.Stored() {
		t.Errorf("list is %+v, %v", l, err)
	}
	if err := os.Truncate(filepath.Join(c.Path, rowsName), 1); err != nil {
		t.Fatal(err)
	}
	if l, err := listing(images); err != nil || len(l.Images) != 0 {
		t.Errorf("list with an image that is not whole: %+v, %v", l, err)
	}
	if _, err := Fetch(t.Context(), t.TempDir(), Source{URL: "file://" + images + "-none"}); err == nil {
		t.Error("fetched from where there is nothing")
	}
}
