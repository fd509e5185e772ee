package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// answerLimit bounds one answer in bytes.
const answerLimit = 256 << 20

// ask sends a request to one edge after the other until one answers, and returns the
// body. Answers other than 200 are an *Error.
func (c *Client) ask(ctx context.Context, method, path string, body []byte) ([]byte, Place, error) {
	began := time.Now()
	var between pause
	for {
		var last, lacking error
		for _, p := range c.order() {
			if c.closed.Load() {
				return nil, Place{}, ErrClosed
			}
			text, place, err := c.askOne(ctx, p, method, path, body)
			if lacks(err) {
				lacking = err
				continue
			}
			if err == nil || ctx.Err() != nil || !passes(err) {
				return text, place, err
			}
			last = err
		}
		if last == nil {
			return nil, Place{}, lacking // no edge has it
		}
		if time.Since(began) >= c.patience {
			return nil, Place{}, gaveUp(last)
		}
		if err := between.wait(ctx); err != nil {
			return nil, Place{}, errors.Join(err, last)
		}
	}
}

// gaveUp is the error after which asking is given up.
func gaveUp(last error) error {
	var answer *Error
	if errors.As(last, &answer) {
		return last
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, last)
}

// passes tells whether another edge, or the same one in a moment, may answer. What is not
// an answer is of the connection: refused, reset, or cut off while a process restarts.
func passes(err error) bool {
	var answer *Error
	return !errors.As(err, &answer) || answer.Status == http.StatusServiceUnavailable || answer.Status == http.StatusBadGateway
}

func (c *Client) askOne(ctx context.Context, p *peer, method, path string, body []byte) ([]byte, Place, error) {
	ctx, cancel := context.WithTimeout(ctx, answerHead+c.fresh.wait)
	defer cancel()
	resp, err := c.send(ctx, p, method, path, body, nil)
	if err != nil {
		return nil, Place{}, err
	}
	defer func() { _ = resp.Body.Close() }() // read as far as it is wanted
	text, err := readAnswer(resp)
	if err != nil {
		p.down.Store(time.Now().Add(downFor).UnixNano())
		return nil, Place{}, fmt.Errorf("read the answer of %s: %w", p.name, err)
	}
	place := p.place(resp.Header)
	complaint := resp.StatusCode != http.StatusOK
	// That there is no row, or table, is as good as the epoch that it is said of. An edge
	// of an older epoch is no reason not to ask the others.
	of := resp.StatusCode == http.StatusNotFound && place.Epoch != 0 || resp.StatusCode == http.StatusGatewayTimeout
	if (!complaint || of) && c.fresh.epoch != 0 && place.Epoch < c.fresh.epoch {
		return nil, place, &Error{
			Status: http.StatusServiceUnavailable, Code: "behind", Edge: p.name, Place: place,
			Message: fmt.Sprintf("it is at epoch %v, asked for is %v", place.Epoch, c.fresh.epoch),
		}
	}
	if complaint {
		return nil, place, p.complaint(resp, text)
	}
	return text, place, nil
}

func readAnswer(resp *http.Response) ([]byte, error) {
	if resp.ContentLength > answerLimit {
		return nil, fmt.Errorf("answer of %d bytes", resp.ContentLength)
	}
	if resp.ContentLength >= 0 {
		text := make([]byte, resp.ContentLength)
		_, err := io.ReadFull(resp.Body, text)
		return text, err
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, answerLimit+1))
	if err == nil && len(text) > answerLimit {
		err = fmt.Errorf("answer of more than %d bytes", answerLimit)
	}
	return text, err
}

// send sends a request to an edge.
func (c *Client) send(ctx context.Context, p *peer, method, path string, body []byte, header http.Header) (*http.Response, error) {
	var reader io.Reader = http.NoBody
	if body != nil {
		reader = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, p.base+path, reader)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", p.name, err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
		// It changes nothing, so it is sent again where the edge has closed a connection
		// that was idle. Without a value the header stays here.
		req.Header["Idempotency-Key"] = nil
	}
	if c.token != "" && p.secret {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := p.http.Do(req)
	if err != nil {
		if ctx.Err() == nil {
			p.down.Store(time.Now().Add(downFor).UnixNano())
		}
		return nil, fmt.Errorf("ask %s: %w", p.name, err)
	}
	p.down.Store(0)
	return resp, nil
}

// complaint takes an answer that is not 200.
func (p *peer) complaint(resp *http.Response, text []byte) error {
	var answer struct {
		Error struct{ Code, Message, Mend string }
	}
	e := &Error{Status: resp.StatusCode, Edge: p.name, Place: p.place(resp.Header), Message: resp.Status}
	if json.Unmarshal(text, &answer) == nil && answer.Error.Message != "" {
		e.Code, e.Message, e.Mend = answer.Error.Code, answer.Error.Message, answer.Error.Mend
	}
	return e
}
