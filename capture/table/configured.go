package table

import (
	"context"

	"github.com/millrace-db/millrace/capture"
)

// Configured looks up tables by their names, with what is chosen of them. Those that
// exist are returned, in the order of the names; that one does not is a problem.
func Configured(ctx context.Context, q Querier, names []Name, choices *Choices) (tables []*Info, problems []capture.Problem, err error) {
	for _, name := range names {
		t, err := ByName(ctx, q, name)
		if err != nil {
			return nil, nil, err
		}
		if t == nil {
			problems = append(problems, capture.Refuse(capture.ErrTables, "table "+name.String(), "the source has no such table", "correct its name in the configuration, or create it"))
			continue
		}
		t.Choice = choices.Of(name)
		tables = append(tables, t)
	}
	return tables, problems, nil
}
