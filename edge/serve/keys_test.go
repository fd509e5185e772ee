package serve_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/millrace-db/millrace/edge/serve"
)

// What is asked for with many keys is memory before it is known that they are too many:
// it counts as answers do.
func TestManyKeysAreCounted(t *testing.T) {
	store, _ := newStore(t)
	s := newServer(t, store, func(c *serve.Config) { c.MaxBuffered = 4 << 20 })
	many := `{"keys":[` + strings.Repeat("{},", 300_000) + `{}]}`
	if a := ask(t, s, http.MethodPost, streamURL+"/rows:get", many); a.status != 503 || a.code(t) != "busy" {
		t.Errorf("got %d %s", a.status, a.body)
	}
	const one = `{"keys":[{"table":"public.accounts","key":[5]}]}`
	if a := ask(t, s, http.MethodPost, streamURL+"/rows:get", one); a.status != 200 {
		t.Errorf("one key after that: got %d %s", a.status, a.body)
	}
	// Where there is memory, it is the number that is refused.
	if a := ask(t, newServer(t, store), http.MethodPost, streamURL+"/rows:get", many); a.status != 413 {
		t.Errorf("with memory: got %d %s", a.status, a.body)
	}
}
