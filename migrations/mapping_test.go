package migrations

import "testing"

// TestSameText holds the types that may take the place of others.
func TestSameText(t *testing.T) {
	for _, c := range []struct {
		src, dst string
		want     bool
	}{
		{"integer", "integer", true},
		{"integer", "bigint", true},
		{"bigint", "integer", false},
		{"integer", "numeric", true},
		{"integer", "numeric(10,2)", false}, // prints 1.00
		{"character varying(10)", "text", true},
		{"character varying(10)", "character varying(20)", true},
		{"text", "character varying(20)", true}, // too long is an error
		{"character(3)", "text", false},
		{"numeric(10,2)", "numeric", true},
		{"numeric", "numeric(10,2)", false}, // would round
		{"json", "jsonb", false},
		{"timestamp without time zone", "timestamp with time zone", false},
		{"real", "double precision", false},
		{"text[]", "text", false},
	} {
		if got := sameText(c.src, c.dst); got != c.want {
			t.Errorf("%s as %s: got %v, want %v", c.src, c.dst, got, c.want)
		}
	}
}
