package applier

import (
	"fmt"
	"testing"

	"github.com/millrace-db/millrace"
	edgelog "github.com/millrace-db/millrace/edge/log"
)

// BenchmarkBacklog measures entries from records to rows on disk: units of the
// given number of puts of 100,000 rows, 2,000 entries a batch; log=true with the edge's
// own log beside the store.
func BenchmarkBacklog(b *testing.B) {
	for _, c := range []struct {
		size int
		log  bool
	}{{1, false}, {20, false}, {20, true}} {
		size := c.size
		b.Run(fmt.Sprintf("unit=%d/log=%v", size, c.log), func(b *testing.B) {
			topic := newMemoryTopic()
			p := newPublisher(b, topic, 1)
			p.reign()
			p.copied(0, "")
			s := openStore(b, b.TempDir())
			var change []func(*Config)
			var l *edgelog.Log
			if c.log {
				l = openLog(b, b.TempDir())
				change = append(change, with(l))
			}
			r := run(b, s, topic, change...)
			r.reached(p.index)
			bodies := make([]*millrace.Entry, 100_000)
			for i := range bodies {
				bodies[i] = p.put((i*7919)%len(bodies), fmt.Sprintf("%060d", i))
			}
			backlog := newMemoryTopic()
			p.topic = backlog
			for at := 0; at < b.N; {
				var units [][]*millrace.Entry
				for n := 0; n < 2000 && at < b.N; n += size {
					from := at % (len(bodies) - size)
					units = append(units, bodies[from:from+size])
					at += size
				}
				p.batch(units...)
			}
			b.ReportAllocs()
			b.ResetTimer()
			for _, record := range backlog.records {
				topic.append(record)
			}
			r.reached(p.index)
			if c.log {
				awaitLog(b, l, p.index)
			}
		})
	}
}
