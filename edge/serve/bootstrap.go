package serve

import (
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
)

// The states of a Bootstrap.
const (
	// BootstrapAsking: peers are asked for images.
	BootstrapAsking = "asking"
	// BootstrapWaiting: a peer makes an image.
	BootstrapWaiting = "waiting"
	// BootstrapDownloading: the image comes.
	BootstrapDownloading = "downloading"
	// BootstrapRestoring: a store is made of it.
	BootstrapRestoring = "restoring"
	// BootstrapChecking: that store is being read through.
	BootstrapChecking = "checking"
	// BootstrapFollowing: it is brought up to date.
	BootstrapFollowing = "following"
	// BootstrapUnconfirmed: no source has said yet that it goes on from the image, and
	// nothing is answered from it until one has.
	BootstrapUnconfirmed = "unconfirmed"
	// BootstrapDone: readers have gone over to it.
	BootstrapDone = "done"
	// BootstrapFailed: no image could be taken; everything is as it was.
	BootstrapFailed = "failed"
)

// Bootstrap says how far an edge is that takes an image from a peer, or how the last
// time has ended.
type Bootstrap struct {
	State string `json:"state"`
	// Reason says why an image is taken.
	Reason string `json:"reason"`
	// From is the peer, Image the name of the image and Index the index that it is of.
	From  string         `json:"from,omitempty"`
	Image string         `json:"image,omitempty"`
	Index millrace.Index `json:"index,omitempty"`
	// Bytes of OfBytes have come, and Rows of OfRows are done: made into an image at
	// the peer while waiting, in the store after that.
	Bytes   int64  `json:"bytes"`
	OfBytes int64  `json:"of_bytes"`
	Rows    uint64 `json:"rows"`
	OfRows  uint64 `json:"of_rows"`
	// Problem says why it has failed; AgainAt is when peers are asked again.
	Problem   string    `json:"problem,omitempty"`
	AgainAt   time.Time `json:"again_at,omitzero"`
	StartedAt time.Time `json:"started_at"`
	EndedAt   time.Time `json:"ended_at,omitzero"`
}

// Running reports whether an image is being taken.
func (b *Bootstrap) Running() bool { return b.State != BootstrapDone && b.State != BootstrapFailed }

// UnprovenStatus says which rows came with an image and were not compared with the
// source since.
type UnprovenStatus struct {
	// Image is the index of the image.
	Image millrace.Index `json:"image"`
	// Tables are their names.
	Tables []string `json:"tables"`
	// Text says it for people.
	Text string `json:"text"`
}

// unprovenStatus names the tables; nil where all rows are proven.
func unprovenStatus(u edge.Unproven, tables []edge.TableInfo) *UnprovenStatus {
	if u.Image == 0 {
		return nil
	}
	s := &UnprovenStatus{Image: u.Image, Tables: []string{}, Text: "rows unproven since image at index " + u.Image.String()}
	for _, id := range u.Tables {
		name := "table " + id.String()
		for i := range tables {
			if tables[i].ID == id {
				name = tables[i].Name
			}
		}
		s.Tables = append(s.Tables, name)
	}
	return s
}
