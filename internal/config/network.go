package config

import (
	"net"
	"strings"
)

// RESP is where an edge answers clients of Redis.
type RESP struct {
	Listen string `key:"listen" unit:"loopback host:port" default:"off" doc:"TCP address where the protocol of Redis is spoken. Only loopback addresses are taken. off: none."`
	Unix   string `key:"unix" unit:"path" doc:"Unix socket for the same. Not set: none."`
}

// TLS is where other hosts reach an edge.
type TLS struct {
	HTTP     string `key:"http" unit:"host:port" default:"off" doc:"TCP address for what edge.http answers, of any interface, over TLS. off: none."`
	RESP     string `key:"resp" unit:"host:port" default:"off" doc:"TCP address for the protocol of Redis over TLS. off: none."`
	Cert     string `key:"cert" unit:"path" doc:"The edge's certificate, with those between it and its authority, in PEM. This file and the next three are read again when they change."`
	Key      string `key:"key" unit:"path" doc:"The certificate's key, in PEM."`
	ClientCA string `key:"client_ca" unit:"path" doc:"Certificates of the authorities that sign clients' certificates, in PEM. Not set: clients show tokens only."`
	Access   string `key:"access" unit:"path" doc:"The list of who may do what: a line for each identity with its name, the hash of its token (millrace access new makes both) or the name in its certificate, and its rights."`
}

// Peers is how an edge reaches others.
type Peers struct {
	CA    string `key:"ca" unit:"path" doc:"Certificates of the authorities that sign other edges' certificates, in PEM. Not set: those of the system. These files are read again when they change."`
	Cert  string `key:"cert" unit:"path" doc:"The certificate that this edge shows to others, in PEM. Not set: none."`
	Key   string `key:"key" unit:"path" doc:"That certificate's key, in PEM."`
	Token string `key:"token" unit:"path" doc:"File with the token that this edge shows to others, over https only. Not set: none."`
}

// network checks where an edge is reached and how it reaches others.
func (k *checker) network() {
	e := &k.c.Edge
	taken := map[string]string{}
	if t := k.c.Transfer.Admin; t != Off {
		taken[t] = "transfer.admin"
	}
	for _, at := range []struct {
		path, address string
		anywhere      bool
	}{
		{"edge.http.listen", e.HTTP.Listen, false},
		{"edge.resp.listen", e.RESP.Listen, false},
		{"edge.tls.http", e.TLS.HTTP, true},
		{"edge.tls.resp", e.TLS.RESP, true},
	} {
		if at.address == Off {
			continue
		}
		if at.anywhere {
			if err := listenAddress(at.address); err != nil {
				k.bad(at.path, "%v", err)
			}
		} else {
			k.loopback(at.path, at.address)
		}
		if other, ok := taken[at.address]; ok && !strings.HasSuffix(at.address, ":0") {
			k.bad(at.path, "%s is the address of %s too; give each its own port", at.address, other)
		}
		taken[at.address] = at.path
	}
	sockets := map[string]string{}
	for _, at := range []struct{ path, socket string }{{"edge.http.unix", e.HTTP.Unix}, {"edge.resp.unix", e.RESP.Unix}} {
		if at.socket == "" {
			continue
		}
		if len(at.socket) > maxSocketPath {
			k.bad(at.path, "a path of %d bytes; a unix socket's has at most %d", len(at.socket), maxSocketPath)
		}
		if other, ok := sockets[at.socket]; ok {
			k.bad(at.path, "%s is the socket of %s too; give each its own", at.socket, other)
		}
		sockets[at.socket] = at.path
	}
	if e.HTTP.Listen == Off && e.HTTP.Unix == "" && e.TLS.HTTP == Off {
		k.bad("edge.http.listen", "is off and there is neither edge.http.unix nor edge.tls.http; an edge has to answer somewhere")
	}
	if e.TLS.HTTP != Off || e.TLS.RESP != Off {
		for _, file := range []struct{ path, value, what string }{
			{"edge.tls.cert", e.TLS.Cert, "the file with the edge's certificate"},
			{"edge.tls.key", e.TLS.Key, "the file with the certificate's key"},
			{"edge.tls.access", e.TLS.Access, "the file that says who may do what"},
		} {
			if file.value == "" {
				k.bad(file.path, "is not set, and nobody is answered beyond this host without it; name %s", file.what)
			}
		}
	}
	if (e.Peers.Cert == "") != (e.Peers.Key == "") {
		k.bad("edge.peers", "a certificate needs its key, and a key its certificate; set both cert and key, or neither")
	}
}

// listenAddress checks an address that need not be of this host alone.
func listenAddress(address string) error {
	if host, port, err := net.SplitHostPort(address); err == nil && host == "" {
		address = net.JoinHostPort("0.0.0.0", port) // all interfaces
	}
	return hostPort(address)
}
