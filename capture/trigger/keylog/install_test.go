package keylog

import (
	"fmt"
	"testing"
)

func TestInstallIsIdempotent(t *testing.T) {
	r := newRig(t, `create table a (id int primary key, v text); create table "We ird" ("Key ""1" text, b date, v text, primary key (b, "Key ""1"))`, "a", "We ird")
	before := r.look()
	r.install()
	after := r.look()
	if len(before) != 2 || len(after) != 2 || before[0].CompleteSince != after[0].CompleteSince {
		t.Errorf("second install: got %+v, before it %+v", after, before)
	}
	r.Exec(`insert into a values (1, 'x'); update a set id = 2; insert into "We ird" values ('k', '2024-01-01', 'v')`)
	for name, want := range map[string]string{"a": "map[1:DI 2:U]", "We ird": "map[2024-01-01|k:I]"} {
		if got, _ := r.logged(r.log(name)); fmt.Sprint(got) != want {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}
