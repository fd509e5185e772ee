// Package config reads the one configuration file of millrace, the environment
// variables that override it, and nothing else.
//
// It promises that a key or variable which it does not know is refused with its
// place and the nearest known one, that every problem it finds is one line, and
// that no password is in such a line. What the values mean to a stage is left to
// the stage; this package checks what can be checked without opening anything.
//
// The tags of the structs below are the one description of all keys: reader,
// environment and docs/CONFIGURATION.md are made from them.
package config

import (
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-db/millrace"
)

// Config is the whole file.
type Config struct {
	Streams  []Stream `key:"streams" doc:"The streams that this host takes part in, as publisher, edge or both."`
	Transfer Transfer `key:"transfer" doc:"Settings of millrace transfer."`
	Edge     Edge     `key:"edge" doc:"Settings of millrace edge."`
	Log      Log      `key:"log" doc:"Settings of the log, which goes to standard error."`

	// File is where the configuration was read from.
	File string
	// lines are where keys stand in File, by their paths.
	lines map[string]int
	// set are the keys that the file or the environment sets.
	set map[string]bool
}

// Stream is one stream: a totally ordered log in one topic.
type Stream struct {
	Name    string  `key:"name" unit:"a letter, then at most 39 of a-z 0-9 _" doc:"Name of the stream. It becomes part of the names of publication, slot and directories."`
	ID      string  `key:"id" unit:"32 hexadecimal digits" doc:"Identity of the stream, as millrace init prints it. Where it is set, a topic or an edge's data of another stream is refused even by a new edge, and init goes on with the stream where its registry was lost."`
	Source  Source  `key:"source" doc:"The Postgres database that changes are captured from. An edge needs nothing of it."`
	Signing Signing `key:"signing" doc:"Who may publish the stream: signatures of its records. Without any, whoever may write to the topic can publish."`
	Kafka   Kafka   `key:"kafka" doc:"The topic that carries the stream."`
}

// Source is where changes come from.
type Source struct {
	URL       Secret              `key:"url" unit:"connection string" doc:"How init, check, uninstall and transfer reach Postgres: the server itself, and not a standby. With capture trigger it may lead through a pooler in transaction mode. Keep passwords out of the file with the environment variable, PGPASSFILE or a service file."`
	SetupURL  Secret              `key:"setup_url" unit:"connection string" doc:"How init, uninstall, epoch new and check --fix reach Postgres, where that takes another role: the one that owns the tables. The server itself. Not set: url."`
	Capture   string              `key:"capture" unit:"wal, trigger" default:"wal" doc:"How changes are captured: wal is logical decoding; trigger is a log of keys that triggers write, for databases where logical decoding is not allowed. It stays what init was run with."`
	Tables    []string            `key:"tables" unit:"schema.table" doc:"The tables to capture. Each needs a primary key, which with capture wal must not be deferrable."`
	Columns   map[string][]string `key:"columns" unit:"columns" doc:"Columns to capture, by table; all of a table that is not named here. The key's columns have to be among them. With capture wal, Postgres 15 and later. Changed, the table is loaded again."`
	Where     map[string]string   `key:"where" unit:"SQL condition" doc:"Which rows to capture, by table, as in CREATE PUBLICATION … WHERE; all rows of a table that is not named here. With capture wal it may use the key's columns only, or any under REPLICA IDENTITY FULL, and needs Postgres 15 or later. Changed, the table is loaded again."`
	Heartbeat Duration            `key:"heartbeat" unit:"duration" default:"1s" doc:"How often a heartbeat is written at the source, so that lag is known and the slot moves on when nothing else changes. At most 1 minute."`
	Memory    Size                `key:"memory" unit:"bytes" default:"64MiB" doc:"Capture wal only. How much of the transactions under way is held in memory before it goes to spool_dir. At least 1MiB."`
	SpoolDir  string              `key:"spool_dir" unit:"path" default:"./data/spool" doc:"Directory for what is too large for memory: transactions with capture wal, rows of loads with capture trigger. Made if missing; emptied at start."`
	Load      Loading             `key:"load" doc:"How tables are loaded: the first copy, and every table that is loaded again."`
	Verify    Verifying           `key:"verify" doc:"How the tables are verified: what the edges have stored is compared with the source."`
	WAL       WAL                 `key:"wal" doc:"Capture wal only. How much WAL the stream's slot may hold at the source, and what is done then. See OPERATIONS."`
	Poll      Poll                `key:"poll" doc:"Capture trigger only. How often the source is asked for changes."`
	Audit     Audit               `key:"audit" doc:"Capture trigger only. What is kept of the log of keys once it is published."`
	Roles     Roles               `key:"roles" doc:"Capture trigger only. Roles at the source. None may log in and none is a superuser; init makes them where its own role may (CREATEROLE), and does without otherwise. Chosen once, before the first init. See OPERATIONS."`

	// login is set by AsOwner.
	login string
}

