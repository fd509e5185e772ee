package table

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/capture"
)

// FenceNames says which tables of a stream are not configured by the names that they
// have at the source by now, where others are configured that it does not have: they
// may have been renamed. Which became which is not for us to guess. tables are the
// configured ones that the source has. Errors: capture.ErrTables.
func FenceNames(ctx context.Context, q Querier, catalog *millrace.Catalog, tables []*Info) error {
	var all []error
	for _, s := range catalog.Schemas {
		if slices.ContainsFunc(tables, func(t *Info) bool { return t.ID == s.Table }) {
			continue
		}
		t, err := ByID(ctx, q, s.Table, nil)
		if err != nil {
			return err
		}
		if t != nil {
			all = append(all, fmt.Errorf("%w: the stream has table %v (OID %v), which is not configured; mend: if it was renamed, write its new name in source.tables", capture.ErrTables, t.Name, t.ID))
		}
	}
	return errors.Join(all...)
}
