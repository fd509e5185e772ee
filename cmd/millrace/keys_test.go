package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestKeyFiles(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "shop.key")
	public := program(t, dir, "keys", "new", file)
	if !strings.HasPrefix(public, "ed25519:") || program(t, dir, "keys", "show", file) != public {
		t.Errorf("keys new: %q", public)
	}
	refusal(t, dir, nil, exitUsage, []string{file, "there already"}, "keys", "new", file)
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	refusal(t, dir, nil, exitOperator, []string{file, "chmod 600"}, "keys", "show", file)
	for _, command := range []string{"new", "show"} {
		refusal(t, dir, nil, exitUsage, []string{"takes a file", "more"}, "keys", command, filepath.Join(dir, "second.key"), "more")
	}
	refusal(t, dir, nil, exitUsage, []string{"takes no argument", "make"}, "keys", "make")
	if _, err := os.Stat(filepath.Join(dir, "second.key")); !os.IsNotExist(err) {
		t.Errorf("a key was made although it was not clear where: %v", err)
	}
	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	refusal(t, dir, nil, exitOperator, []string{other, "no private key"}, "keys", "show", other)
	refusal(t, dir, nil, exitOperator, []string{"none", "millrace keys new"}, "keys", "show", filepath.Join(dir, "none"))
}

// TestSignedStream: an edge that trusts a key follows a publisher that signs with it,
// and stops at the first record of one that does not.
func TestSignedStream(t *testing.T) {
	t.Parallel()
	w := newWorldApart(t)
	key := filepath.Join(w.dir, "shop.key")
	public := strings.TrimSpace(program(t, w.dir, "keys", "new", key))
	stranger := strings.TrimSpace(program(t, w.dir, "keys", "new", filepath.Join(w.dir, "stranger.key")))
	with := func(name, signing string) string {
		return w.write(t, name, strings.Replace(w.config(w.db.URL, ""), "    kafka:", "    signing: {"+signing+"}\n    kafka:", 1))
	}
	file := with("signed.yaml", fmt.Sprintf("key_file: %q, trusted: [%q]", key, public+"@1"))
	program(t, w.dir, "init", "-c", file)
	refusal(t, w.dir, nil, exitOperator, []string{"signing.trusted", "key_file"}, "transfer", "-c", with("keyless.yaml", fmt.Sprintf("trusted: [%q]", public+"@1")))
	refusal(t, w.dir, nil, exitOperator, []string{"signing.trusted", public}, "transfer", "-c", with("stranger.yaml", fmt.Sprintf("key_file: %q, trusted: [%q]", key, stranger)))

	transfer := spawn(t, w.dir, nil, "transfer", "-c", file)
	edge := spawn(t, w.dir, nil, "edge", "-c", file)
	w.ready(t)
	transfer.stop(syscall.SIGTERM)
	for line := range strings.Lines(program(t, w.dir, "tail", "--all", "-c", file)) {
		if (strings.Contains(line, `"unit_end"`) || strings.Contains(line, `"term"`) && strings.Contains(line, `"kind":"term"`)) && !strings.Contains(line, `"signed_by"`) {
			t.Errorf("not signed: %s", line)
		}
	}

	// An image carries the proof along.
	if got := program(t, w.dir, "image", "create", "--json", "-c", file); !strings.Contains(got, `"signed": true`) {
		t.Errorf("image create: %s", got)
	}
	program(t, w.dir, "image", "verify", "-c", file)
	refusal(t, w.dir, nil, exitOperator, []string{"which is not trusted", "signing.trusted"}, "image", "verify", "-c", filepath.Join(w.dir, "stranger.yaml"))

	// Whoever may write to the topic is no publisher yet.
	forger := spawn(t, w.dir, nil, "transfer", "-c", w.write(t, "unsigned.yaml", w.config(w.db.URL, "")))
	if code := edge.wait(); code != exitOperator || !strings.Contains(edge.err(), "not signed") {
		t.Errorf("the edge ended with exit code %d: %s", code, edge.err())
	}
	forger.stop(syscall.SIGTERM)
	refusal(t, w.dir, nil, exitOperator, []string{"not signed"}, "transfer", "-c", file)
}
