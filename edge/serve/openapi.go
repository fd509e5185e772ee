package serve

import (
	_ "embed"
)

const openAPIPath = "/v1/openapi.json"

// openAPI describes the routes in the form of OpenAPI 3.1. Each operation's ID, or its
// x-millrace-route, is the route's name in metrics; a test holds it against the routes.
//
//go:embed openapi.json
var openAPI []byte

// describe answers with the document.
func (q *request) describe() error {
	if err := q.wantGet(); err != nil {
		return err
	}
	q.body = append(q.body[:0], openAPI...)
	q.tagged = true
	return nil
}
