package tlsfiles

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"

	"github.com/millrace-db/millrace/internal/reload"
)

// ServerFiles are what a server shows and trusts.
type ServerFiles struct {
	// Cert and Key are the server's certificate, with those between it and its
	// authority, and its key, in PEM.
	Cert, Key string
	// ClientCA holds the certificates of who may have signed a client's; empty asks
	// clients for none.
	ClientCA string
}

// NewServer returns the configuration of a server. A client may show a certificate,
// and one that is not signed by ClientCA is refused; whether it has to show one or
// a token is not decided here.
func NewServer(files ServerFiles, log *slog.Logger) (*tls.Config, error) {
	if files.Cert == "" || files.Key == "" {
		return nil, errors.New("a server needs a certificate and its key; mend: name both files")
	}
	pair, err := newPair(files.Cert, files.Key, log)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return pair.Get(), nil },
	}
	if files.ClientCA == "" {
		return config, nil
	}
	pool, err := reload.New(func() (*x509.CertPool, error) { return readPool(files.ClientCA) }, log, files.ClientCA)
	if err != nil {
		return nil, err
	}
	config.ClientAuth = tls.VerifyClientCertIfGiven
	config.ClientCAs = pool.Get()
	// Sessions that are resumed would outlive an authority that was replaced.
	config.SessionTicketsDisabled = true
	base := config.Clone()
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		now := pool.Get()
		if now == base.ClientCAs {
			return nil, nil //nolint:nilnil // the configuration that was given
		}
		fresh := base.Clone()
		fresh.ClientCAs = now
		return fresh, nil
	}
	return config, nil
}
