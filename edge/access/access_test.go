package access

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"net/url"
	"strings"
	"testing"
)

func TestRights(t *testing.T) {
	token, shown := NewToken()
	list, err := Parse([]byte(strings.NewReplacer("TOKEN", shown).Replace(`
# comment
billing  TOKEN            read:bank/public.accounts read:bank/billing.*   # and one behind
edge-2   cert:edge-2.internal   relay:* images:bank
operator cert:spiffe://x/op     read:*  admin
odd      cert:odd               read:a%20b/public.x%25 read:a%20b/a.b.* read:a%20b/public.x.y
`)))
	if err != nil {
		t.Fatal(err)
	}
	billing := list.Find(OfToken(token))
	edge2 := list.Find(OfCertificate(&x509.Certificate{DNSNames: []string{"other", "edge-2.internal"}, Subject: pkix.Name{CommonName: "odd"}}))
	operator := list.Find(OfCertificate(&x509.Certificate{URIs: []*url.URL{{Scheme: "spiffe", Host: "x", Path: "/op"}}}))
	odd := list.Find(OfCertificate(&x509.Certificate{Subject: pkix.Name{CommonName: "odd"}}))
	var nobody *Identity
	for _, c := range []struct {
		what string
		got  bool
		want bool
	}{
		{"billing reads accounts", billing.Table("bank", "public.accounts"), true},
		{"billing reads another table", billing.Table("bank", "public.accounts2"), false},
		{"billing reads its schema", billing.Table("bank", "billing.invoices"), true},
		{"billing reads a schema of a longer name", billing.Table("bank", "billing2.invoices"), false},
		{"billing reads a schema whose name has a dot", billing.Table("bank", "billing.old.invoices"), false},
		{"odd reads a schema whose name has a dot", odd.Table("a b", "a.b.c"), true},
		{"odd reads the schema of its start", odd.Table("a b", "a.c"), false},
		{"odd reads a table whose name has a dot", odd.Table("a b", "public.x.y"), true},
		{"billing reads another stream", billing.Table("dns", "public.accounts"), false},
		{"billing sees its stream", billing.Stream("bank"), true},
		{"billing sees another stream", billing.Stream("dns"), false},
		{"billing reads all", billing.AllTables("bank"), false},
		{"billing relays", billing.Relay("bank") || billing.Images("bank") || billing.Admin(), false},
		{"edge-2 relays", edge2.Relay("anything"), true},
		{"edge-2 fetches", edge2.Images("bank"), true},
		{"edge-2 fetches of another", edge2.Images("dns"), false},
		{"edge-2 reads", edge2.Table("bank", "public.accounts"), false},
		{"edge-2 sees", edge2.Stream("dns"), true},
		{"operator reads", operator.Table("bank", "a.b") && operator.AllTables("x"), true},
		{"operator administers", operator.Admin(), true},
		{"operator relays", operator.Relay("bank"), false},
		{"odd names", odd.Table("a b", "public.x%"), true},
		{"local", Local().Table("a", "b.c") && Local().Relay("a") && Local().Images("a") && Local().Admin() && Local().Stream("a") && Local().AllTables("a"), true},
		{"nobody", nobody.Table("a", "b.c") || nobody.Relay("a") || nobody.Images("a") || nobody.Admin() || nobody.Stream("a") || nobody.AllTables("a"), false},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v, want %v", c.what, c.got, c.want)
		}
	}
	for _, wrong := range []string{"", token + "x", shown, strings.TrimPrefix(shown, "sha256:")} {
		if list.Find(OfToken(wrong)) != nil {
			t.Errorf("token %q is somebody's", wrong)
		}
	}
	if list.Find(OfCertificate(&x509.Certificate{})) != nil || list.Find(Credential{}) != nil {
		t.Error("a certificate without names is somebody's")
	}
	if From(t.Context()) != nil || From(With(t.Context(), odd)) != odd {
		t.Error("a context does not carry what it was given")
	}
}

func TestParseRefuses(t *testing.T) {
	hash := "sha256:" + strings.Repeat("ab", 32)
	for text, word := range map[string]string{
		"a " + hash:          "at least one right",
		"a sha256:12 read:x": "64 hexadecimal digits",
		"a sha256:" + strings.Repeat("0", 64) + " admin": "zeros",
		"a secret read:x":                            "neither",
		"a cert: read:x":                             "cert:",
		"a " + hash + " read:":                       "want read:STREAM",
		"a " + hash + " read:x/y":                    "schema.table",
		"a " + hash + " read:x/*":                    "schema.table",
		"a " + hash + " read:x/y*.z":                 "schema.table",
		"a " + hash + " relay:x/y.z":                 "want read:STREAM",
		"a " + hash + " write:x":                     "want read:",
		"a " + hash + " read:%zz":                    "%25",
		"a cert:x admin\na cert:y admin":             "line 2: a second line",
		"a cert:x admin\nb cert:x admin":             "same certificate",
		"a " + hash + " admin\nb " + hash + " admin": "same token",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%q: %v, want %q in it", text, err, word)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("billing cert:x read:bank/public.accounts relay:* admin # c\n")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := Parse([]byte(text))
		if err != nil {
			return
		}
		for _, id := range list.byCert {
			if id.all {
				t.Errorf("%q makes somebody local", text)
			}
		}
	})
}
