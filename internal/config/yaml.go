package config

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/agnivade/levenshtein"
	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	yamlparser "github.com/goccy/go-yaml/parser"
)

// reader fills a Config from the nodes of a YAML document. It walks the nodes
// itself, so that every problem has its line, and reports all of them.
type reader struct {
	file     string
	lines    map[string]int
	problems []Problem
}

func (r *reader) problem(line int, format string, args ...any) {
	r.problems = append(r.problems, Problem{File: r.file, Line: line, Text: fmt.Sprintf(format, args...)})
}

// read fills v, a struct with key tags, from the text.
func (r *reader) read(text []byte, v reflect.Value) {
	file, err := yamlparser.ParseBytes(text, 0)
	if err != nil {
		// The error's own text quotes lines of the file, passwords and all.
		var y yaml.Error
		if errors.As(err, &y) && y.GetToken() != nil {
			r.problem(y.GetToken().Position.Line, "not valid YAML: %s", y.GetMessage())
			return
		}
		r.problem(0, "not valid YAML")
		return
	}
	docs := file.Docs
	if len(docs) > 1 {
		r.problem(line(docs[1].Body), "a second YAML document: put everything into one")
		return
	}
	if len(docs) == 0 || docs[0].Body == nil || docs[0].Body.Type() == ast.NullType || docs[0].Body.Type() == ast.CommentType {
		return // validation says what is missing
	}
	r.section(docs[0].Body, "", v)
}

// section fills a struct from a mapping.
func (r *reader) section(node ast.Node, path string, v reflect.Value) {
	var values []*ast.MappingValueNode
	switch n := node.(type) {
	case *ast.MappingNode:
		values = n.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{n}
	case *ast.NullNode:
		return
	default:
		r.problem(line(node), "%s: want keys and values, as in {%s: …}", orFile(path), keysOf(v.Type())[0].name)
		return
	}
	keys := keysOf(v.Type())
	for _, value := range values {
		name := value.Key.GetToken().Value
		at := line(value.Key)
		i := indexOf(keys, name)
		if i < 0 {
			r.problem(at, "%s", unknownKey(path, name, keys))
			continue
		}
		r.lines[join(path, name)] = at
		r.value(value.Value, join(path, name), v.Field(keys[i].index))
	}
}

func (r *reader) value(node ast.Node, path string, v reflect.Value) {
	switch {
	case isSection(v.Type()):
		r.section(node, path, v)
	case isSectionList(v.Type()):
		r.sectionList(node, path, v)
	case isMap(v.Type()):
		r.mapping(node, path, v)
	case v.Kind() == reflect.Slice:
		r.list(node, path, v)
	default:
		text, ok := scalar(node)
		if !ok {
			if node.Type() != ast.NullType {
				r.problem(line(node), "%s: want a single value", path)
			}
			return
		}
		if err := setText(v, text); err != nil {
			r.problem(line(node), "%s: %v", path, err)
		}
	}
}

// mapping fills a map from a mapping with names of the user's.
func (r *reader) mapping(node ast.Node, path string, v reflect.Value) {
	var values []*ast.MappingValueNode
	switch n := node.(type) {
	case *ast.MappingNode:
		values = n.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{n}
	case *ast.NullNode:
		return
	default:
		r.problem(line(node), "%s: want names and values, as in {public.accounts: …}", path)
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	for _, value := range values {
		name := value.Key.GetToken().Value
		at := join(path, name)
		r.lines[at] = line(value.Key)
		element := reflect.New(v.Type().Elem()).Elem()
		r.value(value.Value, at, element)
		v.SetMapIndex(reflect.ValueOf(name), element)
	}
}

func (r *reader) sectionList(node ast.Node, path string, v reflect.Value) {
	if node.Type() == ast.NullType {
		return
	}
	sequence, ok := node.(*ast.SequenceNode)
	if !ok {
		r.problem(line(node), "%s: want a list, with a dash before each item", path)
		return
	}
	for i, item := range sequence.Values {
		v.Set(reflect.Append(v, reflect.Zero(v.Type().Elem())))
		element := v.Index(v.Len() - 1)
		defaults(element)
		// Paths use the item's name, so a first reading looks for it alone.
		probe := reader{file: r.file, lines: map[string]int{}}
		named := reflect.New(element.Type()).Elem()
		probe.section(item, path, named)
		at := itemPath(path, named, i)
		r.lines[at] = line(item)
		r.section(item, at, element)
	}
}

func (r *reader) list(node ast.Node, path string, v reflect.Value) {
	if node.Type() == ast.NullType {
		return
	}
	sequence, ok := node.(*ast.SequenceNode)
	if text, single := scalar(node); single && v.Type() == reflect.TypeFor[Choice]() {
		v.Set(reflect.ValueOf(Choice{text}))
		return
	}
	if !ok {
		r.problem(line(node), "%s: want a list, as in [a, b]", path)
		return
	}
	if v.Type().Elem().Kind() == reflect.Slice {
		lists := reflect.MakeSlice(v.Type(), 0, len(sequence.Values))
		for _, item := range sequence.Values {
			element := reflect.New(v.Type().Elem()).Elem()
			r.list(item, path, element)
			lists = reflect.Append(lists, element)
		}
		v.Set(lists)
		return
	}
	list := []string{}
	for _, item := range sequence.Values {
		text, ok := scalar(item)
		if !ok {
			r.problem(line(item), "%s: want a list of single values", path)
			return
		}
		list = append(list, text)
	}
	v.Set(reflect.ValueOf(list))
}

// scalar returns the text of a single value.
func scalar(node ast.Node) (string, bool) {
	switch n := node.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return strings.TrimSpace(n.Value.Value), true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return node.GetToken().Value, true
	case *ast.MappingNode:
		if len(n.Values) == 1 {
			return hostPortScalar(n.Values[0])
		}
	case *ast.MappingValueNode:
		return hostPortScalar(n)
	}
	return "", false
}

