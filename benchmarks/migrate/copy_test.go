package migrate

import (
	"fmt"
	"os/exec"
	"testing"
	"time"

	"github.com/millrace-db/millrace/internal/pgserver"
	"github.com/millrace-db/millrace/internal/pgtest"
)

// BenchmarkCopy copies the same rows with pgcopydb and with a migration, each into a
// database that is empty, until all indexes are there; the migration with
// checksums, as is the default, and without.
func BenchmarkCopy(b *testing.B) {
	program, err := exec.LookPath("pgcopydb")
	if err != nil {
		b.Fatalf("no pgcopydb on this machine: run scripts/setup migrations, or install the package pgcopydb: %v", err)
	}
	for _, version := range targets(b) {
		b.Run(fmt.Sprintf("to=%d", version), func(b *testing.B) { copies(b, program, version) })
	}
}

func copies(b *testing.B, program string, version int) {
	src := pgtest.On(b, server(b, "source", 15))
	var tables []string
	for i := range 4 {
		t := fmt.Sprint("records", i)
		tables = append(tables, t)
		simple(b, src.Pool, fmt.Sprintf(`CREATE TABLE %s (id bigint PRIMARY KEY, zone_id int NOT NULL, name text NOT NULL, type text NOT NULL, content text, ttl int NOT NULL, changed timestamptz NOT NULL)`, t),
			fmt.Sprintf(`INSERT INTO %s SELECT n, n / 20, 'host-' || n || '.zone-' || n / 20 || '.example.com', (ARRAY['A','AAAA','TXT','CNAME'])[1 + n %% 4], md5(n::text), 300, '2026-01-01'::timestamptz + n * interval '1 second' FROM generate_series(1, %d) n`, t, *rowsFlag/4),
			fmt.Sprintf(`CREATE INDEX ON %s (zone_id)`, t), "VACUUM ANALYZE "+t)
	}
	type way struct {
		name string
		run  func(dst *pgtest.DB, n int) // until all is there
	}
	ways := []way{
		{"pgcopydb", func(dst *pgtest.DB, _ int) {
			cmd := exec.CommandContext(b.Context(), program, "clone", "--source", src.URL, "--target", dst.URL, "--table-jobs", "4", "--index-jobs", "4", "--dir", b.TempDir(), "--not-consistent", "--no-owner", "--no-acl", "--no-comments")
			if out, err := cmd.CombinedOutput(); err != nil {
				b.Fatalf("pgcopydb: %v\n%s", err, out)
			}
		}},
		{"millrace", func(dst *pgtest.DB, n int) { migrated(b, n, false, src, dst, tables) }},
	}
	if *plainFlag {
		ways = append(ways, way{"millrace without checksums", func(dst *pgtest.DB, n int) { migrated(b, n, true, src, dst, tables) }})
	}
	took, worked := map[string][]float64{}, map[string][]float64{}
	var ratios, work []float64 // pgcopydb's time and processor time, by ours
	for round := range *roundsFlag {
		now := map[string]float64{}
		for i := range ways {
			w := ways[(i+round)%len(ways)]
			dst := pgtest.On(b, server(b, "target", version))
			simple(b, src.Pool, "CHECKPOINT")
			simple(b, dst.Pool, "CHECKPOINT")
			both := []*pgserver.Server{server(b, "source", 15), server(b, "target", version)}
			began, before := time.Now(), processor(b, both...)
			w.run(dst, round)
			now[w.name] = time.Since(began).Seconds()
			spent := (processor(b, both...) - before).Seconds()
			worked[w.name] = append(worked[w.name], spent)
			took[w.name] = append(took[w.name], now[w.name])
			same(b, src, dst, tables...)
			if w.name != "pgcopydb" {
				must(b, "abort", migration(b, fmt.Sprint("copy", round), src, dst, false, tables...).Abort(b.Context()))
				simple(b, src.Pool, "DROP SCHEMA millrace CASCADE") // pgcopydb would take it along
			}
			figure(b, map[string]any{"what": w.name, "round": round, "rows": *rowsFlag, "seconds": now[w.name], "processor_seconds": spent, "rows_per_second": float64(*rowsFlag) / now[w.name]})
		}
		ratios = append(ratios, now["pgcopydb"]/now["millrace"])
		work = append(work, worked["pgcopydb"][round]/worked["millrace"][round])
	}
	figure(b, map[string]any{"what": "ratio", "ratios": ratios, "median": median(ratios), "processor_ratios": work, "processor_median": median(work), "pgcopydb": median(took["pgcopydb"]), "millrace": median(took["millrace"]), "without_checksums": median(took["millrace without checksums"])})
	b.ReportMetric(median(ratios), "of-pgcopydb")
}

func migrated(b *testing.B, n int, noChecksums bool, src, dst *pgtest.DB, tables []string) {
	b.Helper()
	m := migration(b, fmt.Sprint("copy", n), src, dst, noChecksums, tables...)
	must(b, "prepare", m.Prepare(b.Context(), nil))
	must(b, "copy", m.Copy(b.Context()))
}
