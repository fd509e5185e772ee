package tlsfiles_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/millrace-db/millrace/internal/certtest"
	"github.com/millrace-db/millrace/internal/tlsfiles"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve answers with the names of the server's and the client's certificate and
// with the token.
func serve(t *testing.T, config *tls.Config) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if to, ok := strings.CutPrefix(r.URL.Path, "/to/"); ok {
			http.Redirect(w, r, "https://"+to, http.StatusFound)
			return
		}
		client := "nobody"
		if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
			client = r.TLS.PeerCertificates[0].Subject.CommonName
		}
		fmt.Fprintf(w, "%s %s", client, r.Header.Get("Authorization"))
	}), ErrorLog: nil}
	done := make(chan error, 1)
	go func() { done <- server.Serve(tls.NewListener(l, config)) }()
	t.Cleanup(func() {
		if err := server.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return "https://" + l.Addr().String()
}

func get(t *testing.T, c *http.Client, url string) (body, server string, err error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(r)
	if err != nil {
		return "", "", err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if resp.TLS != nil {
		server = resp.TLS.PeerCertificates[0].Subject.CommonName
	}
	return string(text), server, err
}

func TestCertificatesAreReplacedWithoutARestart(t *testing.T) {
	ca, other := certtest.New(t), certtest.New(t)
	cert, key := ca.Issue("server", "first")
	config, err := tlsfiles.NewServer(tlsfiles.ServerFiles{Cert: cert, Key: key, ClientCA: ca.File}, nil)
	if err != nil {
		t.Fatal(err)
	}
	url := serve(t, config)
	tokenFile := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(tokenFile, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	clientCert, clientKey := ca.Issue("client", "edge-2")
	c, err := tlsfiles.NewClient(tlsfiles.ClientFiles{CA: ca.File, Cert: clientCert, Key: clientKey, Token: tokenFile}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ask := func() (body, server string, err error) {
		h := c.HTTP() // new connections each time
		defer h.CloseIdleConnections()
		return get(t, h, url)
	}
	if body, server, err := ask(); err != nil || body != "edge-2 Bearer secret" || server != "first" {
		t.Errorf("the answer is %q of %s, %v", body, server, err)
	}

	ca.Issue("server", "second")
	ca.Issue("client", "edge-3")
	deadline := time.Now().Add(30 * time.Second)
	for {
		body, server, err := ask()
		if err == nil && server == "second" && strings.HasPrefix(body, "edge-3 ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after the files were replaced the answer is %q of %s, %v", body, server, err)
		}
		<-time.After(20 * time.Millisecond)
	}

	// Nobody of another authority comes in, and a server of another one is not
	// believed.
	badCert, badKey := other.Issue("client", "edge-2")
	bad, err := tlsfiles.NewClient(tlsfiles.ClientFiles{CA: ca.File, Cert: badCert, Key: badKey}, nil)
	if err != nil {
		t.Fatal(err)
	}
	h := bad.HTTP()
	defer h.CloseIdleConnections()
	if body, _, err := get(t, h, url); err == nil {
		t.Errorf("a certificate of another authority was let in: %q", body)
	}
	stranger, err := tlsfiles.NewClient(tlsfiles.ClientFiles{CA: other.File}, nil)
	if err != nil {
		t.Fatal(err)
	}
	h = stranger.HTTP()
	defer h.CloseIdleConnections()
	if _, _, err := get(t, h, url); err == nil {
		t.Error("a server of an unknown authority was believed")
	}
}

func TestTokenIsNotShownElsewhere(t *testing.T) {
	ca := certtest.New(t)
	cert, key := ca.Issue("server", "server")
	config, err := tlsfiles.NewServer(tlsfiles.ServerFiles{Cert: cert, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	first, second := serve(t, config), serve(t, config)
	tokenFile := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(tokenFile, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := tlsfiles.NewClient(tlsfiles.ClientFiles{CA: ca.File, Token: tokenFile}, nil)
	if err != nil {
		t.Fatal(err)
	}
	h := c.HTTP()
	defer h.CloseIdleConnections()
	if body, _, err := get(t, h, first+"/to/"+strings.TrimPrefix(second, "https://")); err != nil || body != "nobody " {
		t.Errorf("behind a redirection the answer is %q, %v; want no token", body, err)
	}
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Header.Get("Authorization")) }))
	defer plain.Close()
	if body, _, err := get(t, h, plain.URL); err != nil || body != "" {
		t.Errorf("without TLS the answer is %q, %v; want no token", body, err)
	}
}

func TestFilesThatAreWrong(t *testing.T) {
	ca := certtest.New(t)
	cert, key := ca.Issue("server", "server")
	otherCert, _ := ca.Issue("other", "other")
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, f := range []tlsfiles.ServerFiles{{}, {Cert: cert}, {Cert: otherCert, Key: key}, {Cert: cert, Key: key, ClientCA: empty}, {Cert: cert, Key: "missing"}} {
		if _, err := tlsfiles.NewServer(f, nil); err == nil {
			t.Errorf("%+v makes a server", f)
		}
	}
	for _, f := range []tlsfiles.ClientFiles{{Cert: cert}, {Key: key}, {CA: empty}, {Token: empty}, {CA: key}} {
		if _, err := tlsfiles.NewClient(f, nil); err == nil {
			t.Errorf("%+v makes a client", f)
		}
	}
}
