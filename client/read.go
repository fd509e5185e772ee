package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"

	"github.com/millrace-db/millrace"
)

// Key names a row: the qualified name of its table, and the texts of its key's columns in
// key order, as Postgres prints them.
type Key struct {
	Table  string
	Values []string
}

// Row is a row as JSON, equal to what to_jsonb gives at the source.
type Row struct {
	JSON json.RawMessage
}

// Exists reports whether there is a row.
func (r *Row) Exists() bool { return len(r.JSON) > 0 }

// Into decodes the row into v, as json.Unmarshal does.
func (r *Row) Into(v any) error {
	if !r.Exists() {
		return ErrNoRow
	}
	return json.Unmarshal(r.JSON, v)
}

// Get reads the row with a key. Where there is none, the error is ErrNoRow, and place says
// at which place there is none.
func (c *Client) Get(ctx context.Context, table string, key ...string) (Row, Place, error) {
	query := make(url.Values)
	c.fresh.query(query)
	text, place, err := c.ask(ctx, http.MethodGet, c.path("/tables/"+url.PathEscape(table)+"/rows/"+millrace.FormatKeyPath(key)+encode(query)), nil)
	if err != nil {
		return Row{}, place, fmt.Errorf("get %s of %s: %w", millrace.FormatKeyPath(key), table, err)
	}
	return Row{text}, place, nil
}

func encode(query url.Values) string {
	if len(query) == 0 {
		return ""
	}
	return "?" + query.Encode()
}

// GetAll reads several rows, of whatever tables, in one snapshot. Rows come in the order of
// the keys; of one that does not exist Exists is false.
func (c *Client) GetAll(ctx context.Context, keys ...Key) ([]Row, Place, error) {
	type one struct {
		Table string   `json:"table"`
		Key   []string `json:"key"`
	}
	request := struct {
		Keys []one `json:"keys"`
	}{make([]one, len(keys))}
	for i, k := range keys {
		request.Keys[i] = one{k.Table, k.Values}
	}
	body, err := json.Marshal(request)
	if err != nil {
		return nil, Place{}, fmt.Errorf("get %d rows: %w", len(keys), err)
	}
	query := make(url.Values)
	c.fresh.query(query)
	text, place, err := c.ask(ctx, http.MethodPost, c.path("/rows:get"+encode(query)), body)
	if err != nil {
		return nil, place, fmt.Errorf("get %d rows: %w", len(keys), err)
	}
	var answer struct {
		Rows []json.RawMessage `json:"rows"`
	}
	if err := json.Unmarshal(text, &answer); err != nil || len(answer.Rows) != len(keys) {
		return nil, place, fmt.Errorf("read the answer of %s: %d rows for %d keys: %w", place.Edge, len(answer.Rows), len(keys), err)
	}
	rows := make([]Row, len(keys))
	for i, text := range answer.Rows {
		if string(text) != "null" {
			rows[i].JSON = text
		}
	}
	return rows, place, nil
}

// Scan is what a range of keys is read with.
type Scan struct {
	Table string
	// Prefix are leading columns of the key, as millrace.ParseKeyPrefix takes them;
	// empty for all rows.
	Prefix string
	// Page is how many rows one request asks for. Default 500.
	Page int
}

// Scan reads the rows of a range in key order, page by page, each page in a snapshot of its
// own, which is not older than the one before it. The walk ends with an error, if one
// occurs, as its last item.
func (c *Client) Scan(ctx context.Context, s Scan) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		page := *c
		cursor := ""
		for {
			rows, next, place, err := page.scan(ctx, &s, cursor)
			if err != nil {
				yield(Row{}, fmt.Errorf("scan %s: %w", s.Table, err))
				return
			}
			for _, text := range rows {
				if !yield(Row{text}, nil) {
					return
				}
			}
			if cursor = next; cursor == "" {
				return
			}
			if place.Epoch == page.fresh.epoch || page.fresh.epoch == 0 {
				page.fresh = fresh{min: place.Index, epoch: place.Epoch, wait: page.fresh.wait}
			} else {
				page.fresh = fresh{epoch: place.Epoch}
			}
		}
	}
}

func (c *Client) scan(ctx context.Context, s *Scan, cursor string) ([]json.RawMessage, string, Place, error) {
	limit := s.Page
	if limit <= 0 {
		limit = 500
	}
	query := url.Values{"limit": {strconv.Itoa(limit)}}
	if s.Prefix != "" {
		query.Set("prefix", s.Prefix)
	}
	if cursor != "" {
		query.Set("cursor", cursor)
	}
	c.fresh.query(query)
	text, place, err := c.ask(ctx, http.MethodGet, c.path("/tables/"+url.PathEscape(s.Table)+"/rows"+encode(query)), nil)
	if err != nil {
		return nil, "", place, err
	}
	var answer struct {
		Rows   []json.RawMessage `json:"rows"`
		Cursor string            `json:"cursor"`
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return nil, "", place, errors.Join(fmt.Errorf("read the answer of %s", place.Edge), err)
	}
	return answer.Rows, answer.Cursor, place, nil
}
