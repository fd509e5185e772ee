package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/control"
)

// maxSocketPath is what a unix socket's address holds on Linux, and less
// elsewhere.
const maxSocketPath = 103

// maxRole is what Postgres takes for a name, in bytes.
const maxRole = 63

// maxTopicName leaves room for the number of an epoch.
const maxTopicName = 240

func topicName(name string) bool {
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return name != "" && len(name) <= maxTopicName
}

// validate says everything that is wrong for any command.
func (c *Config) validate() []Problem {
	k := &checker{c: c}
	if len(c.Streams) == 0 {
		k.bad("streams", "no stream is configured; add one with name, source and kafka")
	}
	topics := map[string]string{}
	for i := range c.Streams {
		s := &c.Streams[i]
		if s.Name == "" {
			k.bad("streams."+strconv.Itoa(i+1), "a stream without a name; add name")
			continue
		}
		if c.Stream(s.Name) != s {
			k.bad("streams."+s.Name, "a second stream of this name; give each its own")
		}
		k.stream("streams."+s.Name, s)
		if other, ok := topics[s.Kafka.Topic]; ok {
			k.bad("streams."+s.Name+".kafka.topic", "%s is the topic of stream %s too; give each stream its own", s.Kafka.Topic, other)
		}
		topics[s.Kafka.Topic] = s.Name
	}
	for i := range c.Streams {
		reports := c.Streams[i].Kafka.Topic + ".status"
		if other, ok := topics[reports]; ok {
			k.bad("streams."+other+".kafka.topic", "%s is the topic that edges of stream %s report to; name another", reports, c.Streams[i].Name)
		}
	}
	k.transfer()
	k.edge()
	k.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	k.oneOf("log.format", c.Log.Format, "text", "json")
	return k.problems
}

func (k *checker) stream(path string, s *Stream) {
	if err := control.ValidateName(s.Name); err != nil {
		k.bad(path+".name", "%v", err)
	}
	if s.ID != "" {
		if id, err := millrace.ParseStreamID(s.ID); err != nil || id.IsZero() {
			k.bad(path+".id", "%q is not the 32 hexadecimal digits that millrace init prints", s.ID)
		}
	}
	if s.Source.URL != "" {
		// Its error hides the password.
		var e *pgconn.ParseConfigError
		if _, err := pgconn.ParseConfig(s.Source.URL.Reveal()); errors.As(err, &e) {
			k.bad(path+".source.url", "not a connection string; write postgres://user@host:5432/database")
		}
	}
	if s.Source.SetupURL != "" {
		var e *pgconn.ParseConfigError
		if _, err := pgconn.ParseConfig(s.Source.SetupURL.Reveal()); errors.As(err, &e) {
			k.bad(path+".source.setup_url", "not a connection string; write postgres://owner@host:5432/database")
		}
	}
	k.oneOf(path+".source.capture", s.Source.Capture, CaptureWAL, CaptureTrigger)
	k.modes(path+".source", s.Source.Capture)
	for i, table := range s.Source.Tables {
		schema, name, ok := strings.Cut(table, ".")
		if !ok || schema == "" || name == "" {
			k.bad(path+".source.tables", "%q: want schema.table, as in public.accounts", table)
		}
		if slices.Index(s.Source.Tables, table) != i {
			k.bad(path+".source.tables", "%q stands there twice", table)
		}
	}
	k.choices(path+".source", &s.Source)
	k.between(path+".source.heartbeat", s.Source.Heartbeat, 10*time.Millisecond, time.Minute)
	k.atLeast(path+".source.memory", s.Source.Memory, 1<<20)
	k.load(path+".source.load", &s.Source.Load)
	k.verify(path+".source.verify", &s.Source.Verify)
	k.wal(path+".source.wal", &s.Source.WAL)
	k.trigger(path+".source", &s.Source)
	k.signing(path+".signing", &s.Signing)
	for _, broker := range s.Kafka.Brokers {
		if err := hostPort(broker); err != nil {
			k.bad(path+".kafka.brokers", "%v", err)
		}
	}
	if !topicName(s.Kafka.Topic) {
		k.bad(path+".kafka.topic", "%q is not a topic's name; use at most 240 letters, digits, dots, dashes or underscores", s.Kafka.Topic)
	}
	if s.Kafka.Replicas < 1 || s.Kafka.Replicas > 100 {
		k.bad(path+".kafka.replicas", "%d: want 1 to 100", s.Kafka.Replicas)
	}
	k.retain(path+".kafka.retain", &s.Kafka.Retain)
}

