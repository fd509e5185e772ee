package nemesis

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
)

const sessions = 4

func itoa(n int) string { return strconv.Itoa(n) }

// walker makes a walk. It knows what the sessions hold, so that each step is
// possible when its turn comes: nothing waits for a lock that another session
// keeps.
type walker struct {
	mode     mode
	r        *rand.Rand
	steps    []step
	sessions []*txn
	prepared []*txn
	free     []int // stripes of nobody
	shape    *shape
	faults   map[string]int
	names    int // for what gets a name of its own
	tables   []string
}

// txn is a session with what its transaction holds, or a prepared transaction.
type txn struct {
	number    int
	gid       string // of a prepared transaction
	stripe    int
	open      bool
	async     bool            // its commit is acknowledged before it is durable
	touched   map[string]bool // tables it has changed
	exclusive map[string]bool // tables that nobody else can even read
	saved     []*shape        // at the begin, and at each savepoint
	points    []string        // the savepoints
}

// shape is what DDL has made of the tables, as a transaction sees it.
type shape struct {
	columns map[string]string // added to item, with their types
	leaves  map[int]string    // partitions by region
	loose   []string          // tables that were partitions
}

func (s *shape) clone() *shape {
	return &shape{columns: maps.Clone(s.columns), leaves: maps.Clone(s.leaves), loose: slices.Clone(s.loose)}
}

// walk returns the steps of a seed, without some kinds.
func walk(m mode, seed uint64, length int, without ...string) []step {
	w := &walker{
		mode: m, r: rand.New(rand.NewPCG(seed, 1)), faults: map[string]int{},
		shape: &shape{columns: map[string]string{}, leaves: map[int]string{0: "part_0", 1: "part_1", 2: "part_2"}},
	}
	_, w.tables, _ = setUp(m)
	for i := range sessions {
		w.sessions = append(w.sessions, &txn{number: i, stripe: i, touched: map[string]bool{}, exclusive: map[string]bool{}})
	}
	for i := sessions; i < stripes; i++ {
		w.free = append(w.free, i)
	}
	total := 0
	left := func(name, lacks string, only mode) bool {
		return lacks != "" || only != "" && only != m || slices.Contains(without, name)
	}
	for _, k := range kinds {
		if !left(k.name, k.lacks, k.only) {
			total += k.weight
		}
	}
	for len(w.steps) < length {
		at := w.r.IntN(total)
		for _, k := range kinds {
			if left(k.name, k.lacks, k.only) {
				continue
			}
			if at -= k.weight; at < 0 {
				k.make(w)
				break
			}
		}
	}
	w.finish()
	return w.steps
}

// finish ends the walk with nothing open.
func (w *walker) finish() {
	w.endAll()
	w.steps = append(w.steps, step{Do: "final check"})
}

// epoch begins a new one, once in a walk at most; a slot is made only when nothing is
// open.
func (w *walker) epoch() bool {
	if w.faults["epoch"] == 1 {
		return false
	}
	w.endAll()
	return w.fault("epoch", 1)
}

// endAll ends all that is open, one way or the other.
func (w *walker) endAll() {
	for _, s := range w.sessions {
		if s.open {
			w.end(s, w.r.IntN(4) > 0)
		}
	}
	for len(w.prepared) > 0 {
		w.endPrepared()
	}
}

// some returns a session, an open one if it must be.
func (w *walker) some(open bool) *txn {
	s := w.sessions[w.r.IntN(sessions)]
	if open && !s.open {
		return nil
	}
	return s
}

func (w *walker) say(s *txn, format string, args ...any) {
	w.steps = append(w.steps, step{Do: "sql", Session: s.number, SQL: fmt.Sprintf(format, args...)})
}

// locked reports whether another transaction than s keeps s from changing table,
// or, if s wants it alone, has touched it.
func (w *walker) locked(s *txn, table string, alone bool) bool {
	for _, o := range append(slices.Clone(w.sessions), w.prepared...) {
		if o != s && (o.exclusive[table] || alone && o.touched[table]) {
			return true
		}
	}
	return false
}

