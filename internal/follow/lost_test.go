package follow

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace-db/millrace"
)

// A topic that is lost while a newer epoch is being copied is waited for when that is lost
// too, until a still newer one takes the place of both.
func TestLostBesideAnEpochThatIsLost(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	rules := func(r *bootRules) { r.look = 10 * time.Millisecond }
	x := b.edgeWith(filepath.Join(t.TempDir(), "edge"), options{rules: rules})
	b.unit()
	x.at(1)
	logs := func(text string) {
		t.Helper()
		x.until("it logs: "+text, func() bool { return strings.Contains(x.log.String(), text) })
	}
	b.open(2)
	b.entries(&millrace.Entry{Kind: millrace.KindSchema, Table: 9, Schema: bankSchema()}, &millrace.Entry{Kind: millrace.KindLoadBegin, Table: 9, Load: 1})
	x.until("it copies epoch 2", func() bool { epoch, at := x.stream.Home().Following(); return epoch == 2 && at.Index == b.index })
	b.epoch = 1
	b.remove()
	logs("readers' epoch has stopped; a newer one is being copied")
	b.epoch = 2
	b.remove()
	logs("the next epoch cannot be gone over to yet")
	if x.value() != 1 {
		t.Errorf("it has unit %d", x.value())
	}
	b.begin(3)
	x.until("it has gone over", func() bool { return x.stream.Home().Place().Epoch == 3 })
}
