// Package e2e runs millrace end to end, as processes over real Postgres and
// real Kafka, kills and stops them, and judges what is left by witnesses of its
// own.
package e2e

import (
	"testing"

	"github.com/millrace-db/millrace/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
