package image

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
)

// An image of a partial edge says what that holds. Edges that hold as much or less take
// it, and of a whole image what they hold; others do not.
func TestPartialImage(t *testing.T) {
	dir := t.TempDir()
	a, err := millrace.NewFilter([]string{"public.a"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	both, err := millrace.NewFilter([]string{"public.a", "public.b"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	take := func(name string, filter *millrace.Filter) *Image {
		o := options(filepath.Join(dir, name))
		o.Filter = filter
		s := newSource(t, openStore(t, o))
		s.unit(1)
		return openImage(t, mustCreate(t, s, filepath.Join(dir, name+"-images"), 0).Path)
	}
	whole, part := take("whole", nil), take("part", a)
	if !whole.Manifest().Filter.All() || !part.Manifest().Filter.Equal(a) || part.Manifest().Rows() != sourceRows {
		t.Errorf("of %v, and of %v with %d rows", whole.Manifest().Filter, part.Manifest().Filter, part.Manifest().Rows())
	}
	for i, c := range []struct {
		image  *Image
		filter *millrace.Filter
		fits   bool
	}{{whole, nil, true}, {whole, a, true}, {part, a, true}, {part, both, false}, {part, nil, false}} {
		suits := c.image.Manifest().Suits(c.filter)
		if (suits == nil) != c.fits || suits != nil && !errors.Is(suits, edge.ErrWider) {
			t.Errorf("%d: %v", i, suits)
		}
		o := options(filepath.Join(dir, "home", string(rune('a'+i))))
		o.Filter = c.filter
		h, err := edge.OpenHome(o)
		if err != nil {
			t.Fatal(err)
		}
		r, err := Restore(t.Context(), h, c.image, nil)
		switch {
		case c.fits && err == nil:
			err = r.Switch(t.Context())
		case !c.fits && errors.Is(err, edge.ErrWider):
			err = nil
		}
		if err != nil {
			t.Errorf("%d: %v", i, err)
		} else if c.fits {
			err := h.View(t.Context(), func(v *edge.View) error {
				tables, err := v.Tables()
				if want := 2 - len(h.Filter().Tables); len(tables) != want || tables[0].Rows != sourceRows {
					t.Errorf("%d: tables are %+v", i, tables)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
			if err := h.Store().Check(context.Background()); err != nil {
				t.Error(err)
			}
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}
}
