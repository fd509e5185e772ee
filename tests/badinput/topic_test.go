package badinput

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
	"testing"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/kafkatest"
	"github.com/millrace-db/millrace/internal/loopback"
	"github.com/millrace-db/millrace/tests/harness"
)

// TestTopicMadeByHand: init refuses a topic that is there with settings that
// lose records.
func TestTopicMadeByHand(t *testing.T) {
	t.Parallel()
	for _, one := range []struct {
		name       string
		partitions int32
		settings   map[string]string
		names      string
	}{
		{"two partitions", 2, map[string]string{"retention.ms": "-1"}, "partition"},
		{"compaction", 1, map[string]string{"cleanup.policy": "compact"}, "cleanup.policy"},
		{"retention by time", 1, map[string]string{"retention.ms": "604800000"}, "retention.ms"},
		{"retention by size", 1, map[string]string{"retention.ms": "-1", "retention.bytes": "1000000"}, "retention.bytes"},
	} {
		t.Run(one.name, func(t *testing.T) {
			t.Parallel()
			s := newSystem(t)
			s.CreateTopic(one.partitions, one.settings)
			config, _ := s.TransferConfig()
			harness.WantRefusal(t, s.Run(config, "init"), harness.ExitOperator, s.Topic, one.names)
		})
	}
}

// TestTopicChanged: transfer and edge refuse to start on a topic that no longer
// keeps everything, and go on after the mend.
func TestTopicChanged(t *testing.T) {
	t.Parallel()
	for _, one := range []struct{ name, setting, bad, good string }{
		{"compaction", "cleanup.policy", "compact", "delete"},
		{"compaction and deletion", "cleanup.policy", "compact,delete", "delete"},
		{"retention by time", "retention.ms", "86400000", "-1"},
		{"retention by size", "retention.bytes", "1073741824", "-1"},
	} {
		t.Run(one.name, func(t *testing.T) {
			t.Parallel()
			r := start(t, newSystem(t))
			r.stop()
			r.SetTopic(one.setting, one.bad)
			harness.WantRefusal(t, r.StartTransfer().Process, harness.ExitOperator, r.Topic, one.setting)
			r.edge.Start()
			harness.WantRefusal(t, r.edge.Process, harness.ExitOperator, r.Topic, one.setting)
			r.SetTopic(one.setting, one.good)
			r.goesOn(t)
		})
	}
}

func TestTopicGotSecondPartition(t *testing.T) {
	t.Parallel()
	r := start(t, newSystem(t))
	r.stop()
	r.AddPartitions(2)
	harness.WantRefusal(t, r.StartTransfer().Process, harness.ExitOperator, r.Topic, "2 partitions")
	r.edge.Start()
	harness.WantRefusal(t, r.edge.Process, harness.ExitOperator, r.Topic, "2 partitions")
}

// TestTopicMadeAgain deletes the topic and makes one of the same name and with
// the right settings, empty. Transfer refuses it; the edge goes on answering, with
// the loss and its mend as its fault.
func TestTopicMadeAgain(t *testing.T) {
	t.Parallel()
	r := start(t, newSystem(t))
	r.stop()
	r.DeleteTopic()
	harness.WantRefusal(t, r.StartTransfer().Process, harness.ExitOperator, r.Topic, "millrace epoch new "+r.Stream)
	r.edge.Start()
	if answer := r.edge.AwaitRow(applyLimit, "public.items", "1"); len(answer.Body) == 0 {
		t.Error("the edge does not answer without its topic")
	}
	r.wantFault(t, "no such topic", "millrace epoch new "+r.Stream)
	r.CreateTopic(1, map[string]string{"retention.ms": "-1", "max.message.bytes": "20971520"})
	harness.WantRefusal(t, r.StartTransfer().Process, harness.ExitOperator, r.Topic, "made again", "millrace epoch new "+r.Stream)
	r.wantFault(t, "made again", "millrace epoch new "+r.Stream)
	if answer := r.edge.AwaitRow(applyLimit, "public.items", "1"); len(answer.Body) == 0 {
		t.Error("the edge does not answer beside another topic")
	}
	r.edge.Stop(stopLimit)
}

// wantFault waits until the edge's status has a fault with all of words in it.
func (r *running) wantFault(t *testing.T, words ...string) {
	t.Helper()
	harness.Until(t, applyLimit, "the edge says what is wrong", func(ctx context.Context) error {
		status, err := r.edge.Status(ctx)
		if err != nil {
			return err
		}
		for _, word := range words {
			if !strings.Contains(status.Fault, word) {
				return harness.NotYet("its fault is %q", status.Fault)
			}
		}
		return nil
	})
}

// TestWrongBrokers names brokers that are none.
func TestWrongBrokers(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	port, err := loopback.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	nobody := fmt.Sprintf("127.0.0.1:%d", port)
	s.Brokers = []string{nobody}
	config, _ := s.TransferConfig()
	p := s.Run(config, "init")
	if p.ExitCode() == 0 {
		t.Error("init succeeds")
	}
	harness.WantRefusal(t, p, p.ExitCode(), nobody, "brokers")
	// check lists all that it finds, and a stream before init has more.
	if p = s.Run(config, "check"); p.ExitCode() == 0 || !strings.Contains(p.Stdout(), nobody) {
		t.Errorf("check ends with exit code %d and does not name %s: %s", p.ExitCode(), nobody, p.Stdout())
	}
	if got := s.DB.String(`SELECT count(*) FROM pg_publication`); got != "0" {
		t.Errorf("init left %s publications behind", got)
	}
	s.Brokers = nil
	s.Init()
}

