package trigger

import (
	"slices"
	"strconv"
	"strings"

	"github.com/millrace-db/millrace/capture/chunk"
)

// maxSpans bounds how many spans of new numbers a query names. Beyond it the
// numbers between neighbours, which run still, are taken in: their rows are not
// visible, so that costs time and nothing else.
const maxSpans = 8

// span are the transactions from Low to before High.
type span struct{ Low, High chunk.XID }

// unseen are the transactions that one snapshot sees as ended and an earlier one
// does not. Of what they logged, exactly what a reader with the later snapshot
// sees is new to it.
type unseen struct {
	// Old are those that were running for the earlier snapshot, with numbers below
	// its Xmax, in ascending order.
	Old []chunk.XID
	// New are those from its Xmax on. Some of them may run still.
	New []span
}

func (u *unseen) isEmpty() bool { return len(u.Old) == 0 && len(u.New) == 0 }

// unseenBy returns what now sees and before does not. It must be the later of the
// two, and both of one server's life.
func unseenBy(before, now chunk.Snapshot) unseen {
	var u unseen
	for _, x := range before.Running {
		if now.Sees(x) {
			u.Old = append(u.Old, x)
		}
	}
	low := before.Xmax
	for _, x := range now.Running {
		if x < low {
			continue
		}
		if x > low {
			u.New = append(u.New, span{low, x})
		}
		low = x + 1
	}
	if now.Xmax > low {
		u.New = append(u.New, span{low, now.Xmax})
	}
	for len(u.New) > maxSpans {
		u.New = joinNearest(u.New)
	}
	return u
}

// joinNearest joins the two neighbours with the fewest numbers between them.
func joinNearest(spans []span) []span {
	at := 1
	for i := 2; i < len(spans); i++ {
		if spans[i].Low-spans[i-1].High < spans[at].Low-spans[at-1].High {
			at = i
		}
	}
	spans[at-1].High = spans[at].High
	return slices.Delete(spans, at, at+1)
}

// conditions returns SQL conditions on a column that holds transactions' numbers;
// no two of them are true of one row. Each is answered by an index over it.
func (u *unseen) conditions(column string) []string {
	var all []string
	if len(u.Old) > 0 {
		var list []string
		for _, x := range u.Old {
			list = append(list, strconv.FormatUint(uint64(x), 10))
		}
		all = append(all, column+" = ANY ('{"+strings.Join(list, ",")+"}'::bigint[])")
	}
	for _, s := range u.New {
		low, high := strconv.FormatUint(uint64(s.Low), 10), strconv.FormatUint(uint64(s.High), 10)
		all = append(all, column+" >= "+low+" AND "+column+" < "+high)
	}
	return all
}
