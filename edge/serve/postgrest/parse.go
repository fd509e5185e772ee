package postgrest

import (
	"net/http"
	"strings"
	"unicode"
	"unicode/utf8"
)

// cursor reads a parameter's value from left to right. The first error stays, and
// names the place.
type cursor struct {
	// what is read, for messages.
	what, text string
	at         int
	// shift is how many characters PostgREST counts before the text.
	shift int
}

func (c *cursor) end() bool { return c.at == len(c.text) }

func (c *cursor) peek() byte {
	if c.end() {
		return 0
	}
	return c.text[c.at]
}

// take goes behind s if it stands here.
func (c *cursor) take(s string) bool {
	if !strings.HasPrefix(c.text[c.at:], s) {
		return false
	}
	c.at += len(s)
	return true
}

func (c *cursor) blanks() {
	for !c.end() && (c.peek() == ' ' || c.peek() == '\t') {
		c.at++
	}
}

// fail is the error for what stands here.
func (c *cursor) fail(expecting string) error {
	if c.end() {
		return unparsed(c.what, c.text, c.column(), "unexpected end of input expecting %s", expecting)
	}
	r, _ := utf8.DecodeRuneInString(c.text[c.at:])
	return unparsed(c.what, c.text, c.column(), "unexpected %q expecting %s", string(r), expecting)
}

func (c *cursor) column() int { return 1 + c.shift + utf8.RuneCountInString(c.text[:c.at]) }

// quoted reads a text in double quotes, in which a backslash takes the next
// character as it is. It does not move where there is none.
func (c *cursor) quoted() (string, bool) {
	if c.peek() != '"' {
		return "", false
	}
	var b strings.Builder
	for i := c.at + 1; i < len(c.text); i++ {
		switch ch := c.text[i]; ch {
		case '"':
			c.at = i + 1
			return b.String(), true
		case '\\':
			if i++; i == len(c.text) {
				return "", false
			}
			b.WriteByte(c.text[i])
		default:
			b.WriteByte(ch)
		}
	}
	return "", false
}

// name reads the name of a column: quoted, or letters, digits, _, $, blanks within
// and dashes between.
func (c *cursor) name() (string, error) {
	if text, ok := c.quoted(); ok {
		return text, nil
	}
	start := c.at
	for !c.end() {
		r, size := utf8.DecodeRuneInString(c.text[c.at:])
		dash := r == '-' && c.at > start && !strings.HasPrefix(c.text[c.at:], "->")
		if !dash && r != '_' && r != '$' && r != ' ' && !unicode.IsLetter(r) && !unicode.IsDigit(r) {
			break
		}
		c.at += size
	}
	text := strings.TrimSpace(c.text[start:c.at])
	if text == "" {
		return "", c.fail(`field name (* or [a..z0..9_$])`)
	}
	return text, nil
}

// field reads the name of a column that no path into JSON follows.
func (c *cursor) field() (string, error) {
	name, err := c.name()
	if err == nil && strings.HasPrefix(c.text[c.at:], "->") {
		err = refused("Ask for the whole column and take it apart.", "column %s: paths into JSON (->) are not served", name)
	}
	return name, err
}

// parseFilter reads a filter on a column: name=op.value.
func parseFilter(name, value string, nodes *int) (Node, error) {
	path := cursor{what: "tree path", text: name}
	column, err := path.field()
	if err != nil {
		return Node{}, err
	}
	if path.take(".") {
		return Node{}, &Error{
			Status: http.StatusBadRequest, Code: "PGRST108", Message: "'" + column + "' is not an embedded resource in this request",
			Hint: "Verify that '" + column + "' is included in the 'select' query parameter.",
		}
	}
	if !path.end() {
		return Node{}, path.fail(`"->>", "->", "." or end of input`)
	}
	c := cursor{what: "filter", text: value}
	n, err := c.condition(column, false)
	if err != nil {
		return n, err
	}
	*nodes++
	if !c.end() {
		return n, c.fail("end of input")
	}
	return n, count(nodes, n)
}

// count bounds what one query is made of.
func count(nodes *int, n Node) error {
	if *nodes += len(n.List); *nodes > maxNodes {
		return refused("", "a query of more than %d conditions and values is not served", maxNodes)
	}
	return nil
}