func (k *checker) signing(path string, s *Signing) {
	var keys []millrace.TrustedKey
	for _, text := range s.Trusted {
		key, err := millrace.ParseTrustedKey(text)
		if err != nil {
			k.bad(path+".trusted", "%v", err)
			continue
		}
		keys = append(keys, key)
	}
	if _, err := millrace.NewKeyring(keys); err != nil {
		k.bad(path+".trusted", "%v", err)
	}
}

// The least that retention may be: what is younger stays in any case, and state
// records, at which a topic may begin, are that far apart.
const (
	minRetain      = 10 * time.Minute
	minRetainBytes = 64 << 20
	maxRetain      = 100 * 365 * 24 * time.Hour
)

func (k *checker) retain(path string, r *Retain) {
	if r.Time != 0 {
		k.between(path+".time", r.Time, minRetain, maxRetain)
	}
	if r.Bytes != 0 {
		k.atLeast(path+".bytes", r.Bytes, minRetainBytes)
	}
	if r.Absent != 0 {
		k.between(path+".absent", r.Absent, minRetain, maxRetain)
	}
	if r.Absent != 0 && r.Time == 0 && r.Bytes == 0 {
		k.bad(path+".absent", "means nothing while all records are kept; set time or bytes too")
	}
}

// minWALLimit leaves room for the few segments that a slot always holds.
const minWALLimit = 64 << 20

func (k *checker) wal(path string, w *WAL) {
	if w.Warn < 0 || w.Warn > 99 {
		k.bad(path+".warn", "%d: want 0 to 99", w.Warn)
	}
	if w.Limit != 0 {
		k.atLeast(path+".limit", w.Limit, minWALLimit)
	}
	k.oneOf(path+".on_limit", w.OnLimit, OnLimitAlarm, OnLimitDrop)
	if w.OnLimit == OnLimitDrop && w.Limit == 0 {
		k.bad(path+".on_limit", "drop without a limit; set limit")
	}
}

// modes refuses keys that mean nothing with the chosen capture: whoever sets one
// expects something of it.
func (k *checker) modes(path, capture string) {
	only := map[string][]string{
		CaptureWAL:     {"memory", "wal"},
		CaptureTrigger: {"poll", "audit", "roles"},
	}
	for _, of := range []string{CaptureWAL, CaptureTrigger} {
		if of == capture || !slices.Contains([]string{CaptureWAL, CaptureTrigger}, capture) {
			continue
		}
		for _, key := range only[of] {
			if k.c.Has(path + "." + key) {
				k.bad(path+"."+key, "means nothing with capture %s, it belongs to capture %s; remove it, or set source.capture to %[2]s", capture, of)
			}
		}
	}
}

// trigger checks what belongs to capture trigger.
func (k *checker) trigger(path string, s *Source) {
	k.between(path+".poll.min", s.Poll.Min, time.Millisecond, 10*time.Second)
	k.between(path+".poll.max", s.Poll.Max, max(time.Duration(s.Poll.Min), time.Millisecond), 10*time.Second)
	k.between(path+".audit.retain", s.Audit.Retain, time.Minute, 30*24*time.Hour)
	for _, role := range []struct{ key, name string }{{"owner", s.Roles.Owner}, {"capture", s.Roles.Capture}, {"verifier", s.Roles.Verifier}} {
		if role.name == "" || len(role.name) > maxRole || strings.HasPrefix(role.name, "pg_") || role.name == "public" || role.name == "none" {
			k.bad(path+".roles."+role.key, "%q is not the name of a role that can be made; want at most %d bytes, not pg_…, public or none", role.name, maxRole)
		}
	}
	if r := s.Roles; r.Owner == r.Capture || r.Owner == r.Verifier || r.Capture == r.Verifier {
		k.bad(path+".roles", "owner %s, capture %s, verifier %s: two of them are the same role, which would have the rights of both; give each its own", r.Owner, r.Capture, r.Verifier)
	}
}

