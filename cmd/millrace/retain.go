package main

import (
	"context"
	"fmt"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/config"
	"github.com/millrace-db/millrace/internal/edgestatus"
	"github.com/millrace-db/millrace/transfer"
)

// retain is what transfer keeps of a topic, and whom it asks who needs it.
func retain(s *config.Stream, epoch millrace.Epoch, w *edgestatus.Watcher) transfer.Retain {
	r := &s.Kafka.Retain
	return transfer.Retain{
		Time: duration(r.Time), Bytes: int64(r.Bytes), Absent: duration(r.Absent),
		Readers: func(ctx context.Context) ([]transfer.Reader, error) {
			edges, err := w.Fresh(ctx)
			if err != nil {
				return nil, err
			}
			var all []transfer.Reader
			for i := range edges {
				all = append(all, readers(&edges[i], epoch)...)
			}
			return all, nil
		},
	}
}

// readers are the edge that has reported, and those below it.
func readers(e *edgestatus.Edge, epoch millrace.Epoch) []transfer.Reader {
	r := transfer.Reader{Name: e.Edge, Epoch: e.Epoch, Index: e.Index}
	if e.Silent || e.State == edgestatus.StateStopped {
		r.Absent = time.Duration(e.AgeSeconds * float64(time.Second))
	}
	if e.Next != nil && e.Next.Epoch == epoch {
		r.Epoch, r.Index = e.Next.Epoch, e.Next.Index
	}
	all := []transfer.Reader{r}
	if e.Below == nil {
		return all
	}
	// They read what relays keep, and relays may have to read it once more. One that has
	// nothing yet gets it from an image, and not from here.
	for i := range e.Below.Epochs {
		below := &e.Below.Epochs[i]
		for _, bin := range below.Bins {
			if below.Epoch == epoch && bin.Index > 0 {
				all = append(all, transfer.Reader{
					Name: fmt.Sprintf("the last of those below %s", e.Edge), Epoch: epoch, Index: bin.Index, Absent: r.Absent,
				})
				break
			}
		}
	}
	return all
}
