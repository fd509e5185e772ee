package migrations

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
)

// Copy copies the rows that are there, chunk by chunk. Killed, it goes on with the
// chunks that are left. Errors: ErrStep, ErrRunning, ErrChanged, ErrChecksum.
func (m *Migration) Copy(ctx context.Context) error {
	src, dst, err := m.both(ctx)
	if err != nil {
		return err
	}
	defer capture.Close(src)
	defer capture.Close(dst)
	d, err := m.at(ctx, src, dst)
	if err != nil {
		return err
	}
	if run, err := d.Step.Next(StepCopied); !run {
		return err
	}
	if err := m.take(ctx, dst); err != nil {
		return err
	}
	from, err := m.place(ctx, src, dst)
	if err != nil {
		return err
	}
	if err := install(ctx, dst); err != nil { // an older version may have prepared
		return fmt.Errorf("make the tables of migrations: %w", err)
	}
	all, err := m.mappings(ctx, src, dst, &from.Catalog)
	if err != nil {
		return err
	}
	for _, t := range all {
		if slices.Contains(d.Made, t.to.String()) {
			if err := m.setKeysAside(ctx, dst, t); err != nil {
				return err
			}
		}
	}
	tables, err := m.toSettle(ctx, src, dst, all, d.Made)
	if err != nil {
		return err
	}
	if all, err = m.copyChunks(ctx, src, dst, all, &from.Catalog, tables); err != nil {
		return err
	}
	if err := m.settle(ctx, src, dst, all, tables); err != nil {
		return err
	}
	return m.done(ctx, src, dst, StepCopied)
}

// place returns the place at which changes begin, and makes it if there is none. It
// is made before the first chunk is read, and anew as long as it is not noted.
func (m *Migration) place(ctx context.Context, src, dst *pgx.Conn) (*millrace.Checkpoint, error) {
	from, err := readPlace(ctx, dst, m.cfg.Name)
	if err != nil || from != nil {
		return from, err
	}
	c, err := m.capture(ctx, src)
	if err != nil {
		return nil, err
	}
	if from, err = c.Begin(ctx); err != nil {
		return nil, err
	}
	if err := identify(from); err != nil {
		return nil, err
	}
	if err := m.notePlace(ctx, dst, from); err != nil {
		return nil, err
	}
	m.log.Info("changes are kept from here on", "position", from.Position.String())
	return from, nil
}

// identify gives changes that begin an identity, which their chain begins with.
func identify(from *millrace.Checkpoint) error {
	if _, err := rand.Read(from.Stream[:]); err != nil {
		return fmt.Errorf("make an identity for the changes: %w", err)
	}
	from.Epoch, from.Offset = 1, millrace.NoOffset
	from.Chain = millrace.NewChain(from.Stream, from.Epoch)
	return nil
}

// readPlace returns the place that changes have come to, nil if there is none.
func readPlace(ctx context.Context, q queryer, name string) (*millrace.Checkpoint, error) {
	return placeOf(ctx, q, name, "")
}

// settledPlace is readPlace for who goes on from there. A process that was killed may have
// sent its commit: that is waited for, or what it brings would be applied once more.
func settledPlace(ctx context.Context, q queryer, name string) (*millrace.Checkpoint, error) {
	return placeOf(ctx, q, name, " FOR UPDATE")
}

func placeOf(ctx context.Context, q queryer, name, lock string) (*millrace.Checkpoint, error) {
	var b []byte
	err := q.QueryRow(ctx, "SELECT checkpoint FROM millrace.migration_place WHERE name = $1"+lock, name).Scan(&b)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the place of migration %s: %w", name, err)
	}
	return millrace.DecodeCheckpoint(b)
}

func (m *Migration) notePlace(ctx context.Context, dst *pgx.Conn, at *millrace.Checkpoint) error {
	_, err := dst.Exec(ctx, `
INSERT INTO millrace.migration_place (name, checkpoint, index, position, token, source_time, applied_at)
VALUES ($1, $2, $3::text::numeric, $4, $5::text::numeric, $6, clock_timestamp())`,
		m.cfg.Name, millrace.AppendCheckpoint(nil, at), at.Index.String(), at.Position.String(), fmt.Sprint(at.Position.Token()), at.Time)
	if err != nil {
		return fmt.Errorf("note the place of migration %s: %w", m.cfg.Name, err)
	}
	return nil
}

