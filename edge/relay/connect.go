package relay

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/millrace-db/millrace"
)

const (
	dialTime = 5 * time.Second
	// answerTime is how long an upstream may take to answer request and hello.
	answerTime = 10 * time.Second
	// readBuffer is how much is read at once.
	readBuffer = 64 << 10
)

// Upstream is where an edge is asked.
type Upstream struct {
	text string
	at   *url.URL
	// socket is the path of a unix socket; empty for TCP.
	socket string
	// origin tells that it is where the stream comes from first.
	origin bool
}

// ParseUpstream reads http://host:port, https://host:port, unix:/path/of/socket, or
// OriginName.
func ParseUpstream(text string) (Upstream, error) {
	bad := func(why string) (Upstream, error) {
		return Upstream{}, fmt.Errorf("%q is not where an edge answers: %s; write http://host:port, https://host:port or unix:/path", shownURL(text), why)
	}
	if text == OriginName {
		return Upstream{text: text, at: &url.URL{}, origin: true}, nil
	}
	if path, ok := strings.CutPrefix(text, "unix:"); ok {
		path = "/" + strings.TrimLeft(path, "/")
		if path == "/" {
			return bad("it names no socket")
		}
		return Upstream{text: text, at: &url.URL{Scheme: "http", Host: "localhost"}, socket: path}, nil
	}
	at, err := url.Parse(text)
	switch {
	case err != nil:
		return bad("it is no URL")
	case at.Scheme != "http" && at.Scheme != "https":
		return bad("its scheme is neither http nor https")
	case at.Hostname() == "":
		return bad("it names no host")
	case at.User != nil || at.RawQuery != "" || at.Fragment != "":
		return bad("it holds more than a host")
	}
	at.Path = strings.TrimRight(at.Path, "/")
	return Upstream{text: text, at: at}, nil
}

// String is what was parsed.
func (u Upstream) String() string { return u.text }

// URL is that of the edge, without a path; empty where it is no edge. Over a unix socket it
// names localhost.
func (u Upstream) URL() string { return u.at.String() }

// Socket is the path of the unix socket to ask over; empty for TCP.
func (u Upstream) Socket() string { return u.socket }

// shownURL leaves out what may be secret.
func shownURL(text string) string {
	if i := strings.LastIndexByte(text, '@'); i >= 0 {
		return text[i+1:]
	}
	return text
}

func (u Upstream) address() (network, address string) {
	if u.socket != "" {
		return "unix", u.socket
	}
	port := u.at.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.at.Scheme]
	}
	return "tcp", net.JoinHostPort(u.at.Hostname(), port)
}

// link is a connection to an upstream, after both have introduced themselves.
type link struct {
	conn    net.Conn
	r       *bufio.Reader
	frames  frameReader
	welcome *State
}

// silentConn gives each read a time.
type silentConn struct {
	net.Conn
	silence time.Duration
}

func (c *silentConn) Read(b []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.silence)); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

// connect asks an upstream. Errors: RefusedError, ErrLoop, millrace.ErrDiverged, and
// those of the network.
func (c *Client) connect(ctx context.Context, to Upstream, h *hello) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime+answerTime)
	defer cancel()
	conn, err := c.dial(ctx, to)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	l, err := c.introduce(conn, to, h)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close() // what is wrong is known
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, ErrRefused) {
			err = cause
		}
		return nil, err
	}
	return l, nil
}

