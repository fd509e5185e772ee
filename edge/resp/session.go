package resp

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-db/millrace/edge/access"
)

// arg is an argument in capitals.
func (c *conn) arg(i int) string { return strings.ToUpper(short(c.args[i])) }

// wrongNumber answers a command whose arguments are too few or too many.
func (c *conn) wrongNumber() {
	c.fail("ERR wrong number of arguments for '" + strings.ToLower(short(c.args[0])) + "' command")
}

func (c *conn) ping() {
	switch len(c.args) {
	case 1:
		c.out.simple("PONG")
	case 2:
		c.out.bulk(c.args[1])
	default:
		c.wrongNumber()
	}
}

func (c *conn) echo() { c.out.bulk(c.args[1]) }

func (c *conn) quit() {
	c.out.ok()
	c.closing = true
}

// selectStream takes a stream by its number or its name.
func (c *conn) selectStream() {
	for _, st := range c.s.streams {
		if string(c.args[1]) != st.name && string(c.args[1]) != strconv.Itoa(st.number) {
			continue
		}
		if !c.who.Stream(st.name) {
			c.fail("NOPERM " + c.who.Name() + " may not see stream " + st.name)
			return
		}
		c.stream = st
		c.out.ok()
		return
	}
	var names []string
	for _, st := range c.s.streams {
		if c.who.Stream(st.name) {
			names = append(names, fmt.Sprintf("%d (%s)", st.number, st.name))
		}
	}
	c.fail("ERR there is no stream " + short(c.args[1]) + "; there are: " + strings.Join(names, ", "))
}

// auth takes a token: AUTH token, or AUTH anything token.
func (c *conn) auth() {
	if len(c.args) > 3 {
		c.wrongNumber()
		return
	}
	if c.authenticate(string(c.args[len(c.args)-1])) {
		c.out.ok()
	}
}

// authenticate takes a token, or answers with an error.
func (c *conn) authenticate(token string) bool {
	if c.s.config.Access == nil {
		c.fail("ERR AUTH is called, and this edge has no list of who may do what; send no password, or set edge.tls.access")
		return false
	}
	if !c.login(access.OfToken(token)) {
		c.s.log.Warn("a client showed a token that is nobody's", "client", c.remote)
		c.fail("WRONGPASS the token is nobody's; see edge.tls.access")
		return false
	}
	return true
}

// hello negotiates the version of the protocol: HELLO [2|3 [AUTH user token]
// [SETNAME name]].
func (c *conn) hello() {
	proto, name := c.out.proto, c.name
	rest := c.args[1:]
	if len(rest) > 0 {
		switch string(rest[0]) {
		case "2":
			proto = 2
		case "3":
			proto = 3
		default:
			c.fail("NOPROTO unsupported protocol version; there are 2 and 3")
			return
		}
		rest = rest[1:]
	}
	token, hasToken := "", false
	for len(rest) > 0 {
		switch word := strings.ToUpper(short(rest[0])); {
		case word == "AUTH" && len(rest) >= 3:
			token, hasToken = string(rest[2]), true
			rest = rest[3:]
		case word == "SETNAME" && len(rest) >= 2:
			name = string(rest[1])
			rest = rest[2:]
		default:
			c.fail("ERR syntax error in HELLO at '" + short(rest[0]) + "'")
			return
		}
	}
	if !plainWord(name) {
		c.fail(badName)
		return
	}
	if hasToken && !c.authenticate(token) {
		return
	}
	if !c.rights() {
		c.fail("NOAUTH HELLO must be called with the client already authenticated, or with AUTH and a token")
		return
	}
	c.out.proto, c.name = proto, name
	c.out.pairs(7)
	c.out.text("server")
	c.out.text("millrace")
	c.out.text("version")
	c.out.text(c.s.config.Version)
	c.out.text("proto")
	c.out.int(int64(proto))
	c.out.text("id")
	c.out.int(c.id)
	c.out.text("mode")
	c.out.text("standalone")
	c.out.text("role")
	c.out.text("replica")
	c.out.text("modules")
	c.out.array(0)
}

const (
	badName = "ERR a client's name has no blanks, line ends or special characters, and at most 128 bytes"
	maxName = 128
)

// plainWord tells what may stand in a line of CLIENT LIST.
func plainWord(s string) bool {
	return len(s) <= maxName && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

func (c *conn) client() {
	switch sub := c.arg(1); {
	case sub == "ID" && len(c.args) == 2:
		c.out.int(c.id)
	case sub == "GETNAME" && len(c.args) == 2:
		if c.name == "" {
			c.out.null()
			return
		}
		c.out.text(c.name)
	case sub == "SETNAME" && len(c.args) == 3:
		if !plainWord(string(c.args[2])) {
			c.fail(badName)
			return
		}
		c.name = string(c.args[2])
		c.out.ok()
	case sub == "SETINFO" && len(c.args) == 4:
		c.setInfo()
	case (sub == "INFO" || sub == "LIST") && len(c.args) == 2:
		// Of other clients nothing is told.
		c.out.verbatim(c.describe() + "\n")
	case sub == "REPLY" && len(c.args) == 3 && c.arg(2) == "ON",
		sub == "NO-EVICT" && len(c.args) == 3, sub == "NO-TOUCH" && len(c.args) == 3:
		c.out.ok()
	default:
		c.fail("ERR CLIENT knows ID, GETNAME, SETNAME, SETINFO, INFO and LIST, with their arguments; not '" + short(c.args[1]) + "'")
	}
}

func (c *conn) setInfo() {
	value := string(c.args[3])
	if !plainWord(value) {
		c.fail(badName)
		return
	}
	switch c.arg(2) {
	case "LIB-NAME":
		c.library[0] = value
	case "LIB-VER":
		c.library[1] = value
	default:
		c.fail("ERR CLIENT SETINFO knows LIB-NAME and LIB-VER, not '" + short(c.args[2]) + "'")
		return
	}
	c.out.ok()
}

func (c *conn) describe() string {
	return fmt.Sprintf("id=%d addr=%v laddr=%v name=%s age=%d db=%d resp=%d lib-name=%s lib-ver=%s user=%s",
		c.id, c.remote, c.local, c.name, int(time.Since(c.since).Seconds()), c.stream.number, c.out.proto,
		c.library[0], c.library[1], c.who.Name())
}
