package mend_test

import (
	"testing"

	"github.com/millrace-db/millrace/internal/mend"
)

func TestText(t *testing.T) {
	for text, want := range map[string]string{
		"mend: millrace epoch new STREAM, which":                "mend: millrace epoch new a, which",
		"mend: begin a new epoch":                               "mend: begin a new epoch: millrace epoch new a",
		"begin a new epoch: millrace epoch new STREAM and more": "begin a new epoch: millrace epoch new a and more",
		"nothing of the kind":                                   "nothing of the kind",
	} {
		if got := mend.Text("a", text); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
