package serve

import (
	"encoding/hex"
	"net/http"
	"strings"

	"github.com/zeebo/xxh3"
)

// tag appends the entity tag of the body: a hash of its bytes, so that an answer keeps
// its tag for as long as the rows in it are the same, whatever the index, the edge or
// the process.
func (q *request) tag() string {
	sum := xxh3.Hash128(q.body).Bytes()
	var space [2 + 2*len(sum)]byte
	space[0], space[len(space)-1] = '"', '"'
	hex.Encode(space[1:], sum[:])
	return string(space[:])
}

// unchanged reports whether the client says that it has the answer of the tag.
func unchanged(h http.Header, tag string) bool {
	for _, header := range h["If-None-Match"] {
		for one := range strings.SplitSeq(header, ",") {
			one = strings.TrimPrefix(strings.TrimSpace(one), "W/")
			if one == tag || one == "*" {
				return true
			}
		}
	}
	return false
}