// change returns a session and a table that it may change now.
func (w *walker) change() (*txn, string) {
	s := w.some(false)
	table := w.tables[w.r.IntN(len(w.tables))]
	if w.locked(s, table, false) {
		return nil, ""
	}
	if s.open {
		s.touched[table] = true
	}
	return s, table
}

// alone returns a session that has the table for itself; without a transaction
// where it must not be in one.
func (w *walker) alone(table string, outside bool) *txn {
	s := w.some(false)
	if outside && s.open || w.locked(s, table, true) {
		return nil
	}
	if s.open && !s.exclusive[table] {
		s.touched[table], s.exclusive[table] = true, true
		// What others have made of the table before stays when s takes back
		// what it does.
		for _, saved := range s.saved {
			w.take(saved, w.shape, table)
		}
	}
	return s
}

// take gives to the part of a shape that concerns table.
func (w *walker) take(to, from *shape, table string) {
	switch table {
	case "item":
		to.columns = maps.Clone(from.columns)
	case "part":
		to.leaves, to.loose = maps.Clone(from.leaves), slices.Clone(from.loose)
	}
}

// mine is the condition for up to n rows of s's stripe from a random place on.
func (w *walker) mine(s *txn, n int) string {
	from := w.r.IntN(places)
	if w.r.IntN(5) == 0 {
		from += places // among those that were moved
	}
	return fmt.Sprintf("id %% %d = %d AND id BETWEEN %d AND %d", stripes, s.stripe, from*stripes, (from+n)*stripes)
}

func (w *walker) begin() bool {
	s := w.some(false)
	if s.open {
		return false
	}
	if s.async = w.r.IntN(3) == 0; s.async {
		w.say(s, "%s", async)
	} else {
		w.say(s, "BEGIN")
	}
	s.open, s.saved, s.points = true, []*shape{w.shape.clone()}, nil
	return true
}

func (w *walker) regions() []int {
	return slices.Sorted(maps.Keys(w.shape.leaves))
}

func (w *walker) insert() bool {
	s, table := w.change()
	if s == nil {
		return false
	}
	from, n := w.r.IntN(places), 1+w.r.IntN(8)
	rows := fmt.Sprintf("generate_series(%d, %d) i", from, min(from+n, places-1))
	w.say(s, "%s", insertRows(table, rows, fmt.Sprintf("i * %d + %d", stripes, s.stripe), w.regions(), w.r.IntN(1000)))
	return true
}

// update leaves out what is stored out of line.
func (w *walker) update() bool {
	s, table := w.change()
	if s == nil {
		return false
	}
	set := fmt.Sprintf("n = %d + coalesce(n, 0)", w.r.IntN(100))
	switch w.r.IntN(4) {
	case 0:
		set = fmt.Sprintf("note = 'noted %d'", w.r.IntN(1000))
	case 1:
		set = "n = NULL"
	}
	if table == "item" {
		for _, c := range slices.Sorted(maps.Keys(w.shape.columns)) {
			if w.r.IntN(2) == 0 {
				set += fmt.Sprintf(", %s = %s", c, valueOf(w.shape.columns[c], w.r.IntN(1000)))
			}
		}
		if w.r.IntN(4) == 0 {
			set += ", mood = enum_last(NULL::mood)"
			if s.exclusive["mood"] {
				set = "n = 1" // a value that was added is not to be used before its commit
			}
		}
	}
	w.say(s, "UPDATE %s SET %s WHERE %s", table, set, w.mine(s, 10))
	return true
}

func (w *walker) updateBig() bool {
	s, table := w.change()
	if s == nil {
		return false
	}
	set := []string{
		fmt.Sprintf("big = big(id + %d, %d)", w.r.IntN(1000), 2100+w.r.IntN(4000)),
		"big = NULL", "big = ''", "big = big || 'x'", "big = 'short again'",
	}[w.r.IntN(5)]
	w.say(s, "UPDATE %s SET %s WHERE %s", table, set, w.mine(s, 8))
	return true
}

func (w *walker) delete() bool {
	s, table := w.change()
	if s == nil {
		return false
	}
	w.say(s, "DELETE FROM %s WHERE %s", table, w.mine(s, 5))
	return true
}

