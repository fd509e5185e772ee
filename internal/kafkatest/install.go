package kafkatest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

const (
	// Version is the release of Kafka that tests run. scripts/kafka/pom.xml
	// names the same one.
	Version = "4.3.1"

	homeEnv     = "MILLRACE_KAFKA_HOME"
	mainJar     = "kafka_2.13-" + Version + ".jar"
	minimumJava = 17
)

// installation is a Java runtime and a directory of Kafka's jars.
type installation struct {
	java string
	jars string
}

// findInstallation looks for Kafka's jars in MILLRACE_KAFKA_HOME, or where
// scripts/setup puts them, and for Java in JAVA_HOME and PATH.
func findInstallation() (installation, error) {
	jars := os.Getenv(homeEnv)
	if jars == "" {
		cache := os.Getenv("XDG_CACHE_HOME")
		if cache == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return installation{}, fmt.Errorf("find Kafka's jars: %w; name their directory in %s", err, homeEnv)
			}
			cache = filepath.Join(home, ".cache")
		}
		jars = filepath.Join(cache, "millrace", "kafka-"+Version)
	}
	if _, err := os.Stat(filepath.Join(jars, mainJar)); err != nil {
		return installation{}, fmt.Errorf("find Kafka %s in %s (%s names another place): run `make setup`, which fetches it: %w", Version, jars, homeEnv, err)
	}
	java, err := findJava()
	if err != nil {
		return installation{}, err
	}
	return installation{java: java, jars: jars}, nil
}

var javaVersion = regexp.MustCompile(`version "(\d+)`)

func findJava() (string, error) {
	java := "java"
	if home := os.Getenv("JAVA_HOME"); home != "" {
		java = filepath.Join(home, "bin", "java")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, java, "-version").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("run %s -version: Kafka needs Java %d or later, run `make setup`: %w", java, minimumJava, err)
	}
	match := javaVersion.FindSubmatch(out)
	if match == nil {
		return "", fmt.Errorf("read Java's version: unexpected answer %q", bytes.TrimSpace(out))
	}
	version, err := strconv.Atoi(string(match[1]))
	if err != nil || version < minimumJava {
		return "", fmt.Errorf("%s is version %s and Kafka needs Java %d or later: run `make setup`, or name one in JAVA_HOME", java, match[1], minimumJava)
	}
	return java, nil
}

// command is a Java program of Kafka's.
func (in installation) command(ctx context.Context, logConfig string, options []string, class string, args ...string) *exec.Cmd {
	all := append([]string{}, options...)
	all = append(all, "-Dlog4j2.configurationFile="+logConfig, "-cp", filepath.Join(in.jars, "*"), class)
	return exec.CommandContext(ctx, in.java, append(all, args...)...)
}
