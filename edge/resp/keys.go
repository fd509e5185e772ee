package resp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/edge"
	"github.com/millrace-db/millrace/internal/rowjson"
)

// maxKeys is the largest number of keys in one command.
const maxKeys = 10_000

// readState is what reading rows by key takes, to be used again.
type readState struct {
	// first is the command that a batch begins with, done how many were begun.
	first *command
	done  int

	// name and table are those that were looked up last in the snapshot, named as
	// they are in keys.
	named string
	table *edge.Table
	texts [][]byte
	raw   []byte
	key   []byte
	row   edge.Row
}

// begin forgets what belongs to the snapshot before.
func (r *readState) begin() { r.table = nil }

// end forgets what belongs to this snapshot.
func (r *readState) end() {
	const most = 64 << 10
	r.table = nil
	if cap(r.raw) > most {
		r.raw = nil
	}
	if cap(r.key) > most {
		r.key = nil
	}
	clear(r.texts)
	clear(r.row.Columns)
	r.row.Schema = nil
}

// clientError is an answer that is an error; its first word is for programs.
type clientError string

func (e clientError) Error() string { return string(e) }

// errAway tells that a row is too large to be read while others wait for it.
const errAway = clientError("BUSY the row is large; ask again")

func refuse(format string, args ...any) error { return clientError(fmt.Sprintf(format, args...)) }

// failRead answers with an error of a command that reads.
func (c *conn) failRead(err error) {
	var e clientError
	switch {
	case errors.As(err, &e):
		c.fail(string(e))
	case errors.Is(err, edge.ErrCorrupt):
		c.complain(err)
		c.fail("CORRUPT " + err.Error())
	case errors.Is(err, edge.ErrNotHeld):
		text := err.Error()
		if !c.who.AllTables(c.stream.name) { // what it holds instead may be of tables that are not to be seen
			text = "this edge does not hold all that is asked for; ask an edge that holds it"
		}
		c.fail("NOTHELD " + text)
	case errors.Is(err, edge.ErrClosed), errors.Is(err, context.Canceled):
		c.fail("CLOSED the edge is shutting down; ask again, or another edge")
	case errors.Is(err, edge.ErrExpired), errors.Is(err, context.DeadlineExceeded):
		c.fail("BUSY " + err.Error() + "; ask again, for less at once")
	default:
		c.complain(err)
		c.fail("ERR " + err.Error())
	}
}

// complainEvery keeps a damaged row that is read often from filling the log, in
// seconds.
const complainEvery = 60

// complain logs what the operator must know of, beside the client.
func (c *conn) complain(err error) {
	now, last := time.Now().Unix(), c.stream.complained.Load()
	if now-last >= complainEvery && c.stream.complained.CompareAndSwap(last, now) {
		c.s.log.Error("read failed", "stream", c.stream.name, "error", err)
	}
}

// locate finds the table of a key, and encodes the key of the row.
func (c *conn) locate(v *edge.View, key []byte) (*edge.Table, error) {
	colon := bytes.IndexByte(key, ':')
	if colon < 0 {
		return nil, refuse("ERR key '%s' names no table; a key is schema.table:key", short(key))
	}
	t, err := c.tableOf(v, key[:colon])
	if err != nil {
		return nil, err
	}
	if err := c.reads.split(key[colon+1:]); err != nil {
		return nil, refuse("ERR key '%s': %v", short(key), err)
	}
	if c.reads.key, err = t.Codec().Append(c.reads.key[:0], c.reads.texts); err != nil {
		return nil, refuse("ERR key '%s': %v; the key of %s is %s", short(key), err, t.Name(), keyForm(t))
	}
	return t, nil
}

// tableOf finds a table as it is named in a key.
func (c *conn) tableOf(v *edge.View, name []byte) (*edge.Table, error) {
	r := &c.reads
	if r.table != nil && string(name) == r.named {
		return r.table, nil
	}
	r.named, r.table = "", nil
	text := string(name)
	if strings.IndexByte(text, '%') >= 0 {
		var err error
		if text, err = url.PathUnescape(text); err != nil {
			return nil, refuse("ERR table '%s' is not percent-encoded; write a percent sign as %%25 and a colon as %%3A", short(name))
		}
	}
	if !c.who.Table(c.stream.name, text) {
		return nil, refuse("NOPERM %s may not read table %s of stream %s", c.who.Name(), short(name), c.stream.name)
	}
	t, err := v.Table(text)
	if errors.Is(err, edge.ErrNoTable) {
		return nil, c.noTable(v, text)
	}
	if err != nil {
		return nil, err
	}
	r.named, r.table = string(name), t
	return t, nil
}

