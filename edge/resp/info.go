package resp

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/millrace-db/millrace/edge"
)

// redisVersion is the version of Redis whose answers these are like; clients look
// at it to learn what they may ask.
const redisVersion = "7.0.0"

// info tells people and clients about the edge: INFO [section…].
func (c *conn) info() {
	wanted := make(map[string]bool)
	for i := range c.args[1:] {
		wanted[c.arg(i+1)] = true
	}
	if len(wanted) == 0 || wanted["DEFAULT"] || wanted["ALL"] || wanted["EVERYTHING"] {
		wanted = nil
	}
	var b strings.Builder
	section := func(name string, lines ...string) {
		if wanted != nil && !wanted[strings.ToUpper(name)] {
			return
		}
		if b.Len() > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString("# " + name + "\r\n")
		for _, line := range lines {
			b.WriteString(line + "\r\n")
		}
	}
	c.s.mu.Lock()
	clients := len(c.s.conns)
	c.s.mu.Unlock()
	section("Server", "redis_version:"+redisVersion, "redis_mode:standalone", "server_name:millrace", "millrace_version:"+c.s.config.Version,
		fmt.Sprintf("process_id:%d", os.Getpid()), fmt.Sprintf("uptime_in_seconds:%d", int(time.Since(c.s.started).Seconds())))
	section("Clients", fmt.Sprintf("connected_clients:%d", clients), fmt.Sprintf("maxclients:%d", c.s.config.MaxConns))
	section("Replication", "role:slave", "slave_read_only:1")
	var streams, sizes []string
	for _, st := range c.s.streams {
		if !c.who.Stream(st.name) {
			continue
		}
		p := st.reader.Place()
		lag := "unknown"
		if !p.Time.IsZero() {
			lag = fmt.Sprintf("%.6f", max(0, time.Since(p.Time).Seconds()))
		}
		streams = append(streams, fmt.Sprintf("stream%d:name=%s,epoch=%v,index=%v,lag=%s", st.number, st.name, p.Epoch, p.Index, lag))
		var rows uint64
		err := st.reader.View(c.ctx, func(v *edge.View) error {
			infos, err := v.Tables()
			for i := range infos {
				if c.who.Table(st.name, infos[i].Name) {
					rows += infos[i].Rows
				}
			}
			return err
		})
		if err != nil {
			sizes = append(sizes, fmt.Sprintf("db%d:error=%q", st.number, err.Error()))
			continue
		}
		sizes = append(sizes, fmt.Sprintf("db%d:keys=%d,expires=0,avg_ttl=0", st.number, rows))
	}
	section("Keyspace", sizes...)
	section("Millrace", streams...)
	c.out.verbatim(b.String())
}

// listCommands tells clients what there is: COMMAND [COUNT | LIST | DOCS | INFO name…].
func (c *conn) listCommands() {
	names := slices.Sorted(maps.Keys(c.s.commands))
	names = slices.DeleteFunc(names, func(name string) bool { return c.s.commands[name].write })
	sub := "INFO"
	if len(c.args) > 1 {
		sub = c.arg(1)
	}
	switch sub {
	case "COUNT":
		c.out.int(int64(len(names)))
	case "LIST":
		c.out.array(len(names))
		for _, name := range names {
			c.out.text(c.s.commands[name].name)
		}
	case "DOCS":
		c.out.pairs(0)
	case "INFO":
		if len(c.args) > 2 {
			names = names[:0]
			for i := range c.args[2:] {
				names = append(names, c.arg(i+2))
			}
		}
		c.out.array(len(names))
		for _, name := range names {
			c.describeCommand(c.s.commands[name])
			if len(c.out.b) > freeBuffer && !c.reserveOut(0) {
				c.fail("BUSY too many large answers are being written at once; ask again, for fewer at once")
				return
			}
		}
	default:
		c.fail("ERR COMMAND knows COUNT, LIST, DOCS and INFO, not '" + short(c.args[1]) + "'")
	}
}

func (c *conn) describeCommand(cmd *command) {
	if cmd == nil {
		if c.out.proto == 3 {
			c.out.null()
		} else {
			c.out.b = append(c.out.b, "*-1\r\n"...)
		}
		return
	}
	flag := "fast"
	if cmd.read != nil {
		flag = "readonly"
	} else if cmd.write {
		flag = "write"
	}
	first, last := 0, 0
	if cmd.keys != noKey {
		first, last = 1, 1
	}
	if cmd.keys == allKeys {
		last = -1
	}
	c.out.array(6)
	c.out.text(cmd.name)
	c.out.int(int64(cmd.arity))
	c.out.array(1)
	c.out.simple(flag)
	c.out.int(int64(first))
	c.out.int(int64(last))
	c.out.int(int64(first))
}
