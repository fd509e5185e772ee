package main

import (
	"context"
	"net/http"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace/edge/image"
)

// imagesAtOnce is how many images an edge makes at once, over all of its streams.
const imagesAtOnce = 1

// imageMakers are what make the images of each stream, and answer requests for them.
type imageMakers struct {
	makers   []*image.Maker
	handlers map[string]http.Handler
}

// newImageMakers makes one a stream.
func (k *keeper) newImageMakers() (*imageMakers, error) {
	m := &imageMakers{handlers: make(map[string]http.Handler, len(k.streams))}
	turns := image.NewTurns(imagesAtOnce)
	o := &k.c.Edge.Images
	for _, one := range k.streams {
		dir := filepath.Join(o.Dir, one.Name())
		maker, err := image.NewMaker(image.MakerConfig{
			Home: one.Home(), Dir: dir, Turns: turns, Keep: o.Keep, Every: time.Duration(o.Every), Logger: k.log.With("stream", one.Name()),
			Registerer: prometheus.WrapRegistererWith(prometheus.Labels{"stream": one.Name()}, k.registry),
		})
		if err != nil {
			return nil, err
		}
		m.makers = append(m.makers, maker)
		m.handlers[one.Name()] = image.Handler(dir, maker)
	}
	return m, nil
}

// of answers requests for the images of a stream.
func (m *imageMakers) of(stream string) http.Handler { return m.handlers[stream] }

// run makes images until ctx ends.
func (m *imageMakers) run(ctx context.Context, start func(func() error)) {
	for _, maker := range m.makers {
		start(func() error {
			maker.Run(ctx)
			return nil
		})
	}
}
