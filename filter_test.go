package millrace

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func mustFilter(t testing.TB, tables []string, prefixes map[string][][]string) *Filter {
	t.Helper()
	f, err := NewFilter(tables, prefixes)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFilterCovers(t *testing.T) {
	everything := new(Filter)
	a := mustFilter(t, []string{"public.a"}, nil)
	ab := mustFilter(t, []string{"public.b", "public.a", "public.a"}, nil)
	a7 := mustFilter(t, nil, map[string][][]string{"public.a": {{"7"}, {"7", "x"}, {"8"}}})
	a7x := mustFilter(t, nil, map[string][][]string{"public.a": {{"7", "x"}}})
	for _, c := range []struct {
		f, o *Filter
		want bool
	}{
		{everything, everything, true},
		{everything, a7x, true},
		{a, everything, false},
		{ab, a, true},
		{a, ab, false},
		{a, a7, true},
		{a7, a, false},
		{a7, a7x, true},
		{a7x, a7, false},
	} {
		if got := c.f.Covers(c.o); got != c.want {
			t.Errorf("%v covers %v: %v, want %v", c.f, c.o, got, c.want)
		}
	}
	for _, c := range []struct {
		f      *Filter
		table  string
		values []string
		want   bool
	}{
		{everything, "public.x", nil, true},
		{a, "public.a", []string{"1"}, true},
		{a, "public.b", nil, false},
		{a7, "public.a", nil, false},
		{a7, "public.a", []string{"7"}, true},
		{a7, "public.a", []string{"8", "y"}, true},
		{a7, "public.a", []string{"9"}, false},
	} {
		if got := c.f.Holds(c.table, c.values); got != c.want {
			t.Errorf("%v holds %s %q: %v", c.f, c.table, c.values, got)
		}
	}
	if got, want := a7.String(), "public.a (keys under 7; 8)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFilterRefuses(t *testing.T) {
	for name, f := range map[string]func() (*Filter, error){
		"both": func() (*Filter, error) {
			return NewFilter([]string{"public.a"}, map[string][][]string{"public.a": {{"1"}}})
		},
		"bare name":     func() (*Filter, error) { return NewFilter([]string{"a"}, nil) },
		"no prefixes":   func() (*Filter, error) { return NewFilter(nil, map[string][][]string{"public.a": {}}) },
		"empty prefix":  func() (*Filter, error) { return NewFilter(nil, map[string][][]string{"public.a": {{}}}) },
		"too large":     func() (*Filter, error) { return NewFilter([]string{"public." + strings.Repeat("a", MaxFilter)}, nil) },
		"unknown field": func() (*Filter, error) { return DecodeFilter([]byte{0x10, 1}) },
		"not sorted": func() (*Filter, error) {
			return DecodeFilter(AppendFilter(nil, &Filter{Tables: []FilterTable{{Name: "public.b"}, {Name: "public.a"}}}))
		},
	} {
		if _, err := f(); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestScope(t *testing.T) {
	schema := goldenEventsSchema() // key: host, at
	f := mustFilter(t, nil, map[string][][]string{schema.QualifiedName(): {{"b"}, {"d", "2026-01-02 03:04:05+00"}}})
	scope, err := f.Scope(schema)
	if err != nil {
		t.Fatal(err)
	}
	codec, err := NewKeyCodec(schema)
	if err != nil {
		t.Fatal(err)
	}
	at := "2026-01-02 03:04:05+00"
	key := func(host string) []byte {
		b, err := codec.Append(nil, [][]byte{[]byte(host), []byte(at)})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for host, want := range map[string]bool{"a": false, "b": true, "ba": false, "c": false, "d": true, "e": false} {
		if got := scope.Holds(key(host)); got != want {
			t.Errorf("host %s: %v, want %v", host, got, want)
		}
	}
	b, err := codec.AppendPrefix(nil, [][]byte{[]byte("b")}, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name      string
		low, high []byte
		want      bool
	}{
		{"the prefix", b, prefixEnd(b), true},
		{"within it", key("b"), append(bytes.Clone(key("b")), 0), true},
		{"to the end", b, nil, false},
		{"from before", key("a"), prefixEnd(b), false},
		{"to behind", b, key("ba"), false},
		{"all", nil, nil, false},
	} {
		if got := scope.HoldsRange(c.low, c.high); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	wrong := mustFilter(t, nil, map[string][][]string{schema.QualifiedName(): {{"b", "noon"}}})
	if _, err := wrong.Scope(schema); !errors.Is(err, ErrPrefix) {
		t.Errorf("a prefix that is no key: %v", err)
	}
}

// FuzzFilter: what the decoder takes has one form.
func FuzzFilter(f *testing.F) {
	f.Add(AppendFilter(nil, mustFilter(f, []string{"public.a"}, map[string][][]string{"public.b": {{"7", ""}, {"8"}}})))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := DecodeFilter(b)
		if err != nil {
			return
		}
		again, err := DecodeFilter(AppendFilter(nil, got))
		if err != nil || !got.Equal(again) || got.String() != again.String() {
			t.Fatalf("%v, then %v, %v", got, again, err)
		}
	})
}

func TestFilterHasOneForm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.SampledFrom([]string{"public.a", "public.b", "x.y"})
		tables := rapid.SliceOf(name).Draw(t, "tables")
		prefixes := rapid.MapOf(name, rapid.SliceOfN(rapid.SliceOfN(rapid.SampledFrom([]string{"", "1", "2"}), 1, 3), 1, 4)).Draw(t, "prefixes")
		f, err := NewFilter(tables, prefixes)
		if err != nil {
			return
		}
		g, err := DecodeFilter(AppendFilter(nil, f))
		if err != nil || !bytes.Equal(AppendFilter(nil, g), AppendFilter(nil, f)) || !g.Equal(f) {
			t.Fatalf("%v: %v, %v", f, g, err)
		}
	})
}
