"""A second reader of millrace's format, to hold docs/FORMAT.md to its word.

It was written from that document alone, shares no code with the Go package and
needs nothing but the standard library, so it brings its own BLAKE3, CRC-32C,
snappy and Ed25519 (blocks.py). It reads every file of a folder:

    python3 reader.py FOLDER

    *.record      records of one topic, in the order of their names
    *.partial     records that an edge gets which holds what edge.filter says
    *.checkpoint, *.position, *.row, *.filter
    *.keys        lines of type OIDs and a key in hexadecimal

and prints one JSON object with what it found, by file name. At anything that
the document does not allow it stops with exit code 1.
"""

import hashlib
import json
import os
import struct
import sys

import blocks
import keys


class FormatError(Exception):
    pass


def need(condition, message):
    if not condition:
        raise FormatError(message)


# --- protobuf -----------------------------------------------------------------

# Fields of each message: number -> (name, type). A type is a name of one of
# the scalar readers below or of a message; a list of one stands for a repeated
# field.
MESSAGES = {
    "Payload": {1: ("entries", ["Entry"])},
    "Entry": {
        1: ("kind", "enum"), 2: ("table", "uint32"), 3: ("ordinal", "uint64"),
        4: ("key", "bytes"), 5: ("from", "bytes"), 6: ("row", "bytes"),
        7: ("load", "uint64"), 8: ("load_info", "LoadInfo"), 9: ("schema", "Schema"),
        10: ("verify", "VerifyRange"), 11: ("message", "LogicalMessage"),
        12: ("quarantine", "Quarantined"), 15: ("end", "UnitEnd"),
    },
    "PartialPayload": {1: ("entries", ["bytes"]), 2: ("units", ["PartialUnit"])},
    "PartialUnit": {
        1: ("entries", "uint32"), 2: ("kept", "uint32"), 3: ("open", "bool"), 4: ("tables", ["PartialTable"]),
    },
    "PartialTable": {1: ("table", "uint32"), 2: ("hash", "bytes"), 3: ("state", "bytes")},
    "Filter": {1: ("tables", ["FilterTable"])},
    "FilterTable": {1: ("name", "string"), 2: ("prefixes", ["KeyPrefix"])},
    "KeyPrefix": {1: ("values", ["string"])},
    "UnitEnd": {1: ("time_us", "int64"), 2: ("token", "uint64"), 3: ("xid", "uint32")},
    "LoadInfo": {1: ("reason", "string"), 2: ("rows", "uint64"), 3: ("progress", "bytes"), 4: ("added", "bytes")},
    "VerifyRange": {
        1: ("id", "uint64"), 2: ("low", "bytes"), 3: ("high", "bytes"),
        4: ("buckets", "uint32"), 5: ("bucket", "uint32"), 6: ("rows", "uint64"),
        7: ("hash", "bytes"), 8: ("left_out", ["bytes"]), 9: ("snapshot", "string"),
    },
    "LogicalMessage": {1: ("prefix", "string"), 2: ("content", "bytes")},
    "Quarantined": {1: ("kind", "enum"), 2: ("reason", "string")},
    "Schema": {
        1: ("version", "uint64"), 2: ("table", "uint32"), 3: ("namespace", "string"),
        4: ("name", "string"), 5: ("columns", ["Column"]), 6: ("types", ["TypeDesc"]),
    },
    "Column": {
        1: ("name", "string"), 2: ("type", "uint32"), 3: ("typmod", "int32"),
        4: ("collation", "string"), 5: ("nondeterministic", "bool"),
        6: ("not_null", "bool"), 7: ("key_ordinal", "uint32"), 8: ("number", "uint32"),
    },
    "TypeDesc": {
        1: ("oid", "uint32"), 2: ("kind", "enum"), 3: ("schema", "string"),
        4: ("name", "string"), 5: ("elem", "uint32"), 6: ("labels", ["string"]),
        7: ("attributes", ["Attribute"]), 8: ("delim", "uint32"),
    },
    "Attribute": {1: ("name", "string"), 2: ("type", "uint32")},
    "Position": {
        1: ("mode", "enum"), 2: ("system_id", "uint64"), 3: ("timeline", "uint32"),
        4: ("slot", "string"), 5: ("lsn", "uint64"), 6: ("tick", "uint64"),
        7: ("snapshot", "string"),
    },
    "State": {
        1: ("schemas", ["Schema"]), 2: ("loads", ["Load"]), 3: ("recent", ["Recent"]),
        4: ("last_version", "uint64"), 5: ("last_load", "uint64"),
    },
    "Load": {1: ("id", "uint64"), 2: ("table", "uint32"), 3: ("progress", "bytes")},
    "Recent": {1: ("first", "uint64"), 2: ("last", "uint64"), 3: ("chain", "bytes")},
    "Checkpoint": {
        1: ("stream", "bytes"), 2: ("epoch", "uint64"), 3: ("index", "uint64"),
        4: ("chain", "bytes"), 5: ("term", "uint64"), 6: ("publisher", "bytes"),
        7: ("topic_id", "string"), 8: ("offset_plus_one", "uint64"),
        9: ("position", "Position"), 10: ("time_us", "int64"), 11: ("state", "State"),
    },
}