// move gives one row another key, with all that is stored out of line.
func (w *walker) move() bool {
	s, table := w.change()
	if s == nil {
		return false
	}
	from, to := w.r.IntN(2*places)*stripes+s.stripe, w.r.IntN(2*places)*stripes+s.stripe
	more := ""
	if w.r.IntN(2) == 0 {
		more = ", n = coalesce(n, 0) + 1"
	}
	switch table {
	case "pair":
		if w.r.IntN(2) == 0 {
			b := []string{"x", "y", "ä z"}[w.r.IntN(3)]
			w.say(s, "UPDATE pair p SET b = '%s'%s WHERE id = %d AND NOT EXISTS (SELECT FROM pair o WHERE o.id = p.id AND o.b = '%s') AND b = (SELECT min(b) FROM pair o WHERE o.id = p.id)", b, more, from, b)
			return true
		}
	case "code":
		if w.r.IntN(2) == 0 {
			w.names++
			w.say(s, "UPDATE code SET code = 'moved %d'%s WHERE id = %d", w.names, more, from)
			return true
		}
	case "part":
		if w.r.IntN(2) == 0 {
			regions := w.regions()
			region := regions[w.r.IntN(len(regions))]
			w.say(s, "UPDATE part p SET region = %d%s WHERE id = %d AND NOT EXISTS (SELECT FROM part o WHERE o.id = p.id AND o.region = %d) AND region = (SELECT min(region) FROM part o WHERE o.id = p.id)", region, more, from, region)
			return true
		}
	}
	w.say(s, "UPDATE %s SET id = %d%s WHERE id = %d AND NOT EXISTS (SELECT FROM %s WHERE id = %d)", table, to, more, from, table, to)
	return true
}

// moveMany moves rows to places behind all others, or back.
func (w *walker) moveMany() bool {
	s, table := w.change()
	if s == nil {
		return false
	}
	from := w.r.IntN(places) * stripes
	by := away
	if w.r.IntN(2) == 0 {
		from, by = from+away, -away
	}
	w.say(s, "UPDATE %s t SET id = id + %d WHERE id %% %d = %d AND id BETWEEN %d AND %d AND NOT EXISTS (SELECT FROM %s o WHERE o.id = t.id + %d)",
		table, by, stripes, s.stripe, from, min(from+20*stripes, from-from%away+away-1), table, by)
	return true
}

// loop has a subtransaction for each turn; some fail after their changes.
func (w *walker) loop() bool {
	s, table := w.change()
	if s == nil {
		return false
	}
	id := fmt.Sprintf("i * %d + %d", stripes, s.stripe)
	from := w.r.IntN(places - 20)
	w.say(s, `DO $do$ BEGIN FOR i IN %d..%d LOOP
	BEGIN
		%s;
		UPDATE %s SET note = 'in a loop ' || i WHERE id = %s;
		IF i %% %d = 0 THEN RAISE EXCEPTION USING ERRCODE = 'P0001'; END IF;
		BEGIN
			UPDATE %s SET big = big(i, 2200) WHERE id = %s;
			IF i %% %d = 0 THEN DELETE FROM %s WHERE id = %s; RAISE EXCEPTION USING ERRCODE = 'P0001'; END IF;
		EXCEPTION WHEN raise_exception THEN NULL;
		END;
	EXCEPTION WHEN raise_exception THEN NULL;
	END; END LOOP; END $do$`, from, from+5+w.r.IntN(15),
		insertRows(table, "(SELECT i AS j) g", id, w.regions(), w.r.IntN(1000)), table, id, 2+w.r.IntN(3), table, id, 2+w.r.IntN(3), table, id)
	return true
}

// bulk changes so much that the source streams the transaction while it is open.
func (w *walker) bulk() bool {
	s, table := w.change()
	if s == nil {
		return false
	}
	if w.r.IntN(2) == 0 {
		w.say(s, "UPDATE %s SET note = 'bulk %d ' || repeat('b', 500) WHERE id %% %d = %d", table, w.r.IntN(1000), stripes, s.stripe)
		return true
	}
	w.say(s, "%s", insertRows(table, fmt.Sprintf("generate_series(0, %d) i", places-1), fmt.Sprintf("i * %d + %d", stripes, s.stripe), w.regions(), w.r.IntN(1000)))
	return true
}