// TestTopicOfAnotherStream points each command at a topic that has records of
// another stream.
func TestTopicOfAnotherStream(t *testing.T) {
	t.Parallel()
	other := start(t, newSystem(t))
	other.stop()

	t.Run("init", func(t *testing.T) {
		s := namesake(t, other)
		s.Topic = other.Topic
		config, _ := s.TransferConfig()
		harness.WantRefusal(t, s.Run(config, "init"), harness.ExitOperator, s.Topic, "another stream")
	})
	t.Run("transfer and edge", func(t *testing.T) {
		r := start(t, namesake(t, other))
		r.stop()
		own := r.Topic
		r.Topic = other.Topic
		r.edge.WriteConfig()
		harness.WantRefusal(t, r.StartTransfer().Process, harness.ExitOperator, other.Topic)
		r.edge.Start()
		harness.WantRefusal(t, r.edge.Process, harness.ExitOperator, r.edge.StoreDir())
		r.Topic = own
		r.edge.WriteConfig()
		r.goesOn(t)
	})
	other.goesOn(t) // nobody has written to it
}

// TestEdgeDataOfAnotherStream starts an edge over the data of another stream's.
func TestEdgeDataOfAnotherStream(t *testing.T) {
	t.Parallel()
	first := start(t, newSystem(t))
	second := start(t, namesake(t, first))
	first.stop()
	second.stop()
	own := second.edge.DataDir
	second.edge.DataDir = first.edge.DataDir
	second.edge.WriteConfig()
	second.edge.Start()
	harness.WantRefusal(t, second.edge.Process, harness.ExitOperator, first.edge.StoreDir(), "another stream")
	second.edge.DataDir = own
	second.edge.WriteConfig()
	first.goesOn(t)
	second.goesOn(t)
}

// TestForeignRecord: a record that is none of millrace's, or of another stream,
// in the middle of a topic stops transfer and edge.
func TestForeignRecord(t *testing.T) {
	t.Parallel()
	other := start(t, newSystem(t))
	other.stop()
	for _, one := range []struct {
		name  string
		value []byte
		names string
	}{
		{"no record of millrace", []byte("hello"), "record"},
		{"record of another stream", other.Records(t)[0], "another stream"},
	} {
		t.Run(one.name, func(t *testing.T) {
			t.Parallel()
			r := start(t, namesake(t, other))
			r.stop()
			before := len(r.Records(t))
			r.Produce(one.value)
			harness.WantRefusal(t, r.StartTransfer().Process, harness.ExitOperator, r.Topic, "offset "+strconv.Itoa(before), one.names)
			r.edge.Start()
			harness.WantRefusal(t, r.edge.Process, harness.ExitOperator, r.Topic, "offset "+strconv.Itoa(before), one.names)
		})
	}
}

// TestAlteredRecord changes a byte of a record where the broker keeps it, with
// Kafka's checksum right, first without and then with millrace's own right as
// well. An edge that took the record in before is not hurt; done back, all goes
// on.
func TestAlteredRecord(t *testing.T) {
	t.Parallel()
	kafka := kafkatest.Start(t, 1)
	r := start(t, newSystemOn(t, kafka))
	// md5 does not compress, so the batch is stored as it is.
	r.DB.Exec(`UPDATE items SET note = md5(random()::text) WHERE id = 42`)
	r.settle(t)
	note := []byte(r.DB.String(`SELECT note FROM items WHERE id = 42`))
	altered := bytes.ToUpper(note)
	if bytes.Equal(note, altered) {
		t.Fatalf("%s has no letter", note) // one in 10^20
	}
	r.stop()
	// in turns what the record has of either note into the wanted one.
	alter := func(wanted []byte, crc bool) {
		t.Helper()
		if err := kafka.Stop(0); err != nil {
			t.Fatal(err)
		}
		err := harness.AlterRecord(kafka.LogDir(0), r.Topic, func(value []byte) bool {
			at := max(bytes.Index(value, note), bytes.Index(value, altered))
			if at < 0 {
				return false
			}
			copy(value[at:], wanted)
			if crc {
				fixCRC(value)
			}
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := kafka.Restart(0); err != nil {
			t.Fatal(err)
		}
	}
	fresh := r.NewEdge("edge-2")
	for _, one := range []struct {
		crc   bool
		names string
	}{{false, "CRC-32C"}, {true, "chain"}} {
		alter(altered, one.crc)
		fresh.Start()
		harness.WantRefusal(t, fresh.Process, harness.ExitOperator, r.Topic, "offset", one.names)
		r.edge.Start()
		if got := r.edge.AwaitRow(applyLimit, "public.items", "42"); !bytes.Contains(got.Body, note) {
			t.Errorf("the edge answers %s, want note %s", got.Body, note)
		}
		r.edge.Stop(stopLimit)
	}
	alter(note, true)
	r.goesOn(t)
	fresh.Start()
	fresh.AwaitRow(applyLimit, "public.items", "42")
}

// fixCRC makes the checksum of an uncompressed, unsigned record right. It
// stands in the transport part, in front of the payload.
func fixCRC(value []byte) {
	const signed, crcAt = 176, 12
	hole := signed + int(binary.BigEndian.Uint16(value[6:])) + crcAt
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(crc32.Checksum(value[:hole], table), table, value[hole+4:])
	binary.BigEndian.PutUint32(value[hole:], sum)
	if _, err := millrace.DecodeRecord(value, nil); err != nil {
		panic(fmt.Sprintf("the altered record is not one that passes its checksum: %v", err))
	}
}
