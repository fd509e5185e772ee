package harness

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// AwaitReport waits until the edge has reported, for itself and for so many edges below
// it: commands that speak of all edges know of those alone that have.
func (s *System) AwaitReport(limit time.Duration, config string, e *Edge, below int) {
	s.T.Helper()
	Until(s.T, limit, fmt.Sprintf("%s has reported for itself and %d below it", e.ID, below), func(context.Context) error {
		p := s.Run(config, "status", "--json")
		var all []struct {
			Edges []struct {
				Edge  string `json:"edge"`
				Below struct {
					Reporting int `json:"reporting"`
				} `json:"below"`
			} `json:"edges"`
		}
		if err := json.Unmarshal([]byte(p.Stdout()), &all); err != nil || len(all) != 1 {
			return NotYet("status: exit code %d, %v: %s%s", p.ExitCode(), err, p.Stdout(), p.Stderr())
		}
		for _, one := range all[0].Edges {
			if one.Edge == e.ID && one.Below.Reporting >= below {
				return nil
			}
		}
		return NotYet("status shows %+v", all[0].Edges)
	})
}
