package millrace

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// Filter says which tables of a stream a partial edge holds, and which keys of them.
// The zero value says all of everything. It is not changed after it was made; any
// number of goroutines may use it at once.
type Filter struct {
	// Tables are what is held, in ascending order of name and each name once. A
	// table that is not among them is not held at all. None stands for all tables.
	Tables []FilterTable
}

// FilterTable is a table of a Filter.
type FilterTable struct {
	// Name is the qualified name (public.accounts). Which table has it is decided
	// by the newest schema, so a table that is renamed comes or goes.
	Name string
	// Prefixes are the leading values of the keys that are held, as the source
	// prints them; none stands for all keys. They stand in ascending order, and
	// none is the beginning of another one.
	Prefixes [][]string
}

const (
	// MaxFilter is the largest encoded filter in bytes.
	MaxFilter = 32 << 10

	filterTables protowire.Number = 1

	filterName     protowire.Number = 1
	filterPrefixes protowire.Number = 2

	filterValues protowire.Number = 1
)

// NewFilter makes a filter of tables that are held wholly and of tables of which
// the keys under some prefixes are, both by their qualified names. It keeps nothing
// of its arguments. The error names what contradicts itself.
func NewFilter(tables []string, prefixes map[string][][]string) (*Filter, error) {
	f := new(Filter)
	for _, name := range tables {
		if _, ok := prefixes[name]; ok {
			return nil, fmt.Errorf("filter: table %s is to be held wholly and by prefixes; mend: name it once", name)
		}
		f.Tables = append(f.Tables, FilterTable{Name: name})
	}
	for name, list := range prefixes {
		if len(list) == 0 {
			return nil, fmt.Errorf("filter: table %s has no prefixes; mend: give at least one, or name it among the tables that are held wholly", name)
		}
		t := FilterTable{Name: name}
		for _, p := range list {
			t.Prefixes = append(t.Prefixes, slices.Clone(p))
		}
		slices.SortFunc(t.Prefixes, slices.Compare)
		t.Prefixes = shortest(t.Prefixes, beginsWith)
		f.Tables = append(f.Tables, t)
	}
	slices.SortFunc(f.Tables, func(a, b FilterTable) int { return cmp.Compare(a.Name, b.Name) })
	f.Tables = slices.CompactFunc(f.Tables, func(a, b FilterTable) bool { return a.Name == b.Name })
	if err := f.Validate(); err != nil {
		return nil, err
	}
	return f, nil
}

func beginsWith(long, short []string) bool {
	return len(long) >= len(short) && slices.Equal(long[:len(short)], short)
}

// shortest takes out of sorted prefixes those that begin with another one.
func shortest[P any](sorted []P, beginsWith func(long, short P) bool) []P {
	kept := sorted[:0]
	for _, p := range sorted {
		if n := len(kept); n == 0 || !beginsWith(p, kept[n-1]) {
			kept = append(kept, p)
		}
	}
	return kept
}

// All reports whether everything is held.
func (f *Filter) All() bool { return f == nil || len(f.Tables) == 0 }

// Table returns what is held of the table with a qualified name. held is false where
// nothing is.
func (f *Filter) Table(name string) (t FilterTable, held bool) {
	if f.All() {
		return FilterTable{Name: name}, true
	}
	i, ok := slices.BinarySearchFunc(f.Tables, name, func(t FilterTable, name string) int { return cmp.Compare(t.Name, name) })
	if !ok {
		return FilterTable{}, false
	}
	return f.Tables[i], true
}

// Covers reports whether all that o holds is held by f.
func (f *Filter) Covers(o *Filter) bool {
	if f.All() {
		return true
	}
	if o.All() {
		return false
	}
	for _, want := range o.Tables {
		have, held := f.Table(want.Name)
		if !held || !have.covers(&want) {
			return false
		}
	}
	return true
}

// Holds reports whether all keys of a table are held that begin with some values of its
// leading columns, as the source prints them; no values stand for all keys.
func (f *Filter) Holds(table string, values []string) bool {
	t, held := f.Table(table)
	want := FilterTable{Name: table}
	if len(values) > 0 {
		want.Prefixes = [][]string{values}
	}
	return held && t.covers(&want)
}

