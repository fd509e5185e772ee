// Package relay runs trees of edges as processes, over real Postgres and real Kafka, and
// kills and stops edges in their middle.
package relay

import (
	"testing"

	"github.com/millrace-db/millrace/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
