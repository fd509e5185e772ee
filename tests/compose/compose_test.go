package compose

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"

	"github.com/millrace-db/millrace/internal/config"
)

var kafkas = []string{"kafka-1", "kafka-2", "kafka-3"}

func load(t *testing.T) *types.Project {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	options, err := cli.NewProjectOptions([]string{filepath.Join(root, "docker-compose.yml")},
		cli.WithWorkingDirectory(root), cli.WithProfiles([]string{"*"}))
	if err != nil {
		t.Fatal(err)
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		t.Fatalf("parse docker-compose.yml: %v", err)
	}
	return project
}

func service(t *testing.T, project *types.Project, name string) types.ServiceConfig {
	t.Helper()
	s, err := project.GetService(name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func setting(s types.ServiceConfig, name string) string {
	if value := s.Environment[name]; value != nil {
		return *value
	}
	return ""
}

func TestServices(t *testing.T) {
	got := load(t).ServiceNames()
	want := append([]string{"edge-1", "edge-2", "init"}, append(slices.Clone(kafkas), "load", "postgres", "transfer")...)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("services: got %v, want %v", got, want)
	}
}

func TestPostgresDecodesLogically(t *testing.T) {
	s := service(t, load(t), "postgres")
	if s.Image != "postgres:17" {
		t.Errorf("image: got %s, want postgres:17", s.Image)
	}
	if !slices.Contains(s.Command, "wal_level=logical") {
		t.Errorf("command %v lacks wal_level=logical", s.Command)
	}
}

func TestKafkaIsOneClusterOfThree(t *testing.T) {
	project := load(t)
	clusters := map[string]bool{}
	for i, name := range kafkas {
		s := service(t, project, name)
		id := fmt.Sprint(i + 1)
		for key, want := range map[string]string{
			"KAFKA_NODE_ID":                                  id,
			"KAFKA_PROCESS_ROLES":                            "broker,controller",
			"KAFKA_ADVERTISED_LISTENERS":                     "PLAINTEXT://" + name + ":9092",
			"KAFKA_MIN_INSYNC_REPLICAS":                      "2",
			"KAFKA_DEFAULT_REPLICATION_FACTOR":               "3",
			"KAFKA_AUTO_CREATE_TOPICS_ENABLE":                "false",
			"KAFKA_UNCLEAN_LEADER_ELECTION_ENABLE":           "false",
			"KAFKA_TRANSACTION_STATE_LOG_MIN_ISR":            "2",
			"KAFKA_CONTROLLER_QUORUM_VOTERS":                 "1@kafka-1:9093,2@kafka-2:9093,3@kafka-3:9093",
			"KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR":         "3",
			"KAFKA_LISTENER_SECURITY_PROTOCOL_MAP":           "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
			"KAFKA_CONTROLLER_LISTENER_NAMES":                "CONTROLLER",
			"KAFKA_INTER_BROKER_LISTENER_NAME":               "PLAINTEXT",
			"KAFKA_LOG_DIRS":                                 "/var/lib/kafka/data",
			"KAFKA_LISTENERS":                                "PLAINTEXT://:9092,CONTROLLER://:9093",
			"KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "3",
		} {
			if got := setting(s, key); got != want {
				t.Errorf("%s: %s: got %q, want %q", name, key, got, want)
			}
		}
		clusters[setting(s, "CLUSTER_ID")] = true
		if len(s.Volumes) != 1 || s.Volumes[0].Type != types.VolumeTypeVolume || s.Volumes[0].Source != name {
			t.Errorf("%s: volumes %v, want one of its own", name, s.Volumes)
		}
	}
	if len(clusters) != 1 {
		t.Errorf("cluster IDs: got %v, want one", clusters)
	}
}

func TestOrderOfStart(t *testing.T) {
	project := load(t)
	for name, want := range map[string]map[string]string{
		"init": {
			"postgres": types.ServiceConditionHealthy,
			"kafka-1":  types.ServiceConditionHealthy,
			"kafka-2":  types.ServiceConditionHealthy,
			"kafka-3":  types.ServiceConditionHealthy,
		},
		"transfer": {"init": types.ServiceConditionCompletedSuccessfully},
		"edge-1":   {"init": types.ServiceConditionCompletedSuccessfully},
		"edge-2":   {"init": types.ServiceConditionCompletedSuccessfully},
	} {
		for on, condition := range want {
			if got := service(t, project, name).DependsOn[on].Condition; got != condition {
				t.Errorf("%s waits for %s with condition %q, want %q", name, on, got, condition)
			}
		}
	}
	if got := service(t, project, "init").Restart; got != "no" {
		t.Errorf("init: restart %q, want no", got)
	}
	for _, name := range append([]string{"postgres"}, kafkas...) {
		if service(t, project, name).HealthCheck == nil {
			t.Errorf("%s has no health check to wait for", name)
		}
	}
}

// The two edges share what they are told and nothing that they keep.
func TestEdgesKeepTheirOwnData(t *testing.T) {
	project := load(t)
	seen := map[string]string{}
	for _, name := range []string{"edge-1", "edge-2", "transfer"} {
		s := service(t, project, name)
		if name != "transfer" {
			if got := setting(s, "MILLRACE_EDGE_ID"); got != name {
				t.Errorf("%s: MILLRACE_EDGE_ID: got %q", name, got)
			}
			if setting(s, "MILLRACE_STREAMS_BANK_SOURCE_URL") != "" {
				t.Errorf("%s has the source's URL, which no edge needs", name)
			}
		}
		kept := false
		for _, v := range s.Volumes {
			if v.Type != types.VolumeTypeVolume {
				continue
			}
			kept = kept || v.Target == "/var/lib/millrace"
			if other := seen[v.Source]; other != "" {
				t.Errorf("%s and %s share the volume %s", name, other, v.Source)
			}
			seen[v.Source] = name
			if _, ok := project.Volumes[v.Source]; !ok {
				t.Errorf("%s: volume %s is not declared", name, v.Source)
			}
		}
		if !kept {
			t.Errorf("%s loses its data with the container", name)
		}
	}
}

func TestNothingIsOpenToTheNetwork(t *testing.T) {
	for name, s := range load(t).Services {
		for _, port := range s.Ports {
			if port.HostIP != "127.0.0.1" {
				t.Errorf("%s publishes port %s on %q, want 127.0.0.1", name, port.Published, port.HostIP)
			}
		}
		if s.Privileged || s.NetworkMode == "host" {
			t.Errorf("%s is privileged or on the host's network", name)
		}
		if _, tag, ok := strings.Cut(s.Image, ":"); s.Build == nil && (!ok || tag == "latest") {
			t.Errorf("%s: image %s names no version", name, s.Image)
		}
	}
}

// Every file that is mounted exists, and the configurations among them are whole
// with the environment that their services get.
func TestMountedFiles(t *testing.T) {
	project := load(t)
	for name, s := range project.Services {
		for _, v := range s.Volumes {
			if v.Type != types.VolumeTypeBind {
				continue
			}
			if _, err := os.Stat(v.Source); err != nil {
				t.Errorf("%s mounts %s: %v", name, v.Source, err)
			}
			if !v.ReadOnly {
				t.Errorf("%s may write to %s", name, v.Source)
			}
			if filepath.Ext(v.Source) != ".yml" {
				continue
			}
			if !slices.Contains(s.Command, v.Target) {
				t.Errorf("%s mounts %s and is not told of it: %v", name, v.Target, s.Command)
			}
			var environment []string
			for key := range s.Environment {
				environment = append(environment, key+"="+setting(s, key))
			}
			cfg, err := config.Load(v.Source, environment)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			checkConfig(t, name, cfg)
		}
	}
}

func checkConfig(t *testing.T, name string, cfg *config.Config) {
	t.Helper()
	bank := cfg.Stream("bank")
	if bank == nil {
		t.Errorf("%s: the configuration has no stream bank", name)
		return
	}
	for i, want := range kafkas {
		if i >= len(bank.Kafka.Brokers) || bank.Kafka.Brokers[i] != want+":9092" {
			t.Errorf("%s: brokers %v, want %v with port 9092", name, bank.Kafka.Brokers, kafkas)
			break
		}
	}
	if strings.HasPrefix(name, "edge-") && cfg.Edge.ID != name {
		t.Errorf("%s: the configuration says the edge is %s", name, cfg.Edge.ID)
	}
}
