package serve_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/millrace-db/millrace/edge/serve"
)

// document is what tests read of the OpenAPI document.
type document struct {
	OpenAPI string
	Paths   map[string]map[string]struct {
		OperationID string `json:"operationId"`
		Route       string `json:"x-millrace-route"`
		Responses   map[string]any
		Parameters  []map[string]any
	}
	Components map[string]map[string]any
}

func openAPI(t testing.TB, h http.Handler) document {
	t.Helper()
	a := get(t, h, "/v1/openapi.json")
	var doc document
	if err := json.Unmarshal([]byte(a.body), &doc); err != nil || a.status != 200 {
		t.Fatalf("got %d, %v", a.status, err)
	}
	return doc
}

// The document has all routes, each of which leads where it says, and no others.
func TestOpenAPIHasTheRoutes(t *testing.T) {
	store, _ := newStore(t)
	s := newServer(t, store, func(c *serve.Config) { c.Compactor = &compactorOf{} })
	doc := openAPI(t, s)
	if doc.OpenAPI != "3.1.0" {
		t.Errorf("version %s", doc.OpenAPI)
	}
	fill := strings.NewReplacer("{stream}", "bank", "{table}", "public.accounts", "{relation}", "accounts", "{key}", "5")
	counted := regexp.MustCompile(`millrace_serve_answers_total\{route="([a-z_]+)",status="(\d)xx"\} (\d+)`)
	counts := func() map[string]string {
		all := make(map[string]string)
		for _, m := range counted.FindAllStringSubmatch(get(t, s, "/metrics").body, -1) {
			all[m[1]] += m[2] + ":" + m[3] + " "
		}
		return all
	}
	documented := []string{"other", "images"} // those of other edges are no reads
	for path, operations := range doc.Paths {
		for method, o := range operations {
			name := o.OperationID
			if o.Route != "" {
				name = o.Route
			}
			documented = append(documented, name)
			before := counts()
			a := ask(t, s, strings.ToUpper(method), fill.Replace(path), "")
			after := counts()
			if name == "metrics" {
				continue // the look itself is counted
			}
			for route := range after {
				if changed := before[route] != after[route]; changed != (route == name) && route != "metrics" {
					t.Errorf("%s %s: route %s, the document says %s", method, path, route, name)
				}
			}
			if _, ok := o.Responses[fmt.Sprint(a.status)]; !ok {
				t.Errorf("%s %s: answers %d, of which the document knows nothing", method, path, a.status)
			}
		}
	}
	slices.Sort(documented)
	var routes []string
	for route := range counts() {
		routes = append(routes, route)
		if !slices.Contains(documented, route) {
			t.Errorf("route %s is not in the document", route)
		}
	}
	for _, route := range documented {
		if !slices.Contains(routes, route) {
			t.Errorf("the document has route %s, which the server has not", route)
		}
	}
}

// References within the document lead somewhere.
func TestOpenAPIRefers(t *testing.T) {
	store, _ := newStore(t)
	s := newServer(t, store)
	doc := openAPI(t, s)
	refs := regexp.MustCompile(`"#/components/(\w+)/(\w+)"`).FindAllStringSubmatch(get(t, s, "/v1/openapi.json").body, -1)
	used := make(map[string]bool)
	for _, m := range refs {
		used[m[1]+"/"+m[2]] = true
		if doc.Components[m[1]][m[2]] == nil {
			t.Errorf("%s leads nowhere", m[0])
		}
	}
	for kind, all := range doc.Components {
		for name := range all {
			if !used[kind+"/"+name] && kind != "securitySchemes" {
				t.Errorf("%s/%s is not used", kind, name)
			}
		}
	}
}
