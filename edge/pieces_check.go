package edge

import (
	"encoding/binary"
	"hash/crc32"
)

// pieceSum tells sets of pieces apart in a few words of memory: their number,
// and the sum of a hash of each key.
type pieceSum struct{ number, sum uint64 }

func (p *pieceSum) add(key []byte) {
	// The keys differ in a few bits; a multiplication spreads them.
	h := (binary.BigEndian.Uint64(key) + 1) * 0x9E3779B97F4A7C15
	h ^= uint64(crc32.Checksum(key, castagnoli)) << 17
	p.number++
	p.sum += h * 0xD6E8FEB86659FD93
}

// usePieces notes the pieces that a value names.
func (c *checker) usePieces(g *generation, stored, value []byte) error {
	old, err := heldBy(value)
	if err != nil {
		return c.s.corrupt("database %s, key %x: %v", g.name, stored, err)
	}
	if old.pieces > 0 && !g.split {
		return c.s.corrupt("database %s, key %x: its value is in pieces, and the database is recorded as having none", g.name, stored)
	}
	var key [pieceKeySize]byte
	for n := range old.pieces {
		c.inUse.add(appendPieceKey(key[:0], old.id, n))
	}
	return nil
}

// checkPieces compares the pieces that are there with those that values name:
// each belongs to one.
func (c *checker) checkPieces() error {
	var there pieceSum
	if c.pieces {
		err := c.walk(c.cat.pieces, piecesName, func(key, _ []byte) error {
			if len(key) != pieceKeySize {
				return c.s.corrupt("database %s holds key %x", piecesName, key)
			}
			there.add(key)
			return nil
		})
		if err != nil {
			return err
		}
	}
	if there != c.inUse {
		return c.s.corrupt("database %s holds %d pieces, and values name %d, or others", piecesName, there.number, c.inUse.number)
	}
	return nil
}