// AsOwner returns the stream as commands reach its source that make or remove things
// there: by setup_url, if it is set.
func (s *Stream) AsOwner() *Stream {
	if s.Source.SetupURL == "" {
		return s
	}
	owned := *s
	owned.Source.login = roleOf(s.Source.URL)
	owned.Source.URL = s.Source.SetupURL
	return &owned
}

// roleOf is the role that a connection string logs in as. It has been checked.
func roleOf(url Secret) string {
	c, err := pgconn.ParseConfig(url.Reveal())
	if err != nil {
		return ""
	}
	return c.User
}

// Login is the role in url where AsOwner has put setup_url in its place; otherwise it
// is empty.
func (s *Source) Login() string { return s.login }

// Poll says how often the source is asked for changes.
type Poll struct {
	Min Duration `key:"min" unit:"duration" default:"2ms" doc:"The pause after something came. At least 1ms."`
	Max Duration `key:"max" unit:"duration" default:"100ms" doc:"The longest pause, which is reached when nothing comes. At most 10s, and not below min."`
}

// Audit says what is kept of the log of keys.
type Audit struct {
	Retain Duration `key:"retain" unit:"duration" default:"24h" doc:"How long logged keys stay readable after they were published: at least this long, and at most twice. From 1m to 720h. millrace init puts a change into effect."`
}

// Roles are roles at the source.
type Roles struct {
	Owner    string `key:"owner" unit:"role" default:"millrace_owner" doc:"Owns the logs of keys and the functions of the triggers, which run with its rights."`
	Capture  string `key:"capture" unit:"role" default:"millrace_capture" doc:"May do what transfer needs, and no more. init makes the role of url a member."`
	Verifier string `key:"verifier" unit:"role" default:"millrace_verifier" doc:"May read the captured tables, logs of keys, ticks and ledger, and write nothing: for millrace audit, and for people."`
}

// Loading says how tables are loaded.
type Loading struct {
	Workers       int      `key:"workers" unit:"count" default:"2" doc:"How many tables are read at once. 1 to 16."`
	RowsPerSecond int      `key:"rows_per_second" unit:"rows" default:"0" doc:"The most rows that each of them reads in a second. 0 for no limit."`
	MaxReplicaLag Duration `key:"max_replica_lag" unit:"duration" default:"0s" doc:"Loads wait while a physical standby of the source replays later than this. 0s for no limit; otherwise at least 100ms."`
}

// Verifying says how tables are verified.
type Verifying struct {
	Every         Duration `key:"every" unit:"duration" default:"24h" doc:"The time from one verification of all tables to the next; the first comes after a tenth of it. 0s for none but those that millrace verify asks for; otherwise at least 1m."`
	RowsPerSecond int      `key:"rows_per_second" unit:"rows" default:"20000" doc:"The most rows that are read for it in a second. 0 for no limit."`
}

// WAL says what the slot of a stream may hold.
type WAL struct {
	Warn    int    `key:"warn" unit:"percent" default:"25" doc:"A warning is given when less than this share is left of the source's max_slot_wal_keep_size, or of limit. 0 to 99; 0 for none."`
	Limit   Size   `key:"limit" unit:"bytes" default:"0" doc:"How much WAL the slot may hold before on_limit applies. 0 for no limit; otherwise at least 64MiB, and more than the source writes while transfer is restarted or a large transaction is open."`
	OnLimit string `key:"on_limit" unit:"alarm, drop" default:"alarm" doc:"What happens at limit: alarm says so in log, metrics and status and goes on; drop drops the slot, so that the source's disk is saved, and stops the stream, which then needs a new epoch."`
}

