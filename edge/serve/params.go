package serve

import (
	"net/url"
	"slices"
	"strings"
)

// everyRead are the parameters that all reads of rows take.
var everyRead = []string{"min_index", "after_token", "wait", "bigint"}

// params reads the query string of a read of rows, follows what all such reads are
// asked, and returns it. With own nil other parameters than those are passed over;
// otherwise those must be among own.
func (q *request) params(own []string) (url.Values, error) {
	var values url.Values
	if q.r.URL.RawQuery != "" {
		var err error
		if values, err = url.ParseQuery(q.r.URL.RawQuery); err != nil {
			return nil, badRequest("bad_query", "write a percent sign as %25", "the query cannot be read: %v", err)
		}
	}
	for name, all := range values {
		every := slices.Contains(everyRead, name)
		if !every && own != nil && !slices.Contains(own, name) {
			return nil, badRequest("bad_query", "use "+strings.Join(slices.Concat(own, everyRead), ", "), "there is no parameter %s", name)
		}
		if len(all) != 1 && (every || own != nil) {
			return nil, badRequest("bad_query", "give it once", "%s is given %d times", name, len(all))
		}
	}
	switch bigInt := values.Get("bigint"); bigInt {
	case "", "number":
	case "string":
		q.bigInt = true
	default:
		return nil, badRequest("bad_bigint", "use string or number", "bigint is %q", bigInt)
	}
	return values, q.await(values)
}
