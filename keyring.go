package millrace

import (
	"cmp"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Place is a place in the whole of a stream: indexes begin anew in each epoch.
type Place struct {
	Epoch Epoch
	Index Index
}

// Compare returns -1, 0 or 1 as p comes before o, is o, or comes after it.
func (p Place) Compare(o Place) int {
	return cmp.Or(cmp.Compare(p.Epoch, o.Epoch), cmp.Compare(p.Index, o.Index))
}

// String returns INDEX in the first epoch and EPOCH/INDEX in others.
func (p Place) String() string {
	if p.Epoch <= 1 {
		return p.Index.String()
	}
	return p.Epoch.String() + "/" + p.Index.String()
}

func parsePlace(text string) (p Place, err error) {
	p.Epoch = 1
	epoch, index, both := strings.Cut(text, "/")
	if !both {
		index = epoch
	} else {
		n, err := ParseIndex(epoch)
		if err != nil {
			return p, err
		}
		p.Epoch = Epoch(n)
	}
	if p.Index, err = ParseIndex(index); err != nil {
		return p, err
	}
	if p.Epoch == 0 || p.Index == 0 {
		return p, errors.New("epochs and indexes begin with 1")
	}
	return p, nil
}

// TrustedKey is a public key whose signature is believed over a part of a stream.
type TrustedKey struct {
	Key ed25519.PublicKey
	// From and To are the first and the last place of records that it may have
	// signed. To is zero for no end.
	From, To Place
}

// keyPrefix stands before every key in text form.
const keyPrefix = "ed25519:"

// FormatPublicKey writes a public key as people pass it on: ed25519: and its bytes in
// URL-safe base64 without padding.
func FormatPublicKey(pub ed25519.PublicKey) string {
	return keyPrefix + base64.RawURLEncoding.EncodeToString(pub)
}

// ParseTrustedKey reads KEY@FROM or KEY@FROM-TO, where KEY is what FormatPublicKey
// writes, and FROM and TO are INDEX, or EPOCH/INDEX. KEY alone is trusted from the
// beginning on.
func ParseTrustedKey(text string) (k TrustedKey, err error) {
	key, span, ranged := strings.Cut(text, "@")
	encoded, ok := strings.CutPrefix(key, keyPrefix)
	if !ok {
		return k, fmt.Errorf("read trusted key %q: want %sKEY@INDEX", text, keyPrefix)
	}
	if k.Key, err = base64.RawURLEncoding.DecodeString(encoded); err != nil || len(k.Key) != ed25519.PublicKeySize {
		return k, fmt.Errorf("read trusted key %q: want %d bytes in URL-safe base64 without padding, as millrace keys prints them", text, ed25519.PublicKeySize)
	}
	k.From = Place{1, 1}
	if !ranged {
		return k, nil
	}
	from, to, bounded := strings.Cut(span, "-")
	if k.From, err = parsePlace(from); err != nil {
		return k, fmt.Errorf("read trusted key %q: %q is no index; write the first that it signs", text, from)
	}
	if bounded {
		if k.To, err = parsePlace(to); err != nil || k.To.Compare(k.From) < 0 {
			return k, fmt.Errorf("read trusted key %q: %q is no index from %v on", text, to, k.From)
		}
	}
	return k, nil
}

// String writes what ParseTrustedKey reads.
func (k TrustedKey) String() string {
	text := FormatPublicKey(k.Key) + "@" + k.From.String()
	if k.To != (Place{}) {
		text += "-" + k.To.String()
	}
	return text
}

// Keyring are the keys that a reader believes. The nil Keyring asks for no signatures.
// It is safe for concurrent use.
type Keyring struct {
	keys map[KeyID]TrustedKey
	from Place // from where on a signature is wanted
}

// NewKeyring makes the Keyring of some keys; of none, it is nil.
func NewKeyring(keys []TrustedKey) (*Keyring, error) {
	if len(keys) == 0 {
		return nil, nil //nolint:nilnil // a Keyring that asks for nothing
	}
	r := &Keyring{keys: make(map[KeyID]TrustedKey, len(keys))}
	for _, k := range keys {
		if len(k.Key) != ed25519.PublicKeySize || k.From == (Place{}) {
			return nil, errors.New("make keyring: a key of the wrong size, or trusted from no index on")
		}
		id := NewKeyID(k.Key)
		if _, twice := r.keys[id]; twice {
			return nil, fmt.Errorf("make keyring: key %s is named twice; give it one range", FormatPublicKey(k.Key))
		}
		k.Key = slices.Clone(k.Key)
		r.keys[id] = k
		if r.from == (Place{}) || k.From.Compare(r.from) < 0 {
			r.from = k.From
		}
	}
	return r, nil
}

// Trusts reports whether records may be signed with a key, somewhere; the nil Keyring
// trusts none.
func (k *Keyring) Trusts(pub ed25519.PublicKey) bool {
	if k == nil {
		return false
	}
	_, ok := k.keys[NewKeyID(pub)]
	return ok
}

// Check returns ErrSignature unless the record is signed by a key that is trusted at
// its place, or stands before the first index at which any is. next is the index that
// the reader's Fold takes next; Check is called before Fold.Step, and before the bytes
// that the record was decoded from change.
//
// A batch or state says itself where it belongs, and a Fold takes neither in at
// another place. A term record says nothing, so it is judged by next.
func (k *Keyring) Check(r *Record, next Index) error {
	if k == nil {
		return nil
	}
	at := Place{r.Epoch, r.First}
	if r.Kind == RecordTerm || r.First > next {
		at.Index = next
	}
	if at.Compare(k.from) < 0 {
		return nil
	}
	return k.verify(r, at)
}

// verify wants a record to be signed by a key that is trusted at a place.
func (k *Keyring) verify(r *Record, at Place) error {
	if len(r.Signature) == 0 {
		return fmt.Errorf("%w: %v record at index %v is not signed, and from index %v on all have to be", ErrSignature, r.Kind, at, k.from)
	}
	t, ok := k.keys[r.KeyID]
	switch {
	case !ok:
		return fmt.Errorf("%w: %v record at index %v is signed by key %x, which is not trusted", ErrSignature, r.Kind, at, r.KeyID)
	case at.Compare(t.From) < 0, t.To != (Place{}) && at.Compare(t.To) > 0:
		return fmt.Errorf("%w: %v record at index %v is signed by key %x, which is not trusted there", ErrSignature, r.Kind, at, r.KeyID)
	}
	return r.VerifySignature(t.Key)
}

// CheckHeader returns nil where a signed header, as Record.SignedHeader gives it, proves
// index and chain of a checkpoint under the keys that are trusted, or where these ask for
// no signature at its place; the nil Keyring never does. header may be empty. Errors:
// ErrSignature, ErrDiverged, ErrMalformed.
func (k *Keyring) CheckHeader(header []byte, c *Checkpoint) error {
	if k == nil || (Place{c.Epoch, c.Index}).Compare(k.from) < 0 {
		return nil
	}
	if len(header) == 0 {
		return fmt.Errorf("%w: there is no signed header of the record that ends at index %v, and from index %v on all have to be signed", ErrSignature, c.Index, k.from)
	}
	r, err := DecodeSignedHeader(header)
	if err != nil {
		return err
	}
	if err := r.Proves(c); err != nil {
		return err
	}
	// A batch that begins before the first place that is signed is signed all the
	// same, or nothing is proven by it.
	at := Place{r.Epoch, r.First}
	if at.Compare(k.from) < 0 {
		at = k.from
	}
	return k.verify(r, at)
}