func (k *checker) load(path string, l *Loading) {
	if l.Workers < 1 || l.Workers > 16 {
		k.bad(path+".workers", "%d: want 1 to 16", l.Workers)
	}
	if l.RowsPerSecond < 0 {
		k.bad(path+".rows_per_second", "%d: want 0 for no limit, or more", l.RowsPerSecond)
	}
	if l.MaxReplicaLag != 0 {
		k.between(path+".max_replica_lag", l.MaxReplicaLag, 100*time.Millisecond, 24*time.Hour)
	}
}

func (k *checker) verify(path string, v *Verifying) {
	if v.Every != 0 {
		k.between(path+".every", v.Every, time.Minute, 365*24*time.Hour)
	}
	if v.RowsPerSecond < 0 {
		k.bad(path+".rows_per_second", "%d: want 0 for no limit, or more", v.RowsPerSecond)
	}
}

func (k *checker) transfer() {
	t := &k.c.Transfer
	k.known("transfer.streams", t.Streams)
	k.loopback("transfer.admin", t.Admin)
	k.between("transfer.lease", t.Lease, time.Second, time.Hour)
	k.between("transfer.ledger_keep", t.LedgerKeep, time.Hour, 100*365*24*time.Hour)
}

func (k *checker) edge() {
	e := &k.c.Edge
	k.known("edge.streams", e.Streams)
	if e.DataDir == "" {
		k.bad("edge.data_dir", "is empty; name a directory")
	}
	k.atLeast("edge.map_size", e.MapSize, 16<<20)
	k.indexes("edge.indexes", e.Indexes)
	k.tables("edge.tables", e.Tables)
	k.upstreams()
	k.between("edge.log.retain", e.Log.Retain, time.Minute, 100*365*24*time.Hour)
	k.atLeast("edge.log.max_bytes", e.Log.MaxBytes, 16<<20)
	k.oneOf("edge.on_stop", e.OnStop, OnStopExit, OnStopServe)
	k.between("edge.report", e.Report, time.Second, time.Hour)
	if e.Images.Keep < 0 || e.Images.Keep > 1000 {
		k.bad("edge.images.keep", "%d: want 0 to keep all, up to 1000", e.Images.Keep)
	}
	if n := e.Serve.MaxScan; n < 1 || n > 10_000_000 {
		k.bad("edge.serve.max_scan", "%d: want 1 to 10000000", n)
	}
	if n := e.Serve.MaxWaiters; n < 1 || n > 1_000_000 {
		k.bad("edge.serve.max_waiters", "%d: want 1 to 1000000", n)
	}
	if n := e.Serve.MaxWatchers; n < 1 || n > 100_000 {
		k.bad("edge.serve.max_watchers", "%d: want 1 to 100000", n)
	}
	k.images()
	k.network()
}

// indexes checks the indexes that are declared for streams.
func (k *checker) indexes(path string, all Indexes) {
	for _, stream := range slices.Sorted(maps.Keys(all)) {
		k.known(path+"."+stream, []string{stream})
		for _, table := range slices.Sorted(maps.Keys(all[stream])) {
			at := path + "." + stream + "." + table
			if schema, name, ok := strings.Cut(table, "."); !ok || schema == "" || name == "" {
				k.bad(at, "want schema.table, as in public.accounts")
			}
			indexes := all[stream][table]
			for i, columns := range indexes {
				if len(columns) == 0 {
					k.bad(at, "an index names no column; write for instance [[zone_id, name], [name]]")
				}
				for j, c := range columns {
					if slices.Index(columns, c) != j {
						k.bad(at, "%q stands twice in one index", c)
					}
				}
				if slices.ContainsFunc(indexes[:i], func(o []string) bool { return slices.Equal(o, columns) }) {
					k.bad(at, "the index over %s stands there twice", strings.Join(columns, ", "))
				}
			}
		}
	}
}

