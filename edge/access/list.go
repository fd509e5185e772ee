package access

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// List is who may do what.
type List struct {
	byToken map[[sha256.Size]byte]*Identity
	byCert  map[string]*Identity
}

// Parse reads a list.
func Parse(text []byte) (*List, error) {
	l := &List{byToken: make(map[[sha256.Size]byte]*Identity), byCert: make(map[string]*Identity)}
	names := make(map[string]bool)
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if err := l.add(fields, names); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	return l, nil
}

func (l *List) add(fields []string, names map[string]bool) error {
	if len(fields) < 3 {
		return errors.New("want a name, what it shows, and at least one right, as in: billing sha256:5f2b… read:bank")
	}
	id := &Identity{name: fields[0], read: make(map[string]tables), relay: make(map[string]bool), images: make(map[string]bool)}
	if names[id.name] {
		return fmt.Errorf("a second line for %s; give each its own name, and all of its rights in one line", id.name)
	}
	names[id.name] = true
	for _, right := range fields[2:] {
		if err := id.allow(right); err != nil {
			return fmt.Errorf("%s: %w", id.name, err)
		}
	}
	kind, value, _ := strings.Cut(fields[1], ":")
	switch kind {
	case "sha256":
		var hash [sha256.Size]byte
		raw, err := hex.DecodeString(value)
		if err != nil || len(raw) != len(hash) {
			return fmt.Errorf("%s: want sha256: and 64 hexadecimal digits, the hash of a token (millrace access new makes one)", id.name)
		}
		copy(hash[:], raw)
		if hash == ([sha256.Size]byte{}) {
			return fmt.Errorf("%s: a hash of zeros is no token's", id.name)
		}
		if other := l.byToken[hash]; other != nil {
			return fmt.Errorf("%s: %s has the same token; give each its own", id.name, other.name)
		}
		l.byToken[hash] = id
	case "cert":
		name, err := url.PathUnescape(value)
		if err != nil || name == "" {
			return fmt.Errorf("%s: want cert: and a name that the client's certificate has", id.name)
		}
		if other := l.byCert[name]; other != nil {
			return fmt.Errorf("%s: %s has the same certificate; give each its own", id.name, other.name)
		}
		l.byCert[name] = id
	default:
		return fmt.Errorf("%s: %q is neither sha256:… (the hash of a token) nor cert:… (a name in a certificate)", id.name, fields[1])
	}
	return nil
}

func (id *Identity) allow(right string) error {
	if right == "admin" {
		id.admin = true
		return nil
	}
	kind, of, _ := strings.Cut(right, ":")
	stream, table, oneTable := strings.Cut(of, "/")
	stream, err := url.PathUnescape(stream)
	if err == nil {
		table, err = url.PathUnescape(table)
	}
	if err != nil {
		return fmt.Errorf("right %q: write a percent sign as %%25", right)
	}
	if stream == "" || kind != "read" && oneTable {
		return fmt.Errorf("right %q: want read:STREAM, read:STREAM/SCHEMA.TABLE, relay:STREAM, images:STREAM or admin", right)
	}
	switch kind {
	case "read":
		t := id.read[stream]
		if !oneTable {
			t.all = true
		} else {
			schema, name, ok := strings.Cut(table, ".")
			if !ok || schema == "" || name == "" || strings.Contains(strings.TrimSuffix(table, ".*"), "*") {
				return fmt.Errorf("right %q: want schema.table, or schema.* for all tables of a schema", right)
			}
			if t.names == nil {
				t.names = make(map[string]bool)
			}
			t.names[table] = true
		}
		id.read[stream] = t
	case "relay":
		id.relay[stream] = true
	case "images":
		id.images[stream] = true
	default:
		return fmt.Errorf("right %q: want read:…, relay:…, images:… or admin", right)
	}
	return nil
}

// Credential is what somebody shows. The zero value is nothing.
type Credential struct {
	hash [sha256.Size]byte
	cert *x509.Certificate
}

// OfToken is a bearer token.
func OfToken(token string) Credential { return Credential{hash: sha256.Sum256([]byte(token))} }

// OfCertificate is a client certificate, which must have been verified.
func OfCertificate(cert *x509.Certificate) Credential { return Credential{cert: cert} }

// Hash is that of a token, with which OfHash makes the same credential; empty for a
// certificate.
func (c Credential) Hash() []byte {
	if c.cert != nil {
		return nil
	}
	return c.hash[:]
}

// OfHash is a token of which the hash is known.
func OfHash(hash []byte) Credential {
	var c Credential
	if len(hash) == len(c.hash) {
		copy(c.hash[:], hash)
	}
	return c
}

// Find returns whose credential it is, nil if nobody's.
func (l *List) Find(c Credential) *Identity {
	if c.cert == nil {
		// The list is looked up by the hash, so the time that takes tells nothing of
		// the tokens in it.
		return l.byToken[c.hash]
	}
	for _, uri := range c.cert.URIs {
		if id := l.byCert[uri.String()]; id != nil {
			return id
		}
	}
	for _, name := range c.cert.DNSNames {
		if id := l.byCert[name]; id != nil {
			return id
		}
	}
	return l.byCert[c.cert.Subject.CommonName]
}

// NewToken makes a token of 256 random bits, and what stands in the list for it.
func NewToken() (token, shown string) {
	var secret [32]byte
	_, _ = rand.Read(secret[:]) // it does not fail
	token = "mr_" + base64.RawURLEncoding.EncodeToString(secret[:])
	hash := sha256.Sum256([]byte(token))
	return token, "sha256:" + hex.EncodeToString(hash[:])
}
