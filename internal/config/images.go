package config

import (
	"net/url"
	"path"
	"time"
)

// images checks what is said of images.
func (k *checker) images() {
	o := &k.c.Edge.Images
	if o.Every != 0 {
		k.between("edge.images.every", o.Every, time.Minute, 365*24*time.Hour)
	}
	for _, from := range o.From {
		k.imagesFrom("edge.images.from", from)
	}
}

// imagesFrom checks where images are to be taken from.
func (k *checker) imagesFrom(key, from string) {
	u, err := url.Parse(from)
	switch {
	case err != nil:
		k.bad(key, "%q is no URL", from)
	case u.Scheme == "http" || u.Scheme == "https":
		if u.Host == "" {
			k.bad(key, "%s names no host; write http://host:port", u.Redacted())
		}
	case u.Scheme != "file":
		k.bad(key, "%s: want http://, https:// or file://", u.Redacted())
	case u.Host != "" && u.Host != "localhost" || !path.IsAbs(u.Path):
		k.bad(key, "%s: want the path of a directory, as in file:///mnt/images", u.Redacted())
	}
}