// tables checks what is held of streams.
func (k *checker) tables(path string, all Tables) {
	for _, stream := range slices.Sorted(maps.Keys(all)) {
		at := path + "." + stream
		k.known(at, []string{stream})
		if len(all[stream]) == 0 {
			k.bad(at, "names no table; leave the stream out to hold everything of it")
		}
		for _, table := range slices.Sorted(maps.Keys(all[stream])) {
			if schema, name, ok := strings.Cut(table, "."); !ok || schema == "" || name == "" {
				k.bad(at+"."+table, "want schema.table, as in public.accounts")
				return
			}
			for _, values := range all[stream][table] {
				if len(values) == 0 {
					k.bad(at+"."+table, "a prefix has no values; write for instance [[7], [8]], or [] for all keys")
					return
				}
			}
		}
		if _, err := all.Filter(stream); err != nil {
			k.bad(at, "%v", err)
		}
	}
}

// known checks that names are those of streams.
func (k *checker) known(path string, names []string) {
	var all []string
	for i := range k.c.Streams {
		all = append(all, k.c.Streams[i].Name)
	}
	for i, name := range names {
		switch {
		case !slices.Contains(all, name):
			text := fmt.Sprintf("there is no stream %q", name)
			if near := nearest(name, all); near != "" {
				text += fmt.Sprintf("; did you mean %q?", near)
			} else {
				text += "; there are: " + strings.Join(all, ", ")
			}
			k.bad(path, "%s", text)
		case slices.Index(names, name) != i:
			k.bad(path, "%q stands there twice", name)
		}
	}
}

// choices checks the columns and rows that are chosen of tables.
func (k *checker) choices(path string, s *Source) {
	unknown := func(key, table string) {
		text := "the stream has no table of this name"
		if near := nearest(table, s.Tables); near != "" {
			text = fmt.Sprintf("did you mean %q?", near)
		}
		k.bad(path+"."+key+"."+table, "%s", text)
	}
	for _, table := range slices.Sorted(maps.Keys(s.Columns)) {
		at := path + ".columns." + table
		if !slices.Contains(s.Tables, table) {
			unknown("columns", table)
		}
		columns := s.Columns[table]
		if len(columns) == 0 {
			k.bad(at, "names no column; name those to capture, or remove the line")
		}
		for i, c := range columns {
			if slices.Index(columns, c) != i {
				k.bad(at, "%q stands there twice", c)
			}
		}
	}
	for _, table := range slices.Sorted(maps.Keys(s.Where)) {
		if !slices.Contains(s.Tables, table) {
			unknown("where", table)
		}
		if strings.TrimSpace(s.Where[table]) == "" {
			k.bad(path+".where."+table, "is empty; write a condition, or remove the line")
		}
	}
}

// NeedSource checks what a command that reaches the source database needs of
// the named streams.
func (c *Config) NeedSource(names []string) error {
	k := &checker{c: c}
	if len(names) == 0 {
		k.bad("streams", "no stream has a source.url, and this command reads from the source; set it in %s or in %s", c.File, variable("streams.<name>.source.url"))
	}
	for _, name := range names {
		s := c.Stream(name)
		path := "streams." + name
		if s.Source.URL == "" {
			k.bad(path+".source.url", "is not set, and this command needs it; set it here or in %s", variable(path+".source.url"))
		}
		if len(s.Source.Tables) == 0 {
			k.bad(path+".source.tables", "names no table; add the tables to capture")
		}
	}
	return k.err()
}

// NeedKafka checks what a command that reads or writes topics needs of the
// named streams.
func (c *Config) NeedKafka(names []string) error {
	k := &checker{c: c}
	for _, name := range names {
		if path := "streams." + name; len(c.Stream(name).Kafka.Brokers) == 0 {
			k.bad(path+".kafka.brokers", "is not set, and this command needs it; set it here or in %s", variable(path+".kafka.brokers"))
		}
	}
	return k.err()
}
