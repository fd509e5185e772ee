package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// requestLimit bounds one request to an edge or transfer, on a loaded machine too.
const requestLimit = 30 * time.Second

// ErrNotFound says that the edge has no such row or table.
var ErrNotFound = errors.New("404 from the edge")

// Status is what `millrace status --json` and an edge say of a stream.
type Status struct {
	Stream     string   `json:"stream"`
	StreamID   string   `json:"stream_id"`
	Epoch      uint64   `json:"epoch"`
	Index      uint64   `json:"index"`
	Chain      string   `json:"chain"`
	Term       uint64   `json:"term"`
	LagSeconds *float64 `json:"lag_seconds"`
	Fault      string   `json:"fault"`
	// Next is a newer epoch that is being copied, nil if none is.
	Next *struct {
		Epoch uint64 `json:"epoch"`
		Index uint64 `json:"index"`
	} `json:"next"`
	// Upstream is whom an edge follows, nil where it is Kafka.
	Upstream *Upstream `json:"upstream"`
	// Tables are an edge's, with the rows that readers see.
	Tables []TableStatus `json:"tables"`
	// Loading are the tables of which an edge has a load under way.
	Loading []string `json:"loading"`
	// Verify is what an edge has found.
	Verify []TableVerify `json:"verify"`
}

// Upstream is whom an edge follows.
type Upstream struct {
	URL       string   `json:"url"`
	Node      string   `json:"node"`
	Path      []string `json:"path"`
	Upstreams []struct {
		URL     string `json:"url"`
		Problem string `json:"problem"`
		Untrue  string `json:"untrue"`
	} `json:"upstreams"`
}

// TableVerify is what an edge has found of a table.
type TableVerify struct {
	Table     string `json:"table"`
	Different uint64 `json:"different"`
	Pass      struct {
		ID        uint64 `json:"id"`
		Equal     uint64 `json:"equal"`
		Different uint64 `json:"different"`
	} `json:"pass"`
	Differences []json.RawMessage `json:"differences"`
}

// TableStatus is what an edge says of a table.
type TableStatus struct {
	Name string `json:"name"`
	Rows uint64 `json:"rows"`
}

// Rows is the number of rows that readers see of a table, 0 if it is not there.
func (s *Status) Rows(table string) uint64 {
	for _, t := range s.Tables {
		if t.Name == table {
			return t.Rows
		}
	}
	return 0
}

// Client reads one stream of an edge over HTTP. It is safe for concurrent use.
type Client struct {
	base   string
	client *http.Client
}

// NewClient makes a client of the stream at the edge that listens on address.
func NewClient(address, stream string) *Client {
	return &Client{
		base:   "http://" + address + "/v1/streams/" + stream,
		client: &http.Client{Timeout: requestLimit, Transport: &http.Transport{MaxIdleConnsPerHost: 16}},
	}
}

// Answer is a body and where it was read: the epoch, and the index in it.
type Answer struct {
	Epoch, Index uint64
	Body         []byte
}

// Page is one answer of a scan.
type Page struct {
	Epoch, Index uint64            `json:"-"`
	Rows         []json.RawMessage `json:"rows"`
	Cursor       string            `json:"cursor"`
}

func (c *Client) do(ctx context.Context, method, path string, body []byte) (Answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return Answer{}, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
		// It reads, so it is sent again where the edge has closed an idle connection just
		// as it was used: one that was dialled in vain, for instance, which shows no
		// request for the time that an edge waits for a header. No value, no header.
		req.Header["Idempotency-Key"] = nil
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer func() { _ = resp.Body.Close() }() // read to its end below
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return Answer{}, err
	}
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return Answer{}, fmt.Errorf("%w: %s %s: %s", ErrNotFound, method, path, bytes.TrimSpace(text))
	default:
		return Answer{}, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, bytes.TrimSpace(text))
	}
	index, err := strconv.ParseUint(resp.Header.Get("X-Millrace-Index"), 10, 64)
	if err != nil {
		return Answer{}, fmt.Errorf("%s %s: header X-Millrace-Index: %w", method, path, err)
	}
	epoch, err := strconv.ParseUint(resp.Header.Get("X-Millrace-Epoch"), 10, 64)
	if err != nil {
		return Answer{}, fmt.Errorf("%s %s: header X-Millrace-Epoch: %w", method, path, err)
	}
	return Answer{Epoch: epoch, Index: index, Body: text}, nil
}

// Status asks how far the edge has come.
func (c *Client) Status(ctx context.Context) (Status, error) {
	a, err := c.do(ctx, http.MethodGet, "/status", nil)
	if err != nil {
		return Status{}, err
	}
	var s Status
	if err := json.Unmarshal(a.Body, &s); err != nil {
		return Status{}, fmt.Errorf("read status %q: %w", a.Body, err)
	}
	return s, nil
}

// Row reads one row by the texts of its key columns.
func (c *Client) Row(ctx context.Context, table string, key ...string) (Answer, error) {
	return c.do(ctx, http.MethodGet, "/tables/"+url.PathEscape(table)+"/rows/"+keyPath(key), nil)
}

func keyPath(key []string) string {
	escaped := make([]string, len(key))
	for i, k := range key {
		escaped[i] = strings.ReplaceAll(url.PathEscape(k), ",", "%2C")
	}
	return strings.Join(escaped, ",")
}

// Scan reads a page of rows in key order.
func (c *Client) Scan(ctx context.Context, table, prefix string, limit int, cursor string) (Page, error) {
	q := url.Values{"limit": {strconv.Itoa(limit)}}
	if prefix != "" {
		q.Set("prefix", prefix)
	}
	if cursor != "" {
		q.Set("cursor", cursor)
	}
	a, err := c.do(ctx, http.MethodGet, "/tables/"+url.PathEscape(table)+"/rows?"+q.Encode(), nil)
	if err != nil {
		return Page{}, err
	}
	p := Page{Epoch: a.Epoch, Index: a.Index}
	if err := json.Unmarshal(a.Body, &p); err != nil {
		return Page{}, fmt.Errorf("read page: %w", err)
	}
	return p, nil
}

// RowKey names a row for Get.
type RowKey struct {
	Table string   `json:"table"`
	Key   []string `json:"key"`
}

// Get reads several rows in one snapshot.
func (c *Client) Get(ctx context.Context, keys []RowKey) (Answer, error) {
	body, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		return Answer{}, err
	}
	return c.do(ctx, http.MethodPost, "/rows:get", body)
}