LIMITS = {"uint32": 1 << 32, "uint64": 1 << 64, "enum": 1 << 8, "bool": 2}


def varint(b, at):
    """Returns the number at b[at:] and the place after it."""
    n = shift = 0
    while True:
        need(at < len(b) and shift < 70, "varint is cut off")
        c = b[at]
        at += 1
        n |= (c & 0x7F) << shift
        if c < 0x80:
            need(n < 1 << 64, "varint of more than 64 bits")
            return n, at
        shift += 7


def scalar(kind, n):
    if kind in ("int64", "int32"):
        n -= (n >> 63) << 64
        need(kind == "int64" or -(1 << 31) <= n < 1 << 31, "number of more than 32 bits")
        return n
    need(n < LIMITS[kind], "number is too large for %s" % kind)
    return n == 1 if kind == "bool" else n


def message(name, b):
    """Reads a protobuf message; fields at their default are left out."""
    fields, out, at, last = MESSAGES[name], {}, 0, 0
    while at < len(b):
        tag, at = varint(b, at)
        number, wire = tag >> 3, tag & 7
        need(number in fields, "%s: unknown field %d: a newer version wrote it" % (name, number))
        field, kind = fields[number]
        repeated = isinstance(kind, list)
        if repeated:
            kind = kind[0]
        need(number > last or repeated and number == last, "%s: field %d out of place" % (name, number))
        last = number
        value, at = varint(b, at)
        if kind in LIMITS or kind in ("int32", "int64"):
            need(wire == 0, "%s: field %d is not a varint" % (name, number))
            value = scalar(kind, value)
            if value:
                out[field] = value
            continue
        need(wire == 2 and at + value <= len(b), "%s: field %d is cut off" % (name, number))
        content, at = b[at:at + value], at + value
        if kind == "string":
            content = content.decode("utf-8")
        elif kind in MESSAGES:
            content = message(kind, content)
        if repeated:
            out.setdefault(field, []).append(content)
        elif content or kind in MESSAGES:
            out[field] = content
    return out


# --- rows -----------------------------------------------------------------------


