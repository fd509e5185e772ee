package millrace

import (
	"crypto/ed25519"
	"errors"
	"testing"
)

func TestKeyring(t *testing.T) {
	h, payload := sampleBatch(t)
	h.Epoch = 2
	first := h.First
	old, key, other := testKey(1), testKey(2), testKey(3)
	pub := func(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }
	ring, err := NewKeyring([]TrustedKey{
		{Key: pub(old), From: Place{1, 10}, To: Place{2, first - 1}},
		{Key: pub(key), From: Place{2, first}},
	})
	if err != nil {
		t.Fatal(err)
	}
	record := func(epoch Epoch, kind RecordKind, first Index, signer ed25519.PrivateKey) *Record {
		t.Helper()
		h := h
		h.Epoch, h.Kind, h.First = epoch, kind, first
		p := payload
		if kind == RecordTerm {
			h, p = Header{Kind: RecordTerm, Stream: h.Stream, Epoch: epoch, Term: 3, Publisher: h.Publisher, Time: h.Time}, nil
		}
		r, err := DecodeRecord(mustRecord(t, &h, p, signer), nil)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for name, c := range map[string]struct {
		record *Record
		next   Index
		ok     bool
	}{
		"before any key":              {record(1, RecordBatch, 9, nil), 9, true},
		"unsigned":                    {record(2, RecordBatch, first, nil), first, false},
		"unsigned, low in new epoch":  {record(2, RecordBatch, 1, nil), 1, false},
		"old key in its range":        {record(1, RecordBatch, 10, old), 10, true},
		"old key, low in new epoch":   {record(2, RecordBatch, 1, old), 1, true},
		"old key behind its range":    {record(2, RecordBatch, first, old), first, false},
		"new key":                     {record(2, RecordBatch, first, key), first, true},
		"new key before its range":    {record(2, RecordBatch, first-1, key), first - 1, false},
		"key that is not trusted":     {record(2, RecordBatch, first, other), first, false},
		"late repeat from before":     {record(1, RecordBatch, 9, nil), 20, true},
		"first index above the place": {record(1, RecordBatch, 11, nil), 9, true}, // a gap, for the fold
		"term, unsigned":              {record(1, RecordTerm, 0, nil), 10, false},
		"term, unsigned, before":      {record(1, RecordTerm, 0, nil), 9, true},
		"term, signed":                {record(2, RecordTerm, 0, key), first, true},
	} {
		if err := ring.Check(c.record, c.next); c.ok != (err == nil) || !c.ok && !errors.Is(err, ErrSignature) {
			t.Errorf("%s: got %v, want accepted: %v", name, err, c.ok)
		}
	}
	altered := record(2, RecordBatch, first, key)
	altered.Signature[0] ^= 1
	if err := ring.Check(altered, first); !errors.Is(err, ErrSignature) {
		t.Errorf("altered signature: got %v", err)
	}
	var none *Keyring
	if err := none.Check(record(2, RecordBatch, first, nil), first); err != nil {
		t.Errorf("without keys: %v", err)
	}
	if _, err := NewKeyring([]TrustedKey{{Key: pub(key), From: Place{1, 1}}, {Key: pub(key), From: Place{1, 5}}}); err == nil {
		t.Error("a key that is named twice was taken")
	}
}

func TestTrustedKeyText(t *testing.T) {
	text := FormatPublicKey(testKey(1).Public().(ed25519.PublicKey))
	for _, c := range []struct{ in, out string }{
		{text, text + "@1"}, {text + "@1", text + "@1"}, {text + "@7-9", text + "@7-9"}, {text + "@2/7-3/1", text + "@2/7-3/1"}, {text + "@1/7", text + "@7"},
	} {
		k, err := ParseTrustedKey(c.in)
		if err != nil || k.String() != c.out {
			t.Errorf("%s: got %v, %v, want %s", c.in, k, err, c.out)
		}
	}
	for _, bad := range []string{"", "ed25519:", text[:len(text)-2], text + "=", text + "@", text + "@0", text + "@0/1", text + "@9-7", text + "@2/1-1/9", text + "@x", "rsa:" + text} {
		if k, err := ParseTrustedKey(bad); err == nil {
			t.Errorf("%q was read as %v", bad, k)
		}
	}
}

// A signed header proves a checkpoint only where a trusted key signed the batch that
// ends there.
func TestCheckHeader(t *testing.T) {
	h, payload := sampleBatch(t)
	key, other := testKey(1), testKey(2)
	ring, err := NewKeyring([]TrustedKey{{Key: key.Public().(ed25519.PublicKey), From: Place{h.Epoch, h.Last()}}})
	if err != nil {
		t.Fatal(err)
	}
	header := func(h Header, signer ed25519.PrivateKey) []byte {
		t.Helper()
		r, err := DecodeRecord(mustRecord(t, &h, payload, signer), nil)
		if err != nil {
			t.Fatal(err)
		}
		return r.SignedHeader()
	}
	at := Checkpoint{Stream: h.Stream, Epoch: h.Epoch, Index: h.Last(), Chain: h.Chain, Term: h.Term, Publisher: h.Publisher}
	whole := header(h, key)
	if h.Last() == h.First {
		t.Fatal("the sample has one entry")
	}
	if header(h, nil) != nil {
		t.Error("a record that is not signed gives a signed header")
	}
	altered := append([]byte(nil), whole...)
	altered[len(altered)-1] ^= 1
	change := func(change func(*Checkpoint)) Checkpoint {
		c := at
		change(&c)
		return c
	}
	for name, c := range map[string]struct {
		header []byte
		at     Checkpoint
		want   error
	}{
		"signed":                  {whole, at, nil},
		"none":                    {nil, at, ErrSignature},
		"before any key":          {nil, change(func(c *Checkpoint) { c.Index-- }), nil},
		"another key":             {header(h, other), at, ErrSignature},
		"altered":                 {altered, at, ErrSignature},
		"cut off":                 {whole[:len(whole)-1], at, ErrMalformed},
		"longer":                  {append(whole[:len(whole):len(whole)], 0), at, ErrMalformed},
		"another index":           {whole, change(func(c *Checkpoint) { c.Index++ }), ErrDiverged},
		"another chain":           {whole, change(func(c *Checkpoint) { c.Chain[0] ^= 1 }), ErrDiverged},
		"another epoch":           {whole, change(func(c *Checkpoint) { c.Epoch++ }), ErrDiverged},
		"another stream":          {whole, change(func(c *Checkpoint) { c.Stream[0] ^= 1 }), ErrDiverged},
		"another publisher":       {whole, change(func(c *Checkpoint) { c.Publisher[0] ^= 1 }), ErrDiverged},
		"another term":            {whole, change(func(c *Checkpoint) { c.Term++ }), ErrDiverged},
		"rubbish where it begins": {append([]byte("rubbish"), whole...), at, ErrMalformed},
	} {
		if err := ring.CheckHeader(c.header, &c.at); !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
		var none *Keyring
		if err := none.CheckHeader(c.header, &c.at); err != nil {
			t.Errorf("%s: without keys: %v", name, err)
		}
	}
}
