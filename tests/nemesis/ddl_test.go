package nemesis

import (
	"fmt"
	"maps"
	"slices"
)

// mostColumns is how many columns a walk adds to item at a time.
const mostColumns = 6

func (w *walker) addColumn() bool {
	s := w.alone("item", false)
	if s == nil || len(w.shape.columns) >= mostColumns {
		return false
	}
	name, typ := w.newColumn()
	w.say(s, "ALTER TABLE item ADD COLUMN %s %s", name, typ)
	return true
}

// newColumn names a column of item that there may have been before.
func (w *walker) newColumn() (name, typ string) {
	for name == "" || w.shape.columns[name] != "" {
		name = "c" + itoa(w.r.IntN(2*mostColumns))
	}
	typ = []string{"int", "bigint", "text", "jsonb"}[w.r.IntN(4)]
	w.shape.columns[name] = typ
	return name, typ
}

func (w *walker) addDefault() bool {
	s := w.alone("item", false)
	if s == nil || len(w.shape.columns) >= mostColumns {
		return false
	}
	name, typ := w.newColumn()
	switch w.r.IntN(3) {
	case 0:
		w.say(s, "ALTER TABLE item ADD COLUMN %s %s NOT NULL DEFAULT %s", name, typ, valueOf(typ, w.r.IntN(1000)))
	case 1: // the default lasts for the rows that are there
		w.say(s, "ALTER TABLE item ADD COLUMN %s %s DEFAULT %s; ALTER TABLE item ALTER COLUMN %s DROP DEFAULT", name, typ, valueOf(typ, w.r.IntN(1000)), name)
	default: // another one for each row
		w.shape.columns[name] = "int"
		w.say(s, "ALTER TABLE item ADD COLUMN %s int DEFAULT (random() * 1000)::int", name)
	}
	return true
}

// added returns a column that the walk has added to item, and a session that may
// alter it.
func (w *walker) added() (*txn, string) {
	columns := slices.Sorted(maps.Keys(w.shape.columns))
	if len(columns) == 0 {
		return nil, ""
	}
	return w.alone("item", false), columns[w.r.IntN(len(columns))]
}

func (w *walker) dropColumn() bool {
	s, name := w.added()
	if s == nil {
		return false
	}
	w.say(s, "ALTER TABLE item DROP COLUMN %s", name)
	delete(w.shape.columns, name)
	if w.r.IntN(3) == 0 { // another one of the same name at once
		w.shape.columns[name] = "text"
		w.say(s, "ALTER TABLE item ADD COLUMN %s text", name)
	}
	return true
}

func (w *walker) renameColumn() bool {
	s, name := w.added()
	if s == nil {
		return false
	}
	typ := w.shape.columns[name]
	delete(w.shape.columns, name)
	to := "r" + name
	for w.shape.columns[to] != "" {
		to = "r" + to
	}
	if len(to) > 20 {
		to = name // there and back
	}
	w.say(s, "ALTER TABLE item RENAME COLUMN %s TO %s_; ALTER TABLE item RENAME COLUMN %s_ TO %s", name, name, name, to)
	w.shape.columns[to] = typ
	return true
}

func (w *walker) retypeColumn() bool {
	s, name := w.added()
	if s == nil {
		return false
	}
	to := map[string]string{"int": "bigint", "bigint": "text", "text": "jsonb USING to_jsonb(" + name + ")", "jsonb": "text"}[w.shape.columns[name]]
	// What is left without a default must not need one.
	w.say(s, "ALTER TABLE item ALTER COLUMN %s DROP NOT NULL, ALTER COLUMN %s DROP DEFAULT; ALTER TABLE item ALTER COLUMN %s TYPE %s", name, name, name, to)
	w.shape.columns[name] = map[string]string{"int": "bigint", "bigint": "text", "text": "jsonb", "jsonb": "text"}[w.shape.columns[name]]
	return true
}

// rewriteColumn changes values and leaves the type: no message of the source
// tells.
func (w *walker) rewriteColumn() bool {
	s := w.alone("item", false)
	if s == nil {
		return false
	}
	w.say(s, "ALTER TABLE item ALTER COLUMN n TYPE int USING n + %d", 1+w.r.IntN(9))
	return true
}