def row(b):
    version, at = varint(b, 0)
    count, at = varint(b, at)
    need(version > 0 and count <= 1664, "row: bad version or number of columns")
    states, at = b[at:at + (count + 3) // 4], at + (count + 3) // 4
    need(at <= len(b), "row: states are cut off")
    need(count % 4 == 0 or states[-1] >> 2 * (count % 4) == 0, "row: bits after the last column")
    columns = []
    for i in range(count):
        state = states[i // 4] >> 2 * (i % 4) & 3
        if state:
            columns.append(["null", "unchanged", "missing"][state - 1])
            continue
        size, at = varint(b, at)
        need(at + size <= len(b), "row: a text is cut off")
        columns.append({"text": b[at:at + size].decode("utf-8")})
        at += size
    need(at == len(b), "row: bytes follow the last column")
    return {"version": version, "columns": columns}


# --- records --------------------------------------------------------------------

KINDS = {1: "term", 2: "state", 3: "batch"}
MAX_PAYLOAD = (16 << 20) + (64 << 10)


def header(b):
    """Reads a record up to its payload, which it checks and decompresses."""
    need(len(b) >= 192 and b[:3] == b"MLR", "no record of millrace")
    need(b[3] == 1, "format version %d: this reader knows version 1" % b[3])
    position_size, = struct.unpack_from(">H", b, 6)
    t = 176 + position_size
    need(len(b) >= t + 16, "record is cut off")
    codec, form, signature_size, size, stored, crc = struct.unpack_from(">BBHIII", b, t)
    need(signature_size in (0, 72), "signature of %d bytes" % signature_size)
    need(len(b) == t + 16 + signature_size + stored and size <= MAX_PAYLOAD, "lengths do not agree")
    need(blocks.crc32c(b[:t + 12] + b[t + 16:]) == crc, "CRC-32C does not agree")
    epoch, term = struct.unpack_from(">QQ", b, 24)
    first, count, zero, time_us = struct.unpack_from(">QIIq", b, 56)
    need(b[5] == 0 and zero == 0 and b[4] in KINDS, "unknown kind, or reserved bytes are set")
    need(form == 0 or form == 1 and b[4] == 3, "unknown form")
    h = {
        "kind": KINDS[b[4]], "stream": b[8:24].hex(), "epoch": epoch, "term": term,
        "publisher": b[40:56].hex(), "first": first, "count": count, "time_us": time_us,
        "prev": b[80:112].hex(), "chain": b[112:144].hex(), "body": b[144:176].hex(),
        "position": message("Position", b[176:t]), "codec": codec, "crc": crc,
    }
    signature = b[t + 16:t + 16 + signature_size]
    payload = b[t + 16 + signature_size:]
    if codec == 1:
        payload = blocks.snappy(payload, size)
    need(codec in (0, 1) and len(payload) == size, "unknown codec or wrong payload length")
    if h["kind"] == "state":
        need(blocks.blake3(payload).hex() == h["body"], "payload is not the one of the header")
        need(h["prev"] == h["chain"] and count == 0 and first > 0, "bad state record")
    else:
        need(h["body"] == "00" * 32, "body hash in a %s record" % h["kind"])
    if h["kind"] == "term":
        need(first == 0 and count == 0 and size == 0, "entries in a term record")
    return h, b[:t], signature, payload, form == 1


class Topic:
    """Folds records and checks that each is the next part of the history."""

    def __init__(self, signers):
        self.signers = {blocks.blake3(key)[:8]: key for key in signers}
        self.stream = None
        self.schemas = {}

    def begin(self, h):
        self.stream, self.epoch = h["stream"], h["epoch"]
        self.chain = blocks.blake3(b"millrace/1" + bytes.fromhex(self.stream) + struct.pack(">Q", self.epoch))
        self.term, self.publisher = 0, None
        self.next, self.done, self.unit = 1, 0, []

    def record(self, b):
        h, signed, signature, payload, partial = header(b)
        if self.stream is None:
            self.begin(h)
        need((h["stream"], h["epoch"]) == (self.stream, self.epoch), "record of another stream")
        if signature:
            key = self.signers.get(signature[:8])
            need(key is not None and blocks.ed25519_verify(key, signed, signature[8:]), "bad signature")
            h["key_id"], h["signed_by"] = signature[:8].hex(), key.hex()
        if h["kind"] == "term":
            need(h["term"] > self.term, "stale term")
            self.term, self.publisher = h["term"], h["publisher"]
            self.next, self.unit = self.done + 1, []
            return h
        need((h["term"], h["publisher"]) == (self.term, self.publisher), "stale record")
        if h["kind"] == "state":
            need(h["first"] == self.done + 1 and h["chain"] == self.chain.hex(), "state of another history")
            h["state"] = hexed(message("State", payload))
            return h
        if partial:
            h["entries"], h["units"] = self.partial(h, payload)
        else:
            h["entries"] = self.batch(h, payload)
        return h

    def partial(self, h, payload):
        raise FormatError("hashes in the place of entries, and everything is held")

    def batch(self, h, payload):
        need(h["first"] == self.next, "gap: index %d comes, %d is next" % (h["first"], self.next))
        need(h["prev"] == self.chain.hex(), "another history")
        entries, at, after = [], 0, self.chain
        while at < len(payload):
            start = at
            need(payload[at] == 0x0A, "no entry")
            size, at = varint(payload, at + 1)
            need(at + size <= len(payload), "entry is cut off")
            e, at = message("Entry", payload[at:at + size]), at + size
            need(e.get("ordinal", 0) == len(self.unit), "wrong ordinal")
            self.unit.append((e.get("table", 0), payload[start:at]))
            index = h["first"] + len(entries)
            entries.append(self.entry(e))
            after = chain(self.chain, self.unit)
            if "end" in e:
                self.chain, self.unit, self.done = after, [], index
        need(len(entries) == h["count"], "%d entries, the header says %d" % (len(entries), h["count"]))
        need(after.hex() == h["chain"], "the entries give another chain")
        self.next += len(entries)
        return entries

    def entry(self, e):
        """Takes key and row of an entry apart."""
        kind, info = e.get("kind", 0), e.get("load_info", {})
        need(1 <= kind <= 12, "unknown entry type %d" % kind)
        need(kind != 11 or "load_info" in e, "progress without load info")
        need("progress" not in info or kind in (5, 11) and "added" not in info, "note of progress not wanted")
        need("added" not in info or kind == 11, "note of progress not wanted")
        need(max(len(info.get(name, b"")) for name in ("progress", "added")) <= 1 << 20, "note of progress too long")
        if "schema" in e:
            self.schemas[e["table"]] = e["schema"]
        if kind == 12:
            del self.schemas[e["table"]]
        for name in ("key", "from"):
            if name in e:
                e[name] = keys.decode(keys.columns(self.schemas[e["table"]]), e[name])
        if "row" in e:
            e["row"] = row(e["row"])
            need(len(e["row"]["columns"]) == len(self.schemas[e["table"]]["columns"]), "row of another schema")
        return hexed(e)


def chain(prev, unit):
    """The chain after a unit: entries as (table, bytes with tag and length)."""
    tables = {}
    for table, raw in unit:  # a dict keeps the order of first touch
        tables.setdefault(table, []).append(raw)
    return advance(prev, {t: blocks.blake3(b"".join(raws)) for t, raws in tables.items()})


def advance(prev, hashes):
    u = b"".join(struct.pack(">I", t) + h for t, h in hashes.items())
    return blocks.blake3(prev + blocks.blake3(u))


class Known:
    """The entries of a table in a unit, all of them here so far."""

    def __init__(self):
        self.bytes = b""

    def write(self, raw):
        self.bytes += raw

    def sum(self):
        return blocks.blake3(self.bytes)


class Partial(Topic):
    """Folds what an edge gets that holds less than everything."""

    def __init__(self, signers):
        super().__init__(signers)
        self.filter = {}
        self.tables, self.shown = {}, False  # of the open unit: table -> hash, Known or Midstate

    def hold(self, f):
        for t in f.get("tables", []):
            prefixes = t.get("prefixes")
            self.filter[t["name"]] = prefixes and [p["values"] for p in prefixes]

    def batch(self, h, payload):
        need(not self.tables, "this reader knows no unit of whole and partial batches")
        return super().batch(h, payload)

    def partial(self, h, payload):
        need(h["first"] == self.next, "gap: index %d comes, %d is next" % (h["first"], self.next))
        need(h["prev"] == self.chain.hex(), "another history")
        p = message("PartialPayload", payload)
        units, bodies = p["units"], p.get("entries", [])
        need(sum(u["entries"] for u in units) == h["count"], "the units have other entries than the header says")
        goes_on = self.next != self.done + 1
        need(len(units) == 1 or not goes_on and not any(u.get("open") for u in units), "part of a unit beside others")
        entries, index = [], self.next
        for u in units:
            kept, bodies = bodies[:u.get("kept", 0)], bodies[u.get("kept", 0):]
            entries += self.part(u, kept, index, len(units) == 1)
            index += u["entries"]
            after = advance(self.chain, {t: s if isinstance(s, bytes) else s.sum() for t, s in self.tables.items()})
            if not u.get("open"):
                self.chain, self.done, self.tables, self.shown = after, index - 1, {}, False
        need(not bodies, "entries of no unit")
        need(after.hex() == h["chain"], "entries and hashes give another chain")
        self.next = index
        return entries, hexed(units)

    def part(self, u, kept, index, alone):
        listed, seen = {}, set()
        for t in u["tables"]:
            table = t.get("table", 0)
            need(table not in listed and not ("hash" in t and "state" in t), "a table stands twice, or has hash and state")
            listed[table] = "hash" in t
            before = self.tables.get(table)
            if "hash" in t:
                need(len(t["hash"]) == 32 and self.may_lack(table), "a hash in the place of what is held")
                self.tables[table] = t["hash"]
            elif "state" in t:
                state = blocks.Midstate(t["state"])
                need(before == state.sum(), "the state is not that of what was left out")
                self.tables[table] = state
            else:
                need(not isinstance(before, bytes), "entries follow others that were left out, without a state")
                self.tables.setdefault(table, Known())
        first, entries, last = index - self.done - 1, [], False
        least = first
        for body in kept:
            e = message("Entry", body)
            ordinal, table = e.get("ordinal", 0), e.get("table", 0)
            last = ordinal == first + u["entries"] - 1
            need(least <= ordinal < first + u["entries"], "wrong ordinal")
            need(("end" in e) == (last and not u.get("open")), "the end of the unit stands elsewhere")
            need(listed.get(table) is False, "an entry of a table whose entries are not here")
            least = ordinal + 1
            seen.add(table)
            self.tables[table].write(b"\x0a" + size(len(body)) + body)
            entries.append(self.entry(e))
        need(seen == {t for t, left_out in listed.items() if not left_out}, "a table without entries and without a hash")
        self.shown = self.shown or bool(kept)
        need(u.get("open") or not alone or not self.shown or last, "nothing shows that the unit ends")
        return entries

    def may_lack(self, table):
        name = "%(namespace)s.%(name)s" % self.schemas[table]
        return name not in self.filter or self.filter[name] is not None


def size(n):
    out = b""
    while n > 0x7F:
        out, n = out + bytes([n & 0x7F | 0x80]), n >> 7
    return out + bytes([n])


# --- output -----------------------------------------------------------------------


def hexed(value):
    """Gives byte strings in hexadecimal, for JSON."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {k: hexed(v) for k, v in value.items()}
    if isinstance(value, list):
        return [hexed(v) for v in value]
    return value


def key_lines(b):
    out = []
    for line in b.decode().splitlines():
        *oids, key = line.split(" ")
        key = bytes.fromhex(key)
        store = key
        if len(key) > 472:
            store = key[:440] + b"\xff" + hashlib.sha256(key).digest()
        out.append({"texts": keys.decode([int(oid) for oid in oids], key), "store_key": store.hex()})
    return out


def main(folder):
    # The public key of the golden files' signer: that of the seed 07 07 … 07.
    signers = [blocks.ed25519_public(bytes([7]) * 32)]
    topic, partial = Topic(signers), Partial(signers)
    filters = {name: message("Filter", open(os.path.join(folder, name), "rb").read())
               for name in os.listdir(folder) if name.endswith(".filter")}
    for f in filters.values():
        partial.hold(f)
    readers = {
        ".record": topic.record,
        ".partial": partial.record,
        ".filter": lambda b: hexed(message("Filter", b)),
        ".checkpoint": lambda b: hexed(message("Checkpoint", b)),
        ".position": lambda b: hexed(message("Position", b)),
        ".row": row,
        ".keys": key_lines,
    }
    out = {}
    for name in sorted(os.listdir(folder)):
        read = readers.get(os.path.splitext(name)[1])
        if read is None:
            continue
        with open(os.path.join(folder, name), "rb") as f:
            b = f.read()
        try:
            out[name] = read(b)
        except (ValueError, KeyError, IndexError, FormatError) as err:
            sys.exit("%s: %s: %s" % (name, type(err).__name__, err))
    json.dump(out, sys.stdout)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: reader.py FOLDER")
    main(sys.argv[1])
