package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/millrace-db/millrace/client"
	"github.com/millrace-db/millrace/edge/event"
)

func Example() {
	c, err := client.New(client.Config{
		Stream: "bank",
		Unix:   "/run/millrace/edge.sock",
		Peers:  []string{"http://127.0.0.1:7480"},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	row, place, err := c.Get(context.Background(), "public.accounts", "4711")
	if errors.Is(err, client.ErrNoRow) {
		fmt.Println("no such account at", place.ID)
		return
	}
	if err != nil {
		log.Fatal(err)
	}
	var account struct{ Balance float64 }
	if err := row.Into(&account); err != nil {
		log.Fatal(err)
	}
	fmt.Println(account.Balance)
}

// A service reads what it has just written at the source.
func ExampleClient_After() {
	var c *client.Client // made by New
	var token string     // of SELECT millrace.token(), after the commit
	row, _, err := c.After(token, 2*time.Second).Get(context.Background(), "public.accounts", "4711")
	if errors.Is(err, client.ErrBehind) {
		log.Fatal("the write has not come to the edge within two seconds")
	}
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(row.JSON))
}

// A cache is filled and then kept current. It is filled again where the edge cannot tell
// what has changed since.
func ExampleClient_Watch() {
	var c *client.Client // made by New
	ctx := context.Background()
	cache := make(map[string]string)
	for {
		clear(cache)
		_, place, err := c.GetAll(ctx) // where the edge is now
		if err != nil {
			log.Fatal(err)
		}
		for row, err := range c.Min(place.ID, time.Second).Scan(ctx, client.Scan{Table: "public.flags"}) {
			if err != nil {
				log.Fatal(err)
			}
			var flag struct{ Name, Value string }
			if err := row.Into(&flag); err != nil {
				log.Fatal(err)
			}
			cache[flag.Name] = flag.Value
		}
		w := c.Watch(client.WatchOptions{Tables: []string{"public.flags"}, From: &place.ID})
		for again := false; !again; {
			e, err := w.Next(ctx)
			switch {
			case errors.Is(err, client.ErrPruned):
				again = true
			case err != nil:
				log.Fatal(err)
			case e.Op == event.Put:
				var flag struct{ Value string }
				if err := (&client.Row{JSON: e.Row}).Into(&flag); err != nil {
					log.Fatal(err)
				}
				cache[e.Key[0]] = flag.Value
			case e.Op == event.Delete:
				delete(cache, e.Key[0])
			default: // the table as a whole is another one, or the stream was begun anew
				again = true
			}
		}
		w.Close()
	}
}