func (c *Client) dial(ctx context.Context, to Upstream) (net.Conn, error) {
	network, address := to.address()
	d := net.Dialer{Timeout: dialTime, KeepAlive: 15 * time.Second}
	conn, err := d.DialContext(ctx, network, address)
	if err != nil || to.at.Scheme != "https" {
		return conn, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.config.TLS != nil {
		config = c.config.TLS().Clone()
	}
	config.NextProtos = []string{"http/1.1"}
	if config.ServerName == "" {
		config.ServerName = to.at.Hostname()
	}
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return secure, nil
}

func (c *Client) introduce(conn net.Conn, to Upstream, h *hello) (*link, error) {
	quiet := &silentConn{Conn: conn, silence: answerTime}
	l := &link{conn: conn, r: bufio.NewReaderSize(quiet, readBuffer)}
	l.frames.r = l.r
	if err := conn.SetWriteDeadline(time.Now().Add(answerTime)); err != nil {
		return nil, err
	}
	request, err := http.NewRequest(http.MethodGet, to.at.String()+"/v1/streams/"+url.PathEscape(c.config.Stream)+"/relay", nil) //nolint:noctx // the connection ends with it
	if err != nil {
		return nil, err
	}
	request.Header.Set("Connection", "Upgrade")
	request.Header.Set("Upgrade", Protocol)
	request.Header.Set("User-Agent", "millrace")
	if c.config.Authorize != nil && to.at.Scheme == "https" {
		c.config.Authorize(request)
	}
	if err := request.Write(conn); err != nil {
		return nil, err
	}
	response, err := http.ReadResponse(l.r, request)
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if response.StatusCode != http.StatusSwitchingProtocols || !hasToken(response.Header, "Upgrade", Protocol) {
		text, _ := io.ReadAll(io.LimitReader(response.Body, maxText)) // whatever it is, it is shown
		_ = response.Body.Close()
		return nil, fmt.Errorf("it answers %s: %s", response.Status, oneLine(string(text)))
	}
	if _, err := conn.Write(appendFrame(nil, frameHello, appendHello(nil, h))); err != nil {
		return nil, err
	}
	kind, content, _, err := l.frames.next()
	if err != nil {
		return nil, fmt.Errorf("read welcome: %w", err)
	}
	switch kind {
	case frameWelcome:
		if l.welcome, err = decodeNodeState(content); err != nil {
			return nil, err
		}
	case frameClose:
		return nil, refused(to, content)
	default:
		return nil, fmt.Errorf("%w: kind %d comes first", errFrame, kind)
	}
	quiet.silence = c.config.Silence
	return l, c.judge(to, l.welcome, h)
}

// refused is the error of an upstream's last word.
func refused(to Upstream, content []byte) error {
	g, err := decodeGoodbye(content)
	if err != nil {
		return err
	}
	return &RefusedError{URL: to.String(), Code: g.code, Text: g.text, State: g.state}
}

// judge says why an upstream that would serve cannot be followed.
func (c *Client) judge(to Upstream, s *State, h *hello) error {
	if err := c.circle(to, s); err != nil {
		return err
	}
	refuse := func(code Code, format string, args ...any) error {
		return &RefusedError{URL: to.String(), Code: code, Text: fmt.Sprintf(format, args...), State: s}
	}
	switch {
	case !h.stream.IsZero() && s.Stream != h.stream:
		return refuse(CodeStream, "it has stream %v, wanted is %v", s.Stream, h.stream)
	case h.epoch != 0 && s.Epoch != h.epoch || s.Epoch == 0:
		return refuse(CodeEpochUnknown, "it serves epoch %v, wanted is %v", s.Epoch, h.epoch)
	case h.index > 0 && s.From == h.index && s.FromChain != h.chain:
		return refuse(CodeDiverged, "at index %v it has chain %v, here it is %v", s.From, s.FromChain.Short(), h.chain.Short())
	case s.From > h.index && !h.newest:
		return refuse(CodeMalformed, "it would begin behind index %v, wanted is %v", s.From, h.index)
	}
	return nil
}

// circle refuses an upstream that follows this node.
func (c *Client) circle(to Upstream, s *State) error {
	switch {
	case s.Node == c.config.Node:
		return fmt.Errorf("%w: %s is edge %s, as this one is; mend: name another upstream, or give each edge a name of its own (edge.id)", ErrLoop, to, s.Node)
	case slices.Contains(s.Path, c.config.Node):
		return fmt.Errorf("%w: %s (%s) follows this edge, by way of %s; mend: name an upstream that does not", ErrLoop, to, s.Node, strings.Join(s.Path, ", "))
	case len(s.Path) >= maxPath:
		return fmt.Errorf("%w: %d edges stand above %s; mend: name an upstream nearer to Kafka", ErrLoop, len(s.Path), to)
	}
	return nil
}

// stand is what a state says for the choice.
func (s *State) stand() standing {
	return standing{epoch: s.Epoch, next: s.Next, oldest: s.Oldest, newest: s.Newest, time: s.Time}
}

// diverged tells that an error is about the history itself.
func diverged(err error) bool { return errors.Is(err, millrace.ErrDiverged) }
