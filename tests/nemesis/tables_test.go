package nemesis

import (
	"slices"
	"strings"
)

// The rows of all tables are cut into stripes by their id: a transaction that is
// open or prepared changes only rows of its own, so that no step ever waits for
// another.
const (
	stripes = 8
	// places is how many ids each stripe has; the same number of them lies
	// behind, for rows that are moved there and back.
	places = 120
	away   = stripes * places
)

// makeTables are the captured tables. Values of 2 kB and more are stored out of
// line.
var makeTables = []string{
	`CREATE FUNCTION big(seed bigint, size int) RETURNS text IMMUTABLE LANGUAGE sql AS
		$$ SELECT left(string_agg(md5(seed || '.' || i), ''), size) FROM generate_series(0, size / 32) i $$`,
	`CREATE TYPE mood AS ENUM ('calm', 'cross', 'glad')`,
	// Takes all DDL.
	`CREATE TABLE item (id bigint PRIMARY KEY, n int, note text, big text, mood mood)`,
	// A key of two columns, one of them text.
	`CREATE TABLE pair (b text NOT NULL, id bigint NOT NULL, n int, note text, big text, PRIMARY KEY (b, id))`,
	// Sends whole old rows.
	`CREATE TABLE whole (id bigint PRIMARY KEY, n int, note text, big text); ALTER TABLE whole REPLICA IDENTITY FULL`,
	// Identified by another index than its primary key.
	`CREATE TABLE code (id bigint PRIMARY KEY, code text NOT NULL, n int, note text, big text);
		CREATE UNIQUE INDEX code_key ON code (code); ALTER TABLE code REPLICA IDENTITY USING INDEX code_key`,
}

// makeKin are a table and another whose rows go where its rows go: see
// makeNested.
var makeKin = []string{
	`CREATE TABLE kin (id bigint PRIMARY KEY, n int, note text, big text)`,
	`CREATE TABLE kid (id bigint NOT NULL, k int NOT NULL, n int, note text, PRIMARY KEY (id, k),
		CONSTRAINT kid_of FOREIGN KEY (id) REFERENCES kin ON UPDATE CASCADE ON DELETE CASCADE DEFERRABLE)`,
}

// makeSlip is a table whose rows may have one key for a moment. Logical
// replication does not take its key.
var makeSlip = `CREATE TABLE slip (id bigint PRIMARY KEY DEFERRABLE, n int, note text, big text)`

// The purses are no table of the walk: see balance.
var makePurses = `CREATE TABLE purse (id int PRIMARY KEY, n int NOT NULL);
	INSERT INTO purse SELECT i, 0 FROM generate_series(0, ` + itoa(purses-1) + `) i`

var makePartitions = []string{
	`CREATE TABLE part (region int NOT NULL, id bigint NOT NULL, n int, note text, big text, PRIMARY KEY (region, id)) PARTITION BY LIST (region)`,
	`CREATE TABLE part_0 PARTITION OF part FOR VALUES IN (0)`,
	`CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1)`,
	`CREATE TABLE part_2 PARTITION OF part FOR VALUES IN (2)`,
}

// setUp returns the statements that make the tables of a walk, with rows in
// them, the names of those that most steps take one of, and of all.
func setUp(m mode) (statements, names, all []string) {
	names = []string{"item", "pair", "whole", "code", "kin"}
	statements = append(append(statements, makeTables...), makeKin...)
	if m == byTrigger {
		names = append(names, "slip")
		statements = append(statements, makeSlip)
	}
	if reason("attach") == "" {
		names = append(names, "part")
		statements = append(statements, makePartitions...)
	}
	statements = append(statements, makeNested...)
	for _, name := range names {
		statements = append(statements, "ALTER TABLE "+name+" ALTER COLUMN big SET STORAGE EXTERNAL")
		statements = append(statements, insertRows(name, "(SELECT i FROM generate_series(0, 899) i) g", "i", []int{0, 1, 2}, 300))
	}
	return append(statements, makePurses), names, append(slices.Clone(names), "kid", "purse")
}

// insertRows inserts a row for each i of from, unless it is there. ids is the
// id as an expression of i. Every third row has a value stored out of line.
func insertRows(table, from, id string, regions []int, seed int) string {
	columns, values := rowsOf(table, id, regions, seed)
	sql := "INSERT INTO " + table + " (" + columns + ") SELECT " + values + " FROM " + from
	if table == "slip" { // a key that can be deferred decides no conflict
		return sql + " WHERE NOT EXISTS (SELECT FROM slip o WHERE o.id = " + id + ")"
	}
	return sql + " ON CONFLICT DO NOTHING"
}

// rowsOf gives the columns of insertRows, and their values as expressions of i.
func rowsOf(table, id string, regions []int, seed int) (columns, values string) {
	columns, values = "id, n, note, big", id+", i, 'note ' || i, CASE WHEN i % 3 = 0 THEN big(i + "+itoa(seed)+", 2600) WHEN i % 3 = 1 THEN 'short ' || i END"
	switch table {
	case "item":
		columns, values = columns+", mood", values+", (SELECT enumlabel FROM pg_enum WHERE enumtypid = 'mood'::regtype ORDER BY enumsortorder LIMIT 1)::mood"
	case "pair":
		columns, values = "b, "+columns, "(ARRAY['x', 'y', 'ä z'])[1 + ("+itoa(seed)+" % 3)], "+values
	case "code":
		columns, values = "code, "+columns, "'c' || "+id+", "+values
	case "part":
		var list []string
		for _, r := range regions {
			list = append(list, itoa(r))
		}
		columns, values = "region, "+columns, "(ARRAY["+strings.Join(list, ",")+"])[1 + (i % "+itoa(len(list))+")], "+values
	}
	return columns, values
}