func (w *walker) savepoint() bool {
	s := w.some(true)
	if s == nil {
		return false
	}
	w.names++
	name := "s" + itoa(w.names)
	w.say(s, "SAVEPOINT %s", name)
	s.points, s.saved = append(s.points, name), append(s.saved, w.shape.clone())
	return true
}

func (w *walker) rollbackTo() bool {
	s := w.some(true)
	if s == nil || len(s.points) == 0 {
		return false
	}
	i := w.r.IntN(len(s.points))
	w.say(s, "ROLLBACK TO SAVEPOINT %s", s.points[i])
	w.restore(s, s.saved[i+1])
	s.points, s.saved = s.points[:i+1], s.saved[:i+2]
	return true
}

func (w *walker) release() bool {
	s := w.some(true)
	if s == nil || len(s.points) == 0 {
		return false
	}
	i := w.r.IntN(len(s.points))
	w.say(s, "RELEASE SAVEPOINT %s", s.points[i])
	s.points, s.saved = s.points[:i], s.saved[:i+1]
	return true
}

// restore takes back what DDL of s has done since. What s has not for itself may
// have been altered by others.
func (w *walker) restore(s *txn, to *shape) {
	for table := range s.exclusive {
		w.take(w.shape, to, table)
	}
}

func (w *walker) end(s *txn, commit bool) {
	if commit {
		if s.async && len(s.exclusive) > 0 {
			w.say(s, "SET LOCAL synchronous_commit = on") // see crash
		}
		w.say(s, "COMMIT")
	} else {
		w.say(s, "ROLLBACK")
		w.restore(s, s.saved[0])
	}
	s.forget()
}

func (s *txn) forget() {
	s.open, s.saved, s.points = false, nil, nil
	clear(s.touched)
	clear(s.exclusive)
}

func (w *walker) commit() bool {
	s := w.some(true)
	if s != nil {
		w.end(s, true)
	}
	return s != nil
}

func (w *walker) rollback() bool {
	s := w.some(true)
	if s != nil {
		w.end(s, false)
	}
	return s != nil
}

// prepare leaves the transaction to nobody; the session goes on in another
// stripe. One that has altered tables is not prepared: nobody could read them.
func (w *walker) prepare() bool {
	s := w.some(true)
	if s == nil || len(s.exclusive) > 0 || len(w.free) == 0 {
		return false
	}
	w.names++
	p := &txn{number: s.number, gid: "g" + itoa(w.names), stripe: s.stripe, touched: maps.Clone(s.touched)}
	// Names of prepared transactions are the server's, not the database's.
	w.say(s, "PREPARE TRANSACTION '{db}.%s'", p.gid)
	w.prepared = append(w.prepared, p)
	s.forget()
	s.stripe, w.free = w.free[0], w.free[1:]
	return true
}

func (w *walker) endPrepared() bool {
	if len(w.prepared) == 0 {
		return false
	}
	s := w.some(false)
	for i := 0; s.open; i++ {
		if i == sessions {
			return false
		}
		s = w.sessions[i]
	}
	i := w.r.IntN(len(w.prepared))
	p := w.prepared[i]
	verb := "COMMIT"
	if w.r.IntN(4) == 0 {
		verb = "ROLLBACK"
	}
	w.say(s, "%s PREPARED '{db}.%s'", verb, p.gid)
	w.prepared = slices.Delete(w.prepared, i, i+1)
	w.free = append(w.free, p.stripe)
	return true
}

func (w *walker) truncate() bool {
	table := w.tables[w.r.IntN(len(w.tables))]
	s := w.alone(table, false)
	if s == nil {
		return false
	}
	cascade := ""
	if table == "kin" {
		cascade = " CASCADE" // to its kids
	}
	w.say(s, "TRUNCATE %s%s", table, cascade)
	return true
}

