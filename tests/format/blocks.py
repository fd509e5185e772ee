"""BLAKE3, CRC-32C, the snappy block format and Ed25519, small and slow."""

import hashlib
import struct

# --- CRC-32C (Castagnoli) ---------------------------------------------------------


def _crc_table():
    table = []
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ 0x82F63B78 if n & 1 else n >> 1
        table.append(n)
    return table


_CRC = _crc_table()


def crc32c(b):
    crc = 0xFFFFFFFF
    for c in b:
        crc = crc >> 8 ^ _CRC[(crc ^ c) & 0xFF]
    return crc ^ 0xFFFFFFFF


# --- snappy, block format ---------------------------------------------------------


def snappy(b, size):
    """Decompresses a block that must give size bytes."""
    n = shift = at = 0
    while True:
        n |= (b[at] & 0x7F) << shift
        shift += 7
        at += 1
        if b[at - 1] < 0x80:
            break
    if n != size or size > len(b) * 64 // 3:
        raise ValueError("snappy: block claims %d bytes, want %d" % (n, size))
    out = bytearray()
    while at < len(b):
        tag = b[at]
        at += 1
        if tag & 3 == 0:  # literal
            length = tag >> 2
            if length >= 60:
                more = length - 59
                length = int.from_bytes(b[at:at + more], "little")
                at += more
            length += 1
            if at + length > len(b):
                raise ValueError("snappy: literal is cut off")
            out += b[at:at + length]
            at += length
        else:  # copy
            if tag & 3 == 1:
                length, offset = (tag >> 2 & 7) + 4, (tag >> 5) << 8 | b[at]
                at += 1
            else:
                more = 2 if tag & 3 == 2 else 4
                length, offset = (tag >> 2) + 1, int.from_bytes(b[at:at + more], "little")
                at += more
            if not 0 < offset <= len(out):
                raise ValueError("snappy: copy from before the start")
            for _ in range(length):
                out.append(out[-offset])
        if len(out) > size:
            raise ValueError("snappy: block is longer than it claims")
    if len(out) != size:
        raise ValueError("snappy: block is shorter than it claims")
    return bytes(out)


# --- BLAKE3, plain hash of 32 bytes -------------------------------------------------

_IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
_PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
_ROUNDS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
           (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
_CHUNK_START, _CHUNK_END, _PARENT, _ROOT = 1, 2, 4, 8
_MASK = 0xFFFFFFFF


def _rotate(x, n):
    return (x >> n | x << 32 - n) & _MASK


def _compress(cv, block, counter, length, flags):
    m = list(struct.unpack("<16I", block))
    v = list(cv) + list(_IV[:4]) + [counter & _MASK, counter >> 32, length, flags]
    for _ in range(7):
        for i, (a, b, c, d) in enumerate(_ROUNDS):
            for word, r1, r2 in ((m[2 * i], 16, 12), (m[2 * i + 1], 8, 7)):
                v[a] = (v[a] + v[b] + word) & _MASK
                v[d] = _rotate(v[d] ^ v[a], r1)
                v[c] = (v[c] + v[d]) & _MASK
                v[b] = _rotate(v[b] ^ v[c], r2)
        m = [m[p] for p in _PERMUTATION]
    return [v[i] ^ v[i + 8] for i in range(8)]


def _chunk(data, counter, root):
    cv = _IV
    blocks = [data[i:i + 64] for i in range(0, len(data), 64)] or [b""]
    for i, block in enumerate(blocks):
        flags = _CHUNK_START if i == 0 else 0
        if i == len(blocks) - 1:
            flags |= _CHUNK_END | root
        cv = _compress(cv, block.ljust(64, b"\0"), counter, len(block), flags)
    return cv


def _tree(data, counter, root):
    if len(data) <= 1024:
        return _chunk(data, counter, root)
    left = 1024
    while left * 2 < len(data):
        left *= 2
    words = _tree(data[:left], counter, 0) + _tree(data[left:], counter + left // 1024, 0)
    return _compress(_IV, struct.pack("<16I", *words), 0, 64, _PARENT | root)


def blake3(data):
    return struct.pack("<8I", *_tree(data, 0, _ROOT))


class Midstate:
    """BLAKE3 of bytes that are not here, and of those that follow them."""

    def __init__(self, stored):
        size, = struct.unpack_from(">Q", stored)
        if not 0 < size <= 1 << 63:
            raise ValueError("midstate: of %d bytes" % size)
        self.chunks = (size - 1) // 1024
        depth = bin(self.chunks).count("1")
        if len(stored) != 8 + 32 * depth + size - 1024 * self.chunks:
            raise ValueError("midstate: lengths do not agree")
        self.stack = [list(struct.unpack_from("<8I", stored, 8 + 32 * i)) for i in range(depth)]
        self.rest = stored[8 + 32 * depth:]

    def write(self, data):
        self.rest += data
        while len(self.rest) > 1024:
            cv = _chunk(self.rest[:1024], self.chunks, 0)
            self.rest = self.rest[1024:]
            self.chunks += 1
            n = self.chunks
            while n & 1 == 0:
                cv = _compress(_IV, struct.pack("<16I", *self.stack.pop(), *cv), 0, 64, _PARENT)
                n >>= 1
            self.stack.append(cv)

    def sum(self):
        cv = _chunk(self.rest, self.chunks, 0 if self.stack else _ROOT)
        for i in range(len(self.stack) - 1, -1, -1):
            cv = _compress(_IV, struct.pack("<16I", *self.stack[i], *cv), 0, 64, _PARENT | (0 if i else _ROOT))
        return struct.pack("<8I", *cv)


# --- Ed25519 (RFC 8032) -------------------------------------------------------------

_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, _P - 2, _P) % _P


def _recover(y, sign):
    x2 = (y * y - 1) * pow(_D * y * y + 1, _P - 2, _P) % _P
    x = pow(x2, (_P + 3) // 8, _P)
    if (x * x - x2) % _P:
        x = x * pow(2, (_P - 1) // 4, _P) % _P
    if (x * x - x2) % _P or y >= _P or x == 0 and sign:
        return None
    return x if x & 1 == sign else _P - x


def _point(b):
    n = int.from_bytes(b, "little")
    y = n & (1 << 255) - 1
    x = _recover(y, n >> 255)
    return None if x is None else (x, y, 1, x * y % _P)


_BASE = _point((4 * pow(5, _P - 2, _P) % _P).to_bytes(32, "little"))


def _add(p, q):
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % _P, (p[1] + p[0]) * (q[1] + q[0]) % _P
    c, d = 2 * p[3] * q[3] * _D % _P, 2 * p[2] * q[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return (e * f % _P, g * h % _P, f * g % _P, e * h % _P)


def _multiply(n, p):
    q = (0, 1, 1, 0)
    while n:
        if n & 1:
            q = _add(q, p)
        p = _add(p, p)
        n >>= 1
    return q


def ed25519_public(seed):
    h = hashlib.sha512(seed).digest()
    n = int.from_bytes(h[:32], "little") & (1 << 254) - 8 | 1 << 254
    x, y, z, _ = _multiply(n, _BASE)
    inverse = pow(z, _P - 2, _P)
    return (y * inverse % _P | (x * inverse % _P & 1) << 255).to_bytes(32, "little")


def ed25519_verify(public, message, signature):
    a, r = _point(public), _point(signature[:32])
    s = int.from_bytes(signature[32:], "little")
    if a is None or r is None or s >= _L:
        return False
    h = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % _L
    p, q = _multiply(s, _BASE), _add(r, _multiply(h, a))
    return (p[0] * q[2] - q[0] * p[2]) % _P == 0 and (p[1] * q[2] - q[1] * p[2]) % _P == 0
