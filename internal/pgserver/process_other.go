//go:build unix && !linux

package pgserver

// processesIn finds nothing here: there is no /proc to look at.
func processesIn(string) []int { return nil }

// canListProcesses says whether processesIn sees anything on this system.
const canListProcesses = false
