package wal

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/millrace-db/millrace"
)

// BenchmarkDecode decodes transactions of 100 rows, which are there in memory.
// Figures are per row.
func BenchmarkDecode(b *testing.B) {
	const rows = 100
	note := strings.Repeat("some text of a row ", 5)
	for _, kind := range []struct {
		name string
		row  func(i int) []byte
	}{
		{"inserts", func(i int) []byte { return insertMsg(fmt.Sprint(i), note) }},
		{"updates", func(i int) []byte { return msg('U').u32(testTable).u8('N').tuple(fmt.Sprint(i), note).b }},
		{"deletes", func(i int) []byte { return msg('D').u32(testTable).u8('K').tuple(fmt.Sprint(i), "NULL").b }},
	} {
		b.Run(kind.name, func(b *testing.B) {
			d := testDecoder(b, func(*millrace.Unit) {})
			lsn := uint64(200)
			begin, commit := beginMsg(lsn), commitMsg(lsn)
			var messages [][]byte
			for i := range rows {
				messages = append(messages, kind.row(i))
			}
			take := func(m []byte) {
				if err := d.message(m); err != nil {
					b.Fatal(err)
				}
			}
			take(begin)
			take(relationMsg())
			take(commit)
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				if n%rows == 0 {
					if n > 0 {
						take(commit)
					}
					lsn += 100
					binary.BigEndian.PutUint64(begin[1:], lsn)
					binary.BigEndian.PutUint64(commit[2:], lsn)
					binary.BigEndian.PutUint64(commit[10:], lsn+8)
					take(begin)
				}
				take(messages[n%rows])
			}
		})
	}
}
