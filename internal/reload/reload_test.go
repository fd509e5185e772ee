package reload

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestWhatIsWrongIsNotTakenOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	write := func(text string) {
		t.Helper()
		fresh := path + ".new"
		if err := os.WriteFile(fresh, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(fresh, path); err != nil {
			t.Fatal(err)
		}
	}
	read := func() (string, error) {
		text, err := os.ReadFile(path)
		if err == nil && string(text) == "wrong" {
			err = errors.New("wrong")
		}
		return string(text), err
	}
	if _, err := New(read, nil, path); err == nil {
		t.Error("a file that is not there was taken")
	}
	write("first")
	f, err := New(read, nil, path)
	if err != nil {
		t.Fatal(err)
	}
	step := func(change func(), want string) {
		t.Helper()
		change()
		f.Look()
		if got := f.Get(); got != want {
			t.Errorf("it holds %q, want %q", got, want)
		}
	}
	step(func() {}, "first")
	step(func() { write("second") }, "second")
	step(func() { write("wrong") }, "second")
	step(func() { _ = os.Remove(path) }, "second")
	step(func() { write("third") }, "third")
}
