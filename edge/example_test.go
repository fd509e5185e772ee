package edge_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/millrace-db/millrace/edge"
)

// A process beside the edge reads rows from the store itself.
func ExampleOpenReadOnly() {
	store, err := edge.OpenReadOnly(edge.Options{Dir: "/var/lib/millrace/bank"})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	err = store.View(context.Background(), func(v *edge.View) error {
		accounts, err := v.Table("public.accounts")
		if err != nil {
			return err
		}
		key, err := accounts.Codec().Append(nil, [][]byte{[]byte("4711")})
		if err != nil {
			return err
		}
		var row edge.Row
		if err := accounts.Get(key, &row); errors.Is(err, edge.ErrNotFound) {
			fmt.Println("no such account at index", v.Index())
			return nil
		} else if err != nil {
			return err
		}
		// The texts are those that Postgres prints, valid within the view.
		fmt.Printf("%s\n", row.Columns[1].Text)
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
}
