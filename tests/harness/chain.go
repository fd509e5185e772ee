package harness

import (
	"encoding/binary"
	"testing"

	"github.com/zeebo/blake3"

	"github.com/millrace-db/millrace"
)

// chainAfter computes the chain after a unit by its definition, in the plainest
// way: BLAKE3 over the chain before and the hash of the unit's tables in the
// order of their first touch, each as its ID and the hash of its entries. It
// shares no code with the one that the stages use.
func chainAfter(before millrace.Chain, unit []witnessEntry) millrace.Chain {
	var order []millrace.TableID
	bytes := map[millrace.TableID][]byte{}
	for i := range unit {
		if _, ok := bytes[unit[i].Table]; !ok {
			order = append(order, unit[i].Table)
		}
		bytes[unit[i].Table] = append(bytes[unit[i].Table], unit[i].raw...)
	}
	var tables []byte
	for _, id := range order {
		sum := blake3.Sum256(bytes[id])
		tables = binary.BigEndian.AppendUint32(tables, uint32(id))
		tables = append(tables, sum[:]...)
	}
	u := blake3.Sum256(tables)
	return blake3.Sum256(append(before[:], u[:]...))
}

// ChainAfterUnits computes the chain after the whole units of a payload.
func ChainAfterUnits(t testing.TB, before millrace.Chain, payload []byte) millrace.Chain {
	t.Helper()
	entries, err := parseEntries([][]byte{payload})
	must(t, "parse payload", err)
	start := 0
	for i := range entries {
		if entries[i].Last {
			before = chainAfter(before, entries[start:i+1])
			start = i + 1
		}
	}
	return before
}