func (w *walker) message() bool {
	s := w.some(false)
	w.say(s, "SELECT pg_logical_emit_message(%v, 'walk', 'a message of %d')", w.r.IntN(2) == 0, w.r.IntN(1000))
	return true
}

func (w *walker) vacuumFull() bool {
	table := w.tables[w.r.IntN(len(w.tables))]
	s := w.alone(table, true)
	if s == nil {
		return false
	}
	if table != "part" && w.r.IntN(3) == 0 {
		w.say(s, "CLUSTER %s USING %s_pkey", table, table)
		return true
	}
	w.say(s, "VACUUM FULL %s", table)
	return true
}

// command asks the publisher for something about a table.
func (w *walker) command(what string, tables []string) bool {
	w.steps = append(w.steps, step{Do: what, Table: tables[w.r.IntN(len(tables))]})
	return true
}

// verify leaves out the partitioned table: between the TRUNCATE of a partition
// and the load after it the edges differ from the source, and say so.
func (w *walker) verify() bool {
	return w.command("verify", append(slices.DeleteFunc(slices.Clone(w.tables), func(table string) bool { return table == "part" }), "kid", "purse"))
}

// load has changes of the same table right behind it, so that some come between
// the snapshot of a chunk and its place in the stream.
func (w *walker) load() bool {
	table := w.tables[w.r.IntN(len(w.tables))]
	s := w.some(false)
	if s.open || w.locked(s, table, false) {
		return w.command("load", append(slices.Clone(w.tables), "kid", "purse"))
	}
	w.steps = append(w.steps, step{Do: "load", Table: table})
	for range 4 + w.r.IntN(8) {
		switch w.r.IntN(3) {
		case 0:
			w.say(s, "DELETE FROM %s WHERE %s", table, w.mine(s, 2))
		case 1:
			w.say(s, "UPDATE %s SET n = coalesce(n, 0) + 1, big = CASE WHEN id %% 3 = 0 THEN big ELSE 'while loading' END WHERE %s", table, w.mine(s, 10))
		default:
			from := w.r.IntN(places-20) * stripes
			w.say(s, "UPDATE %s t SET id = id + %d WHERE id %% %d = %d AND id BETWEEN %d AND %d AND NOT EXISTS (SELECT FROM %s o WHERE o.id = t.id + %d)",
				table, away, stripes, s.stripe, from, from+10*stripes, table, away)
		}
	}
	return true
}

// fault happens so often in a walk at most.
func (w *walker) fault(what string, most int) bool {
	if w.faults[what] == most {
		return false
	}
	w.faults[what]++
	w.steps = append(w.steps, step{Do: what, MS: 50 + w.r.IntN(400)})
	return true
}

func (w *walker) pass() bool {
	w.steps = append(w.steps, step{Do: "pass", MS: 1 + w.r.IntN(60)})
	return true
}

// check ends what keeps the checker from reading; other transactions stay open.
func (w *walker) check() bool {
	if w.faults["check"] == 2 {
		return false
	}
	w.faults["check"]++
	w.endExclusive()
	w.steps = append(w.steps, step{Do: "check"})
	return true
}

// endExclusive ends the transactions that keep everybody from reading a table.
func (w *walker) endExclusive() {
	for _, s := range w.sessions {
		if len(s.exclusive) > 0 {
			w.end(s, w.r.IntN(3) > 0)
		}
	}
}

// zombie waits for the stream, which triggers can only bring on while they may
// read the tables.
func (w *walker) zombie() bool {
	if w.faults["zombie"] == 0 && w.mode == byTrigger {
		w.endExclusive()
	}
	return w.fault("zombie", 1)
}

func valueOf(typ string, n int) string {
	switch typ {
	case "int", "bigint":
		return itoa(n)
	case "jsonb":
		return fmt.Sprintf(`'{"n": %d, "s": "%s"}'`, n, strings.Repeat("é", n%5))
	case "text":
		if n%4 == 0 {
			return fmt.Sprintf("big(%d, 2500)", n)
		}
		return fmt.Sprintf("'value %d'", n)
	}
	panic("no value of type " + typ)
}
