package harness

import (
	"encoding/json"
	"fmt"
)

// Audit is what millrace audit --json says of a stream.
type Audit struct {
	Equal       bool     `json:"equal"`
	Entries     uint64   `json:"entries"`
	Units       uint64   `json:"units"`
	Rows        uint64   `json:"ledger_rows"`
	Unledgered  uint64   `json:"unledgered"`
	Ticks       uint64   `json:"ticks"`
	Void        uint64   `json:"ticks_void"`
	Gone        uint64   `json:"ticks_gone"`
	Differences []string `json:"differences"`
	Tables      []struct {
		Logged struct {
			Keys uint64 `json:"keys"`
		} `json:"logged"`
		Published struct {
			Puts    uint64 `json:"puts"`
			Deletes uint64 `json:"deletes"`
			Loaded  uint64 `json:"loaded"`
		} `json:"published"`
	} `json:"tables"`
}

// String is for a line of the log.
func (a *Audit) String() string {
	var keys, live, loaded uint64
	for i := range a.Tables {
		t := &a.Tables[i]
		keys += t.Logged.Keys
		live += t.Published.Puts + t.Published.Deletes
		loaded += t.Published.Loaded
	}
	return fmt.Sprintf("%d ticks and %d rows of the ledger compared, %d ticks void, %d entries in no row; %d keys logged, %d published, %d rows loaded",
		a.Ticks, a.Rows, a.Void, a.Unledgered, keys, live, loaded)
}

// Audit runs millrace audit over the whole stream and wants the accounts to agree.
// Where capture keeps ticks, it wants some of them to have been compared.
func (s *System) Audit(config string) *Audit {
	s.T.Helper()
	p := s.Run(config, "audit", "--json", "--since", "24h")
	var all []*Audit
	if err := json.Unmarshal([]byte(p.Stdout()), &all); err != nil || len(all) != 1 {
		s.T.Errorf("millrace audit: exit code %d, %v: %s%s", p.ExitCode(), err, p.Stdout(), p.Stderr())
		return new(Audit)
	}
	a := all[0]
	if p.ExitCode() != 0 || !a.Equal || a.Rows == 0 || s.Mode() == CaptureTrigger && a.Ticks == 0 {
		s.T.Errorf("millrace audit: exit code %d: %v: %q", p.ExitCode(), a, a.Differences)
	}
	return a
}
