package client_test

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"testing"
	"time"

	edgelog "github.com/millrace-db/millrace/edge/log"
)

// BenchmarkAbsentOverHTTP asks for rows that are there and for others that are not over one
// connection, in turns: what the second cost beside the first.
func BenchmarkAbsentOverHTTP(b *testing.B) {
	e := newEdge(b, edgelog.Options{})
	const rows = 50_000
	for i := range rows {
		e.put(1, 2*i, "a note of about a hundred bytes, so that the row is one as they are in tables of this kind, or so")
		if i%5000 == 4999 {
			e.commit()
		}
	}
	e.done()
	conn, err := new(net.Dialer).DialContext(timeout(b), "unix", e.unix)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	r := bufio.NewReader(conn)
	rnd := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a benchmark
	get := func(id, want int) {
		if _, err := fmt.Fprintf(conn, "GET /v1/streams/bank/tables/public.a/rows/%d HTTP/1.1\r\nHost: x\r\n\r\n", id); err != nil {
			b.Fatal(err)
		}
		resp, err := http.ReadResponse(r, nil)
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
		if err != nil || resp.StatusCode != want {
			b.Fatalf("row %d: %v, %v", id, resp, err)
		}
	}
	const turn = 100
	var took [2]time.Duration
	b.ResetTimer()
	for n := 0; n < b.N; n += 2 * turn {
		for odd, want := range []int{http.StatusOK, http.StatusNotFound} {
			began := time.Now()
			for range turn {
				get(2*rnd.IntN(rows-1)+odd, want)
			}
			took[odd] += time.Since(began)
		}
	}
	each := float64(max(b.N, 2*turn)) / 2
	b.ReportMetric(float64(took[0].Nanoseconds())/each, "ns/there")
	b.ReportMetric(float64(took[1].Nanoseconds())/each, "ns/absent")
	b.ReportMetric(float64(took[1])/float64(took[0]), "absent/there")
}
