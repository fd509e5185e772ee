package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// listingName is the file in a directory of images that lists them, for those who
// fetch them from where only files are served.
const listingName = "images.json"

// Listing is the answer to a request for the images that there are, the newest
// first.
type Listing struct {
	Images []Listed `json:"images"`
	// Making is the image that is being made, nil if none is.
	Making *Making `json:"making,omitempty"`
}

// Listed is an image in a Listing.
type Listed struct {
	Name  string `json:"name"`
	Epoch uint64 `json:"epoch"`
	Index uint64 `json:"index"`
	// Rows is their number, Bytes what is to be downloaded.
	Rows  uint64 `json:"rows"`
	Bytes int64  `json:"bytes"`
	// Created is when the image was begun.
	Created time.Time `json:"created,omitzero"`
}

// Wanted is what a request for a new image says: that one is of no use which is not newer
// than an index of an epoch.
type Wanted struct {
	Epoch     uint64 `json:"epoch"`
	NewerThan uint64 `json:"newer_than"`
}

// Making says how far an image is that is being made.
type Making struct {
	Rows uint64    `json:"rows"`
	Of   uint64    `json:"of"`
	At   time.Time `json:"started_at"`
}

// Ask sends a request to an edge's images, to list them (GET) or have one made (POST),
// and returns the answer. An error says what the edge has answered.
func Ask(client *http.Client, q *http.Request) (*Listing, error) {
	r, err := client.Do(q)
	if err != nil {
		var whole *url.Error
		if errors.As(err, &whole) {
			err = whole.Err // without what may be secret in the URL
		}
		return nil, fmt.Errorf("%s %s: %w", q.Method, shown(q.URL), err)
	}
	text, err := io.ReadAll(io.LimitReader(r.Body, maxListing))
	if err = errors.Join(err, r.Body.Close()); err != nil {
		return nil, err
	}
	if r.StatusCode != http.StatusOK && r.StatusCode != http.StatusAccepted {
		return nil, fmt.Errorf("%s answers %s: %.300q", shown(q.URL), r.Status, text)
	}
	var l Listing
	if err := json.Unmarshal(text, &l); err != nil {
		return nil, fmt.Errorf("%s: the answer is not a list of images: %w", shown(q.URL), err)
	}
	return &l, nil
}

// listing lists the images in a directory. What is not whole is left out.
func listing(dir string) (*Listing, error) {
	entries, err := List(dir)
	if err != nil {
		return nil, err
	}
	l := &Listing{Images: []Listed{}}
	for _, e := range entries {
		i, err := Open(e.Path)
		if err != nil {
			continue
		}
		m := i.Manifest()
		l.Images = append(l.Images, Listed{
			Name: imageName(e.Epoch, e.Index), Epoch: uint64(e.Epoch), Index: uint64(e.Index), Rows: m.Rows(), Bytes: m.Stored(), Created: m.Created,
		})
		_ = i.Close() // only read from
	}
	return l, nil
}

// writeListing writes the file that lists the images of a directory, which is locked.
// Whoever reads it finds the list of before or this one.
func writeListing(dir string) error {
	l, err := listing(dir)
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	path := filepath.Join(dir, listingName)
	temp := path + partSuffix
	err = os.Remove(temp) // what a writer that died has left
	if err == nil || errors.Is(err, os.ErrNotExist) {
		err = writeSynced(temp, append(text, '\n'))
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	return syncDir(dir)
}
