package nemesis

import "fmt"

// makeNested are triggers as users have them, which change the row that is just
// being changed, one beside it, or one of another captured table. What they do is
// done before the statement that they belong to has ended, so a log that others
// write has the inner change before the outer one. Their names come before and
// behind all others, and what they change is of the same stripe.
var makeNested = []string{
	// A row that is deleted comes back under its key; one that is updated is
	// updated again, or goes.
	`CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE t text := TG_RELID::regclass; BEGIN -- it may have another name
	IF TG_OP = 'DELETE' THEN
		EXECUTE 'INSERT INTO ' || t || ' (id, n, note) VALUES ($1, -1, ''back again'') ON CONFLICT DO NOTHING' USING OLD.id;
	ELSIF NEW.n % 4 = 0 THEN
		EXECUTE 'UPDATE ' || t || ' SET n = n + 1, note = ''nested'' WHERE id = $1' USING NEW.id;
	ELSIF NEW.n % 4 = 1 THEN
		EXECUTE 'DELETE FROM ' || t || ' WHERE id = $1' USING NEW.id;
	END IF;
	RETURN NULL; END $$`,
	`CREATE TRIGGER a_again AFTER UPDATE ON whole FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION again()`,
	`CREATE TRIGGER z_again AFTER DELETE ON whole FOR EACH ROW WHEN (pg_trigger_depth() = 0 AND OLD.n % 2 = 0) EXECUTE FUNCTION again()`,

	// The same of a partitioned table, whose rows have triggers of their own.
	`CREATE FUNCTION part_again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
	IF TG_OP = 'DELETE' THEN
		INSERT INTO part (region, id, n, note) VALUES (OLD.region, OLD.id, -1, 'back again') ON CONFLICT DO NOTHING;
	ELSIF NEW.n % 4 = 0 THEN
		UPDATE part SET n = n + 1, note = 'nested' WHERE region = NEW.region AND id = NEW.id;
	ELSIF NEW.n % 4 = 1 THEN
		DELETE FROM part WHERE region = NEW.region AND id = NEW.id;
	END IF;
	RETURN NULL; END $$`,
	`CREATE TRIGGER a_again AFTER UPDATE ON part FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION part_again()`,
	`CREATE TRIGGER z_again AFTER DELETE ON part FOR EACH ROW WHEN (pg_trigger_depth() = 0 AND OLD.n % 2 = 0) EXECUTE FUNCTION part_again()`,

	// Kin have kids, change each other, and their kids.
	`CREATE FUNCTION kin_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
	IF TG_OP = 'INSERT' THEN
		INSERT INTO kid SELECT NEW.id, k, NEW.n, 'of ' || NEW.id FROM generate_series(0, NEW.n % 3) k ON CONFLICT DO NOTHING;
	ELSE
		UPDATE kin SET n = coalesce(n, 0) + 1 WHERE id = NEW.id + ` + itoa(stripes) + `;
		UPDATE kid SET n = NEW.n WHERE id = NEW.id;
	END IF;
	RETURN NULL; END $$`,
	`CREATE FUNCTION kid_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
	UPDATE kin SET note = 'lost kid ' || OLD.k WHERE id = OLD.id;
	IF OLD.k = 0 THEN
		INSERT INTO kid VALUES (OLD.id, OLD.k, OLD.n, 'back again') ON CONFLICT DO NOTHING;
	END IF;
	RETURN NULL; END $$`,
	`CREATE TRIGGER a_change AFTER INSERT ON kin FOR EACH ROW EXECUTE FUNCTION kin_change()`,
	`CREATE TRIGGER z_change AFTER UPDATE ON kin FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION kin_change()`,
	`CREATE TRIGGER a_change AFTER DELETE ON kid FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION kid_change()`,
}

// kids changes rows of kid, which go and come with those of kin; who changes one
// of them counts as having changed kin.
func (w *walker) kids() bool {
	s := w.some(false)
	if w.locked(s, "kin", false) {
		return false
	}
	if s.open {
		s.touched["kin"] = true
	}
	switch w.r.IntN(4) {
	case 0:
		w.say(s, "DELETE FROM kid WHERE k = %d AND %s", w.r.IntN(3), w.mine(s, 8))
	case 1:
		w.say(s, "UPDATE kid SET k = k + 10 WHERE k = %d AND %s AND NOT EXISTS (SELECT FROM kid o WHERE o.id = kid.id AND o.k = kid.k + 10)", w.r.IntN(3), w.mine(s, 8))
	case 2:
		w.say(s, "UPDATE kid SET n = coalesce(n, 0) + %d WHERE %s", 1+w.r.IntN(9), w.mine(s, 8))
	default: // kids before their kin
		w.atOnce(s, "SET CONSTRAINTS kid_of DEFERRED",
			fmt.Sprintf("INSERT INTO kid SELECT i * %d + %d, 5, i, 'first' FROM generate_series(%d, %d) i ON CONFLICT DO NOTHING", stripes, s.stripe, places-10, places-1),
			insertRows("kin", fmt.Sprintf("generate_series(%d, %d) i", places-10, places-1), fmt.Sprintf("i * %d + %d", stripes, s.stripe), nil, w.r.IntN(1000)),
			"SET CONSTRAINTS kid_of IMMEDIATE")
	}
	return true
}

// atOnce does statements in one transaction: that of s, or one for them alone.
func (w *walker) atOnce(s *txn, statements ...string) {
	if !s.open {
		w.say(s, "BEGIN")
		defer w.say(s, "COMMIT")
	}
	for _, sql := range statements {
		w.say(s, "%s", sql)
	}
}
