package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/millrace-db/millrace/internal/config"
)

const (
	dialLimit    = 2 * time.Second
	requestLimit = 30 * time.Second
	answerLimit  = 256 << 20 // bytes of one answer
)

// errUnreachable occurs when nobody listens where a process should.
var errUnreachable = errors.New("cannot be reached")

// httpClient asks one local process: an edge, or transfer's admin listener.
type httpClient struct {
	base string // scheme and host
	who  string // for messages
	http *http.Client
}

// edgeClient reaches this host's edge: over its unix socket if there is one,
// over TCP otherwise.
func edgeClient(c *config.Config) *httpClient {
	if path := c.Edge.HTTP.Unix; path != "" {
		if _, err := os.Stat(path); err == nil || c.Edge.HTTP.Listen == config.Off {
			return newClient("http://edge", "the edge at "+path, "unix", path)
		}
	}
	return newClient("http://"+c.Edge.HTTP.Listen, "the edge at "+c.Edge.HTTP.Listen, "tcp", c.Edge.HTTP.Listen)
}

// adminClient reaches this host's transfer, nil if it serves nothing.
func adminClient(c *config.Config) *httpClient {
	if c.Transfer.Admin == config.Off {
		return nil
	}
	return newClient("http://"+c.Transfer.Admin, "transfer at "+c.Transfer.Admin, "tcp", c.Transfer.Admin)
}

func newClient(base, who, network, address string) *httpClient {
	dialer := &net.Dialer{Timeout: dialLimit}
	return &httpClient{base: base, who: who, http: &http.Client{
		Timeout: requestLimit,
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, network, address)
			},
		},
	}}
}

// httpError is an answer that is not 200.
type httpError struct {
	status int
	code   string // of the error, where the answer names one
	text   string
}

func (e *httpError) Error() string { return e.text }

// ask sends a request and returns the answer's body and headers.
func (c *httpClient) ask(ctx context.Context, method, path string, body []byte) ([]byte, http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, nil, fmt.Errorf("ask %s: %w", c.who, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			return nil, nil, fmt.Errorf("%s %w: %w; is it running?", c.who, errUnreachable, op.Err)
		}
		return nil, nil, fmt.Errorf("ask %s: %w", c.who, err)
	}
	defer func() { _ = resp.Body.Close() }() // read as far as it is wanted
	text, err := io.ReadAll(io.LimitReader(resp.Body, answerLimit))
	if err != nil {
		return nil, nil, fmt.Errorf("read the answer of %s: %w", c.who, err)
	}
	if resp.StatusCode != http.StatusOK {
		code, complaint := c.complaint(resp, text)
		return nil, nil, &httpError{resp.StatusCode, code, complaint}
	}
	return text, resp.Header, nil
}

// complaint is the code and the message in an answer that is not 200.
func (c *httpClient) complaint(resp *http.Response, text []byte) (code, message string) {
	var answer struct {
		Error struct {
			Code    string `json:"code"`
			Message string `json:"message"`
			Mend    string `json:"mend"`
		} `json:"error"`
	}
	if json.Unmarshal(text, &answer) == nil && answer.Error.Message != "" {
		if answer.Error.Mend != "" {
			return answer.Error.Code, answer.Error.Message + "; " + answer.Error.Mend
		}
		return answer.Error.Code, answer.Error.Message
	}
	if short := strings.TrimSpace(string(text)); short != "" && len(short) < 500 {
		return "", short
	}
	return "", c.who + " answers " + resp.Status
}

// get decodes the JSON answer of a GET.
func (c *httpClient) get(ctx context.Context, path string, into any) error {
	text, _, err := c.ask(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("read the answer of %s: %w", c.who, err)
	}
	return nil
}

func streamPath(stream string) string { return "/v1/streams/" + url.PathEscape(stream) }

func rowsPath(stream, table string) string {
	return streamPath(stream) + "/tables/" + url.PathEscape(table) + "/rows"
}
