package image

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
)

// publisherKey signs the headers of records.
var publisherKey = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))

func keyring(t testing.TB, keys ...millrace.TrustedKey) *millrace.Keyring {
	t.Helper()
	ring, err := millrace.NewKeyring(keys)
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

func trusted(key ed25519.PrivateKey, from millrace.Place) millrace.TrustedKey {
	return millrace.TrustedKey{Key: key.Public().(ed25519.PublicKey), From: from}
}

// The manifest of a signed stream's image carries the signed header of the record that
// it was taken at, also from a store that was itself restored, and is refused where
// keys are trusted and it has none, or one that does not prove it.
func TestSignedHeader(t *testing.T) {
	dir := t.TempDir()
	s := newSource(t, openStore(t, options(filepath.Join(dir, "store"))))
	first := millrace.Place{Epoch: 2, Index: 1}
	other := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, ed25519.SeedSize))
	keys, others := keyring(t, trusted(publisherKey, first)), keyring(t, trusted(other, first))
	unsigned := mustCreate(t, s, filepath.Join(dir, "unsigned"), 0)
	if m := unsigned.Manifest; m.Proven(nil) != nil || !errors.Is(m.Proven(keys), millrace.ErrSignature) ||
		m.Proven(keyring(t, trusted(publisherKey, millrace.Place{Epoch: 2, Index: s.index + 1}))) != nil {
		t.Errorf("image without a header: %v, %v", m.Proven(nil), m.Proven(keys))
	}
	s.key = publisherKey
	s.unit(1)
	images := filepath.Join(dir, "images")
	c := mustCreate(t, s, images, 0)
	m := c.Manifest
	if err := m.Proven(keys); err != nil || m.Proven(nil) != nil {
		t.Errorf("signed image is refused: %v", err)
	}
	if err := m.Proven(others); !errors.Is(err, millrace.ErrSignature) {
		t.Errorf("image that another key signed: %v", err)
	}
	altered := *m
	altered.Header = bytes.Clone(m.Header)
	altered.Header[len(altered.Header)-1] ^= 1
	if err := altered.Proven(keys); !errors.Is(err, millrace.ErrSignature) {
		t.Errorf("image with an altered signature: %v", err)
	}
	// A header with a true signature, of another place: no manifest has it.
	older := *m.Checkpoint
	older.Index--
	altered.Header = signedHeader(t, &older, 1, publisherKey)
	if err := altered.Proven(keys); !errors.Is(err, millrace.ErrDiverged) {
		t.Errorf("image with the header of another place: %v", err)
	}
	// One who does not have the key says that its batch begins before anything is signed.
	from := millrace.Place{Epoch: 2, Index: s.index}
	altered.Header = signedHeader(t, m.Checkpoint, 2, other)
	if err := altered.Proven(keyring(t, trusted(publisherKey, from))); !errors.Is(err, millrace.ErrSignature) {
		t.Errorf("image with a header that begins before the first signed place: %v", err)
	}

	// A store that was restored gives the same header on, until it has applied more.
	home := filepath.Join(dir, "home")
	restoreTo(t, home, c.Path)
	f := newSource(t, openStore(t, options(home)))
	if again := mustCreate(t, f, filepath.Join(dir, "again"), 0).Manifest; !bytes.Equal(again.Header, m.Header) {
		t.Error("the restored store has another header")
	}
	f.unit(2) // not signed
	if again := mustCreate(t, f, filepath.Join(dir, "again"), 0).Manifest; len(again.Header) != 0 {
		t.Error("an image has the header of an older record")
	}

	server := httptest.NewServer(Handler(images, nil))
	defer server.Close()
	fetch := func(dir string, ring *millrace.Keyring) error {
		_, err := Fetch(t.Context(), dir, Source{URL: server.URL, Trusted: ring, Pause: time.Millisecond})
		return err
	}
	if err := fetch(filepath.Join(dir, "fetched"), others); !errors.Is(err, millrace.ErrSignature) {
		t.Errorf("Fetch of what another key signed: %v", err)
	}
	if err := fetch(filepath.Join(dir, "fetched"), keys); err != nil {
		t.Errorf("Fetch: %v", err)
	}
}
