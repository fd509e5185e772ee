//go:build race

package harness

// raceDetector says that the tests were built with the race detector: then the
// program is, too.
const raceDetector = true