// hostPortScalar undoes what the parser makes of an unquoted host:port within
// brackets: to YAML that is one value, because no space follows the colon.
func hostPortScalar(n *ast.MappingValueNode) (string, bool) {
	key, value := n.Key.GetToken(), n.Value.GetToken()
	if n.Value.Type() != ast.IntegerType || value.Position.Line != key.Position.Line || value.Position.Column != key.Position.Column+len(key.Value)+1 {
		return "", false
	}
	return key.Value + ":" + value.Value, true
}

func line(node ast.Node) int {
	if node == nil || node.GetToken() == nil {
		return 0
	}
	// The token of a block mapping is the colon of its first key.
	if m, ok := node.(*ast.MappingNode); ok && len(m.Values) > 0 && !m.IsFlowStyle {
		return line(m.Values[0].Key)
	}
	if m, ok := node.(*ast.MappingValueNode); ok {
		return line(m.Key)
	}
	return node.GetToken().Position.Line
}

func orFile(path string) string {
	if path == "" {
		return "the file"
	}
	return path
}

func indexOf(keys []key, name string) int {
	for i := range keys {
		if keys[i].name == name {
			return i
		}
	}
	return -1
}

// unknownKey is the message for a key that its mapping does not have: with the
// nearest key that it has, or the place where that key belongs.
func unknownKey(path, name string, keys []key) string {
	text := fmt.Sprintf("unknown key %q", join(path, name))
	var names []string
	for _, k := range keys {
		names = append(names, k.name)
	}
	if near := nearest(name, names); near != "" {
		return text + fmt.Sprintf("; did you mean %q?", near)
	}
	for _, p := range allPaths(reflect.TypeFor[Config](), "") {
		if p == name || strings.HasSuffix(p, "."+name) {
			return text + fmt.Sprintf("; there is a key %q", p)
		}
	}
	return text + "; known here: " + strings.Join(names, ", ")
}

// nearest returns the candidate that is likely meant, or "".
func nearest(name string, candidates []string) string {
	best, least := "", len(name)
	for _, c := range candidates {
		if d := levenshtein.ComputeDistance(strings.ToLower(name), strings.ToLower(c)); d < least {
			best, least = c, d
		}
	}
	if least > max(2, len(name)/3) {
		return ""
	}
	return best
}

// allPaths lists every key of the file; <name> stands for a stream's name.
func allPaths(t reflect.Type, path string) []string {
	var paths []string
	for _, k := range keysOf(t) {
		f := t.Field(k.index).Type
		at := join(path, k.name)
		switch {
		case isSection(f):
			paths = append(append(paths, at), allPaths(f, at)...)
		case isSectionList(f):
			paths = append(append(paths, at), allPaths(f.Elem(), join(at, "<name>"))...)
		default:
			paths = append(paths, at)
		}
	}
	return paths
}

// defaults sets the keys of a struct whose default is a plain value; those in
// angle brackets depend on other keys and are set by complete.
func defaults(v reflect.Value) {
	for _, k := range keysOf(v.Type()) {
		field := v.Field(k.index)
		if isSection(field.Type()) {
			defaults(field)
			continue
		}
		if k.preset == "" || strings.Contains(k.preset, "<") {
			continue
		}
		if err := setText(field, k.preset); err != nil {
			panic("config: default of " + k.name + ": " + err.Error())
		}
	}
}
