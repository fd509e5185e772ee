package postgrest

import (
	"net/http"
	"strings"
)

// parseSelect reads the columns of an answer: as:name::cast, or *.
func (q *Query) parseSelect(text string) error {
	q.All, q.Select = false, nil
	c := cursor{what: "select parameter", text: text}
	if strings.TrimSpace(text) == "" {
		return nil // rows without columns
	}
	for {
		c.blanks()
		item, err := c.item(q)
		if err != nil {
			return err
		}
		q.Select = append(q.Select, item)
		c.blanks()
		if !c.take(",") {
			break
		}
	}
	if !c.end() {
		return c.fail(`"," or end of input`)
	}
	if len(q.Select) == 1 && q.Select[0] == (Item{Column: "*"}) {
		q.All, q.Select = true, nil
	}
	return nil
}

// item reads one column.
func (c *cursor) item(q *Query) (item Item, err error) {
	if c.take("*") {
		return Item{Column: "*"}, nil
	}
	spread := c.take("...")
	if item.Column, err = c.name(); err != nil {
		return item, err
	}
	if c.peek() == ':' && !strings.HasPrefix(c.text[c.at:], "::") {
		c.at++
		item.As = item.Column
		if item.Column, err = c.name(); err != nil {
			return item, err
		}
	}
	if strings.HasPrefix(c.text[c.at:], "->") {
		return item, refused("Ask for the whole column and take it apart.", "column %s: paths into JSON (->) are not served", item.Column)
	}
	if c.peek() == '(' || c.peek() == '!' || spread {
		if item.Column == "count" && strings.HasPrefix(c.text[c.at:], "()") {
			return item, noAggregates()
		}
		if q.Embedded == "" {
			q.Embedded = item.Column
		}
		return item, c.skipEmbedded()
	}
	if c.take("::") {
		start := c.at
		for !c.end() && (c.peek() == '_' || c.peek() == ' ' || c.peek() == '$' || c.peek() >= '0' && c.peek() <= '9' || c.peek()|0x20 >= 'a' && c.peek()|0x20 <= 'z') {
			c.at++
		}
		if item.Cast = strings.TrimSpace(c.text[start:c.at]); item.Cast == "" {
			return item, c.fail("letter or digit")
		}
	}
	if c.peek() == '.' {
		for _, f := range []string{"sum", "avg", "count", "max", "min"} {
			if strings.HasPrefix(c.text[c.at:], "."+f+"()") {
				return item, noAggregates()
			}
		}
	}
	return item, nil
}

func noAggregates() error {
	return &Error{Status: http.StatusBadRequest, Code: "PGRST123", Message: "Use of aggregate functions is not allowed"}
}

// skipEmbedded goes behind what a relation is asked for, which is refused once the
// table is known.
func (c *cursor) skipEmbedded() error {
	for !c.end() && c.peek() != '(' {
		c.at++
	}
	for depth := 0; !c.end(); {
		switch c.peek() {
		case '(':
			depth++
		case ')':
			depth--
		}
		if c.at++; depth == 0 {
			return nil
		}
	}
	return c.fail(`")"`)
}

// parseOrder reads name.desc.nullslast,….
func (q *Query) parseOrder(text string) error {
	q.Order = nil
	c := cursor{what: "order", text: text}
	if text == "" {
		return nil
	}
	for {
		c.blanks()
		name, err := c.field()
		if err != nil {
			return err
		}
		if c.peek() == '(' {
			return refused("", "order by columns of another table (%s) is not served", name)
		}
		term := Term{Column: name}
		if c.take(".desc") {
			term.Desc = true
		} else {
			c.take(".asc")
		}
		term.NullsFirst = term.Desc
		if c.take(".nullsfirst") {
			term.NullsFirst = true
		} else if c.take(".nullslast") {
			term.NullsFirst = false
		}
		q.Order = append(q.Order, term)
		c.blanks()
		if !c.take(",") {
			break
		}
	}
	if len(q.Order) > maxDepth {
		return refused("", "an order of more than %d terms is not served", maxDepth)
	}
	if c.end() {
		return nil
	}
	if c.take(".") {
		return c.fail(`"asc", "desc", "nullsfirst" or "nullslast"`)
	}
	return c.fail(`delimiter (.), "," or end of input`)
}
