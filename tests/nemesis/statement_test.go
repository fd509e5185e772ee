package nemesis

import (
	"fmt"
	"strings"
)

// Statements that do several things to one row, or to rows of two tables, whose
// order within the statement is not that of its text.

// few are places for rows of s's stripe, and their id as an expression of i.
func (w *walker) few(s *txn) (from, id string) {
	at := w.r.IntN(places - 8)
	return fmt.Sprintf("generate_series(%d, %d) i", at, at+w.r.IntN(8)), fmt.Sprintf("i * %d + %d", stripes, s.stripe)
}

// replace deletes rows and inserts others under their keys, in one statement.
func (w *walker) replace() bool {
	s, table := w.change()
	if s == nil {
		return false
	}
	key := map[string]string{"pair": "b, ", "code": "code, ", "part": "region, "}[table]
	w.say(s, "WITH d AS (DELETE FROM %s WHERE %s RETURNING %sid, n, big) INSERT INTO %s (%sid, n, note, big) SELECT %sid, n + %d, 'replaced', CASE WHEN id %% 2 = 0 THEN big END FROM d",
		table, w.mine(s, 6), key, table, key, key, w.r.IntN(9))
	return true
}

// passOn deletes rows of one table and inserts them into another.
func (w *walker) passOn() bool {
	s, table := w.change()
	if s == nil {
		return false
	}
	to := []string{"whole", "kin"}[w.r.IntN(2)]
	if to == table || w.locked(s, to, false) {
		return false
	}
	if s.open {
		s.touched[to] = true
	}
	w.say(s, "WITH d AS (DELETE FROM %s WHERE %s RETURNING id, n, big) INSERT INTO %s (id, n, note, big) SELECT DISTINCT ON (id) id, n, 'from %s', big FROM d ON CONFLICT (id) DO UPDATE SET note = excluded.note, n = excluded.n",
		table, w.mine(s, 5), to, table)
	return true
}

// upsert inserts rows and updates those that are there.
func (w *walker) upsert() bool {
	s, table := w.change()
	if s == nil || table == "code" || table == "slip" { // two keys; one that decides no conflict
		return false
	}
	from, id := w.few(s)
	key := map[string]string{"pair": "b, id", "part": "region, id"}[table]
	if key == "" {
		key = "id"
	}
	sql := insertRows(table, from, id, w.regions(), w.r.IntN(1000))
	w.say(s, "%s", strings.Replace(sql, "ON CONFLICT DO NOTHING", "ON CONFLICT ("+key+") DO UPDATE SET n = excluded.n, note = 'upserted', big = excluded.big", 1))
	return true
}

// asReplica changes rows as what applies another database's changes does: no
// trigger fires that is not for that, too.
func (w *walker) asReplica() bool {
	s, table := w.change()
	if s == nil || table == "kin" { // its kids would stay behind
		return false
	}
	sql := fmt.Sprintf("UPDATE %s SET n = coalesce(n, 0) + 1, note = 'replica' WHERE %s", table, w.mine(s, 8))
	if w.r.IntN(3) == 0 {
		sql = fmt.Sprintf("DELETE FROM %s WHERE %s", table, w.mine(s, 4))
	}
	w.atOnce(s, "SET LOCAL session_replication_role = replica", sql, "SET LOCAL session_replication_role = origin")
	return true
}

// merge deletes, updates and inserts in one statement, which Postgres has since
// version 15.
func (w *walker) merge() bool {
	s, table := w.change()
	if s == nil {
		return false
	}
	from, id := w.few(s)
	columns, values := rowsOf(table, "s.id", w.regions(), w.r.IntN(1000))
	if table == "code" {
		w.names++
		values = strings.Replace(values, "'c' ||", fmt.Sprintf("'merged %d ' ||", w.names), 1)
	}
	w.say(s, `DO $do$ BEGIN IF current_setting('server_version_num')::int >= 150000 THEN EXECUTE $m$
	MERGE INTO %s t USING (SELECT i, %s AS id FROM %s) s ON t.id = s.id
	WHEN MATCHED AND i %% 3 = 0 THEN DELETE
	WHEN MATCHED THEN UPDATE SET n = i, note = 'merged %d'
	WHEN NOT MATCHED THEN INSERT (%s) VALUES (%s) $m$; END IF; END $do$`, table, id, from, w.r.IntN(1000), columns, values)
	return true
}
