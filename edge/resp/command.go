package resp

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace/edge"
)

// command is one of the commands.
type command struct {
	name string
	// arity is the number of arguments, the name among them; negative for the least.
	arity int
	// early tells that it is answered before it is known who asks.
	early bool
	// slow tells that it may take time, in which others are not to wait for it.
	slow bool
	// write tells that it is refused because it would write.
	write bool
	// keys tells that every argument, or the first, is a key, for COMMAND.
	keys int
	// run answers; read does, from a snapshot. One of them is set, or write.
	run   func(*conn)
	read  func(*conn, *edge.View) error
	count prometheus.Counter
}

func (c *command) takes(n int) bool {
	if c.arity < 0 {
		return n >= -c.arity
	}
	return n == c.arity
}

// manyArgs is from how many arguments on a command that reads takes time.
const manyArgs = 64

// takesTime tells that others are not to wait for the command.
func (c *command) takesTime(args [][]byte) bool { return c.slow || len(args) > manyArgs }

const (
	noKey = iota
	firstKey
	allKeys
)

// commands returns all of them by their names in capitals.
func commands() map[string]*command {
	list := []*command{
		{name: "get", arity: 2, keys: firstKey, read: (*conn).get},
		{name: "mget", arity: -2, keys: allKeys, read: (*conn).mget},
		{name: "exists", arity: -2, keys: allKeys, read: (*conn).exists},
		{name: "strlen", arity: 2, keys: firstKey, read: (*conn).strlen},
		{name: "type", arity: 2, keys: firstKey, read: (*conn).typeOf},
		{name: "ttl", arity: 2, keys: firstKey, read: (*conn).ttl},
		{name: "pttl", arity: 2, keys: firstKey, read: (*conn).ttl},
		{name: "hget", arity: 3, keys: firstKey, read: (*conn).hget},
		{name: "hmget", arity: -3, keys: firstKey, read: (*conn).hmget},
		{name: "hgetall", arity: 2, keys: firstKey, read: (*conn).hgetall},
		{name: "scan", arity: -2, slow: true, read: (*conn).scan},
		{name: "dbsize", arity: 1, slow: true, read: (*conn).dbsize},

		{name: "ping", arity: -1, run: (*conn).ping},
		{name: "echo", arity: 2, run: (*conn).echo},
		{name: "select", arity: 2, run: (*conn).selectStream},
		{name: "waitindex", arity: 3, slow: true, run: (*conn).waitIndex},
		{name: "info", arity: -1, slow: true, run: (*conn).info},
		{name: "command", arity: -1, run: (*conn).listCommands},
		{name: "client", arity: -2, run: (*conn).client},
		{name: "hello", arity: -1, early: true, run: (*conn).hello},
		{name: "auth", arity: -2, early: true, run: (*conn).auth},
		{name: "quit", arity: -1, early: true, run: (*conn).quit},
	}
	// What Redis has to write. It is told apart from what there is not, because
	// clients know READONLY.
	for name := range strings.FieldsSeq(`append bitfield bitop blmove blmpop blpop brpop brpoplpush bzmpop bzpopmax
		bzpopmin copy decr decrby del eval evalsha expire expireat fcall flushall flushdb geoadd geosearchstore getdel
		getex getset hdel hexpire hincrby hincrbyfloat hmset hset hsetnx incr incrby incrbyfloat linsert lmove lmpop
		lpop lpush lpushx lrem lset ltrim migrate move mset msetnx persist pexpire pexpireat pfadd pfmerge psetex
		publish rename renamenx restore rpop rpoplpush rpush rpushx sadd sdiffstore set setbit setex setnx setrange
		sinterstore smove sort spop srem sunionstore swapdb unlink xack xadd xautoclaim xclaim xdel xgroup xsetid xtrim
		zadd zdiffstore zincrby zinterstore zmpop zpopmax zpopmin zrangestore zrem zremrangebylex zremrangebyrank
		zremrangebyscore zunionstore`) {
		list = append(list, &command{name: name, arity: -1, write: true})
	}
	all := make(map[string]*command, len(list))
	for _, c := range list {
		all[strings.ToUpper(c.name)] = c
	}
	return all
}
