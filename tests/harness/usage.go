package harness

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// clockTicks is USER_HZ, which Linux has fixed at 100.
const clockTicks = 100

// CPU returns the processor time that the process has used so far, in seconds.
func (p *Process) CPU() float64 { return CPUOf(p.PID()) }

// MaxRSS returns the most memory that the process has held so far, in bytes.
func (p *Process) MaxRSS() int64 { return p.memory("VmHWM:") }

// Anonymous returns the memory that the process holds now and that is no page of
// a file, in bytes.
func (p *Process) Anonymous() int64 { return p.memory("RssAnon:") }

func (p *Process) memory(name string) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), name)
	var kib int64
	if _, err := fmt.Sscanf(rest, "%d", &kib); err != nil {
		return 0
	}
	return kib << 10
}

// CPUOf returns the processor time of a process in seconds, or 0 if it is gone.
func CPUOf(pid int) float64 {
	f := statFields(pid)
	if f == nil {
		return 0
	}
	return (f[11] + f[12]) / clockTicks
}

// TreeCPUOf returns the processor time that a process and its children used, the
// ended ones too, in seconds: of a Postgres server, all that it cost.
func TreeCPUOf(pid int) float64 {
	list := fmt.Sprintf("/proc/%d/task/%d/children", pid, pid)
	for {
		before, err := os.ReadFile(list)
		if err != nil {
			return 0
		}
		sum := 0.0
		if f := statFields(pid); len(f) >= 15 {
			sum = f[11] + f[12] + f[13] + f[14]
		}
		for _, child := range strings.Fields(string(before)) {
			if n, err := strconv.Atoi(child); err == nil {
				sum += CPUOf(n) * clockTicks
			}
		}
		// A child that ended meanwhile would count twice or not at all.
		if after, err := os.ReadFile(list); err == nil && bytes.Equal(before, after) {
			return sum / clockTicks
		}
	}
}

// statFields returns the numbers behind the command's name in a process's stat:
// 11 and 12 are its user and system time, 13 and 14 those of its ended children.
func statFields(pid int) []float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	_, rest, ok := strings.Cut(string(text), ") ")
	if !ok {
		return nil
	}
	words := strings.Fields(rest)
	if len(words) < 13 {
		return nil
	}
	fields := make([]float64, len(words))
	for i := 1; i < len(words); i++ { // the first is the state
		if fields[i], err = strconv.ParseFloat(words[i], 64); err != nil {
			return nil
		}
	}
	return fields
}
