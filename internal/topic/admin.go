package topic

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/IBM/sarama"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/finding"
)

// The topic settings that matter here.
const (
	settingPolicy    = "cleanup.policy"
	settingAge       = "retention.ms"
	settingSize      = "retention.bytes"
	settingTimestamp = "message.timestamp.type"
	settingMessage   = "max.message.bytes"
	settingInSync    = "min.insync.replicas"
	settingUnclean   = "unclean.leader.election.enable"
)

const (
	leaderLimit = 30 * time.Second // for a new topic to get its leader
	leaderPoll  = 20 * time.Millisecond
)

// Info is what the brokers say about the topic.
type Info struct {
	// ID is Kafka's identity of the topic. A topic that was deleted and made
	// again has another one.
	ID string
	// Partitions and Replicas are their numbers; Replicas is of partition 0.
	Partitions, Replicas int
	// Settings are all of the topic's settings, with their defaults.
	Settings map[string]string
	// Start is the offset of partition 0's first record, End the one that the
	// next record will get. They are equal where it is empty.
	Start, End millrace.Offset
}

// Info asks the brokers. It gives ErrNoTopic if there is none.
func (t *Topic) Info(ctx context.Context) (Info, error) {
	info, err := t.info(ctx)
	if err != nil {
		return Info{}, fmt.Errorf("describe topic: %w", t.noTopic(err))
	}
	return info, nil
}

func (t *Topic) info(ctx context.Context) (Info, error) {
	c, err := t.meet(ctx)
	if err != nil {
		return Info{}, err
	}
	defer c.close()
	info, err := t.ask(c)
	if err != nil {
		return Info{}, c.explain(ctx, err)
	}
	return info, nil
}

// meet opens a client, as connect does, that knows who the brokers are, which it learns
// by asking for a topic. It need not exist.
func (t *Topic) meet(ctx context.Context) (*connection, error) {
	c, err := t.connect(ctx)
	if err != nil {
		return nil, err
	}
	err = c.client.RefreshMetadata(t.config.Topic)
	if err != nil && !errors.Is(err, sarama.ErrUnknownTopicOrPartition) {
		err = c.explain(ctx, err)
		c.close()
		return nil, err
	}
	return c, nil
}

func (t *Topic) ask(c *connection) (Info, error) {
	admin, err := sarama.NewClusterAdminFromClient(c.client)
	if err != nil {
		return Info{}, err
	}
	topics, err := admin.DescribeTopics([]string{t.config.Topic})
	if err != nil {
		return Info{}, err
	}
	if len(topics) != 1 {
		return Info{}, sarama.ErrUnknownTopicOrPartition
	}
	if topics[0].Err != sarama.ErrNoError {
		return Info{}, topics[0].Err
	}
	info := Info{ID: topics[0].Uuid.String(), Partitions: len(topics[0].Partitions), Settings: make(map[string]string)}
	for _, p := range topics[0].Partitions {
		if p.ID == 0 {
			info.Replicas = len(p.Replicas)
		}
	}
	configs, err := admin.DescribeConfigs([]*sarama.ConfigResource{{Type: sarama.TopicResource, Name: t.config.Topic}}, sarama.DescribeConfigsOptions{})
	if err != nil {
		return Info{}, err
	}
	for _, c := range configs {
		if c.ErrorCode != 0 {
			return Info{}, c.ErrorCode
		}
		for _, e := range c.Configs {
			info.Settings[e.Name] = e.Value
		}
	}
	start, err := c.client.GetOffset(t.config.Topic, 0, sarama.OffsetOldest)
	if err != nil {
		return Info{}, err
	}
	end, err := c.client.GetOffset(t.config.Topic, 0, sarama.OffsetNewest)
	if err != nil {
		return Info{}, err
	}
	info.Start, info.End = millrace.Offset(start), millrace.Offset(end)
	return info, nil
}

