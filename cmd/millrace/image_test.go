package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// image takes an image beside the running edge, loses the edge's store, makes it
// anew from the image, and returns the edge that has followed from there.
func (w *world) image(t *testing.T, edge *process) *process {
	t.Helper()
	run := func(args ...string) string { return program(t, w.dir, append(args, "-c", w.file)...) }
	refusal(t, w.dir, nil, exitOperator, []string{"there is no image of stream shop", "millrace image create"}, "image", "verify", "-c", w.file)
	if got := run("image", "list"); !strings.Contains(got, "there is no image") {
		t.Errorf("image list: %s", got)
	}
	var made shownImage
	if err := json.Unmarshal([]byte(run("image", "create", "--json")), &made); err != nil {
		t.Fatal(err)
	}
	if made.Rows != 29 || made.Frames != 1 || made.Offset == nil || len(made.Tables) != 1 || made.Tables[0].Table != "public.items" || made.Existed {
		t.Errorf("image create: %+v", made)
	}
	// Another host downloads it from this edge.
	there := w.write(t, "there.yaml", w.config(w.db.URL, "  images: {dir: fetched}\n"))
	fetch := []string{"image", "fetch", "http://" + w.edge + "/v1/streams/shop/images", "-c", there}
	if got := program(t, w.dir, fetch...); !strings.Contains(got, filepath.Join("fetched", "shop", made.Name)) {
		t.Errorf("image fetch: %s", got)
	}
	if got := program(t, w.dir, fetch...); !strings.Contains(got, "there is that image") {
		t.Errorf("image fetch again: %s", got)
	}
	w.db.Exec(`UPDATE items SET note = 'after the image' WHERE id = 5`)
	until(t, "the change is at the edge", func() error {
		if got := run("get", "public.items", "s2,5"); !strings.Contains(got, "after the image") {
			return fmt.Errorf("got %s", got)
		}
		return nil
	})
	refusal(t, w.dir, nil, exitFailure, []string{"in use", "stop that one"}, "image", "restore", "-c", w.file)
	edge.stop(syscall.SIGTERM)
	refusal(t, w.dir, nil, exitFailure, []string{"readers are at", "move the directory away"}, "image", "restore", "-c", w.file)
	// Another one, of which a byte is lost.
	second := run("image", "create")
	if !strings.Contains(second, "image of stream shop at index") {
		t.Errorf("image create: %s", second)
	}
	if got := run("image", "create"); !strings.Contains(got, "there is an image of stream shop") {
		t.Errorf("image create again: %s", got)
	}
	damaged := filepath.Join(w.dir, strings.TrimSpace(second[strings.LastIndexByte(second, ' ')+1:]))
	if err := os.WriteFile(filepath.Join(damaged, "manifest"), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := run("image", "list"); !strings.Contains(got, made.Name) || !strings.Contains(got, "not a whole image") {
		t.Errorf("image list: %s", got)
	}
	refusal(t, w.dir, nil, exitFailure, []string{"not a whole image"}, "image", "restore", "-c", w.file)
	if got := run("image", "verify", made.Name); !strings.Contains(got, "is whole: 29 rows") {
		t.Errorf("image verify: %s", got)
	}
	if err := os.RemoveAll(filepath.Join(w.dir, "edge")); err != nil {
		t.Fatal(err)
	}
	if got := program(t, w.dir, "image", "restore", "-c", there); !strings.Contains(got, "29 rows") {
		t.Errorf("image restore: %s", got)
	}
	edge = spawn(t, w.dir, nil, "edge", "-c", w.file)
	until(t, "the change is in the restored store", func() error {
		several := spawn(t, w.dir, nil, "get", "-c", w.file, "public.items", "s2,5")
		if several.wait(); !strings.Contains(several.out(), "after the image") {
			return fmt.Errorf("got %s%s", several.out(), several.err())
		}
		return nil
	})
	return edge
}
