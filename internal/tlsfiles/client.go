// Package tlsfiles makes TLS configurations, of servers and of clients, from files
// that may be replaced while they are used.
//
// TLS 1.2 is the oldest version that is spoken. What a changed file holds counts
// for connections that are made a second later.
package tlsfiles

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/millrace-db/millrace/internal/reload"
)

// ClientFiles are what a client shows and trusts. All are optional.
type ClientFiles struct {
	// CA holds the certificates, in PEM, of who may have signed a server's; empty
	// takes the system's.
	CA string
	// Cert and Key are the certificate and the key that the client shows; both or
	// neither.
	Cert, Key string
	// Token holds the bearer token that is sent along, alone in its file.
	Token string
}

// Client reaches servers that ask who is there. It is safe for concurrent use.
type Client struct {
	roots *reload.File[*x509.CertPool]
	pair  *reload.File[*tls.Certificate]
	token *reload.File[string]
}

// NewClient reads the files.
func NewClient(files ClientFiles, log *slog.Logger) (*Client, error) {
	c := new(Client)
	var err error
	if (files.Cert == "") != (files.Key == "") {
		return nil, errors.New("a client certificate needs its key, and a key its certificate; mend: name both files or neither")
	}
	if files.CA != "" {
		if c.roots, err = reload.New(func() (*x509.CertPool, error) { return readPool(files.CA) }, log, files.CA); err != nil {
			return nil, err
		}
	}
	if files.Cert != "" {
		if c.pair, err = newPair(files.Cert, files.Key, log); err != nil {
			return nil, err
		}
	}
	if files.Token != "" {
		if c.token, err = reload.New(func() (string, error) { return readToken(files.Token) }, log, files.Token); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// TLS returns what a connection to a server is made with. Ask again for each
// connection, so that replaced files count. The caller sets ServerName, as
// tls.Dialer does by itself.
func (c *Client) TLS() *tls.Config {
	config := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	if c.roots != nil {
		config.RootCAs = c.roots.Get()
	}
	if c.pair != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.pair.Get(), nil }
	}
	return config
}

// Authorize adds the bearer token to a request that goes over TLS; over anything
// else it is not shown.
func (c *Client) Authorize(r *http.Request) {
	if c.token != nil && r.URL.Scheme == "https" {
		r.Header.Set("Authorization", "Bearer "+c.token.Get())
	}
}

// Token is the bearer token, empty if there is none.
func (c *Client) Token() string {
	if c.token == nil {
		return ""
	}
	return c.token.Get()
}

const handshakeTimeout = 10 * time.Second

// HTTP returns a client that shows certificate and token, over HTTP/1.1. A
// redirection does not get the token. It has no time-out of its own but for the
// handshake and an answer's header.
func (c *Client) HTTP() *http.Client {
	dialer := &net.Dialer{Timeout: handshakeTimeout, KeepAlive: 15 * time.Second}
	return &http.Client{Transport: &bearer{c, &http.Transport{
		Proxy: http.ProxyFromEnvironment, DisableCompression: true,
		ResponseHeaderTimeout: time.Minute, TLSHandshakeTimeout: handshakeTimeout, IdleConnTimeout: 90 * time.Second,
		DialContext: dialer.DialContext,
		DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return (&tls.Dialer{NetDialer: dialer, Config: c.TLS()}).DialContext(ctx, network, address)
		},
	}}}
}

// bearer adds the token to what is asked first.
type bearer struct {
	client *Client
	*http.Transport
}

// RoundTrip implements http.RoundTripper.
func (b *bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.client.token != nil && r.Response == nil && r.Header.Get("Authorization") == "" {
		r = r.Clone(r.Context())
		b.client.Authorize(r)
	}
	return b.Transport.RoundTrip(r)
}

func readPool(path string) (*x509.CertPool, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read certificates of authorities: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("file %s holds no certificate; mend: write the authority's certificate there, in PEM", path)
	}
	return pool, nil
}

// maxToken bounds a bearer token, in bytes.
const maxToken = 4096

func readToken(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read token: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if token == "" || len(token) > maxToken || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("file %s holds no token; mend: write the token there, alone, without blanks", path)
	}
	return token, nil
}

func newPair(cert, key string, log *slog.Logger) (*reload.File[*tls.Certificate], error) {
	return reload.New(func() (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("read certificate %s and key %s: %w", cert, key, err)
		}
		return &pair, nil
	}, log, cert, key)
}
