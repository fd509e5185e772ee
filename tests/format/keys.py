"""Encoded keys, back to texts."""

import struct
from decimal import Decimal


def columns(schema):
    """The type OIDs of a schema's key columns, in key order, domains resolved."""
    types = {t["oid"]: t for t in schema["types"]}
    out = []
    for c in sorted((c for c in schema["columns"] if "key_ordinal" in c), key=lambda c: c["key_ordinal"]):
        t = types[c["type"]]
        while t["kind"] == 3:  # domain
            t = types[t["elem"]]
        out.append(25 if t["kind"] == 4 else t["oid"])  # an enum is a text
    return out


def decode(oids, key):
    texts = []
    for oid in oids:
        width, read = FIXED.get(oid, (0, None))
        if read:
            if len(key) < width:
                raise ValueError("key is cut off")
            text, key = read(key[:width]), key[width:]
        elif oid == 1700:
            text, key = numeric(key)
        else:
            content, key = escaped(key)
            text = "\\x" + content.hex() if oid == 17 else content.decode("utf-8")
        texts.append(text)
    if key:
        raise ValueError("bytes follow the last key column")
    return texts


def escaped(key):
    out, at = bytearray(), 0
    while True:
        zero = key.index(0, at)
        out += key[at:zero]
        mark, at = key[zero + 1], zero + 2
        if mark == 0x01:
            return bytes(out), key[at:]
        if mark != 0xFF:
            raise ValueError("bad byte %02x after a zero" % mark)
        out.append(0)


def signed(code, bits):
    return lambda b: struct.unpack(">" + code, b)[0] - (1 << bits - 1)


def integer(code, bits):
    read = signed(code, bits)
    return lambda b: str(read(b))


def char(b):
    c = b[0]
    return "" if c == 0 else chr(c) if c < 0x80 else "\\%03o" % c


def uuid(b):
    h = b.hex()
    return "-".join((h[:8], h[8:12], h[12:16], h[16:20], h[20:]))


def date_text(days):
    """Proleptic Gregorian; returns the text without BC, and whether it is BC."""
    # Days since 0000-03-01, in eras of 400 years of 146097 days.
    days += 730425
    era, d = divmod(days, 146097)
    of_era = (d - d // 1460 + d // 36524 - d // 146096) // 365
    d -= 365 * of_era + of_era // 4 - of_era // 100
    m = (5 * d + 2) // 153
    day, month = d - (153 * m + 2) // 5 + 1, (m + 2) % 12 + 1
    year = of_era + era * 400 + (month <= 2)
    return "%04d-%02d-%02d" % (year if year > 0 else 1 - year, month, day), year <= 0


def time_text(us):
    seconds, fraction = divmod(us, 1000000)
    text = "%02d:%02d:%02d" % (seconds // 3600, seconds // 60 % 60, seconds % 60)
    return text + (".%06d" % fraction).rstrip("0") if fraction else text


def date(b):
    days = signed("I", 32)(b)
    if days in (2**31 - 1, -2**31):
        return "infinity" if days > 0 else "-infinity"
    text, bc = date_text(days)
    return text + " BC" if bc else text


def timestamp(zone):
    def read(b):
        at = signed("Q", 64)(b)
        if at in (2**63 - 1, -2**63):
            return "infinity" if at > 0 else "-infinity"
        days, us = divmod(at, 86400 * 1000000)
        text, bc = date_text(days)
        return text + " " + time_text(us) + zone + (" BC" if bc else "")
    return read


def as_float4(digits):
    try:
        return struct.unpack(">f", struct.pack(">f", float(digits)))[0]
    except OverflowError:
        return None


def floating(code, raw, bits, most):
    def read(b):
        n, = struct.unpack(">" + raw, b)
        n = n ^ 1 << bits - 1 if n >> bits - 1 else ~n & (1 << bits) - 1
        f, = struct.unpack(">" + code, n.to_bytes(bits // 8, "big"))
        if f != f:
            return "NaN"
        if f in (float("inf"), float("-inf")):
            return "Infinity" if f > 0 else "-Infinity"
        digits = repr(f)
        if bits == 32:  # the fewest digits that read back the same
            digits = next(d for d in ("%.*g" % (p, f) for p in range(1, 10)) if as_float4(d) == f)
        sign, ds, exponent = Decimal(digits).normalize().as_tuple()
        ds = "".join(map(str, ds))
        exponent += len(ds) - 1
        if f == 0:
            return "0"
        if -4 <= exponent < most:
            return format(Decimal(digits).normalize(), "f")
        return "-" * sign + ds[0] + ("." + ds[1:] if len(ds) > 1 else "") + "e%+03d" % exponent
    return read


def numeric(key):
    kind, key = key[0], key[1:]
    special = {1: "-Infinity", 3: "0", 5: "Infinity", 6: "NaN"}
    if kind in special:
        return special[kind], key
    if kind not in (2, 4):
        raise ValueError("numeric of class %d" % kind)
    invert = 0xFF if kind == 2 else 0
    exponent = int.from_bytes(bytes(c ^ invert for c in key[:3]), "big") - (1 << 23)
    end = key.index(invert, 3)
    digits = "".join("%02d" % ((c ^ invert) - 1) for c in key[3:end])
    if digits.endswith("0"):
        digits = digits[:-1]
    if digits[0] == "0" or digits.endswith("0"):
        raise ValueError("numeric with a zero at its start or end")
    if exponent <= 0:
        text = "0." + "0" * -exponent + digits
    elif exponent >= len(digits):
        text = digits + "0" * (exponent - len(digits))
    else:
        text = digits[:exponent] + "." + digits[exponent:]
    return ("-" if invert else "") + text, key[end + 1:]


# Types of a fixed width: OID -> (bytes, reader).
FIXED = {
    21: (2, integer("H", 16)),
    23: (4, integer("I", 32)),
    20: (8, integer("Q", 64)),
    26: (4, lambda b: str(struct.unpack(">I", b)[0])),
    16: (1, lambda b: "ft"[b[0]]),
    18: (1, char),
    2950: (16, uuid),
    1082: (4, date),
    1083: (8, lambda b: time_text(signed("Q", 64)(b))),
    1114: (8, timestamp("")),
    1184: (8, timestamp("+00")),
    700: (4, floating("f", "I", 32, 6)),
    701: (8, floating("d", "Q", 64, 15)),
}
