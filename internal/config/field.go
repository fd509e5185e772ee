package config

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// key is one key of a mapping: a field of a struct with a key tag.
type key struct {
	name, unit, preset, doc string
	index                   int
}

// keysOf lists the keys of a struct type in the order of its fields.
func keysOf(t reflect.Type) []key {
	var keys []key
	for i := range t.NumField() {
		f := t.Field(i)
		name, ok := f.Tag.Lookup("key")
		if !ok {
			continue
		}
		keys = append(keys, key{name: name, unit: f.Tag.Get("unit"), preset: f.Tag.Get("default"), doc: f.Tag.Get("doc"), index: i})
	}
	return keys
}

// isSection reports whether the type holds keys of its own.
func isSection(t reflect.Type) bool { return t.Kind() == reflect.Struct }

// isMap reports whether the type holds values by names that are not ours.
func isMap(t reflect.Type) bool { return t.Kind() == reflect.Map }

// isSectionList reports whether the type is a list of sections.
func isSectionList(t reflect.Type) bool { return t.Kind() == reflect.Slice && isSection(t.Elem()) }

type parser interface{ parse(string) error }

// setText sets a field from a text, as it stands in the file or in a variable.
// Lists are comma-separated there.
func setText(v reflect.Value, text string) error {
	if p, ok := v.Addr().Interface().(parser); ok {
		return p.parse(text)
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("%q is not a whole number", text)
		}
		v.SetInt(int64(n))
	case reflect.Slice:
		var list []string
		for part := range strings.SplitSeq(text, ",") {
			if part = strings.TrimSpace(part); part != "" {
				list = append(list, part)
			}
		}
		v.Set(reflect.ValueOf(list))
	default:
		panic("config: no way to read a " + v.Type().String())
	}
	return nil
}

// visit calls fn for every key that holds a value, with its path: names joined
// by dots, an item of a list by its name.
func visit(v reflect.Value, path string, fn func(path string, k key, v reflect.Value)) {
	for _, k := range keysOf(v.Type()) {
		field := v.Field(k.index)
		at := join(path, k.name)
		switch {
		case isSection(field.Type()):
			visit(field, at, fn)
		case isSectionList(field.Type()):
			for i := range field.Len() {
				visit(field.Index(i), itemPath(at, field.Index(i), i), fn)
			}
		default:
			fn(at, k, field)
		}
	}
}

// itemPath names an item of a list by its name, or by its place if it has none.
func itemPath(path string, item reflect.Value, i int) string {
	name := strconv.Itoa(i + 1)
	if f := item.FieldByName("Name"); f.IsValid() && f.String() != "" {
		name = f.String()
	}
	return join(path, name)
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// variable is the name of the environment variable of a path.
func variable(path string) string {
	return "MILLRACE_" + strings.ToUpper(strings.ReplaceAll(path, ".", "_"))
}
