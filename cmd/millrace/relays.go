package main

import (
	"net/http"

	"github.com/millrace-db/millrace/edge/serve"
)

// relays is what serve asks about edges above and below this one.
type relays struct{ *keeper }

func (r relays) Upstream(stream string) *serve.UpstreamStatus {
	return r.follower(stream).UpstreamStatus()
}

func (r relays) Children(stream string) []serve.ChildStatus { return r.follower(stream).Children() }

func (r relays) Handler(stream string) http.Handler {
	if server := r.follower(stream).Relay(); server != nil {
		return server
	}
	return nil
}