// condition reads an operator and its value. Within a logic tree the value ends at a
// comma or parenthesis.
func (c *cursor) condition(column string, nested bool) (n Node, err error) {
	const expecting = `"not" or operator (eq, gt, ...)`
	n.Column = column
	n.Not = c.take("not.")
	start := c.at
	for !c.end() && c.peek() >= 'a' && c.peek() <= 'z' {
		c.at++
	}
	name := c.text[start:c.at]
	fail := func() (Node, error) {
		c.at = start
		return n, c.fail(expecting)
	}
	switch name {
	case "is":
		if !c.take(".") {
			return fail()
		}
		return n, c.is(&n)
	case "in":
		if !c.take(".") {
			return fail()
		}
		n.Op = In
		n.List, err = c.list()
		return n, err
	case "ilike", "match", "imatch", "cs", "cd", "ov", "sl", "sr", "nxr", "nxl", "adj", "fts", "plfts", "phfts", "wfts":
		return n, refused("", "operator %s is not served", name)
	}
	op, ok := opNames[name]
	if !ok {
		return fail()
	}
	if c.peek() == '(' && (strings.HasPrefix(c.text[c.at:], "(any).") || strings.HasPrefix(c.text[c.at:], "(all).")) {
		return n, refused("Write it as conditions of their own, joined by or or and.", "operator %s(any) or %s(all) is not served", name, name)
	}
	if !c.take(".") {
		return fail()
	}
	n.Op = op
	if !nested {
		n.Value, c.at = c.text[c.at:], len(c.text)
		return n, nil
	}
	n.Value = c.element(true)
	return n, nil
}

// is reads what follows is. in any case of letters.
func (c *cursor) is(n *Node) error {
	rest := c.text[c.at:]
	for _, v := range []struct {
		word string
		op   Op
	}{{"not_null", IsNotNull}, {"null", IsNull}, {"true", IsTrue}, {"false", IsFalse}, {"unknown", IsUnknown}} {
		if len(rest) >= len(v.word) && strings.EqualFold(rest[:len(v.word)], v.word) {
			n.Op = v.op
			c.at += len(v.word)
			return nil
		}
	}
	return c.fail("isVal: (null, not_null, true, false, unknown)")
}

// list reads (a,"b",c).
func (c *cursor) list() ([]string, error) {
	c.blanks()
	if !c.take("(") {
		return nil, c.fail(`"("`)
	}
	c.blanks()
	var all []string
	for {
		all = append(all, c.element(false))
		if !c.take(",") {
			break
		}
	}
	if !c.take(")") {
		return nil, c.fail(`",", ")"`)
	}
	c.blanks()
	if len(all) == 1 && all[0] == "" {
		all = nil // no value at all
	}
	return all, nil
}

// element reads a value up to a comma or parenthesis: quoted, within logic also an
// array in braces, or as it is.
func (c *cursor) element(arrays bool) string {
	start := c.at
	ends := func() bool { return c.end() || c.peek() == ',' || c.peek() == ')' }
	if text, ok := c.quoted(); ok && ends() {
		return text
	}
	c.at = start
	if arrays && c.peek() == '{' {
		if i := strings.IndexAny(c.text[c.at+1:], "{}"); i >= 0 && c.text[c.at+1+i] == '}' {
			c.at += i + 2
			return c.text[start:c.at]
		}
	}
	for !ends() {
		c.at++
	}
	return c.text[start:c.at]
}

// parseLogic reads and=(…), or=(…), and these with not before.
func parseLogic(name, value string, nodes *int) (Node, error) {
	op, not := strings.CutPrefix(name, "not.")
	c := cursor{what: "logic tree", text: value, shift: len(name)}
	n := Node{Not: not}
	if op == "or" {
		n.Op = Or
	}
	err := c.branches(&n, nodes, 1)
	if err == nil && !c.end() {
		err = c.fail("end of input")
	}
	return n, err
}

// branches reads (a,b,…).
func (c *cursor) branches(n *Node, nodes *int, depth int) error {
	if depth > maxDepth {
		return refused("", "conditions are nested more than %d deep", maxDepth)
	}
	c.blanks()
	if !c.take("(") {
		return c.fail(`"("`)
	}
	for {
		c.blanks()
		kid, err := c.branch(nodes, depth)
		if err != nil {
			return err
		}
		n.Kids = append(n.Kids, kid)
		c.blanks()
		if !c.take(",") {
			break
		}
	}
	if !c.take(")") {
		return c.fail(`",", ")"`)
	}
	c.blanks()
	return nil
}

// branch reads a condition on a column, or another and or or.
func (c *cursor) branch(nodes *int, depth int) (Node, error) {
	const expecting = "field name (* or [a..z0..9_$]), negation operator (not) or logic operator (and, or)"
	*nodes++
	start := c.at
	// A column may have the name of an operator, so what reads as a logic operator is
	// one only if a parenthesis follows.
	not := c.take("not.")
	for _, word := range []string{"and", "or"} {
		rest := strings.TrimLeft(strings.TrimPrefix(c.text[c.at:], word), " \t")
		if strings.HasPrefix(c.text[c.at:], word) && strings.HasPrefix(rest, "(") {
			c.at = len(c.text) - len(rest)
			n := Node{Not: not}
			if word == "or" {
				n.Op = Or
			}
			return n, c.branches(&n, nodes, depth+1)
		}
	}
	c.at = start
	column, err := c.field()
	if err != nil {
		if c.at == start && !c.end() {
			return Node{}, c.fail(expecting)
		}
		return Node{}, err
	}
	c.blanks()
	if !c.take(".") {
		return Node{}, c.fail("delimiter (.)")
	}
	n, err := c.condition(column, true)
	if err != nil {
		return n, err
	}
	return n, count(nodes, n)
}