// Create makes the topic with one partition and the settings that a stream
// needs, whatever the brokers' defaults are, and returns when it has a leader and
// all brokers that can be asked know it.
// It gives ErrTopicExists if there is one of that name, and ErrFewBrokers if the
// cluster cannot hold so many replicas.
func (t *Topic) Create(ctx context.Context, replicas int) error {
	return t.createWith(ctx, replicas, wantedSettings(replicas))
}

func (t *Topic) createWith(ctx context.Context, replicas int, settings map[string]string) error {
	if replicas < 1 || replicas > 1000 {
		return fmt.Errorf("create topic %s: %d replicas: want 1 or more, and 3 to be safe", t.config.Topic, replicas)
	}
	ctx, cancel := context.WithTimeout(ctx, leaderLimit)
	defer cancel()
	if err := t.create(ctx, replicas, settings); err != nil {
		return fmt.Errorf("create topic %s: %w", t.config.Topic, err)
	}
	tick := time.NewTicker(leaderPoll)
	defer tick.Stop()
	for {
		_, err := t.info(ctx)
		if err == nil {
			err = t.everywhere(ctx)
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("create topic %s: wait for its leader, and until all brokers know it: %w", t.config.Topic, err)
		case <-tick.C:
		}
	}
}

// everywhere returns nil when all brokers that can be asked know the topic. Who comes
// after Create asks any of them, and would take the word of one that is behind for that of
// a topic which is gone.
func (t *Topic) everywhere(ctx context.Context) error {
	c, err := t.meet(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	for _, b := range c.client.Brokers() {
		if err := b.Open(c.client.Config()); err != nil && !errors.Is(err, sarama.ErrAlreadyConnected) {
			continue
		}
		answer, err := b.GetMetadata(sarama.NewMetadataRequest(c.client.Config().Version, []string{t.config.Topic}))
		if err != nil {
			continue // one that is down misleads nobody
		}
		for _, m := range answer.Topics {
			if m.Err != sarama.ErrNoError {
				return fmt.Errorf("broker %s: %w", b.Addr(), m.Err)
			}
		}
	}
	return ctx.Err()
}

func (t *Topic) create(ctx context.Context, replicas int, settings map[string]string) error {
	c, err := t.meet(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	admin, err := sarama.NewClusterAdminFromClient(c.client)
	if err != nil {
		return c.explain(ctx, err)
	}
	detail := &sarama.TopicDetail{NumPartitions: 1, ReplicationFactor: int16(replicas), ConfigEntries: make(map[string]*string)}
	for name, value := range settings {
		detail.ConfigEntries[name] = &value
	}
	err = admin.CreateTopic(t.config.Topic, detail, false)
	switch {
	case errors.Is(err, sarama.ErrTopicAlreadyExists):
		return ErrTopicExists
	case errors.Is(err, sarama.ErrInvalidReplicationFactor):
		return fmt.Errorf("%w than %d: ask for fewer replicas: %w", ErrFewBrokers, replicas, err)
	case err != nil:
		return c.explain(ctx, err)
	}
	return nil
}

func wantedSettings(replicas int) map[string]string {
	inSync := "1"
	if replicas >= 3 {
		inSync = "2"
	}
	return map[string]string{
		settingPolicy:    "delete",
		settingAge:       "-1",
		settingSize:      "-1",
		settingTimestamp: "LogAppendTime",
		settingMessage:   strconv.Itoa(MaxMessage),
		settingInSync:    inSync,
		settingUnclean:   "false",
	}
}

// Check asks the brokers and says what keeps the topic from being a stream's
// log of record, and what is less safe than it could be.
func (t *Topic) Check(ctx context.Context) ([]finding.Finding, error) {
	info, err := t.Info(ctx)
	if err != nil {
		return nil, err
	}
	return check(t.config.Topic, &info), nil
}

// findings gathers what is found at a topic.
type findings struct {
	name string
	info *Info
	all  []finding.Finding
}

func (f *findings) add(level finding.Level, text, mend string) {
	f.all = append(f.all, finding.Finding{Level: level, Subject: "topic " + f.name, Text: text, Mend: mend})
}

// alter is the command that gives the topic a setting.
func (f *findings) alter(setting, value string) string {
	return fmt.Sprintf("kafka-configs.sh --alter --entity-type topics --entity-name %s --add-config %s=%s", f.name, setting, value)
}

// partitions refuses more than one, whatever the topic is for.
func (f *findings) partitions(why, mend string) {
	if f.info.Partitions != 1 {
		f.add(finding.Problem, fmt.Sprintf("it has %d partitions, and %s", f.info.Partitions, why), mend)
	}
}

// appendTime warns of times that are not the brokers'.
func (f *findings) appendTime(what string) {
	if v := f.info.Settings[settingTimestamp]; v != "LogAppendTime" {
		f.add(finding.Warning, fmt.Sprintf("%s is %s: %s", settingTimestamp, v, what), f.alter(settingTimestamp, "LogAppendTime"))
	}
}

// inSync refuses a topic that nothing can be appended to. ok is false then.
func (f *findings) inSync() (inSync int, ok bool) {
	inSync, err := strconv.Atoi(f.info.Settings[settingInSync])
	if err != nil {
		return 0, true // it is not known
	}
	if inSync > f.info.Replicas {
		f.add(finding.Problem, fmt.Sprintf("%s is %d with %d replicas: nothing can be appended", settingInSync, inSync, f.info.Replicas),
			f.alter(settingInSync, wantedSettings(f.info.Replicas)[settingInSync]))
		return inSync, false
	}
	return inSync, true
}

// check is Check's decision.
func check(name string, info *Info) []finding.Finding {
	f := findings{name: name, info: info}
	f.partitions("a stream is one ordered log", "name another topic, or delete this one if nothing needs it, and let millrace init make it")
	if v := info.Settings[settingPolicy]; v != "delete" {
		text := fmt.Sprintf("%s is %q", settingPolicy, v)
		if strings.Contains(v, "compact") {
			text += ": compaction removes records from the middle"
		}
		f.add(finding.Problem, text, f.alter(settingPolicy, "delete"))
	}
	for _, setting := range []string{settingAge, settingSize} {
		if v := info.Settings[setting]; v != "-1" {
			f.add(finding.Problem, fmt.Sprintf("%s is %s: Kafka will delete records that are still needed", setting, v),
				f.alter(setting, "-1")+"; what may go is for kafka.retain to say, which keeps what edges and transfer need")
		}
	}
	if v, err := strconv.Atoi(info.Settings[settingMessage]); err != nil || v < MaxMessage {
		f.add(finding.Problem, fmt.Sprintf("%s is %s, and a record may need %d", settingMessage, info.Settings[settingMessage], MaxMessage),
			f.alter(settingMessage, strconv.Itoa(MaxMessage)))
	}
	if v := info.Settings[settingUnclean]; v != "false" {
		f.add(finding.Warning, fmt.Sprintf("%s is %s: acknowledged records can be lost", settingUnclean, v), f.alter(settingUnclean, "false"))
	}
	f.appendTime("times in the topic are the publishers' own")
	switch inSync, ok := f.inSync(); {
	case !ok:
	case info.Replicas < 3:
		f.add(finding.Warning, fmt.Sprintf("it has %d of 3 replicas: the loss of a broker's disk can lose acknowledged records", info.Replicas),
			"give it 3 with kafka-reassign-partitions.sh, and "+settingInSync+"=2")
	case inSync < 2:
		f.add(finding.Warning, fmt.Sprintf("%s is %s: an append can be acknowledged by one broker alone", settingInSync, info.Settings[settingInSync]), f.alter(settingInSync, "2"))
	}
	return f.all
}