// noTable says why there is no table; while it is copied, clients may try again.
func (c *conn) noTable(v *edge.View, name string) error {
	checkpoint, err := v.Checkpoint()
	if err != nil {
		return err
	}
	if checkpoint == nil || checkpoint.Index == 0 {
		return refuse("LOADING stream %s has not been copied to this edge yet", c.stream.name)
	}
	for _, s := range checkpoint.Catalog.Schemas {
		if s.QualifiedName() == name {
			return refuse("LOADING table %s is being copied to this edge", name)
		}
	}
	infos, err := v.Tables()
	if err != nil {
		return err
	}
	const most = 20
	var names []string
	for i := range infos {
		if len(names) < most && c.who.Table(c.stream.name, infos[i].Name) {
			names = append(names, infos[i].Name)
		}
	}
	return refuse("ERR stream %s has no table %s; there are: %s", c.stream.name, short([]byte(name)), strings.Join(names, ", "))
}

// keyForm says how keys of a table are written.
func keyForm(t *edge.Table) string {
	return tablePart(t.Name()) + ":{" + strings.Join(keyNames(t.Schema()), "},{") + "}, with a comma within a value written %2C"
}

func keyNames(s *millrace.Schema) []string {
	var names []string
	for _, i := range s.KeyColumns() {
		names = append(names, s.Columns[i].Name)
	}
	return names
}

// tablePart writes the name of a table as it stands in keys.
func tablePart(name string) string {
	if !strings.ContainsAny(name, "%:") {
		return name
	}
	return strings.NewReplacer("%", "%25", ":", "%3A").Replace(name)
}

// split takes the values of the key's columns out of a key.
func (r *readState) split(path []byte) error {
	r.texts = r.texts[:0]
	if bytes.IndexByte(path, '%') >= 0 {
		values, err := millrace.ParseKeyPath(string(path))
		if err != nil {
			return err
		}
		for _, v := range values {
			r.texts = append(r.texts, []byte(v))
		}
		return nil
	}
	for {
		comma := bytes.IndexByte(path, ',')
		if comma < 0 {
			r.texts = append(r.texts, path)
			return nil
		}
		r.texts = append(r.texts, path[:comma])
		path = path[comma+1:]
	}
}

// find reads the row of a key. It returns no table where there is none.
func (c *conn) findRow(v *edge.View, key []byte) (*edge.Table, error) {
	t, err := c.locate(v, key)
	if err != nil {
		return nil, err
	}
	c.reads.row.Most = 0
	if c.parked {
		c.reads.row.Most = freeBuffer
	}
	err = t.Get(c.reads.key, &c.reads.row)
	switch {
	case errors.Is(err, edge.ErrNotFound):
		return nil, nil //nolint:nilnil // there is no such row
	case errors.Is(err, edge.ErrLarge):
		return nil, errAway
	}
	return t, err
}

// encoder returns what writes the row that was read as one of the newest schema.
func (c *conn) encoder(t *edge.Table) (*rowjson.Encoder, error) {
	return c.stream.encoders.Get(c.reads.row.Schema, t.Schema())
}

func (c *conn) textSize() int {
	n := 0
	for i := range c.reads.row.Columns {
		n += len(c.reads.row.Columns[i].Text)
	}
	return n
}

// appendRow answers with the row that was read.
func (c *conn) appendRow(t *edge.Table) error {
	enc, err := c.encoder(t)
	if err != nil {
		return err
	}
	size := c.textSize()
	if len(c.out.b)+size > freeBuffer && !c.reserveOut(size) {
		return refuse("BUSY too many large answers are being written at once; ask again, for less at once")
	}
	at := c.out.openBulk(max(size, 100))
	start := len(c.out.b)
	if c.out.b, err = enc.AppendRow(c.out.b, &c.reads.row.Row); err != nil {
		return err
	}
	c.out.closeBulk(at, start)
	// Escapes may have made it longer; what is there cannot be turned away.
	if more := int64(len(c.out.b)) - freeBuffer - c.reservedOut; more > 0 {
		c.s.buffered.Add(more)
		c.reservedOut += more
	}
	return nil
}

func (c *conn) get(v *edge.View) error {
	t, err := c.findRow(v, c.args[1])
	if err != nil {
		return err
	}
	if t == nil {
		c.out.null()
		return nil
	}
	return c.appendRow(t)
}

func (c *conn) mget(v *edge.View) error {
	keys := c.args[1:]
	if len(keys) > maxKeys {
		return refuse("ERR %d keys are asked for, at most %d are answered at once", len(keys), maxKeys)
	}
	c.out.array(len(keys))
	for i, key := range keys {
		t, err := c.findRow(v, key)
		switch {
		case err != nil:
			return err
		case t == nil:
			c.out.null()
			continue
		}
		if err := c.appendRow(t); err != nil {
			return err
		}
		if len(c.out.b)-c.mark > c.s.config.MaxAnswer && len(keys) > 1 {
			return refuse("ERR the first %d rows have more than %d bytes; ask for fewer at once", i+1, c.s.config.MaxAnswer)
		}
	}
	return nil
}

