//go:build planted

package edge

import "os"

// plantedEarly makes a mistake, so that a test can see whether its checker finds
// it: with MILLRACE_PLANT=switch_early readers go over to a new epoch's store as
// soon as it holds anything.
func plantedEarly() bool { return os.Getenv("MILLRACE_PLANT") == "switch_early" }