// Signing says whose records a stream has.
type Signing struct {
	KeyFile string   `key:"key_file" unit:"path" doc:"File with the private key that transfer signs records with, as millrace keys new makes it. Only its owner may read it. Not set: records are not signed."`
	Trusted []string `key:"trusted" unit:"KEY@INDEX" doc:"Public keys of publishers, each with the first index that it signs, as in ed25519:…@1, or EPOCH/INDEX after a new epoch; KEY@FROM-TO where a key was replaced. With any, transfer and edges refuse records from the first of these places on that none of them has signed. Not set: signatures are not looked at."`
}

// Kafka is where a stream is kept.
type Kafka struct {
	Brokers  []string `key:"brokers" unit:"host:port" doc:"Brokers to ask first."`
	Topic    string   `key:"topic" unit:"name" default:"millrace.<name>" doc:"Name of the stream's topic. init makes it, with one partition and without any limit of retention. Later epochs add a dot and their number."`
	Replicas int      `key:"replicas" unit:"count" default:"3" doc:"Replicas that init gives the topic; where the cluster has fewer brokers, as many as there are, and check warns."`
	Retain   Retain   `key:"retain" doc:"Which records of the topic transfer deletes. Neither time nor bytes: none. What an edge that reports still needs stays, and so does what a restarted transfer begins at. Who begins behind what is gone needs an image. See OPERATIONS."`
}

// Retain says which records of a topic may go.
type Retain struct {
	Time   Duration `key:"time" unit:"duration" default:"0s" doc:"How old records grow before they go. 0s: age lets none go; otherwise at least 10m, and more than the age of the images that new edges take."`
	Bytes  Size     `key:"bytes" unit:"bytes" default:"0" doc:"How much of the newest records stays at least; what is before that goes, also when it is young, but never what is younger than 10 minutes. 0: size lets none go; otherwise at least 64MiB."`
	Absent Duration `key:"absent" unit:"duration" default:"0s" doc:"How long an edge that has stopped, or does not report, holds back what it still needs. 0s: until it is forgotten (millrace status --forget); otherwise at least 10m."`
}

// Transfer is the publishing process.
type Transfer struct {
	Streams    []string `key:"streams" unit:"names" doc:"The streams to publish; all that have a source.url if it is not set."`
	Admin      string   `key:"admin" unit:"loopback host:port" default:"127.0.0.1:7470" doc:"Where /livez, /readyz, /metrics and /v1/streams of transfer are served. off serves nothing."`
	Lease      Duration `key:"lease" unit:"duration" default:"10s" doc:"How long a publisher may show no life before a waiting one ends its session at the source. At least 1s."`
	LedgerKeep Duration `key:"ledger_keep" unit:"duration" default:"168h" doc:"How long rows of the ledger are kept at the source. At least 1h."`
}