func (c *conn) exists(v *edge.View) error {
	if len(c.args)-1 > maxKeys {
		return refuse("ERR %d keys are asked for, at most %d are answered at once", len(c.args)-1, maxKeys)
	}
	n := 0
	for _, key := range c.args[1:] {
		t, err := c.findRow(v, key)
		if err != nil {
			return err
		}
		if t != nil {
			n++
		}
	}
	c.out.int(int64(n))
	return nil
}

func (c *conn) strlen(v *edge.View) error {
	t, err := c.findRow(v, c.args[1])
	if err != nil || t == nil {
		c.out.int(0)
		return err
	}
	if err := c.appendRow(t); err != nil {
		return err
	}
	// The answer is in the buffer, behind its own length.
	answer := c.out.b[c.mark:]
	head := bytes.IndexByte(answer, '\n') + 1
	n := len(answer) - head - len("\r\n")
	c.out.b = c.out.b[:c.mark]
	c.out.int(int64(n))
	return nil
}

func (c *conn) typeOf(v *edge.View) error {
	t, err := c.findRow(v, c.args[1])
	if err != nil {
		return err
	}
	if t == nil {
		c.out.simple("none")
	} else {
		c.out.simple("string")
	}
	return nil
}

func (c *conn) ttl(v *edge.View) error {
	t, err := c.findRow(v, c.args[1])
	if err != nil {
		return err
	}
	if t == nil {
		c.out.int(-2)
	} else {
		c.out.int(-1) // nothing expires
	}
	return nil
}

// column returns the text of a column of the row that was read, nil for NULL.
func (c *conn) column(t *edge.Table, name []byte) ([]byte, error) {
	schema := t.Schema()
	for i := range schema.Columns {
		if schema.Columns[i].Name == string(name) {
			return c.datum(schema, i), nil
		}
	}
	var names []string
	for i := range schema.Columns {
		names = append(names, schema.Columns[i].Name)
	}
	return nil, refuse("ERR table %s has no column '%s'; there are: %s", t.Name(), short(name), strings.Join(names, ", "))
}

// datum returns the text of the i-th column of the newest schema, nil for NULL. A
// row of an older one has it elsewhere, or not at all.
func (c *conn) datum(newest *millrace.Schema, i int) []byte {
	row := &c.reads.row
	if row.Schema != newest {
		i = row.Schema.Counterpart(&newest.Columns[i])
	}
	if i < 0 || row.Columns[i].State != millrace.ColumnValue {
		return nil
	}
	if row.Columns[i].Text == nil {
		return []byte{}
	}
	return row.Columns[i].Text
}

func (c *conn) hget(v *edge.View) error {
	t, err := c.findRow(v, c.args[1])
	if err != nil || t == nil {
		c.out.null()
		return err
	}
	text, err := c.column(t, c.args[2])
	if err != nil {
		return err
	}
	return c.appendText(text)
}

func (c *conn) appendText(text []byte) error {
	if text == nil {
		c.out.null()
		return nil
	}
	if len(c.out.b)+len(text) > freeBuffer && !c.reserveOut(len(text)) {
		return refuse("BUSY too many large answers are being written at once; ask again, for less at once")
	}
	c.out.bulk(text)
	return nil
}

func (c *conn) hmget(v *edge.View) error {
	fields := c.args[2:]
	if len(fields) > maxKeys {
		return refuse("ERR %d columns are asked for, at most %d are answered at once", len(fields), maxKeys)
	}
	t, err := c.findRow(v, c.args[1])
	if err != nil {
		return err
	}
	c.out.array(len(fields))
	for _, name := range fields {
		if t == nil {
			c.out.null()
			continue
		}
		text, err := c.column(t, name)
		if err != nil {
			return err
		}
		if err := c.appendText(text); err != nil {
			return err
		}
		if len(c.out.b)-c.mark > c.s.config.MaxAnswer && len(fields) > 1 {
			return refuse("ERR the columns have more than %d bytes; ask for fewer at once", c.s.config.MaxAnswer)
		}
	}
	return nil
}

func (c *conn) hgetall(v *edge.View) error {
	t, err := c.findRow(v, c.args[1])
	if err != nil {
		return err
	}
	if t == nil {
		c.out.pairs(0)
		return nil
	}
	schema := t.Schema()
	n := 0
	for i := range schema.Columns {
		if c.datum(schema, i) != nil {
			n++
		}
	}
	c.out.pairs(n)
	for i := range schema.Columns {
		text := c.datum(schema, i)
		if text == nil {
			continue
		}
		c.out.text(schema.Columns[i].Name)
		if err := c.appendText(text); err != nil {
			return err
		}
	}
	return nil
}
