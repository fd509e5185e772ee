package keylog

import (
	"context"
	"fmt"
)

// canOwn reports whether what is made can be handed to the role millrace_owner.
func canOwn(ctx context.Context, q Querier) (bool, error) {
	var can bool
	err := q.QueryRow(ctx, `
SELECT coalesce((SELECT pg_has_role(oid, 'MEMBER') AND has_schema_privilege(oid, 'millrace', 'CREATE') FROM pg_roles WHERE rolname = 'millrace_owner'), false)
   AND (SELECT count(*) FROM pg_roles WHERE rolname IN ('millrace_capture', 'millrace_verifier')) = 2`).Scan(&can)
	if err != nil {
		return false, fmt.Errorf("look up the role millrace_owner: %w", err)
	}
	return can, nil
}
