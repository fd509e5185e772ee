package config

import (
	"net/url"
	"strings"
	"time"
)

// upstreams checks where an edge takes its streams from, and what it gives to others.
func (k *checker) upstreams() {
	e := &k.c.Edge
	if len(e.Upstream) == 0 {
		k.bad("edge.upstream", "is empty; write kafka, or the URLs of edges")
	}
	seen := map[string]string{}
	for _, list := range []struct {
		path string
		all  []string
	}{{"edge.upstream", e.Upstream}, {"edge.secondaries", e.Secondaries}} {
		for _, text := range list.all {
			if text != UpstreamKafka && !isUpstream(text) {
				k.bad(list.path, "%q is not where an edge answers; write http://host:port, https://host:port, unix:/path or kafka", hideUser(text))
			}
			if other, twice := seen[text]; twice {
				k.bad(list.path, "%s stands in %s already; name each once", hideUser(text), other)
			}
			seen[text] = list.path
		}
	}
	f := &e.Follow
	k.between("edge.follow.silence", f.Silence, 2*time.Second, 10*time.Minute)
	k.between("edge.follow.stale", f.Stale, time.Second, time.Hour)
	k.between("edge.follow.margin", f.Margin, 100*time.Millisecond, time.Hour)
	k.between("edge.follow.probe", f.Probe, time.Second, time.Minute)
	k.between("edge.follow.ban", f.Ban, time.Minute, 7*24*time.Hour)
	if e.Relay.MaxPeers < 1 || e.Relay.MaxPeers > 1000 {
		k.bad("edge.relay.max_peers", "%d: want 1 to 1000", e.Relay.MaxPeers)
	}
	if e.Relay.MaxRate != 0 {
		k.atLeast("edge.relay.max_rate", e.Relay.MaxRate, 64<<10)
	}
}

// isUpstream tells what relay.ParseUpstream takes.
func isUpstream(text string) bool {
	if path, ok := strings.CutPrefix(text, "unix:"); ok {
		return strings.Trim(path, "/") != ""
	}
	at, err := url.Parse(text)
	return err == nil && (at.Scheme == "http" || at.Scheme == "https") && at.Hostname() != "" && at.User == nil && at.RawQuery == "" && at.Fragment == ""
}

// hideUser leaves out what may be a password.
func hideUser(text string) string {
	if i := strings.LastIndexByte(text, '@'); i >= 0 {
		return text[i+1:]
	}
	return text
}