// mappings looks the tables up at both sides, as the changes know them.
func (m *Migration) mappings(ctx context.Context, src, dst queryer, catalog *millrace.Catalog) ([]*mapping, error) {
	var all []*mapping
	for i := range m.cfg.Tables {
		t := &m.cfg.Tables[i]
		n := slices.IndexFunc(catalog.Schemas, func(s *millrace.Schema) bool {
			return s.Namespace == t.From.Schema && s.Name == t.From.Name
		})
		if n < 0 {
			return nil, fmt.Errorf("%w: table %v is not among those whose changes are kept; mend: millrace migrate abort -f FILE, and begin again", ErrChanged, t.From)
		}
		one, problems, err := readMapping(ctx, src, dst, t, catalog.Schemas[n])
		if err != nil {
			return nil, err
		}
		if err := capture.FirstError(problems); err != nil { // prepare has found none
			return nil, fmt.Errorf("%w: %w; or millrace migrate abort -f FILE, and begin again", ErrChanged, err)
		}
		for _, other := range all {
			if other.to == one.to && !slices.Equal(other.carried, one.carried) {
				return nil, fmt.Errorf("%w: the partitions %v and %v have their columns in another order; mend: make one of them anew like the other", ErrBlocked, other.from, one.from)
			}
		}
		all = append(all, one)
	}
	return all, nil
}

// heap is what holds rows at the source.
type heap struct {
	table int // place among the tables
	oid   uint32
	name  string
	file  uint32
	again bool
}

