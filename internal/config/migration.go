package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Migration is a migration file: which live tables move from which database to
// which. It is a file of its own, because it is of an operation that ends.
type Migration struct {
	Name        string           `key:"name" unit:"a letter, then at most 39 of a-z 0-9 _" doc:"Name of the migration. It becomes part of the names of publication and slot, and is how both databases know it."`
	Source      MigrationSource  `key:"source" doc:"The database that the tables are in."`
	Target      MigrationTarget  `key:"target" doc:"The database that they move to."`
	Tables      []MigrationTable `key:"tables" doc:"The tables to move."`
	Copy        MigrationCopy    `key:"copy" doc:"How the rows that are there are copied."`
	Follow      MigrationFollow  `key:"follow" doc:"How changes follow them."`
	Bouncers    []MigrationPool  `key:"pgbouncer" doc:"PgBouncers that clients reach the tables through. cutover and rollback pause them, send them to the other side and resume them, all within pause_budget; rehearse pauses and resumes them."`
	PauseBudget Duration         `key:"pause_budget" unit:"duration" default:"2s" doc:"How long writers may be held at most when they go over. 50ms to 1m."`
	Emergency   MigrationAccess  `key:"emergency" doc:"How clients of the source that nobody knew of get to the target behind a cutover, by millrace migrate emergency."`
	Log         Log              `key:"log" doc:"Settings of the log, which goes to standard error."`

	// File is where the file was read from.
	File string
}

// MigrationSource is where tables move from.
type MigrationSource struct {
	URL      Secret `key:"url" unit:"connection string" doc:"How the source is reached: the server itself, not a standby and not through a pooler. The role needs to own the tables, and REPLICATION with capture wal. The variable MILLRACE_MIGRATE_SOURCE_URL takes its place."`
	Capture  string `key:"capture" unit:"wal, trigger" default:"wal" doc:"How changes are captured: wal is logical decoding; trigger is a log of keys that triggers write, for databases where logical decoding is not allowed. It stays what prepare was run with."`
	Memory   Size   `key:"memory" unit:"bytes" default:"64MiB" doc:"Capture wal only. How much of the transactions under way is held in memory before it goes to spool_dir. At least 1MiB."`
	SpoolDir string `key:"spool_dir" unit:"path" default:"./data/spool" doc:"Capture wal only. Directory for transactions that are too large for memory. Made if missing; emptied at start."`
}

// MigrationTarget is where they move to.
type MigrationTarget struct {
	URL         Secret `key:"url" unit:"connection string" doc:"How the target is reached: the server itself, not a standby and not through a pooler. The variable MILLRACE_MIGRATE_TARGET_URL takes its place."`
	Capture     string `key:"capture" unit:"wal, trigger" default:"<source.capture>" doc:"How changes are captured at the target, for the way back. It stays what the first rehearse or cutover was run with."`
	ForeignKeys string `key:"foreign_keys" unit:"make, leave" default:"make" doc:"Whether foreign keys between tables that move are made and validated at the target, before writers go over. leave: they are made by hand, or not at all."`
}

// MigrationPool is a PgBouncer that clients go through.
type MigrationPool struct {
	Admin    Secret   `key:"admin" unit:"connection string" doc:"How its console is reached, as postgres://role@host:6432/pgbouncer. The role is one of its admin_users."`
	Database string   `key:"database" unit:"name" doc:"The name that clients ask it for. It needs a line of its own in [databases]."`
	Source   string   `key:"source" unit:"PgBouncer's connection string" doc:"What stands behind the name there while the source takes writes, such as host=old.internal port=5432 dbname=dns."`
	Target   string   `key:"target" unit:"PgBouncer's connection string" doc:"What is to stand there when the target does."`
	File     string   `key:"file" unit:"path" doc:"The file with the line. It is replaced by one in which only this line is another: the tool has to be on PgBouncer's machine, and may write in the file's directory."`
	Command  []string `key:"command" unit:"words" doc:"A command to run in place of writing file, with no shell. MILLRACE_SIDE, MILLRACE_DATABASE, MILLRACE_CONNECTION and MILLRACE_MIGRATION tell it what to put where; when it ends with 0, PgBouncer is told to RELOAD. It may be run again for the same side."`
}

func (p *MigrationPool) validate(k *checker, path string) {
	for _, x := range []struct{ key, value string }{{"admin", p.Admin.Reveal()}, {"database", p.Database}, {"source", p.Source}, {"target", p.Target}} {
		if x.value == "" {
			k.bad(join(path, x.key), "not set")
		}
	}
	for _, x := range []struct{ key, value string }{{"source", p.Source}, {"target", p.Target}} {
		if strings.ContainsAny(x.value, "\r\n") {
			k.bad(join(path, x.key), "%q: want one line", x.value)
		}
	}
	if (p.File == "") == (len(p.Command) == 0) {
		k.bad(join(path, "file"), "want file or command, and not both")
	}
}

