package config

import (
	"strings"
	"testing"
)

func TestNetwork(t *testing.T) {
	const files = "cert: c, key: k, access: a"
	for text, want := range map[string]string{
		"resp: {listen: \"127.0.0.1:6400\", unix: r.sock}":                    "",
		"resp: {listen: \"0.0.0.0:6400\"}":                                    "edge.resp.listen: 0.0.0.0:6400 is not a loopback address",
		"resp: {listen: \"127.0.0.1:7480\"}":                                  "edge.resp.listen: 127.0.0.1:7480 is the address of edge.http.listen too",
		"http: {unix: s}\n  resp: {unix: s}":                                  "edge.resp.unix: s is the socket of edge.http.unix too",
		"http: {listen: off}":                                                 "an edge has to answer somewhere",
		"http: {listen: off}\n  tls: {http: \"0.0.0.0:7443\", " + files + "}": "",
		"tls: {http: \":7443\", resp: \"10.0.0.1:6443\", " + files + "}":      "",
		"tls: {http: \"0.0.0.0:7443\", cert: c, key: k}":                      "edge.tls.access: is not set",
		"tls: {resp: \"0.0.0.0:7443\", access: a, key: k}":                    "edge.tls.cert: is not set",
		"tls: {resp: \"0.0.0.0:7443\", access: a, cert: k}":                   "edge.tls.key: is not set",
		"tls: {http: here, " + files + "}":                                    "edge.tls.http: \"here\": want host:port",
		"peers: {cert: c}":                                                    "edge.peers: a certificate needs its key",
		"peers: {cert: c, key: k, ca: x, token: t}":                           "",
	} {
		_, err := Parse("m.yaml", []byte("streams:\n- name: a\n  kafka: {brokers: [k:1]}\nedge:\n  "+text+"\n"), nil)
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", text, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: got %v, want %q in it", text, err, want)
		}
	}
}