func (t *FilterTable) covers(o *FilterTable) bool {
	if len(t.Prefixes) == 0 {
		return true
	}
	if len(o.Prefixes) == 0 {
		return false
	}
	for _, want := range o.Prefixes {
		if !slices.ContainsFunc(t.Prefixes, func(have []string) bool { return beginsWith(want, have) }) {
			return false
		}
	}
	return true
}

// Equal reports whether both hold the same.
func (f *Filter) Equal(o *Filter) bool { return f.Covers(o) && o.Covers(f) }

// String is for people: the tables, with the prefixes in the form of keys in URLs.
func (f *Filter) String() string {
	if f.All() {
		return "everything"
	}
	parts := make([]string, 0, len(f.Tables))
	for _, t := range f.Tables {
		part := t.Name
		if len(t.Prefixes) > 0 {
			keys := make([]string, len(t.Prefixes))
			for i, p := range t.Prefixes {
				keys[i] = FormatKeyPath(p)
			}
			part += " (keys under " + strings.Join(keys, "; ") + ")"
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, ", ")
}

// Validate says what a well-formed filter must not have.
func (f *Filter) Validate() error {
	bad := func(name, what string) error {
		return fmt.Errorf("%w: filter: table %q: %s", ErrMalformed, name, what)
	}
	for i, t := range f.Tables {
		namespace, table, dotted := strings.Cut(t.Name, ".")
		switch {
		case !dotted || namespace == "" || table == "":
			return bad(t.Name, "want a qualified name, as in public.accounts")
		case i > 0 && f.Tables[i-1].Name >= t.Name:
			return bad(t.Name, "names are not in ascending order")
		}
		for j, p := range t.Prefixes {
			switch {
			case len(p) == 0:
				return bad(t.Name, "a prefix without values")
			case j > 0 && slices.Compare(t.Prefixes[j-1], p) >= 0, j > 0 && beginsWith(p, t.Prefixes[j-1]):
				return bad(t.Name, "prefixes are not in ascending order, or one begins with another")
			}
		}
	}
	if n := len(AppendFilter(nil, f)); n > MaxFilter {
		return fmt.Errorf("filter of %d bytes: %w; the limit is %d", n, ErrTooLarge, MaxFilter)
	}
	return nil
}

// AppendFilter appends the encoded form of f: nothing where everything is held. Two
// filters that hold the same have the same bytes.
func AppendFilter(dst []byte, f *Filter) []byte {
	if f.All() {
		return dst
	}
	for _, t := range f.Tables {
		dst = appendMessageField(dst, filterTables, func(dst []byte) []byte {
			dst = appendStringField(dst, filterName, t.Name)
			for _, p := range t.Prefixes {
				dst = appendMessageField(dst, filterPrefixes, func(dst []byte) []byte {
					for _, v := range p {
						dst = protowire.AppendTag(dst, filterValues, protowire.BytesType)
						dst = protowire.AppendString(dst, v)
					}
					return dst
				})
			}
			return dst
		})
	}
	return dst
}

// DecodeFilter reads what AppendFilter wrote. The result does not alias b.
func DecodeFilter(b []byte) (*Filter, error) {
	if len(b) > MaxFilter {
		return nil, fmt.Errorf("filter of %d bytes: %w; the limit is %d", len(b), ErrTooLarge, MaxFilter)
	}
	f := new(Filter)
	err := eachField(b, "filter", func(fd *field) error {
		if fd.num != filterTables {
			return fd.unknown()
		}
		var b []byte
		if err := fd.element(&b); err != nil {
			return err
		}
		t, err := decodeFilterTable(b)
		f.Tables = append(f.Tables, t)
		return err
	})
	if err == nil {
		err = f.Validate()
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

func decodeFilterTable(b []byte) (t FilterTable, err error) {
	err = eachField(b, "table of a filter", func(fd *field) error {
		switch fd.num {
		case filterName:
			return fd.string(&t.Name)
		case filterPrefixes:
			var b []byte
			if err := fd.element(&b); err != nil {
				return err
			}
			var values []string
			err := eachField(b, "prefix of a filter", func(fd *field) error {
				if fd.num != filterValues {
					return fd.unknown()
				}
				var v string
				err := fd.textElement(&v)
				values = append(values, v)
				return err
			})
			t.Prefixes = append(t.Prefixes, values)
			return err
		}
		return fd.unknown()
	})
	return t, err
}

// Scope is what is held of one table, by the encoding of its keys. The zero value
// holds nothing.
type Scope struct {
	all bool
	// prefixes are those of the encoded keys, in ascending order; none begins with
	// another.
	prefixes [][]byte
}

// AllKeys is the Scope of a table of which everything is held.
func AllKeys() Scope { return Scope{all: true} }

// Scope returns what is held of the table that a schema describes. The error is for a
// prefix whose values are none of the key's columns; it is an ErrPrefix.
func (f *Filter) Scope(s *Schema) (Scope, error) {
	t, held := f.Table(s.QualifiedName())
	if !held {
		return Scope{}, nil
	}
	if len(t.Prefixes) == 0 {
		return Scope{all: true}, nil
	}
	codec, err := NewKeyCodec(s)
	if err != nil {
		return Scope{}, err
	}
	var scope Scope
	for _, p := range t.Prefixes {
		texts := make([][]byte, len(p))
		for i := range p {
			texts[i] = []byte(p[i])
		}
		b, err := codec.AppendPrefix(nil, texts, false)
		if err != nil {
			return Scope{}, fmt.Errorf("%w: %s of table %s: %w; mend: correct edge.tables", ErrPrefix, FormatKeyPath(p), t.Name, err)
		}
		scope.prefixes = append(scope.prefixes, b)
	}
	scope.sort()
	return scope, nil
}

func (s *Scope) sort() {
	slices.SortFunc(s.prefixes, bytes.Compare)
	s.prefixes = shortest(s.prefixes, bytes.HasPrefix)
}

// All reports whether all keys are held, None whether no key is.
func (s *Scope) All() bool { return s.all }

// None reports whether no key is held.
func (s *Scope) None() bool { return !s.all && len(s.prefixes) == 0 }

// Holds reports whether an encoded key is held. It does not keep key.
func (s *Scope) Holds(key []byte) bool { return s.HoldsAll(key) }

// HoldsAll reports whether all keys that begin with prefix are held.
func (s *Scope) HoldsAll(prefix []byte) bool {
	if s.all {
		return true
	}
	// The one that prefix could begin with is the last that is not behind it.
	i, found := slices.BinarySearchFunc(s.prefixes, prefix, bytes.Compare)
	return found || i > 0 && bytes.HasPrefix(prefix, s.prefixes[i-1])
}

// HoldsRange reports whether all keys from low to before high (to the end, where high
// is empty) are held.
func (s *Scope) HoldsRange(low, high []byte) bool {
	if s.all {
		return true
	}
	for _, p := range s.prefixes {
		if !bytes.HasPrefix(low, p) {
			continue
		}
		// High may be the first key behind the prefix.
		end := prefixEnd(p)
		return end == nil || len(high) > 0 && bytes.Compare(high, end) <= 0
	}
	return false
}

// prefixEnd returns the first byte string behind all that begin with p, or nil if
// there is none.
func prefixEnd(p []byte) []byte {
	for n := len(p); n > 0; n-- {
		if p[n-1] != 0xff {
			end := bytes.Clone(p[:n])
			end[n-1]++
			return end
		}
	}
	return nil
}

// Covers reports whether all that o holds is held by s.
func (s *Scope) Covers(o *Scope) bool {
	if s.all {
		return true
	}
	return !o.all && !slices.ContainsFunc(o.prefixes, func(p []byte) bool { return !s.HoldsAll(p) })
}

// Prefixes returns those of the encoded keys that are held where not all are. The
// caller must not change them.
func (s *Scope) Prefixes() [][]byte { return s.prefixes }

// add makes s hold what o holds, too.
func (s *Scope) add(o *Scope) {
	s.all = s.all || o.all
	s.prefixes = append(s.prefixes, o.prefixes...)
	s.sort()
}