// MigrationAccess says how the source's server reaches the target.
type MigrationAccess struct {
	URL Secret `key:"url" unit:"connection string" default:"<target.url>" doc:"How the source's server reaches the target, as postgres://role:password@host:port/database; files that it names are on that server. It stands in pg_user_mapping there. The variable MILLRACE_MIGRATE_EMERGENCY_URL takes its place."`
}

// MigrationTable is one table that moves.
type MigrationTable struct {
	From        string             `key:"from" unit:"schema.table" doc:"The table at the source, as the catalog writes it. It needs a primary key, which is not deferrable with capture wal."`
	To          string             `key:"to" unit:"schema.table" default:"<from>" doc:"The table at the target. prepare makes it like the source's where it is missing and no column is mapped."`
	Columns     map[string]string  `key:"columns" unit:"source column" doc:"Columns that have another name at the target, by that name. All others keep theirs."`
	Expressions map[string]string  `key:"expressions" unit:"SQL expression" doc:"Columns of the target that are computed, by name, each from the source's columns of the same row. Functions have to be named with their schema where that is not pg_catalog."`
	Omit        []string           `key:"omit" unit:"source column" doc:"Columns of the source that do not move. Postgres 15 and later with capture wal."`
	Partition   MigrationPartition `key:"partition" doc:"How prepare partitions the table, where it makes it."`
}

// MigrationPartition says how a table is partitioned at the target.
type MigrationPartition struct {
	By    string `key:"by" unit:"SQL expression" doc:"The expression whose values, 0 to count − 1, name the partitions, such as mod(zone_id, 16). Rows with other values go to one more partition. Not set: the table is not partitioned."`
	Count int    `key:"count" unit:"count" default:"0" doc:"How many partitions. 2 to 1024 where by is set."`
}

// MigrationCopy says how rows are copied.
type MigrationCopy struct {
	Workers       int      `key:"workers" unit:"count" default:"4" doc:"How many chunks are copied at once. 1 to 64."`
	Chunk         Size     `key:"chunk" unit:"bytes" default:"32MiB" doc:"How much of a table's file one chunk is. Each is one short transaction on both sides. 64KiB to 1GiB."`
	RowsPerSecond int      `key:"rows_per_second" unit:"rows" default:"0" doc:"The most rows that are copied in a second. 0 for no limit."`
	MaxReplicaLag Duration `key:"max_replica_lag" unit:"duration" default:"0s" doc:"The copy waits while a physical standby of either side replays later than this. 0s for no limit; otherwise at least 100ms."`
	MaxActive     int      `key:"max_active" unit:"count" default:"0" doc:"The copy waits while more sessions than this, its own left out, are at work on either side. 0 for no limit."`
	Checksums     string   `key:"checksums" unit:"on, off" default:"on" doc:"Whether the rows of each chunk are read back from the target and compared by their sum. Their number is compared always."`
}

// MigrationFollow says how changes are followed.
type MigrationFollow struct {
	BatchInterval Duration `key:"batch_interval" unit:"duration" default:"500ms" doc:"How long changes are gathered before they go into the target together, unless it is still at work on those before. 10ms to 1m."`
	BatchBytes    Size     `key:"batch_bytes" unit:"bytes" default:"16MiB" doc:"How much is gathered at most. While it is applied, as much again is gathered. 64KiB to 1GiB."`
}

// LoadMigration reads a migration file, applies the environment and validates the
// result. Every error is an *Error.
func LoadMigration(file string, environ []string) (*Migration, error) {
	text, err := readFile(file, "migration", "-f")
	if err != nil {
		return nil, err
	}
	return ParseMigration(file, text, environ)
}

// ParseMigration is LoadMigration for a text that has been read.
func ParseMigration(file string, text []byte, environ []string) (*Migration, error) {
	m := &Migration{File: file}
	k := &checker{c: &Config{File: file, lines: map[string]int{}}}
	problems := fill(m, file, text, k.c.lines)
	variables := map[string]*Secret{
		"MILLRACE_MIGRATE_SOURCE_URL": &m.Source.URL, "MILLRACE_MIGRATE_TARGET_URL": &m.Target.URL, "MILLRACE_MIGRATE_EMERGENCY_URL": &m.Emergency.URL,
	}
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if url := variables[name]; url != nil {
			*url = Secret(value)
		}
	}
	if len(problems) == 0 {
		m.validate(k)
		problems = k.problems
	}
	if len(problems) > 0 {
		return nil, &Error{problems}
	}
	return m, nil
}