// Edge is the process that keeps a local copy.
type Edge struct {
	ID      string   `key:"id" unit:"name" default:"<host name>" doc:"Name of this edge in status and logs."`
	Streams []string `key:"streams" unit:"names" doc:"The streams to keep here; all if it is not set."`
	DataDir string   `key:"data_dir" unit:"path" default:"./data/edge" doc:"Directory of the local stores, one directory a stream within it. On a local file system."`
	MapSize Size     `key:"map_size" unit:"bytes" default:"64GiB" doc:"The most that the store of one stream may grow to. The file is sparse: it takes what is used. At least 16MiB; changed only at start."`
	Indexes Indexes  `key:"indexes" unit:"columns" doc:"Secondary indexes of the local stores: by stream and table, the columns of each, as in {dns: {public.dns_records: [[zone_id, name], [name]]}}. They are built beside the changes when the edge starts, take part of map_size, and are dropped when they are no longer named. A column that a table does not have, or whose type cannot be in a key, leaves that index out; the status says why."`
	Tables  Tables   `key:"tables" unit:"key values" doc:"What of a stream is held here, where that is not everything: by stream and table, the leading values of the keys that are held, as in {dns: {public.zones: [], public.dns_records: [[7], [8]]}}, where [] holds all keys. Tables that are not named are not held. What is not held is answered with an error, never as absent. An upstream then sends no more than that. To hold less removes the rest at the next start; to hold more needs a new store."`
	Log     EdgeLog  `key:"log" doc:"The edge's own log of what it has taken in, for other edges to follow."`
	OnStop  string   `key:"on_stop" unit:"exit, serve" default:"exit" doc:"What becomes of the edge when a stream needs somebody to act: exit ends it with exit code 4; serve goes on answering reads of what is there, with the fault in the stream's status, and ends with that code when it is told to end. A topic that is lost is waited for either way, until a new epoch takes its place."`
	Report  Duration `key:"report" unit:"duration" default:"10s" doc:"How often this edge reports to the topic <kafka.topic>.status when nothing changes. An edge that has not reported for three times as long is shown as silent. 1s to 1h."`
	Images  Images   `key:"images" doc:"Images of the local stores (millrace image)."`
	HTTP    HTTP     `key:"http" doc:"Where this edge answers reads."`
	Serve   Serve    `key:"serve" doc:"Bounds on what one read may take."`
	RESP    RESP     `key:"resp" doc:"Where this edge answers clients of Redis."`
	TLS     TLS      `key:"tls" doc:"Where other hosts reach this edge. Everybody shows who they are there, with a token or a certificate."`
	Peers   Peers    `key:"peers" doc:"How this edge reaches others, for their images and logs, over https."`

	Upstream    Choice   `key:"upstream" unit:"kafka, or URLs" default:"kafka" doc:"Where the edge takes its streams from: kafka, or other edges that keep a log, as in [https://10.0.0.7:7443, unix:/run/millrace.sock], one of which it follows. Edges with the same list spread over it. kafka may stand among them, and is one more then."`
	Secondaries []string `key:"secondaries" unit:"URLs, or kafka" doc:"What is followed where none of edge.upstream serves what is needed, for instance because their logs, or the topic, do not reach so far back: edges, or kafka."`
	Follow      Follow   `key:"follow" doc:"When this edge leaves the edge that it follows for another one of the two lists."`
	Relay       Relay    `key:"relay" doc:"What this edge gives to those that follow it, which it does where it keeps a log and answers HTTP."`
}

// Images is where images of the stores are, and how many.
type Images struct {
	Dir   string   `key:"dir" unit:"path" doc:"Directory of images, one directory a stream within it. On a local file system; an image takes about what its rows take compressed. Not set: _images in edge.data_dir."`
	Keep  int      `key:"keep" unit:"images" default:"2" doc:"How many images of a stream are kept: whatever makes or fetches one removes the oldest ones beyond it. 0 keeps all; at most 1000."`
	From  []string `key:"from" unit:"URLs" doc:"Where an edge takes an image from that is new, that the source no longer reaches, or that is so far behind that an image is nearer. Each is an edge (https://host:port), or a directory like images.dir of one, which any server of files or this host has (https://bucket.example/images, file:///mnt/images); {stream} in it stands for the stream's name where that is not the last part. They are asked in random order. Not set: the edges in edge.upstream and edge.secondaries; where the stream is read from Kafka, no image is taken."`
	Every Duration `key:"every" unit:"duration" default:"0s" doc:"How often the running edge makes an image of each stream. 0s for only when it is asked to; otherwise at least 1m. While it is made, the store's file grows by what changes."`
}

// Relay bounds what an edge gives to others.
type Relay struct {
	MaxPeers int  `key:"max_peers" unit:"edges" default:"64" doc:"The most edges that follow each stream here at once; further ones are turned away and try others. 1 to 1000."`
	MaxRate  Size `key:"max_rate" unit:"bytes" default:"0" doc:"The most bytes that one of them gets in a second. 0 for no limit; otherwise at least 64KiB."`
}

// Follow are the times that the choice of an upstream goes by.
type Follow struct {
	Silence Duration `key:"silence" unit:"duration" default:"5s" doc:"How long the one that is followed may send nothing, though it says every second where it stands, before it counts as gone. Longer where links are lost for seconds at a time. 2s to 10m."`
	Stale   Duration `key:"stale" unit:"duration" default:"10s" doc:"How long it may bring nothing new before others are asked whether they have more. 1s to 1h."`
	Margin  Duration `key:"margin" unit:"duration" default:"5s" doc:"By how much, by the source's clock, another one must be fresher to be gone over to. 100ms to 1h."`
	Probe   Duration `key:"probe" unit:"duration" default:"10s" doc:"How often others are asked while there is a reason to; otherwise they are asked once a minute. 1s to 1m."`
	Ban     Duration `key:"ban" unit:"duration" default:"10m" doc:"How long one that twice gave what is not of the history is not asked. 1m to 168h."`
}

