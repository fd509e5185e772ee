package postgrest

import (
	"slices"
	"strconv"
	"strings"
)

// describe says how a path reads.
func (p *path) describe(t *Table) string {
	by := p.index
	what := "by the index over ("
	if by == nil {
		what = "by the key ("
		for _, at := range t.key {
			by = append(by, t.columns[at].name)
		}
	}
	return what + strings.Join(by, ", ") + ")"
}

// missingIndex returns the columns of an index that would lead to fewer rows than the
// path, nil if there is none: those that have to be equal to something, then one that
// lies in a range, or those of the order.
func (p *Plan) missingIndex() []string {
	bounds, _ := p.bounds()
	var equal, rest []string
	add := func(list []string, c *column) []string {
		if c.codec == nil || slices.Contains(equal, c.name) || slices.Contains(rest, c.name) {
			return list
		}
		return append(list, c.name)
	}
	for i := range p.t.columns {
		if b := bounds[i]; b != nil && b.equal {
			equal = add(equal, &p.t.columns[i])
		}
	}
	ordered := false
	for i := range p.order {
		c := p.order[i].col
		if !c.storeOrdered() || p.order[i].desc != p.order[0].desc {
			break
		}
		if b := bounds[c.at]; b == nil || !b.equal {
			rest = add(rest, c)
			ordered = true
		}
	}
	if !ordered || len(equal) == 0 && p.q.Limit < 0 {
		for i := range p.t.columns {
			if b := bounds[i]; b != nil && !b.equal && (b.lowKey != nil || b.highKey != nil || len(b.prefix) > 0) {
				rest = add(nil, &p.t.columns[i])
				break
			}
		}
	}
	columns := append(equal, rest...)
	have := p.path.index
	if have == nil {
		for _, at := range p.t.key {
			have = append(have, p.t.columns[at].name)
		}
	}
	if len(columns) == 0 || len(columns) <= len(have) && slices.Equal(columns, have[:len(columns)]) {
		return nil
	}
	return columns
}

// yamlName quotes a name where YAML would take it for something else.
func yamlName(s string) string {
	for i := range len(s) {
		c := s[i]
		if c != '_' && c != '.' && (c < '0' || c > '9' || i == 0) && (c|0x20 < 'a' || c|0x20 > 'z') {
			return strconv.Quote(s)
		}
	}
	switch strings.ToLower(s) {
	case "y", "n", "yes", "no", "on", "off", "true", "false", "null", "":
		return strconv.Quote(s)
	}
	return s
}

func yamlNames(list []string) string {
	quoted := make([]string, len(list))
	for i := range list {
		quoted[i] = yamlName(list[i])
	}
	return strings.Join(quoted, ", ")
}