// heapsOf looks up the heaps of a table. blocks is how long each is.
func heapsOf(ctx context.Context, src queryer, id millrace.TableID) (heaps []heap, blocks []int64, err error) {
	rows, err := src.Query(ctx, tree+`
SELECT c.oid, c.oid::regclass::text, coalesce(pg_relation_filenode(c.oid), 0), pg_relation_size(c.oid) / current_setting('block_size')::bigint
FROM tree JOIN pg_class c ON c.oid = tree.oid WHERE c.relkind = 'r' ORDER BY 1`, int64(id))
	if err != nil {
		return nil, nil, fmt.Errorf("look up heaps at the source: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var h heap
		var n int64
		if err := rows.Scan(&h.oid, &h.name, &h.file, &n); err != nil {
			return nil, nil, fmt.Errorf("look up heaps at the source: %w", err)
		}
		heaps, blocks = append(heaps, h), append(blocks, n)
	}
	return heaps, blocks, rows.Err()
}

// measure notes the chunks of heaps that have none yet. The last chunk of a heap has
// no end.
func (m *Migration) measure(ctx context.Context, src, dst *pgx.Conn, all []*mapping) error {
	for _, t := range all {
		heaps, blocks, err := heapsOf(ctx, src, t.id)
		if err != nil {
			return err
		}
		for i, h := range heaps {
			if err := m.cut(ctx, dst, all, t, h, blocks[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// cut notes the chunks of a heap, anew if it has another file than they were of. Rows
// of such a heap may be there already: its table has its keys from here on.
func (m *Migration) cut(ctx context.Context, dst *pgx.Conn, all []*mapping, t *mapping, h heap, blocks int64) error {
	const blockSize = 8192
	step := max(1, m.cfg.Chunk/blockSize)
	err := pgx.BeginFunc(ctx, dst, func(tx pgx.Tx) error {
		var file uint32
		err := tx.QueryRow(ctx, "SELECT file FROM millrace.migration_heap WHERE name = $1 AND heap = $2 FOR UPDATE", m.cfg.Name, h.oid).Scan(&file)
		switch {
		case err == nil && file == h.file:
			return nil
		case err != nil && !errors.Is(err, pgx.ErrNoRows):
			return err
		}
		again := err == nil
		if again {
			m.log.Warn("a heap has been rewritten and is copied again", "heap", h.name)
			if err := m.backToKeys(ctx, t.to, all); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, `DELETE FROM millrace.migration_chunk WHERE name = $1 AND heap = $2`, m.cfg.Name, h.oid); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `
INSERT INTO millrace.migration_heap (name, table_name, heap, heap_name, file, again, blocks) VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (name, heap) DO UPDATE SET file = excluded.file, heap_name = excluded.heap_name, again = true, blocks = excluded.blocks`,
			m.cfg.Name, t.from.String(), h.oid, h.name, h.file, again, blocks); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `
INSERT INTO millrace.migration_chunk (name, heap, first_block, end_block)
SELECT $1, $2, b, CASE WHEN b + $4 >= $3 THEN 0 ELSE b + $4 END FROM generate_series(0, greatest($3::bigint - 1, 0), $4::bigint) b`,
			m.cfg.Name, h.oid, blocks, step)
		return err
	})
	if err != nil {
		return fmt.Errorf("note the chunks of %s: %w", h.name, err)
	}
	return nil
}

// copyChunks copies what is left, several chunks at once. It returns the mappings,
// which have other keys when some had to be made on the way.
func (m *Migration) copyChunks(ctx context.Context, src, dst *pgx.Conn, all []*mapping, catalog *millrace.Catalog, tables []*settling) ([]*mapping, error) {
	var names []string
	for _, t := range all {
		names = append(names, t.from.String())
	}
	if err := m.measure(ctx, src, dst, all); err != nil {
		return nil, err
	}
	for {
		all, err := m.mappings(ctx, src, dst, catalog)
		if err != nil {
			return nil, err
		}
		left, err := m.left(ctx, dst, names)
		if err != nil || len(left) == 0 {
			return all, err
		}
		rewritten, err := m.copyLeft(ctx, all, left, tables)
		if err != nil {
			return nil, err
		}
		// A heap that was rewritten on the way is cut anew.
		for _, c := range rewritten {
			if err := m.cut(ctx, dst, all, all[c.table], c.heap, c.blocks); err != nil {
				return nil, err
			}
		}
	}
}

// left returns the chunks that have not been copied.
func (m *Migration) left(ctx context.Context, dst *pgx.Conn, names []string) ([]*chunkToCopy, error) {
	rows, err := dst.Query(ctx, `
SELECT array_position($2::text[], h.table_name) - 1, h.heap, h.heap_name, h.file, h.again, c.first_block, c.end_block
FROM millrace.migration_chunk c JOIN millrace.migration_heap h USING (name, heap)
WHERE c.name = $1 AND c.rows_read IS NULL ORDER BY 1, 2, 6`, m.cfg.Name, names)
	if err != nil {
		return nil, fmt.Errorf("read the chunks that are left: %w", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*chunkToCopy, error) {
		c := new(chunkToCopy)
		return c, row.Scan(&c.table, &c.oid, &c.name, &c.file, &c.again, &c.first, &c.end)
	})
	if err != nil {
		return nil, fmt.Errorf("read the chunks that are left: %w", err)
	}
	return all, nil
}

// copyLeft copies chunks, and returns one for each heap that has another file.
// Who copies the last chunk of a table settles it, if others have chunks of other
// tables to copy meanwhile.
func (m *Migration) copyLeft(ctx context.Context, all []*mapping, left []*chunkToCopy, tables []*settling) (rewritten []*chunkToCopy, err error) {
	work := newQueue(left)
	for _, t := range tables {
		t.left.Store(0)
	}
	settlings := make([]*settling, len(all)) // by place among the mappings
	for i, t := range all {
		settlings[i] = tables[slices.IndexFunc(tables, func(s *settling) bool { return s.to == t.to })]
	}
	for _, c := range left {
		settlings[c.table].left.Add(1)
	}
	found := make(chan *chunkToCopy, len(left))
	throttle := newThrottle(m, len(left))
	group, ctx := errgroup.WithContext(ctx)
	for range min(m.cfg.Workers, len(left)) {
		group.Go(func() error {
			src, dst, err := m.both(ctx)
			if err != nil {
				return err
			}
			defer capture.Close(src)
			defer capture.Close(dst)
			w := &copier{m: m, src: src, dst: dst, tables: all}
			if err := w.prepare(ctx); err != nil {
				return err
			}
			if m.planted != nil {
				if err := m.planted(ctx, dst); err != nil {
					return err
				}
			}
			for h, c := work.next(nil); c != nil; h, c = work.next(h) {
				if err := throttle.wait(ctx, src, dst); err != nil {
					return err
				}
				same, err := w.copy(ctx, c)
				if err != nil {
					return fmt.Errorf("copy blocks from %d on of %s: %w", c.first, c.name, err)
				}
				if !same {
					found <- c
					continue
				}
				throttle.copied(c.read)
				if m.copied != nil {
					m.copied()
				}
				if t := settlings[c.table]; t.left.Add(-1) == 0 && work.some() {
					if err := m.settleTable(ctx, dst, t); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	err = group.Wait()
	close(found)
	seen := make(map[uint32]bool)
	for c := range found {
		if !seen[c.oid] {
			seen[c.oid] = true
			rewritten = append(rewritten, c)
		}
	}
	return rewritten, err
}
