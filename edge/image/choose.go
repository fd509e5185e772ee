package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// choose returns the URL and the name of the image to download: of those that are
// to be had the newest, unless an older one has come in part.
func (f *fetcher) choose(ctx context.Context) (at *url.URL, name string, err error) {
	if last := path.Base(f.at.Path); isImageName(last) {
		return f.at, last, f.giveUp(last)
	}
	f.listed = false
	l, err := f.list(ctx)
	if err != nil {
		return nil, "", err
	}
	f.listed = true
	var refused error
	for _, listed := range l.Images {
		if !isImageName(listed.Name) {
			return nil, "", final(fmt.Errorf("the list of images has one with the name %.40q", listed.Name))
		}
		if err := f.refused[listed.Name]; err != nil {
			if refused == nil {
				refused = err
			}
			continue
		}
		if _, err := os.Stat(filepath.Join(f.dir, listed.Name+loadSuffix)); name == "" || err == nil {
			name = listed.Name
		}
	}
	if name == "" && refused != nil {
		return nil, "", final(refused)
	}
	if name == "" {
		return nil, "", final(ErrNone)
	}
	if f.chosen[name] = true; len(f.chosen) > maxChosen {
		err := fmt.Errorf("%d images were listed there one after the other, and none of them came to be of use", maxChosen)
		return nil, "", final(errors.Join(err, refused))
	}
	return f.at.JoinPath(name), name, f.giveUp(name)
}

// ErrNone occurs where there are no images. Mend: have one made there.
var ErrNone = errors.New("there is no image; mend: run millrace image create there")

// list asks for the images that there are: of an edge that answers it, or else of the
// file that a directory of images has.
func (f *fetcher) list(ctx context.Context) (*Listing, error) {
	l, err := f.listAt(ctx, f.at)
	var end *finalError
	if errors.As(err, &end) {
		if file, ferr := f.listAt(ctx, f.at.JoinPath(listingName)); ferr == nil {
			return file, nil
		}
	}
	return l, err
}

func (f *fetcher) listAt(ctx context.Context, at *url.URL) (*Listing, error) {
	text, err := f.ask(ctx, at, maxListing)
	if err != nil {
		return nil, err
	}
	var l Listing
	if err := json.Unmarshal(text, &l); err != nil {
		return nil, final(fmt.Errorf("the answer is not a list of images: %w", err))
	}
	return &l, nil
}

func isImageName(name string) bool {
	_, _, ok := parseName(name)
	return ok
}

// giveUp removes what has come of images other than one.
func (f *fetcher) giveUp(name string) error {
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return final(err)
	}
	for _, e := range entries {
		if other, ok := strings.CutSuffix(e.Name(), loadSuffix); ok && other != name && isImageName(other) {
			if err := os.RemoveAll(filepath.Join(f.dir, e.Name())); err != nil {
				return final(err)
			}
		}
	}
	return nil
}