func (m *Migration) validate(k *checker) {
	if !migrationName(m.Name) {
		k.bad("name", "%q: want a letter, then at most 39 of a-z, 0-9 and _", m.Name)
	}
	if m.Source.URL == "" {
		k.bad("source.url", "not set; give the source's connection string, here or in MILLRACE_MIGRATE_SOURCE_URL")
	}
	if m.Target.URL == "" {
		k.bad("target.url", "not set; give the target's connection string, here or in MILLRACE_MIGRATE_TARGET_URL")
	}
	if m.Target.Capture == "" {
		m.Target.Capture = m.Source.Capture
	}
	k.oneOf("source.capture", m.Source.Capture, CaptureWAL, CaptureTrigger)
	k.oneOf("target.capture", m.Target.Capture, CaptureWAL, CaptureTrigger)
	for _, key := range []string{"source.memory", "source.spool_dir"} {
		if m.Source.Capture == CaptureTrigger && m.Target.Capture == CaptureTrigger && k.c.lines[key] != 0 {
			k.bad(key, "means nothing with capture trigger at both sides, it belongs to capture wal; remove it")
		}
	}
	k.atLeast("source.memory", m.Source.Memory, 1<<20)
	if len(m.Tables) == 0 {
		k.bad("tables", "no table is to move; name at least one as {from: schema.table}")
	}
	from, to := map[string]bool{}, map[string]bool{}
	for i := range m.Tables {
		m.Tables[i].validate(k, join("tables", fmt.Sprint(i+1)), from, to)
	}
	for i := range m.Bouncers {
		m.Bouncers[i].validate(k, join("pgbouncer", fmt.Sprint(i+1)))
	}
	k.within("copy.workers", m.Copy.Workers, 1, 64)
	k.sized("copy.chunk", m.Copy.Chunk, 64<<10, 1<<30)
	k.within("copy.rows_per_second", m.Copy.RowsPerSecond, 0, 1<<40)
	k.within("copy.max_active", m.Copy.MaxActive, 0, 1<<20)
	if m.Copy.MaxReplicaLag != 0 {
		k.between("copy.max_replica_lag", m.Copy.MaxReplicaLag, 100*time.Millisecond, 24*time.Hour)
	}
	k.oneOf("target.foreign_keys", m.Target.ForeignKeys, "make", "leave")
	k.oneOf("copy.checksums", m.Copy.Checksums, "on", "off")
	k.between("follow.batch_interval", m.Follow.BatchInterval, 10*time.Millisecond, time.Minute)
	k.sized("follow.batch_bytes", m.Follow.BatchBytes, 64<<10, 1<<30)
	k.between("pause_budget", m.PauseBudget, 50*time.Millisecond, time.Minute)
	k.oneOf("log.format", m.Log.Format, "text", "json")
	k.oneOf("log.level", m.Log.Level, "debug", "info", "warn", "error")
}

func (t *MigrationTable) validate(k *checker, path string, from, to map[string]bool) {
	if t.To == "" {
		t.To = t.From
	}
	for _, side := range []struct {
		key, name string
		seen      map[string]bool
	}{{"from", t.From, from}, {"to", t.To, to}} {
		schema, name, ok := strings.Cut(side.name, ".")
		switch {
		case !ok || schema == "" || name == "":
			k.bad(join(path, side.key), "%q: want schema.table, as in public.accounts", side.name)
		case side.seen[side.name]:
			k.bad(join(path, side.key), "%s is named twice; remove one", side.name)
		}
		side.seen[side.name] = true
	}
	for _, target := range slices.Sorted(maps.Keys(t.Columns)) {
		source := t.Columns[target]
		if source == "" {
			k.bad(join(path, "columns."+target), "no column of the source is named")
		}
		if _, both := t.Expressions[target]; both {
			k.bad(join(path, "expressions."+target), "the column stands under columns too; remove one")
		}
		if slices.Contains(t.Omit, source) {
			k.bad(join(path, "omit"), "column %s stands under columns too; remove one", source)
		}
	}
	for _, target := range slices.Sorted(maps.Keys(t.Expressions)) {
		if strings.TrimSpace(t.Expressions[target]) == "" {
			k.bad(join(path, "expressions."+target), "the expression is empty")
		}
	}
	if t.Partition.By != "" {
		k.within(join(path, "partition.count"), t.Partition.Count, 2, 1024)
	} else if t.Partition.Count != 0 {
		k.bad(join(path, "partition.by"), "not set, and partition.count is; give the expression, such as mod(zone_id, 16)")
	}
}

func migrationName(name string) bool {
	for i, c := range []byte(name) {
		if letter := c >= 'a' && c <= 'z'; !letter && (i == 0 || (c < '0' || c > '9') && c != '_') {
			return false
		}
	}
	return name != "" && len(name) <= 40
}
