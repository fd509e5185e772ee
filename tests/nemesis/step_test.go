package nemesis

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
)

// step is one step of a walk. A file of steps has one a line, as JSON.
type step struct {
	// Do says what is done; see (*run).do.
	Do string `json:"do"`
	// Session is who says SQL.
	Session int    `json:"session,omitempty"`
	SQL     string `json:"sql,omitempty"`
	// Table is what a load or verification is of.
	Table string `json:"table,omitempty"`
	// MS is for how long, in milliseconds.
	MS int `json:"ms,omitempty"`
}

func (s step) String() string {
	switch s.Do {
	case "sql":
		return fmt.Sprintf("session %d: %s", s.Session, s.SQL)
	default:
		return fmt.Sprintf("%s %s", s.Do, s.Table)
	}
}

func writeSteps(path string, steps []step) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	for _, s := range steps {
		if err := enc.Encode(s); err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}

func readSteps(path string) ([]step, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	var steps []step
	dec := json.NewDecoder(f)
	dec.DisallowUnknownFields()
	for dec.More() {
		var s step
		if err := dec.Decode(&s); err != nil {
			return nil, fmt.Errorf("read walk %s: %w", path, err)
		}
		steps = append(steps, s)
	}
	return steps, nil
}