// UpstreamKafka is the stream's topic.
const UpstreamKafka = "kafka"

// FollowsKafka reports whether the edge takes its streams from Kafka alone.
func (e *Edge) FollowsKafka() bool {
	return len(e.Secondaries) == 0 && (len(e.Upstream) == 0 || len(e.Upstream) == 1 && e.Upstream[0] == UpstreamKafka)
}

// UsesKafka reports whether Kafka is among what the edge may take its streams from.
func (e *Edge) UsesKafka() bool {
	return e.FollowsKafka() || slices.Contains(e.Upstream, UpstreamKafka) || slices.Contains(e.Secondaries, UpstreamKafka)
}

// EdgeLog is what an edge keeps of the records it has taken in.
type EdgeLog struct {
	Dir      string   `key:"dir" unit:"path" doc:"Directory of the logs, one directory a stream within it, for this edge alone. On a local file system. Not set: edge.data_dir. off keeps no log; then no other edge can follow this one."`
	Retain   Duration `key:"retain" unit:"duration" default:"168h" doc:"How old, by the source's clock, records grow before they are dropped: up to a sixteenth more. At least 1m."`
	MaxBytes Size     `key:"max_bytes" unit:"bytes" default:"10GiB" doc:"The most that the log of one stream takes, beside the store. The newest part stays, at most a 32nd of it or one transaction. At least 16MiB."`
}

// Indexes are the columns of secondary indexes, by stream and qualified table.
type Indexes map[string]map[string][][]string

// Tables are the leading values of the keys that are held, by stream and qualified table;
// none holds all keys.
type Tables map[string]map[string][][]string

// Filter returns what is held of a stream.
func (t Tables) Filter(stream string) (*millrace.Filter, error) {
	var whole []string
	prefixes := make(map[string][][]string)
	for table, keys := range t[stream] {
		if len(keys) == 0 {
			whole = append(whole, table)
		} else {
			prefixes[table] = keys
		}
	}
	return millrace.NewFilter(whole, prefixes)
}

// Serve bounds reads over HTTP.
type Serve struct {
	MaxScan    int `key:"max_scan" unit:"rows" default:"50000" doc:"The most rows that a query of /rest may look at. One that would look at more is refused, with the index that would lead it to fewer. 1 to 10000000."`
	MaxWaiters int `key:"max_waiters" unit:"requests" default:"1000" doc:"How many requests may wait for an index (min_index) at once; further ones are refused. 1 to 1000000."`

	MaxWatchers int `key:"max_watchers" unit:"requests" default:"1000" doc:"How many may watch each stream at once; further ones are refused. 1 to 100000. Each has a connection."`
}

// HTTP is where an edge answers.
type HTTP struct {
	Listen string `key:"listen" unit:"loopback host:port" default:"127.0.0.1:7480" doc:"TCP address for reads, status, /livez, /readyz and /metrics. Only loopback addresses are taken. off serves no TCP."`
	Unix   string `key:"unix" unit:"path" doc:"Unix socket for the same. Not set: none."`
}

// The values of source.wal.on_limit.
const (
	OnLimitAlarm = "alarm"
	OnLimitDrop  = "drop"
)

// The values of source.capture.
const (
	CaptureWAL     = "wal"
	CaptureTrigger = "trigger"
)

// Log says what is logged.
type Log struct {
	Level  string `key:"level" unit:"debug, info, warn, error" default:"info" doc:"The least that is logged."`
	Format string `key:"format" unit:"text, json" default:"text" doc:"Form of the lines."`
}

// Off is the value that turns a listener off.
const Off = "off"

// The values of edge.on_stop.
const (
	OnStopExit  = "exit"
	OnStopServe = "serve"
)

// Stream returns the named stream, or nil.
func (c *Config) Stream(name string) *Stream {
	for i := range c.Streams {
		if c.Streams[i].Name == name {
			return &c.Streams[i]
		}
	}
	return nil
}

// Has reports whether the file or the environment sets a key at or below path,
// such as edge or edge.http.
func (c *Config) Has(path string) bool {
	for key := range c.set {
		if key == path || strings.HasPrefix(key, path+".") {
			return true
		}
	}
	return false
}
