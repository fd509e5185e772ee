package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"

	"github.com/millrace-db/millrace/edge/access"
	"github.com/millrace-db/millrace/edge/resp"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/reload"
	"github.com/millrace-db/millrace/internal/tlsfiles"
)

// network is where an edge answers, and who may ask there.
type network struct {
	http, secureHTTP, resp, secureRESP string // empty for off
	tls                                *tls.Config
	access                             func() *access.List // nil where there is no list
}

func (k *keeper) network() (*network, error) {
	e := &k.c.Edge
	n := &network{http: address(e.HTTP.Listen), secureHTTP: address(e.TLS.HTTP), resp: address(e.RESP.Listen), secureRESP: address(e.TLS.RESP)}
	var err error
	if n.secureHTTP != "" || n.secureRESP != "" {
		n.tls, err = tlsfiles.NewServer(tlsfiles.ServerFiles{Cert: e.TLS.Cert, Key: e.TLS.Key, ClientCA: e.TLS.ClientCA}, k.log)
		if err != nil {
			return nil, fmt.Errorf("edge.tls: %w", err)
		}
	}
	if e.TLS.Access != "" {
		if n.access, err = readAccess(e.TLS.Access, k.log); err != nil {
			return nil, fmt.Errorf("edge.tls.access: %w", err)
		}
	}
	return n, nil
}

func address(configured string) string {
	if configured == config.Off {
		return ""
	}
	return configured
}

// readAccess reads the list of who may do what, and again when it changes.
func readAccess(path string, log *slog.Logger) (func() *access.List, error) {
	file, err := reload.New(func() (*access.List, error) {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		list, err := access.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return list, nil
	}, log, path)
	if err != nil {
		return nil, err
	}
	return file.Get, nil
}

// listenRESP makes the server for clients of Redis, if it is configured.
func (k *keeper) listenRESP(ctx context.Context, n *network) (err error) {
	c := resp.Config{TLS: n.tls, Access: n.access, Version: version, Registerer: k.registry, Logger: k.log}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll(append(c.Plain, c.Secure)))
		}
	}()
	if n.resp != "" {
		l, err := k.sockets.TCP(ctx, "edge.resp.listen", n.resp, true)
		if err != nil {
			return err
		}
		c.Plain = append(c.Plain, l)
	}
	if path := k.c.Edge.RESP.Unix; path != "" {
		l, err := k.sockets.Unix(ctx, "edge.resp.unix", path)
		if err != nil {
			return err
		}
		c.Plain = append(c.Plain, l)
	}
	if n.secureRESP != "" {
		if c.Secure, err = k.sockets.TCP(ctx, "edge.tls.resp", n.secureRESP, false); err != nil {
			return err
		}
	}
	if len(c.Plain) == 0 && c.Secure == nil {
		return nil
	}
	for _, one := range k.streams {
		c.Streams = append(c.Streams, resp.Stream{Name: one.Name(), Reader: one.Home()})
	}
	k.resp, err = resp.New(c)
	return err
}

func closeAll(listeners []net.Listener) error {
	var errs []error
	for _, l := range listeners {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(errs...)
}

// peerFiles are what this edge shows to others, and whom it trusts.
func peerFiles(c *config.Config) tlsfiles.ClientFiles {
	p := &c.Edge.Peers
	return tlsfiles.ClientFiles{CA: p.CA, Cert: p.Cert, Key: p.Key, Token: p.Token}
}

// adopt goes on with a connection of the process before: those of clients of Redis are
// given.
func (k *keeper) adopt(c net.Conn, state []byte) error {
	if k.resp == nil {
		return errors.Join(fmt.Errorf("the connection of %v: clients of Redis are not answered any more", c.RemoteAddr()), c.Close())
	}
	return k.resp.Adopt(c, state)
}