// renameLabel and addLabel alter the enum, which one transaction at a time may.
func (w *walker) renameLabel() bool {
	s := w.enum()
	if s == nil {
		return false
	}
	w.names++
	w.say(s, `DO $do$ DECLARE l text; BEGIN
	SELECT enumlabel INTO l FROM pg_enum WHERE enumtypid = 'mood'::regtype ORDER BY enumsortorder OFFSET %d LIMIT 1;
	EXECUTE format('ALTER TYPE mood RENAME VALUE %%L TO %%L', l, 'mood %d'); END $do$`, w.r.IntN(3), w.names)
	return true
}

func (w *walker) addLabel() bool {
	s := w.enum()
	if s == nil {
		return false
	}
	w.names++
	w.say(s, "ALTER TYPE mood ADD VALUE 'mood %d'", w.names)
	return true
}

func (w *walker) enum() *txn {
	s := w.some(false)
	for _, o := range w.sessions {
		if o.exclusive["mood"] {
			return nil // its own, too: what is added is not to be touched before its commit
		}
	}
	if s.open {
		s.touched["mood"], s.exclusive["mood"] = true, true
	}
	return s
}

// renameTable renames a table, changes it under its new name, and renames it
// back, in one transaction: a transfer that is started in between does not find a
// table that it is configured for, and stops.
func (w *walker) renameTable() bool {
	table := []string{"item", "whole"}[w.r.IntN(2)]
	s := w.alone(table, false)
	if s == nil {
		return false
	}
	if !s.open {
		w.say(s, "BEGIN")
		defer w.say(s, "COMMIT")
	}
	other := table + "_other" // two of the same name would wait for each other
	w.say(s, "ALTER TABLE %s RENAME TO %s", table, other)
	w.say(s, "UPDATE %s SET n = coalesce(n, 0) + 1 WHERE id %% %d = %d AND id < 200", other, stripes, s.stripe)
	w.say(s, "ALTER TABLE %s RENAME TO %s", other, table)
	return true
}

func (w *walker) region() int {
	regions := w.regions()
	return regions[w.r.IntN(len(regions))]
}

// attach makes a table with rows and attaches it, or one that was a partition
// before.
func (w *walker) attach() bool {
	s := w.alone("part", false)
	if s == nil || len(w.shape.leaves) >= 5 {
		return false
	}
	region := 0
	for w.shape.leaves[region] != "" {
		region++
	}
	if n := len(w.shape.loose); n > 0 && w.r.IntN(2) == 0 {
		name := w.shape.loose[n-1]
		w.shape.loose = w.shape.loose[:n-1]
		// Its rows may have changed while nobody looked at it.
		w.say(s, "UPDATE %s SET region = %d, n = coalesce(n, 0) + 1", name, region)
		w.say(s, "ALTER TABLE part ATTACH PARTITION %s FOR VALUES IN (%d)", name, region)
		w.shape.leaves[region] = name
		return true
	}
	w.names++
	name := fmt.Sprintf("part_x%d", w.names)
	w.say(s, "CREATE TABLE %s (LIKE part INCLUDING ALL); ALTER TABLE %s ALTER COLUMN big SET STORAGE EXTERNAL", name, name)
	w.say(s, "INSERT INTO %s SELECT %d, i, i, 'attached', big(i, 2500) FROM generate_series(%d, %d) i", name, region, w.r.IntN(100), 100+w.r.IntN(100))
	w.say(s, "ALTER TABLE part ATTACH PARTITION %s FOR VALUES IN (%d)", name, region)
	w.shape.leaves[region] = name
	return true
}

func (w *walker) detach() bool {
	if len(w.shape.leaves) < 2 {
		return false
	}
	s := w.alone("part", false)
	if s == nil {
		return false
	}
	region := w.region()
	name := w.shape.leaves[region]
	w.say(s, "ALTER TABLE part DETACH PARTITION %s", name)
	delete(w.shape.leaves, region)
	w.shape.loose = append(w.shape.loose, name)
	return true
}

func (w *walker) dropPartition() bool {
	if len(w.shape.leaves) < 2 {
		return false
	}
	s := w.alone("part", false)
	if s == nil {
		return false
	}
	region := w.region()
	w.say(s, "DROP TABLE %s", w.shape.leaves[region])
	delete(w.shape.leaves, region)
	return true
}

func (w *walker) truncatePartition() bool {
	s := w.alone("part", false)
	if s == nil {
		return false
	}
	w.say(s, "TRUNCATE %s", w.shape.leaves[w.region()])
	return true
}
